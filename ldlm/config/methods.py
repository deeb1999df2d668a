"""Training, sampling and sweeps of the token-level rivals, as settings (BASELINES 1, 4, 6).

Steps, batch, learning rate and warm-up come from a preset where it has them, as LDLM's do; so do depth and width. What
is a method's own is the rest, with its published values: betas, weight decay, weight average, and how it corrupts
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ldlm.config.baselines import (
    TOKEN_SAMPLERS,
    BackboneConfig,
    CANDINoiseConfig,
    DuoCurriculumConfig,
    FLMBackboneConfig,
    MDLMConfig,
    SamplerOfTokens,
    TokenSamplerName,
)
from ldlm.config.fields import again, from_dict, setting
from ldlm.config.model import DenoiserConfig, OptimizerConfig, preset
from ldlm.config.stages import ComputeConfig, SampleConfig, Spelling, SweepConfig, TrainConfig
from ldlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TokenModelConfig:
    """The network of a rival: as deep and wide as LDLM's denoiser of the same preset."""

    denoiser: DenoiserConfig = setting(DenoiserConfig(), "depth, width and heads")
    backbone: BackboneConfig = setting(BackboneConfig(), "dropout and soft caps")


@dataclass(frozen=True, kw_only=True)
class FLMModelConfig(TokenModelConfig):
    """The network of FLM."""

    backbone: FLMBackboneConfig = setting(FLMBackboneConfig(), "dropout and soft caps")


@dataclass(frozen=True, kw_only=True)
class TokenOptimizerConfig(OptimizerConfig):
    """AdamW and the weight average of the rivals (BASELINES 1.2)."""

    lr_warmup_steps: int = again(OptimizerConfig, "lr_warmup_steps", 2_500)
    weight_decay: float = again(OptimizerConfig, "weight_decay", 0.0)
    beta2: float = again(OptimizerConfig, "beta2", 0.999)


@dataclass(frozen=True, kw_only=True)
class TokenTrainConfig:
    """`ldlm train --method …`: what the rivals share."""

    method: str
    steps: int = again(TrainConfig, "steps", help="optimiser steps")
    batch_size: int = again(TrainConfig, "batch_size")
    model: TokenModelConfig = setting(TokenModelConfig(), "the network")
    optimizer: TokenOptimizerConfig = setting(TokenOptimizerConfig(), "AdamW and EMA")
    accumulate: int = again(TrainConfig, "accumulate")
    recompute: bool = again(TrainConfig, "recompute")
    compute: ComputeConfig = setting(ComputeConfig(), "precision and kernels", flags=True)
    max_nonfinite: int = again(TrainConfig, "max_nonfinite")
    log_every: int = again(TrainConfig, "log_every")
    eval_every: int = again(TrainConfig, "eval_every")
    eval_rows: int = again(TrainConfig, "eval_rows")
    save_every: int = again(TrainConfig, "save_every")
    keep: int = again(TrainConfig, "keep")
    seed: int = again(TrainConfig, "seed")
    device: str = again(TrainConfig, "device")


@dataclass(frozen=True, kw_only=True)
class MDLMTrainConfig(TokenTrainConfig):
    """MDLM (Sahoo et al., 2024), with which the samplers of ReMDM draw as well."""

    method: Literal["mdlm"] = setting("mdlm", "masked diffusion")


@dataclass(frozen=True, kw_only=True)
class DuoTrainConfig(TokenTrainConfig):
    """Duo (Sahoo et al., 2025), with which Ψ-samplers draw as well."""

    method: Literal["duo"] = setting("duo", "uniform-state diffusion")
    curriculum: DuoCurriculumConfig = setting(DuoCurriculumConfig(), "the first part of the training")


@dataclass(frozen=True, kw_only=True)
class CANDITrainConfig(TokenTrainConfig):
    """CANDI (Pynadath et al., 2025)."""

    method: Literal["candi"] = setting("candi", "masked diffusion whose masks show a noisy token")
    noise: CANDINoiseConfig = setting(CANDINoiseConfig(), "σ(t)")


@dataclass(frozen=True, kw_only=True)
class FLMTrainConfig(TokenTrainConfig):
    """FLM (Lee et al., 2026)."""

    method: Literal["flm"] = setting("flm", "a flow on one-hot vectors")
    model: FLMModelConfig = setting(FLMModelConfig(), "the network")


LDLM = "ldlm"
METHODS: dict[str, type] = {
    LDLM: TrainConfig,
    "mdlm": MDLMTrainConfig,
    "duo": DuoTrainConfig,
    "candi": CANDITrainConfig,
    "flm": FLMTrainConfig,
}
AnyTrainConfig = TrainConfig | TokenTrainConfig

