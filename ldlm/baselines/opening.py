"""Runs and exported models of any method, opened by what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ldlm import config as configs
from ldlm import files
from ldlm.baselines.trained import TrainedTokenRun
from ldlm.errors import InputError
from ldlm.sampling import description
from ldlm.sampling.exported import LDLM
from ldlm.sampling.source import Source
from ldlm.sampling.trained_run import TrainedRun

RUNS: dict[str, Callable[..., Source]] = {
    configs.LDLM: TrainedRun,
    **dict.fromkeys(configs.TOKEN_SAMPLERS, TrainedTokenRun),
}


def method_at(path: Path) -> str:
    """The method of a run or exported model; LDLM where a folder is neither, which opening it will say.

    `InputError` for a method that this version does not know.
    """
    found: Any = {}
    if (path / "config.yaml").is_file():
        found = files.read_yaml(path / "config.yaml")
    method = configs.method_of(found)
    if method not in RUNS:
        raise InputError(f"{path} is of the method {method!r}, which this ldlm does not know; use the newer ldlm")
    return method


def defaults(path: Path) -> dict[str, Any]:
    """Settings that a model was exported with, its sampler; empty for a run."""
    if not description.is_exported(path):
        return {}
    return {"sampler": configs.to_dict(description.read(path).sampler)}


def open_source(path: Path, device: torch.device, name: str | None = None) -> Source:
    """Open a run at a checkpoint, the newest intact or the one named, or an exported model, which has no others."""
    if not description.is_exported(path):
        return RUNS[method_at(path)](path, device, name)
    if name is not None:
        raise InputError(f"{path} is an exported model, and has no checkpoints to choose from; leave --checkpoint out")
    return LDLM.from_pretrained(path).to(device)
