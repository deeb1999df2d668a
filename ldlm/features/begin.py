"""Taking part in an extraction: begin or resume the store, or join one that another process has begun."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldlm import artifact, files, runtime
from ldlm.artifact import Artifact
from ldlm.config import ExtractConfig
from ldlm.errors import InputError, StorageError
from ldlm.features import corpus, inputs, ledger
from ldlm.features.extraction import Extraction
from ldlm.location import Location, ObjectPath, local, user_cache
from ldlm.progress import SILENT, Progress


def prepare(
    config: ExtractConfig,
    out: Location,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
    held: ExitStack | None = None,
    device: str | None = None,
    loaded: inputs.Models | None = None,
) -> tuple[Extraction, Artifact]:
    """Find text, tokenizer and encoder, and begin or resume the store `out`; `InputError` if one doesn't fit it.

    `Occupied` if it is the store that doesn't fit, since it has other settings.
    Until `held` closes, no other process may overwrite or repair the store. `device` and `loaded` as in `inputs.find`.
    """
    # No hashes of the text are written to a prefix that may yet be refused.
    meet = isinstance(out, ObjectPath) and artifact.is_open(out, "features")
    begun = artifact.recorded_config(out) if not overwrite and (out / "config.yaml").is_file() else {}
    found = inputs.find(config, out, device, progress, store=out if meet else None, begun=begun, loaded=loaded)
    found = inputs.resumed(found, begun, out, progress)
    config, fingerprints = found.config, found.fingerprints()
    if overwrite:  # what the text's beginning shows is refused before anything is deleted
        corpus.check_beginning(config, found.tokenizer)
    result = artifact.begin(
        out,
        "features",
        config,
        {"text": found.text, **fingerprints},
        overwrite=overwrite,
        reads=local(*config.data, *config.validation_data, config.encoder, config.dataset),
        shared=True,
        held=held,
        note=progress.note,
    )
    work = _work_folder(result)
    made = Extraction(config, out, work, found.tokenizer, found.encoder, fingerprints, progress, seen=found.seen)
    made.own_seal.at_work = result.at_work
    return made, result


def joined(config: ExtractConfig, out: Location, fingerprints: dict[str, str], mark: str) -> Extraction:
    """The extraction of a store that another process has begun with this configuration and these inputs.

    `InputError` if the store is missing, or if the tokenizer or the encoder here is not the store's. `StorageError` if
    the store there does not have the `mark` (`sealing.Seal`) of the one that was begun.
    """
    found = inputs.Inputs(config, {}, *inputs.models(config))
    _check_same(found, fingerprints, out)
    work = _work_folder(artifact.open_artifact(out, "features", complete=False))
    made = Extraction(config, out, work, found.tokenizer, found.encoder, fingerprints, SILENT)
    if made.own_seal.mark != mark:
        raise StorageError(f"{out} was begun anew by another process; run the same command again")
    return made


def loaded_again(config: ExtractConfig, store: Artifact, where: str | None) -> inputs.Models:
    """The tokenizer and the encoder of a store: from the folder or of the hub name `where`, or from where they were.

    `InputError` if they can't be loaded, or are not those of the store, which `config` made.
    """
    runtime.device(config.device)  # an error about it says nothing of the encoder
    config = config if where is None else replace(config, encoder=where)
    try:
        loaded = inputs.models(config)
        remedy = "" if where is None else "; give that of the store"
        _check_same(inputs.Inputs(config, {}, *loaded), store.inputs, store.path, remedy)
    except InputError as error:
        if where is None:
            raise type(error)(f"{error}; say where the encoder is with --encoder DIR") from None
        raise
    recorded = ledger.recorded_encoder(store.path)
    if "revision" in recorded:  # the weights are the same, and the store's fingerprint has it
        loaded[1].revision = recorded["revision"]
    return loaded


def _check_same(found: inputs.Inputs, fingerprints: Mapping[str, Any], out: Location, remedy: str = "") -> None:
    """`InputError` if the tokenizer or the encoder is not that of the store `out`."""
    changed = [name for name, digest in found.fingerprints().items() if digest != fingerprints[name]]
    if changed:
        others = "is not that" if len(changed) == 1 else "are not those"
        whose = f"the {' and the '.join(changed)} of {found.config.encoder} here"
        raise InputError(f"{whose} {others} of {out}{remedy}")


def _work_folder(result: Artifact) -> Path:
    """The folder for token rows, raw states and locks: in the store or, for an object store, in the user's cache."""
    if isinstance(result.path, Path):
        return result.path
    identity = files.sha256_json([str(result.path), result.inputs, result.config])
    return user_cache() / identity[:16]
