"""The description of an exported model, its `config.json`, and the check of the folder around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ldlm import config as configs
from ldlm import files
from ldlm.config import ModelConfig, SamplerConfig, Shapes, TimestepConfig
from ldlm.errors import InputError
from ldlm.model.autoencoder import TokenDecoder
from ldlm.model.diffusion import Schedule
from ldlm.model.joint import build_meta
from ldlm.model.timesteps import TimestepSampler
from ldlm.sampling.generation import JOINT

FORMAT = 1
CONFIG, WEIGHTS, CARD, TOKENIZER = "config.json", "model.safetensors", "README.md", "tokenizer"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Sizes, schedule and sampler of an exported model, and the provenance of its weights."""

    model: ModelConfig
    shapes: Shapes
    latent_shape: tuple[int, int]  # (N, C)
    schedule: Schedule
    t_min: float  # smallest timestep of training
    timestep_p: tuple[float, ...]  # probabilities of equal bins of [0, 1], which make F(t)
    sampler: SamplerConfig  # the default of `sample`
    decoders: dict[str, dict[str, Any]]  # sizes by name, none for `joint`; the first is the default
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The content of `config.json`, but for the hashes."""
        return {"model_type": "ldlm", "format": FORMAT, **configs.to_dict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelDescription:
        """Inverse of `to_json`."""
        return cls(
            model=configs.from_dict(ModelConfig, data["model"]),
            shapes=Shapes(**data["shapes"]),
            latent_shape=(data["latent_shape"][0], data["latent_shape"][1]),
            schedule=Schedule(**data["schedule"]),
            t_min=data["t_min"],
            timestep_p=tuple(data["timestep_p"]),
            sampler=configs.from_dict(SamplerConfig, data["sampler"]),
            decoders=data["decoders"],
            provenance=data["provenance"],
        )

    def networks(self) -> dict[str, nn.Module]:
        """Networks `denoiser` and `decoders/NAME`, on the meta device."""
        joint = build_meta(self.model, self.shapes)
        networks: dict[str, nn.Module] = {"denoiser": joint.denoiser}
        for name, sizes in self.decoders.items():
            with torch.device("meta"):
                networks[f"decoders/{name}"] = joint.decoder() if name == JOINT else TokenDecoder(**sizes)
        return networks

    @property
    def timesteps(self) -> TimestepSampler:
        """The timestep sampler, whose F(t) makes the `learned` grid."""
        sampler = TimestepSampler(TimestepConfig(bins=len(self.timestep_p)), self.t_min)
        sampler.p = np.array(self.timestep_p)
        return sampler


# ----------------------------------------------------------------------------------------------------------------------
# Reading a folder


def is_exported(path: Path) -> bool:
    """Whether a folder holds an exported model, and not a run."""
    return (path / CONFIG).is_file() and _model_type(files.read_json(path / CONFIG)) == "ldlm"


def _model_type(found: Any) -> str | None:
    return found.get("model_type") if isinstance(found, dict) else None


def read(folder: Path) -> ModelDescription:
    """Read `config.json` alone; `InputError` when it describes no model of ours, or is damaged."""
    return ModelDescription.from_json(_record(folder))


def _record(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} has no {CONFIG}{_pickled(folder)}; `ldlm export` makes a whole model")
    found = files.read_json(folder / CONFIG)
    if _model_type(found) != "ldlm":
        raise InputError(f"{folder} holds a model of type {_model_type(found)}, and not one that `ldlm export` made")
    record = files.read_digested(folder / CONFIG, "export or download it again")
    if record["format"] != FORMAT:
        raise InputError(f"{folder} has format {record['format']}, and this ldlm reads {FORMAT}; use the newer ldlm")
    return record


def verified(folder: Path) -> ModelDescription:
    """Read `config.json` and check every file by its hash; `InputError` names one that is missing or damaged."""
    record = _record(folder)
    there = [WEIGHTS, *(f"{TOKENIZER}/{name}" for _, name in files.below(folder / TOKENIZER))]
    for name in sorted({*record["sha256"], *there}):
        if name not in there or not (folder / name).is_file():
            raise InputError(f"{folder} lacks {name}{_pickled(folder)}; export or download it again")
        if files.sha256_file(folder / name) != record["sha256"].get(name):
            raise InputError(f"{folder / name} is damaged: it is not what was exported; export or download it again")
    return ModelDescription.from_json(record)


def _pickled(folder: Path) -> str:
    """A remark on pickled weights in the folder; empty where there are none."""
    pickles = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
    return f" ({', '.join(sorted(pickles))}: pickled weights are never read)" if pickles else ""
