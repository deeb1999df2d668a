"""Opens runs and exported models of any method, recognising which they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ldlm import config as configs
from ldlm import files
from ldlm.baselines.exported import TokenDiffusion
from ldlm.baselines.trained import TrainedTokenRun
from ldlm.config import DistilledConfig, Shapes, TrainConfig, stored_training
from ldlm.errors import InputError
from ldlm.sampling import pretrained
from ldlm.sampling.exported import LDLM
from ldlm.sampling.pretrained import ExportedModel
from ldlm.sampling.source import Source, checkpoint_of
from ldlm.sampling.trained_run import TrainedRun, timesteps_of
from ldlm.sampling.trajectories import ANY, Offer
from ldlm.training import checkpoint

MODELS: dict[str, type[ExportedModel]] = {model.model_type: model for model in (LDLM, TokenDiffusion)}
RUNS: dict[str, type[TrainedRun] | type[TrainedTokenRun]] = {
    **dict.fromkeys(configs.METHODS, TrainedTokenRun),
    configs.LDLM: TrainedRun,
}  # by method


def method_at(path: Path) -> str:
    """The method of a run or exported model; LDLM if the folder is neither, which opening it will report.

    `InputError` for a method that this version does not know.
    """
    found: Any = {}
    if pretrained.model_type(path) is not None:
        found = files.read_json(path / pretrained.CONFIG)
    elif (path / "config.yaml").is_file():
        found = files.read_yaml(path / "config.yaml")
    method = configs.method_of(found)
    if method not in configs.METHODS:
        raise InputError(configs.unknown(path, method))
    return method


@dataclass(frozen=True)
class About:
    """Settings, sizes and tokenizer of a run or an exported model, without its weights."""

    settings: Mapping[str, Any]  # of its training
    shapes: Shapes
    tokenizer: str  # fingerprint


def about(path: Path) -> About:
    """Settings, sizes and tokenizer of a run or an exported model; `InputError` for a run without a checkpoint."""
    kind = pretrained.model_type(path)
    if kind is not None:
        described = MODELS[kind].described(path)
        found = described.provenance
        return About(found["settings"], described.shapes, found["encoder"]["tokenizer"])
    if not (path / "features.json").is_file():
        checkpoint_of(path, None)
    features = files.read_json(path / "features.json")
    settings = files.read_yaml(path / "config.yaml")
    return About(settings, Shapes(**features["shapes"]), features["encoder"]["tokenizer"])


def defaults(path: Path, name: str | None = None) -> dict[str, Any]:
    """The sampler that a model was exported with, or that a run was distilled to, as settings; empty for other runs.

    A distilled run's is that of the checkpoint that `open_source` opens.
    """
    kind = pretrained.model_type(path)
    if kind is not None:
        return {"sampler": configs.to_dict(MODELS[kind].described(path).sampler)}
    found = files.read_yaml(path / "config.yaml") if (path / "config.yaml").is_file() else {}
    distilled = configs.distilled(found)
    if distilled is None:
        return {}
    return {"sampler": configs.to_dict(distilled.learned(checkpoint_of(path, name).state))}


def offer(path: Path, name: str | None = None) -> Offer:
    """The trajectories offered for a run of LDLM, at the checkpoint that `open_source` opens, or for its export."""
    if pretrained.model_type(path) is not None:
        described = LDLM.described(path)
        return Offer(described.timesteps.flat, described.sampler)
    if name is None and not checkpoint.all_in(path / "checkpoints"):
        return ANY  # a plan is made for it, and `open_source` says that it is too early to draw
    training, saved = stored_training(files.read_yaml(path / "config.yaml")), checkpoint_of(path, name)
    known = training.learned(saved.state) if isinstance(training, DistilledConfig) else None
    return Offer(timesteps_of(cast(TrainConfig, training), saved).flat, known)


def open_source(path: Path, device: torch.device, name: str | None = None) -> Source:
    """Open a run at a checkpoint, the newest intact or the one named, or an exported model, which has only one."""
    if pretrained.model_type(path) is None:
        return RUNS[method_at(path)](path, device, name)
    _check_no_name(path, name)
    return cast(Source, open_exported(path).to(device))


def _check_no_name(path: Path, name: str | None) -> None:
    if name is not None:
        raise InputError(f"{path} is an exported model, and has no checkpoints to choose from; leave --checkpoint out")


def open_exported(path: Path) -> ExportedModel:
    """Open an exported model of any method."""
    return MODELS[pretrained.model_type(path) or LDLM.model_type].from_folder(path)
