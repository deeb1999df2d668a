"""Text → a sealed store of normalised hidden states (SPEC 1, 2, 11).

Four phases, each of which resumes where it was killed:

1. tokenise the pieces of the text, spooled to disk, which makes them token rows;
2. run the encoder on the blocks of rows that the statistics are taken over, and spool their raw states;
3. shard by shard: take a block's states from the spool or from the encoder, normalise, store, record;
4. seal.

So the encoder sees every row once. It sees a row again where a kill cost the shard that the row was in, and where
machines share an object store and no disk: each of them spools the sample's states, and two may make the same shard.
The spool of a store in an object store is in a local cache.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldlm import runtime
from ldlm.artifact import Artifact
from ldlm.config import ExtractConfig, Shapes
from ldlm.errors import InputError
from ldlm.features import corpus, estimate, inputs
from ldlm.features.codecs import CODECS
from ldlm.features.extraction import prepare
from ldlm.features.shards import SPLITS
from ldlm.location import Location
from ldlm.progress import SILENT, Progress
from ldlm.training import cost


def plan(config: ExtractConfig, out: Location | None = None) -> dict[str, Any]:
    """Rows, tokens, shards, bytes per codec before compression, free space and hours of an extraction.

    Hours are those of one process on this device, at the rates at which it tokenises the text, and then runs the
    encoder or, where that is slower, makes the bytes of shards; the disk is left out. `online` runs the encoder over
    the sample for the statistics only. Of a large corpus only the first documents are tokenised, and the rest is
    `estimated` from their number. `saved_share_of_step` is the encoder's part of a training step that runs it, in
    FLOPs, for a model of the paper's size: what the store saves.
    """
    config, _, tokenizer, encoder = inputs.find(config, out)
    counts = {split: corpus.count_rows(config, tokenizer, split) for split in SPLITS}
    rows = {split: count.rows for split, count in counts.items()}
    tokens, width = sum(rows.values()) * config.seq_len, 0 if config.kind == "scratch" else encoder.hidden_dim
    packing = sum(count.seconds for count in counts.values()) / max(1, sum(count.packed for count in counts.values()))
    writer = inputs.store_writer(config, Path(), inputs.shapes(config, tokenizer, encoder))
    rate = estimate.tokens_per_second(config, encoder, writer) if writer.with_hidden else 0.0
    sample = estimate.sampled_blocks(config, rows["train"]) * config.batch_size * config.seq_len
    encoding = (tokens if writer.codec.dtypes else min(tokens, sample)) / rate if rate else 0.0
    return {
        "rows": rows,
        "estimated": not all(count.exact for count in counts.values()),
        "tokens": tokens,
        "shards": sum(map(writer.shards, rows.values())),
        "bytes": {codec.name: estimate.stored_bytes(tokens, width, codec) for codec in CODECS.values()},
        "bytes_free": estimate.free_bytes(out or Path()) if isinstance(out, Path | None) else None,
        "tokens_per_second": round(rate),
        "hours": (packing * sum(rows.values()) + encoding) / 3600,
        "saved_share_of_step": cost.encoder_share(encoder.network, config.seq_len),
    }


def shapes(config: ExtractConfig) -> Shapes:
    """Sizes of the rows that the extraction would write."""
    return inputs.shapes(config, *inputs.models(config))


def run(config: ExtractConfig, out: Location, *, overwrite: bool = False, progress: Progress = SILENT) -> Artifact:
    """Write the store `out` and seal it. The same call again resumes an interrupted one, or joins a running one."""
    if overwrite and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"--overwrite can't be shared by several processes; remove {out} first")
    progress = progress if runtime.reports() else SILENT
    with ExitStack() as held:
        extraction, result = prepare(config, out, overwrite=overwrite, progress=progress, held=held)
        if result.complete:
            extraction.clear()  # killed between the seal and this
            progress.note(f"{out} is complete; nothing to do")
            return result

        with extraction.unless_sealed():
            # Bad text leaves nothing, even of an interrupted extraction: what is left would refuse the corrected text.
            with replace(result, state="new").or_nothing("ledger/*", held=held):
                packed = extraction.pack()
            with result.or_nothing("ledger/*", held=held):
                if packed:
                    extraction.check_space(extraction.rows)
                    extraction.encode_sample()
                    extraction.describe()
                    extraction.write_shards()
                    extraction.make_missing(held)
        return extraction.seal(result)
