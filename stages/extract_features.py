"""Text → a sealed store of normalised hidden states (SPEC 1, 2, 11).

Four phases, each of which resumes where it was killed:

1. tokenise the text piece by piece, and spool the token rows to disk;
2. run the encoder on the blocks of rows that the statistics are taken over, and spool their raw states;
3. shard by shard: take a block's states from the spool or from the encoder, normalise, store, record;
4. seal.

So the encoder sees every row once. It sees a row again if a kill lost the shard that the row was in, and if machines
share an object store but no disk: then each spools the sample's states in a local cache, and two may make the same
shard. Token rows are in the object store, beside the shards, and are made once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldlm import launcher, runtime
from ldlm.artifact import Artifact
from ldlm.config import ExtractConfig, LaunchConfig, Shapes
from ldlm.errors import InputError
from ldlm.features import corpus, estimate, inputs, ledger, pieces, ray_engine, text
from ldlm.features.begin import prepare
from ldlm.features.codecs import CODECS
from ldlm.features.corpus import Count
from ldlm.features.extraction import Extraction
from ldlm.features.ray_engine import RayEngine
from ldlm.features.shards import SPLITS
from ldlm.features.shares import Share, share_of, share_of_environment
from ldlm.location import Location
from ldlm.progress import SILENT, Progress
from ldlm.training import cost

ALONE = LaunchConfig()
REMARKED_ROWS, MUCH_UNKNOWN = 1024, 0.02  # the first rows, and a share of unknown words that rare names don't explain


def plan(
    config: ExtractConfig,
    out: Location | None = None,
    launch: LaunchConfig = ALONE,
    counts: Mapping[str, Count] | None = None,
) -> dict[str, Any]:
    """Rows, tokens, shards, bytes per codec before compression, free space and hours of an extraction.

    Hours are for `launch.workers` processes, each on a device like this one, at the measured rates of tokenising and
    then of running the encoder or, if that is slower, of making the bytes of shards; or at `launch.rate`. Shards are
    whole and so is the largest piece of the text, and disk and network are left out. `online` runs the encoder only
    over the sample for the statistics. Of a large corpus only the first documents are tokenised, and the rest is
    `estimated` from their number; `launch.tokens` makes the text a sample of a longer one, whose pieces are shared
    evenly. `saved_share_of_step` is the encoder's share of the FLOPs of a training step that runs it, for a model of
    the paper's size: what the store saves. `counts` are the rows of the splits, if they were counted before.
    """
    _check(launch)
    found = inputs.find(config, out)
    config, tokenizer, encoder = found.config, found.tokenizer, found.encoder
    counts = counts or {split: corpus.count_rows(config, tokenizer, split) for split in SPLITS}
    rows = {split: count.rows for split, count in counts.items()}
    if launch.tokens is not None:
        rows = {"train": -(-launch.tokens // config.seq_len), "validation": 0}
    tokens, width = sum(rows.values()) * config.seq_len, 0 if config.kind == "scratch" else encoder.hidden_dim
    packing = sum(count.seconds for count in counts.values()) / max(1, sum(count.packed for count in counts.values()))
    writer = inputs.store_writer(config, Path(), inputs.shapes(config, tokenizer, encoder))
    workers, shards = launch.workers or 1, sum(map(writer.shards, rows.values()))
    packing *= _largest_share(config, launch) * sum(rows.values())
    rate = launch.rate or estimate.tokens_per_second(config, encoder, writer) if writer.with_hidden else 0.0
    blocks = estimate.sampled_blocks(config, rows["train"])
    sample = blocks * config.batch_size * config.seq_len
    if writer.codec.dtypes:
        of_one = tokens * estimate.largest_share(shards, workers)  # tokens that the busiest worker encodes
    else:
        of_one = min(tokens, sample) * estimate.largest_share(blocks, workers)
    encoding = of_one / rate if rate else 0.0
    return {
        "rows": rows,
        "estimated": launch.tokens is not None or not all(count.exact for count in counts.values()),
        "tokens": tokens,
        "shards": shards,
        "bytes": {codec.name: estimate.stored_bytes(tokens, width, codec) for codec in CODECS.values()},
        "spool_bytes": sum(estimate.spool_bytes(config, width, rows)),
        "bytes_free": estimate.free_bytes(out or Path()) if isinstance(out, Path | None) else None,
        "tokens_per_second": round(rate),
        "workers": workers,
        "hours": (packing + encoding) / 3600,
        "saved_share_of_step": cost.encoder_share(encoder.network, config.seq_len),
    }


def _largest_share(config: ExtractConfig, launch: LaunchConfig) -> float:
    """The share of the text that the busiest worker tokenises: at least the largest piece.

    Nobody knows the pieces of a text of which there is a sample.
    """
    workers = launch.workers or 1
    sizes = [piece.size for piece in pieces.plan(config, pieces.SIZE)] if workers > 1 and launch.tokens is None else []
    return max(1 / workers, max(sizes, default=0) / max(1, sum(sizes)))


def shapes(config: ExtractConfig) -> Shapes:
    """Sizes of the rows that the extraction would write."""
    return inputs.shapes(config, *inputs.models(config))


def run(
    config: ExtractConfig,
    out: Location,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
    launch: LaunchConfig = ALONE,
    loaded: inputs.Models | None = None,
) -> Artifact:
    """Write the store `out` and seal it. The same call again resumes an interrupted one, or joins a running one.

    With `launch.only` it ends after that phase; the store is complete after the last one. `loaded` are the tokenizer
    and the encoder, if they are not to be loaded from where the configuration says.
    """
    _check_not_planning(launch)
    _check(launch)
    share = _share(launch)
    if overwrite:
        check_overwrite(out, launch)
    progress = progress if launcher.reports() else SILENT
    # The connection to Ray is closed first: its workers use the store for as long as this process is connected.
    with ExitStack() as held, ExitStack() as connected:
        engine = None
        if launch.engine == "ray" and launch.only != "seal":
            engine = connected.enter_context(ray_engine.connected(config, launch, progress))
            config = engine.decided(out, overwrite)
        _check_precision(config, out, overwrite, launch)
        device = None if engine is None else "cpu"  # with an engine, this process encodes nothing
        how: Any = {"overwrite": overwrite, "progress": progress, "held": held, "device": device, "loaded": loaded}
        extraction, result = prepare(config, out, **how)
        extraction.share = share
        if result.complete:
            extraction.clear()  # for a process that was killed between the seal and this
            progress.note(f"{out} is complete; nothing to do")
            return result
        with result.or_nothing("ledger/*", held=held):
            _check_begun(extraction, launch)
        if launch.only == "seal":
            return extraction.seal(result)

        with extraction.unless_sealed():
            # Bad text leaves nothing behind, even from an interrupted extraction, whose remains would refuse the
            # corrected text.
            with replace(result, state="new").or_nothing("ledger/*", held=held):
                if engine is not None:
                    engine.serve(extraction)
                packed = extraction.pack(None if engine is None else engine.pieces)
            with result.or_nothing("ledger/*", held=held):
                if packed:
                    _remark_on_tokens(extraction)
                    extraction.check_space(extraction.rows)
                    if launch.only != "pack":
                        _encode(extraction, engine, held)
        connected.close()  # a worker that is still loading the encoder would write to a sealed store
        return extraction.seal(result) if launch.only is None or extraction.sealed else result  # by another process


def _share(launch: LaunchConfig) -> Share | None:
    """The share of this process; with an engine the command is one process, even in a SLURM step with several tasks."""
    if launch.engine is not None:
        return None
    return share_of_environment() if launch.share is None else share_of(launch.share)


def _remark_on_tokens(extraction: Extraction) -> None:
    """Note that the tokenizer does not know the text, as happens with that of stories on any other text."""
    if (extraction.out / "store.json").is_file():  # it was noted before, and finished rows are not read again
        return
    tokenizer = extraction.tokenizer
    share = text.unknown_share(extraction.tokens["train"].read(0, REMARKED_ROWS), tokenizer)
    if share > MUCH_UNKNOWN:
        extraction.progress.note(
            f"{share:.0%} of the tokens are {tokenizer.unk_token}: the tokenizer of {extraction.config.encoder} does "
            f"not know this text; give an encoder that does, for example one made by `ldlm pretrain-encoder --data …`"
        )


def _encode(extraction: Extraction, engine: RayEngine | None, held: ExitStack) -> None:
    """Write every shard, from packed rows. `held` is that of `prepare`."""
    blocks, shards = (None, None) if engine is None else (engine.blocks, engine.shards)
    extraction.encode_sample(blocks)
    (extraction if engine is None else engine).describe()
    extraction.write_shards(shards)
    extraction.make_missing(held, shards)


# ----------------------------------------------------------------------------------------------------------------------
# Launches that are refused


def _check_not_planning(launch: LaunchConfig) -> None:
    """`InputError` for settings that only a plan has."""
    if launch.tokens is not None or launch.rate is not None:
        raise InputError("--tokens and --rate are for planning; add --dry-run")
    if launch.engine is None and launch.workers is not None:
        raise InputError("--workers needs --engine ray or --dry-run; without an engine, start that many processes")


def _check(launch: LaunchConfig) -> None:
    """`InputError` for an invalid share, and for settings of a launch that don't go together."""
    if launch.engine is None and launch.address is not None:
        raise InputError("--address is that of a Ray cluster; add --engine ray")
    if launch.engine is not None and launch.share is not None:
        raise InputError("--share is for processes that are started one by one, and --engine ray starts its own")
    if launch.share is not None:
        share_of(launch.share)


