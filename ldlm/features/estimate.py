"""The size of an extraction and the time that it takes, before it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ldlm import files
from ldlm.config import ExtractConfig
from ldlm.features import codecs
from ldlm.features.codecs import Codec, Parts
from ldlm.features.encoder import FrozenEncoder, Statistics
from ldlm.features.writer import StoreWriter


def stored_bytes(tokens: int, width: int, codec: Codec) -> int:
    """What that many tokens and their states take, before compression."""
    return round(tokens * (width * codec.bytes_per_value + 4))


def sampled_blocks(config: ExtractConfig, rows: int) -> int:
    """Over how many blocks of `rows` training rows the statistics are taken."""
    blocks, wanted = -(-rows // config.batch_size), config.stats_tokens
    return blocks if wanted is None else min(blocks, -(-wanted // (config.batch_size * config.seq_len)))


def tokens_per_second(config: ExtractConfig, encoder: FrozenEncoder, writer: StoreWriter) -> float:
    """Tokens per second, over blocks of random tokens, of the slower of the two that run side by side.

    One encodes, the other compresses and hashes what will be written; the disk is left out.
    """
    tokens = torch.randint(writer.shapes.vocab_size, (config.batch_size, config.seq_len))
    statistics, parts = Statistics.of(encoder(tokens).cpu().numpy()), dict[str, np.ndarray]()
    mean_D, std_D = statistics.mean_D.astype(np.float32), statistics.std_D.astype(np.float32)

    def encode() -> None:
        states = encoder(tokens).cpu().numpy()
        if writer.codec.dtypes:
            parts.update(stored(states, mean_D, std_D, writer.codec)[0])

    def compress() -> None:
        for data in writer.encoded(0, parts, tokens.numpy().astype(np.int32)).values():
            files.sha256(data)

    return min(tokens.numel() * _per_second(part) for part in (encode, compress))


def _per_second(work: Callable[[], None], seconds: float = 1.0) -> float:
    work()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        work()
        done += 1
    return done / (time.perf_counter() - started)


def existing_parent(path: Path | None) -> Path:
    path = files.target(path or Path())
    return next(folder for folder in (path, *path.parents) if folder.exists())


def stored(states: np.ndarray, mean_D: np.ndarray, std_D: np.ndarray, codec: Codec) -> tuple[Parts, codecs.Error]:
    """States (R, L, D), normalised, as the codec stores them, and what that loses."""
    h = (states - mean_D) / std_D
    parts = codecs.encode(h, codec)
    return parts, codecs.Error.of(h, parts, codec)