# Settings of a preset that the rivals share with LDLM: what LDLM's other parts have is none of theirs.
SHARED_BY_PRESETS = ("steps", "batch_size", "optimizer", "log_every", "eval_every", "eval_rows", "save_every")


def method_of(settings: Mapping[str, Any]) -> str:
    """The method that settings of a training are of: their `method`, and LDLM where they have none."""
    return str(settings.get("method", LDLM))


def training_class(method: str) -> type:
    """The class of settings of a method's training; `InputError` lists the methods."""
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}; choose one of {', '.join(METHODS)}")
    return METHODS[method]


def preset_for(cls: type, name: str) -> dict[str, Any]:
    """Settings of a preset for a class of settings: those of LDLM that it shares."""
    overrides = preset(name).overrides
    if not issubclass(cls, TokenTrainConfig):
        return dict(overrides)
    kept = {key: overrides[key] for key in SHARED_BY_PRESETS if key in overrides}
    sizes = overrides.get("model", {}).get("denoiser")
    return kept if sizes is None else {**kept, "model": {"denoiser": sizes}}


# ----------------------------------------------------------------------------------------------------------------------
# Sampling


@dataclass(frozen=True, kw_only=True)
class TokenSampleConfig:
    """`ldlm sample` from a run of a rival."""

    num_samples: int = again(SampleConfig, "num_samples")
    sampler: SamplerOfTokens = setting(MDLMConfig(), "the reverse process")
    checkpoint: str | None = again(SampleConfig, "checkpoint")
    batch_size: int | None = again(SampleConfig, "batch_size")
    clean_up: bool = again(SampleConfig, "clean_up")
    compute: ComputeConfig = setting(ComputeConfig(), "precision and kernels", flags=True)
    seed: int = again(SampleConfig, "seed")
    device: str = again(SampleConfig, "device")


def token_sampler(method: str, settings: Mapping[str, Any]) -> SamplerOfTokens:
    """The sampler of a method that settings describe, by `name` the method's first one where they have none.

    `InputError` for a sampler that the method has not, and for settings that the sampler has not or are out of bounds.
    """
    fitting = TOKEN_SAMPLERS[method]
    name = settings.get("name", next(iter(fitting)))
    if name not in fitting:
        raise InputError(f"a run of method {method} has no sampler {name!r}; it draws with {' or '.join(fitting)}")
    made: SamplerOfTokens = from_dict(fitting[name], settings, "sampler.")
    return made


# ----------------------------------------------------------------------------------------------------------------------
# Sweeps


@dataclass(frozen=True, kw_only=True)
class TokenSweepConfig:
    """`ldlm sweep` of a run of a rival: its samplers at every budget, each with its published settings."""

    budgets: tuple[int, ...] = again(SweepConfig, "budgets")
    token_samplers: tuple[TokenSamplerName, ...] = setting(
        (), "samplers of runs of the rivals; none given means all that a run's method has"
    )
    top_ps: tuple[float, ...] = setting(
        (1.0, 0.9), "p of nucleus filtering of those of them that have no published one", above=0, high=1
    )
    checkpoint: str | None = again(SweepConfig, "checkpoint")
    texts: int = again(SweepConfig, "texts")
    clean_up: bool = again(SweepConfig, "clean_up")
    boundaries: Spelling = again(SweepConfig, "boundaries")
    boundary_tokens: tuple[str, ...] = again(SweepConfig, "boundary_tokens")
    scorer: str = again(SweepConfig, "scorer")
    text_column: str = again(SweepConfig, "text_column")
    batch_size: int | None = again(SweepConfig, "batch_size")
    compute: ComputeConfig = setting(ComputeConfig(), "precision and kernels", flags=True)
    seed: int = again(SweepConfig, "seed")
    device: str = again(SweepConfig, "device")


@dataclass(frozen=True, kw_only=True)
class FrontierConfig(SweepConfig):
    """`ldlm sweep` of any runs together: the settings of LDLM's runs and of the rivals'."""

    token_samplers: tuple[TokenSamplerName, ...] = again(TokenSweepConfig, "token_samplers")
    top_ps: tuple[float, ...] = again(TokenSweepConfig, "top_ps")


AnySweepConfig = SweepConfig | TokenSweepConfig


def sweep_of(method: str, config: AnySweepConfig) -> AnySweepConfig:
    """The settings that concern a run of a method; those that it doesn't share take their defaults."""
    cls = TokenSweepConfig if issubclass(training_class(method), TokenTrainConfig) else SweepConfig
    shared = {field.name for field in fields(cls)} & {field.name for field in fields(config)}
    return cls(**{name: getattr(config, name) for name in shared})
