"""The size of an extraction and the time it will take, before it runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from ldlm import files
from ldlm.config import ExtractConfig
from ldlm.features import codecs
from ldlm.features.codecs import Codec
from ldlm.features.encoder import FrozenEncoder, Statistics
from ldlm.features.writer import StoreWriter


def sampled_blocks(config: ExtractConfig, rows: int) -> int:
    """The number of blocks, of those in `rows` training rows, over which the statistics are taken."""
    blocks, wanted = -(-rows // config.batch_size), config.stats_tokens
    return blocks if wanted is None else min(blocks, -(-wanted // (config.batch_size * config.seq_len)))


def stores_states(config: ExtractConfig) -> bool:
    """Whether the store holds states, not just tokens and statistics."""
    return config.kind != "scratch" and config.codec != "online"


# ----------------------------------------------------------------------------------------------------------------------
# Bytes


def stored_bytes(tokens: int, width: int, codec: Codec) -> int:
    """Bytes of a store of so many tokens and their states of `width` channels, before compression."""
    return round(tokens * (width * codec.bytes_per_value + 4))


def spool_bytes(config: ExtractConfig, width: int, rows: Mapping[str, int]) -> tuple[int, int]:
    """Bytes that an extraction spools, given the rows of each split: token rows, and the sample's float32 states."""
    sample = sampled_blocks(config, rows["train"]) * config.batch_size * config.seq_len
    return 4 * sum(rows.values()) * config.seq_len, 4 * sample * (width if stores_states(config) else 0)


def smaller_choice(config: ExtractConfig) -> str:
    """The codec to use if the disk is too small, as the end of a message; empty if none is smaller."""
    smaller = {"int8-token": "online, which stores no states", "online": ""}
    choice = "" if config.kind == "scratch" else smaller.get(config.codec, "int8-token")
    return f" or choose --codec {choice}" if choice else ""


def free_bytes(path: Path) -> int:
    """Bytes free on the disk where `path` is or will be."""
    path = files.target(path)
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


# ----------------------------------------------------------------------------------------------------------------------
# Time


def tokens_per_second(config: ExtractConfig, encoder: FrozenEncoder, writer: StoreWriter) -> float:
    """Measured tokens per second of the slower of two parts that run side by side: encoding; compressing and hashing.

    They are measured over one block of random tokens, without the disk.
    """
    tokens = torch.randint(writer.shapes.vocab_size, (config.batch_size, config.seq_len))
    statistics, parts = Statistics.of(encoder(tokens).cpu().numpy()), dict[str, np.ndarray]()
    mean_D = torch.from_numpy(statistics.mean_D).to(encoder.device, torch.float32)
    std_D = torch.from_numpy(statistics.std_D).to(encoder.device, torch.float32)

    def encode() -> None:
        states = encoder(tokens)
        if writer.codec.dtypes:
            parts.update(codecs.encode((states - mean_D) / std_D, writer.codec)[0]())
        else:
            states.cpu()

    def compress() -> None:
        for data in writer.encoded(0, parts, tokens.numpy().astype(np.int32)).values():
            files.sha256(data)

    return min(tokens.numel() * _per_second(part) for part in (encode, compress))


def largest_share(items: int, workers: int) -> float:
    """The share of `items` equal items that the busiest of `workers` does when they divide them evenly."""
    return -(-items // workers) / max(1, items)


def _per_second(work: Callable[[], None], seconds: float = 0.3) -> float:
    work()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        work()
        done += 1
    return done / (time.perf_counter() - started)
