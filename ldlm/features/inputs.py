"""The inputs of an extraction: settings that fit together, the text as it is now, the tokenizer and the encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ldlm import artifact, compute, files, runtime
from ldlm.config import ExtractConfig, Shapes
from ldlm.errors import InputError, Occupied
from ldlm.features import text, textfiles
from ldlm.features.codecs import CODECS
from ldlm.features.digests import Seen
from ldlm.features.encoder import FrozenEncoder, tokenizer_fingerprint
from ldlm.features.shards import CHUNK_ROWS
from ldlm.features.writer import StoreWriter
from ldlm.hub import load_tokenizer
from ldlm.location import REQUEST_BYTES, Location, ObjectPath
from ldlm.progress import SILENT, Progress

Models = tuple[Any, FrozenEncoder]  # the tokenizer and the encoder


class Inputs(NamedTuple):
    """The inputs of an extraction: `config`, with the dataset's commit, and `text`, the fingerprints of the text."""

    config: ExtractConfig
    text: dict[str, str]
    tokenizer: Any
    encoder: FrozenEncoder
    seen: Mapping[str, Seen] = {}  # of the text's files, by path

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the encoder and the tokenizer; `scratch` embeddings have no encoder."""
        encoder = "scratch" if self.config.kind == "scratch" else self.encoder.fingerprint()
        return {"encoder": encoder, "tokenizer": tokenizer_fingerprint(self.tokenizer)}


def find(
    config: ExtractConfig,
    out: Location | None,
    device: str | None = None,
    progress: Progress = SILENT,
    store: Location | None = None,
    begun: Mapping[str, Any] | None = None,
    loaded: Models | None = None,
) -> Inputs:
    """The inputs that `config` names; `InputError` when they are missing or don't fit each other or the output.

    `device` is that of the encoder in this process, given if other processes will run the encoder. `store` is the
    output, given if other processes make it too (`digests`). `begun` is the configuration with which it was begun.
    `loaded` are the tokenizer and the encoder, if they are loaded already.
    """
    _check(config)
    _check_of_datasets(config, begun or {})
    config, fingerprints, seen = _pinned(config, progress, store)
    if not begun:  # a store that an earlier version began so goes on
        _check_held_out(config, fingerprints)
    tokenizer, encoder = loaded or models(config, device)
    _check_requests(config, out, encoder.hidden_dim)
    return Inputs(config, fingerprints, tokenizer, encoder, seen)


def models(config: ExtractConfig, on: str | None = None) -> Models:
    """The tokenizer and the encoder; `InputError` when they don't fit each other or the length of the rows."""
    tokenizer = load_tokenizer(config.encoder)
    kind = "embedding" if config.kind == "scratch" else config.kind  # scratch needs only its width
    device = runtime.device(config.device if on is None else on)
    precision = compute.precision_on(config.precision, device)
    encoder = FrozenEncoder(
        config.encoder, kind=kind, layer=config.layer, seq_len=config.seq_len, device=device, precision=precision
    )
    encoder.check_tokenizer(tokenizer)
    return tokenizer, encoder


def shapes(config: ExtractConfig, tokenizer: Any, encoder: FrozenEncoder) -> Shapes:
    """Sizes of the rows that the extraction writes."""
    return Shapes(seq_len=config.seq_len, hidden_dim=encoder.hidden_dim, vocab_size=len(tokenizer))


def store_writer(config: ExtractConfig, out: Location, shapes: Shapes) -> StoreWriter:
    """The writer of the store that `config` describes."""
    return StoreWriter(
        out,
        shapes,
        codec=CODECS[config.codec],
        compression=config.compression,
        shard_rows=config.shard_rows,
        with_hidden=config.kind != "scratch",
    )


# ----------------------------------------------------------------------------------------------------------------------
# Settings that fit together


def _check(config: ExtractConfig) -> None:
    if bool(config.data) == bool(config.dataset):
        raise InputError("give the text either as --data FILE… or as --dataset NAME")
    if sum(map(bool, (config.validation_docs, config.validation_data, config.validation_split))) > 1:
        raise InputError("hold out rows with one of --validation-docs, --validation-data and --validation-split")
    if config.dataset_config and not config.dataset:
        raise InputError("--dataset-config names a configuration of --dataset NAME; files have none")
    if config.validation_split and not config.dataset:
        raise InputError("--validation-split is a split of --dataset NAME; files are held out with --validation-data")
    step = math.lcm(CHUNK_ROWS, config.batch_size)
    if config.shard_rows % step:
        raise InputError(
            f"shard_rows={config.shard_rows} must be a multiple of batch_size={config.batch_size} and of the chunk of "
            f"{CHUNK_ROWS} rows, so that neither crosses shards; use --shard-rows "
            f"{max(1, round(config.shard_rows / step)) * step}"
        )