def check_overwrite(out: Location, launch: LaunchConfig) -> None:
    """`InputError` if a process that is launched like this may not begin the store anew."""
    if launch.only in ("encode", "seal"):
        raise InputError(
            f"--overwrite would delete {out}, which --only {launch.only} goes on with; leave --overwrite out, or begin "
            f"a new store with --only pack --overwrite"
        )
    job, share = launcher.processes() > 1, _share(launch)
    if job or (share is not None and share.of > 1):
        where = "the launcher (RANK, SLURM_… or JOB_…)" if job or launch.share is None else "--share"
        raise InputError(f"--overwrite is for one process, and {where} names several; remove {out} first")


def _check_precision(config: ExtractConfig, out: Location, overwrite: bool, launch: LaunchConfig) -> None:
    """`InputError` if packing alone, on a machine without a GPU, would settle the precision of the encoder."""
    if launch.only != "pack" or config.precision != "auto" or config.kind == "scratch":
        return
    begun = not overwrite and (out / "config.yaml").is_file()
    if not begun and runtime.device(config.device).type == "cpu":
        raise InputError(
            "--only pack begins the store, and --precision auto would be fp32 here, where no GPU is used; give "
            "--precision bf16 to encode on GPUs, or --precision fp32"
        )


def _check_begun(extraction: Extraction, launch: LaunchConfig) -> None:
    """`InputError`, with the phase that is next, if the one before this is not done."""
    out = extraction.out
    if launch.only not in ("encode", "seal"):
        return
    count = "all"
    if launch.only == "seal" and (out / "store.json").is_file():
        if not (missing := len(ledger.missing_shards(out)[0])):
            return
        count = f"{missing:,} of {len(ledger.shard_names(ledger.read_description(out))):,}"
    if not extraction.packing.done:
        raise InputError(f"the text of {out} is not packed; run the same command with --only pack first")
    if launch.only == "seal":
        raise InputError(f"{count} shards of {out} are missing; run the same command with --only encode first")
