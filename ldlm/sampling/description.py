"""The description of an exported model of LDLM: the content of its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldlm import config as configs
from ldlm.config import DiffusionConfig, ModelConfig, SamplerConfig, Shapes, TimestepConfig, WeightPrecision
from ldlm.model.autoencoder import TokenDecoder
from ldlm.model.diffusion import Schedule
from ldlm.model.joint import build_meta
from ldlm.model.timesteps import TimestepSampler
from ldlm.sampling.generation import JOINT


class Normalisation(nn.Module):
    """Mean and standard deviation (D,) of the frozen encoder's states, used to normalise those of a prompt."""

    def __init__(self, mean_D: Tensor, std_D: Tensor) -> None:
        super().__init__()
        self.mean_D: Tensor
        self.std_D: Tensor
        self.register_buffer("mean_D", mean_D)
        self.register_buffer("std_D", std_D)


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Sizes, schedule and sampler of an exported model, and the provenance of its weights."""

    model: ModelConfig
    shapes: Shapes
    latent_shape: tuple[int, int]  # (N, C)
    schedule: Schedule
    t_min: float  # smallest timestep of training
    timestep_p: tuple[float, ...]  # probabilities of equal bins of [0, 1], which define F(t)
    sampler: SamplerConfig  # the default of `sample`
    decoders: dict[str, dict[str, Any]]  # sizes by name, empty for `joint`; the first is the default
    provenance: dict[str, Any]
    precision: WeightPrecision = "fp32"  # of the stored weights
    encoder_parameters: int | None = None  # of the frozen encoder; None if it is not in the folder

    def to_json(self) -> dict[str, Any]:
        """The content of `config.json`, except for the hashes."""
        return configs.to_dict(self)

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
            precision=data.get("precision", "fp32"),  # exports of earlier versions do not record it
            encoder_parameters=data.get("encoder_parameters"),
        )

    def networks(self) -> dict[str, nn.Module]:
        """Networks `denoiser` and `decoders/NAME`, and `normalisation` for prompts, on the meta device."""
        joint = build_meta(self.model, self.shapes)
        networks: dict[str, nn.Module] = {"denoiser": joint.denoiser}
        if self.model.condition == "prefix":
            empty_D = torch.empty(self.shapes.hidden_dim, device="meta")
            networks["normalisation"] = Normalisation(empty_D, empty_D)
        for name, sizes in self.decoders.items():
            with torch.device("meta"):
                networks[f"decoders/{name}"] = joint.decoder() if name == JOINT else TokenDecoder(**sizes)
        return networks

    @property
    def decoder_sha256(self) -> dict[str, str]:
        """Hashes of the fine-tuned decoders' manifests, by name; exports of earlier versions record none."""
        found: dict[str, str] = self.provenance.get("decoder_sha256", {})
        return found

    @property
    def student(self) -> SamplerConfig | None:
        """The sampler that a distilled model has learned; None for other models."""
        found = self.provenance.get("student")
        return None if found is None else configs.from_stored(SamplerConfig, found)

    @property
    def self_conditioned(self) -> bool:
        """Whether the denoiser has learned to read ẑ_prev."""
        settings = self.provenance.get("settings", {})
        return configs.from_stored(DiffusionConfig, settings.get("diffusion", {})).self_conditioned

    @property
    def timesteps(self) -> TimestepSampler:
        """The timestep sampler, whose F(t) defines the `learned` grid."""
        sampler = TimestepSampler(TimestepConfig(bins=len(self.timestep_p)), self.t_min)
        sampler.p = np.array(self.timestep_p)
        return sampler