def _check_of_datasets(config: ExtractConfig, begun: Mapping[str, Any]) -> None:
    """`InputError` for a revision or split of files, unless an earlier version has begun the store with it."""
    for name in () if config.dataset else ("revision", "split"):
        if getattr(config, name) not in (getattr(ExtractConfig(), name), begun.get(name)):
            raise InputError(f"--{name} is for --dataset NAME, and files have none; leave --{name} out")


def _check_held_out(config: ExtractConfig, fingerprints: Mapping[str, str]) -> None:
    """`InputError` for held-out text that is text to train on as well."""
    if config.validation_split and config.validation_split == config.split:
        raise InputError(
            f"--validation-split {config.validation_split} is the split to train on; name another one, or hold out "
            f"--validation-docs N of it"
        )
    trained_on = {fingerprints[path] for path in config.data}
    for path in config.validation_data:
        if fingerprints[path] in trained_on:
            raise InputError(
                f"{path} is text to train on, so it can't be held out; give another file, or hold out "
                f"--validation-docs N of --data"
            )


def _check_requests(config: ExtractConfig, out: Location | None, width: int) -> None:
    """`InputError` when a shard, before compression, is more than an object store takes in one request."""
    stored = 0 if config.kind == "scratch" else width * CODECS[config.codec].bytes_per_value
    row = round(config.seq_len * max(4, stored))
    if isinstance(out, ObjectPath) and config.shard_rows * row > REQUEST_BYTES:
        step = math.lcm(CHUNK_ROWS, config.batch_size)
        most = REQUEST_BYTES // row // step * step
        raise InputError(
            f"--shard-rows {config.shard_rows} makes files of {files.amount(config.shard_rows * row)}, and an object "
            f"store takes {files.amount(REQUEST_BYTES)} at once; use at most {most or CHUNK_ROWS}"
            f"{'' if most else f', with --batch-size {CHUNK_ROWS}'}"
        )


def _pinned(
    config: ExtractConfig, progress: Progress, store: Location | None
) -> tuple[ExtractConfig, dict[str, str], dict[str, Seen]]:
    """The configuration with the dataset's commit as it is now, the text's fingerprints, and `Seen` of its files."""
    if config.dataset:
        commit, hashes, seen = text.dataset_source(
            config.dataset, config.dataset_config, config.revision, progress, store
        )
        return (config if commit is None else replace(config, revision=commit)), hashes, seen
    seen = textfiles.seen([*config.data, *config.validation_data], progress, store)
    return config, {path: one.sha256 for path, one in seen.items()}, seen


# ----------------------------------------------------------------------------------------------------------------------
# A store that was begun before


def resumed(found: Inputs, begun: Mapping[str, Any], out: Location, progress: Progress) -> Inputs:
    """The inputs with which the store at `out` continues; `begun` is its recorded configuration, or empty.

    A store keeps its precision and its compression, and one of schema 1 keeps what `lm1b` meant then. `Occupied` if
    the dataset now has another commit.
    """
    config, encoder = found.config, found.encoder
    if config.detokenizer == "lm1b" and begun.get("detokenizer") == "lm1b-clean" and artifact.schema(out) == 1:
        progress.note(f"{out} was begun by an earlier version, whose lm1b is lm1b-clean now; it continues with that")
        config = replace(config, detokenizer="lm1b-clean")
    if config.compression == "blosc" and begun.get("compression") == "zstd":
        progress.note(f"{out} was begun with zstd, the compression of earlier versions; it continues with that")
        config = replace(config, compression="zstd")
    _check_revision(config, begun, out)
    if config.precision == "auto" and "precision" in begun:
        encoder.compute_in(begun["precision"])
    return found._replace(config=replace(config, precision=encoder.compute.precision))


def _check_revision(config: ExtractConfig, begun: Mapping[str, Any], out: Location) -> None:
    """`Occupied` when the dataset's branch has moved since the store was `begun` with a configuration."""
    old = begun.get("revision")
    if config.dataset and old not in (None, config.revision) and begun.get("dataset") == config.dataset:
        raise Occupied(
            f"{out} was begun with {config.dataset} at revision {old}, and this is revision {config.revision}; go on "
            f"with --revision {old}, or choose another --output"
        )
