"""Text → a sealed store of normalised hidden states (SPEC 1, 2, 11).

Four phases, each of which resumes where it was killed:

1. pack the text into token rows, spooled to disk;
2. run the encoder on the blocks of rows that the statistics are taken over, and spool their raw states;
3. shard by shard: take a block's states from the spool or from the encoder, normalise, store, record;
4. seal.

So the encoder sees every row once; again only where a kill cost the shard it was in, and where machines that have an
object store and no common disk take the statistics, of which each spools its own states, or meet at a shard. Any number
of processes, under torchrun or started by hand, on one machine or on a shared file system, divide blocks and shards
among them. Blocks are the same rows whatever the number of processes or the point of resumption, and statistics merge
in block order; the bytes of a store depend on its configuration and text alone. A store in an object store is made the
same way, with the spool in a local cache.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldlm.artifact import Artifact
from ldlm.config import ExtractConfig, Shapes
from ldlm.errors import InputError
from ldlm.features import corpus, estimate, inputs
from ldlm.features.codecs import CODECS
from ldlm.features.extraction import clear, prepare, world
from ldlm.features.shards import SPLITS
from ldlm.location import Location
from ldlm.progress import SILENT, Progress
from ldlm.training import cost


def plan(config: ExtractConfig, out: Location | None = None) -> dict[str, Any]:
    """What it would write and take: rows, tokens, shards, bytes per codec before compression, free space, hours.

    Hours are those of one process on this device, at the rates at which it tokenises the text, and then runs the
    encoder or, where that is slower, makes the bytes of shards; the disk is left out. `online` runs the encoder over
    the sample for the statistics only. Of a large corpus only the first documents are tokenised, and the rest is
    `estimated` from their number. `saved_share_of_step` is the encoder's part of a training step that runs it, in
    FLOPs, for a model of the paper's size: what the store saves.
    """
    inputs.check(config)
    config, _ = inputs.pinned(config)
    tokenizer, encoder = inputs.models(config)
    inputs.check_requests(config, out, encoder.hidden_dim)
    counts = {split: corpus.count_rows(config, tokenizer, split) for split in SPLITS}
    rows = {split: count.rows for split, count in counts.items()}
    tokens, width = sum(rows.values()) * config.seq_len, encoder.hidden_dim
    packing = sum(count.seconds for count in counts.values()) / max(1, sum(count.packed for count in counts.values()))
    writer = inputs.writer_of(config, Path(), inputs.shapes_of(config, tokenizer, encoder))
    rate = estimate.tokens_per_second(config, encoder, writer) if writer.with_hidden else 0.0
    sample = estimate.sampled_blocks(config, rows["train"]) * config.batch_size * config.seq_len
    encoding = (tokens if writer.codec.dtypes else min(tokens, sample)) / rate if rate else 0.0
    return {
        "rows": rows,
        "estimated": not all(count.exact for count in counts.values()),
        "tokens": tokens,
        "shards": sum(-(-count // config.shard_rows) for count in rows.values()),
        "bytes": {
            codec.name: estimate.stored_bytes(tokens, 0 if config.kind == "scratch" else width, codec)
            for codec in CODECS.values()
        },
        "bytes_free": shutil.disk_usage(estimate.existing_parent(out)).free if isinstance(out, Path | None) else None,
        "tokens_per_second": round(rate),
        "hours": (packing * sum(rows.values()) + encoding) / 3600,
        "saved_share_of_step": cost.encoder_share(encoder.network, config.seq_len),
    }


def shapes(config: ExtractConfig) -> Shapes:
    """Sizes of the rows that it would write."""
    tokenizer, encoder = inputs.models(config)
    return inputs.shapes_of(config, tokenizer, encoder)


def run(config: ExtractConfig, out: Location, *, overwrite: bool = False, progress: Progress = SILENT) -> Artifact:
    """Write the store `out` and seal it. The same call again takes up an interrupted one, or joins a running one."""
    if overwrite and world()[1] > 1:
        raise InputError(f"--overwrite can't be shared by several processes; remove {out} first")
    progress = SILENT if world()[0] else progress
    with ExitStack() as held:
        extraction, result = prepare(config, out, overwrite=overwrite, progress=progress, held=held)
        if result.complete:
            clear(extraction.work, out)  # killed between the seal and this
            progress.note(f"{out} is complete; nothing to do")
            return result

        # Until the text is packed there is nothing to keep, also of what an interruption left.
        with replace(result, state="new").or_nothing(unless="ledger"):
            packed = extraction.pack()
        with result.or_nothing(unless="ledger"):
            if packed:
                extraction.check_space(extraction.rows)
                extraction.encode_sample()
                extraction.describe()
                extraction.write_shards()
                if extraction.wanting():
                    extraction.write_shards()
        return extraction.seal(result)
