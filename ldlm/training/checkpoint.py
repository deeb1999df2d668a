"""Checkpoints: safetensors and JSON in a folder that is either whole or absent.

    checkpoints/step-00001000/
        model.safetensors  ema.safetensors  optimizer.safetensors
        state.json         step, samples seen, timestep sampler
        manifest.json      sha256 of each of the above, written last

A checkpoint is written to a temporary folder, fsynced and renamed. Readers take the newest one that verifies.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ldlm import files
from ldlm.errors import InputError

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, verified or not."""

    path: Path

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return int(self.path.name.removeprefix("step-"))

    @property
    def state(self) -> dict[str, Any]:
        """State beside the tensors, as JSON."""
        return files.read_json(self.path / "state.json")

    @property
    def digest(self) -> str:
        """Hash of the manifest, and so of all files."""
        return files.sha256_file(self.path / "manifest.json")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `name` (model, ema or optimizer), on the CPU."""
        return load_file(self.path / f"{name}.safetensors")

    def fault(self) -> str | None:
        """Why the checkpoint does not verify; None if every byte is as it was written."""
        try:
            recorded = files.read_json(self.path / "manifest.json")["sha256"]
            for name, digest in recorded.items():
                if files.sha256_file(self.path / name) != digest:
                    return f"{name} is damaged"
        except (InputError, OSError, KeyError, TypeError, AttributeError) as error:
            return f"it is incomplete ({error})"
        return None


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Checkpoint:
    """Write the checkpoint of a step whole or not at all; an existing one of that step is replaced."""
    target = folder / f"step-{step:08d}"
    temporary = folder / f".{target.name}.tmp"
    for left in folder.glob(".step-*.tmp"):  # by a killed process, perhaps at another step, or by `_delete`
        shutil.rmtree(left, ignore_errors=True)
    files.make_folder(temporary)
    for name, group in tensors.items():
        path = temporary / f"{name}.safetensors"
        with files.writing(target / path.name):
            save_file({key: value.detach().contiguous().cpu() for key, value in group.items()}, path)
        files.by_umask(path)
    files.write_json(temporary / "state.json", {"step": step, **state})
    digests = {path.name: files.sha256_file(path) for path in sorted(temporary.iterdir())}
    files.write_json(temporary / "manifest.json", {"sha256": digests})
    files.fsync_tree(temporary)
    if target.exists():
        _delete(target)
    temporary.rename(target)
    files.fsync_dir(folder)
    return Checkpoint(target)


def all_in(folder: Path) -> list[Checkpoint]:
    """Every checkpoint in `folder`, oldest first, verified or not."""
    if not folder.is_dir():
        return []
    return [Checkpoint(path) for path in sorted(folder.iterdir()) if _NAME.fullmatch(path.name)]


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies; a damaged one is skipped with a warning."""
    for checkpoint in reversed(all_in(folder)):
        fault = checkpoint.fault()
        if fault is None:
            return checkpoint
        log.warning("skipping checkpoint %s: %s", checkpoint.path, fault)
    return None


def named(folder: Path, name: str) -> Checkpoint:
    """The checkpoint called `name`; `InputError` if it is missing or does not verify."""
    there = {checkpoint.path.name: checkpoint for checkpoint in all_in(folder)}
    if name not in there:
        raise InputError(f"there is no checkpoint {name!r} in {folder} (there are: {', '.join(there) or 'none'})")
    fault = there[name].fault()
    if fault is not None:
        raise InputError(f"checkpoint {there[name].path}: {fault}; choose another, or leave --checkpoint out")
    return there[name]


def prune(folder: Path, keep: int, verified: dict[Path, str]) -> None:
    """Delete all checkpoints but the newest `keep` that verify; nothing is deleted while the newest does not.

    `verified`: path → `digest` of those that this process has written or seen verify, which are not read again; others
    are read, and added to it, once there is something to delete. One that can't be deleted is left to a later pruning:
    it is no reason to end a training.
    """
    checkpoints = all_in(folder)
    if len(checkpoints) <= keep or not _verifies(checkpoints[-1], verified):
        return
    kept = 1
    for old in reversed(checkpoints[:-1]):
        if kept < keep and _verifies(old, verified):
            kept += 1
        else:
            try:
                _delete(old.path)
            except OSError as error:
                log.warning("checkpoint %s could not be deleted: %s", old.path, error)


def _verifies(checkpoint: Checkpoint, verified: dict[Path, str]) -> bool:
    """Whether a checkpoint verifies, or did when its manifest was as it is now."""
    with suppress(OSError):
        if checkpoint.path in verified and checkpoint.digest == verified[checkpoint.path]:
            return True
    if checkpoint.fault() is not None:
        return False
    verified[checkpoint.path] = checkpoint.digest
    return True


def _delete(path: Path) -> None:
    """Take a checkpoint away and delete its files; those that can't be deleted yet are left to the next `save`.

    On NFS a folder stays while another process has a file in it open. `OSError` if the checkpoint can't be renamed.
    """
    aside = path.with_name(f".{path.name}.{files.unique()}.tmp")
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
