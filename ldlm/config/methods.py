"""Training and sampling of the token-level rivals, as settings, with the published values of each.

Steps, batch, learning rate and warm-up come from a preset if it has them, as LDLM's do; so do depth and width. The rest
is each method's own: betas, weight decay, weight average, and how it corrupts tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar, Literal

from ldlm.config.baselines import (
    TOKEN_SAMPLERS,
    BackboneConfig,
    CANDINoiseConfig,
    DuoCurriculumConfig,
    FLMBackboneConfig,
    MDLMConfig,
    SamplerOfTokens,
)
from ldlm.config.distill import distilled
from ldlm.config.export import ExportConfig, WeightPrecision
from ldlm.config.fields import again, from_dict, from_stored, names_of, setting, types_of
from ldlm.config.model import DenoiserSizes, OptimizerConfig, preset
from ldlm.config.stages import ComputeConfig, SampleConfig, TrainConfig
from ldlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TokenModelConfig:
    """The network of a rival: as deep and wide as LDLM's denoiser of the same preset."""

    denoiser: DenoiserSizes = setting(DenoiserSizes(), "depth, width and heads")
    backbone: BackboneConfig = setting(BackboneConfig(), "dropout and soft caps")


@dataclass(frozen=True, kw_only=True)
class FLMModelConfig(TokenModelConfig):
    """The network of FLM."""

    backbone: FLMBackboneConfig = setting(FLMBackboneConfig(), "dropout and soft caps")


@dataclass(frozen=True, kw_only=True)
class TokenOptimizerConfig(OptimizerConfig):
    """The optimiser and the weight average of the rivals, as their published code has them."""

    lr_warmup_steps: int = again(OptimizerConfig, "lr_warmup_steps", 2_500)
    weight_decay: float = again(OptimizerConfig, "weight_decay", 0.0)
    beta2: float = again(OptimizerConfig, "beta2", 0.999)


@dataclass(frozen=True, kw_only=True)
class TokenTrainConfig:
    """`ldlm train --method …`: what the rivals share."""

    time: ClassVar[str] = "time t, 0 without noise"  # against which held-out losses are shown

    method: str
    steps: int = again(TrainConfig, "steps", help="optimiser steps")
    batch_size: int = again(TrainConfig, "batch_size")
    shuffle_rows: int | None = again(TrainConfig, "shuffle_rows")
    model: TokenModelConfig = setting(TokenModelConfig(), "the network")
    optimizer: TokenOptimizerConfig = setting(TokenOptimizerConfig(), "the optimiser and the EMA")
    accumulate: int = again(TrainConfig, "accumulate")
    recompute: bool = again(TrainConfig, "recompute")
    compute: ComputeConfig = again(TrainConfig, "compute")
    max_nonfinite: int = again(TrainConfig, "max_nonfinite")
    log_every: int = again(TrainConfig, "log_every")
    eval_every: int = again(TrainConfig, "eval_every")
    eval_rows: int = again(TrainConfig, "eval_rows")
    save_every: int = again(TrainConfig, "save_every")
    keep: int = again(TrainConfig, "keep")
    plots: bool = again(TrainConfig, "plots")
    seed: int = again(TrainConfig, "seed")
    device: str = again(TrainConfig, "device")

    @property
    def curriculum_steps(self) -> int:
        """Steps of the curriculum, which come first; 0 for a method without one."""
        return 0

    @property
    def phase_steps(self) -> dict[str, int]:
        """Phases of the training, in order, and the steps of each; phases without steps are left out."""
        first = self.curriculum_steps
        steps = {"curriculum": first, "training": self.steps - first}
        return {name: count for name, count in steps.items() if count}


@dataclass(frozen=True, kw_only=True)
class MDLMTrainConfig(TokenTrainConfig):
    """MDLM (Sahoo et al., 2024), from which the samplers of ReMDM can draw as well."""

    method: Literal["mdlm"] = setting("mdlm", "masked diffusion")


@dataclass(frozen=True, kw_only=True)
class DuoTrainConfig(TokenTrainConfig):
    """Duo (Sahoo et al., 2025), from which Ψ-samplers can draw as well."""

    method: Literal["duo"] = setting("duo", "uniform-state diffusion")
    curriculum: DuoCurriculumConfig = setting(DuoCurriculumConfig(), "the first part of the training")

    @property
    def curriculum_steps(self) -> int:
        """Steps of the curriculum: a share of all steps."""
        return self.curriculum.steps_of(self.steps)


@dataclass(frozen=True, kw_only=True)
class CANDITrainConfig(TokenTrainConfig):
    """CANDI (Pynadath et al., 2025)."""

    method: Literal["candi"] = setting("candi", "masked diffusion whose masks show a noisy token")
    noise: CANDINoiseConfig = setting(CANDINoiseConfig(), "σ(t)")


@dataclass(frozen=True, kw_only=True)
class FLMTrainConfig(TokenTrainConfig):
    """FLM (Lee et al., 2026)."""

    time: ClassVar[str] = "warped time τ, 1 without noise"

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

# Settings of a preset that the rivals share with LDLM; those of LDLM's other parts mean nothing to them.
SHARED_BY_PRESETS = ("steps", "batch_size", "optimizer", "log_every", "eval_every", "eval_rows", "save_every")


def method_of(settings: Mapping[str, Any]) -> str:
    """The method of a training's settings: their `method`, or LDLM if they have none.

    `InputError` if it is not a name.
    """
    method = settings.get("method")
    if method is not None and not isinstance(method, str):
        raise InputError(f"method is one name of {', '.join(METHODS)}, not {method!r}")
    return LDLM if method is None else method


def training_class(method: str) -> type:
    """The class of settings of a method's training; `InputError` lists the methods."""
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}; choose one of {', '.join(METHODS)}")
    return METHODS[method]


def of_method(settings: Mapping[str, Any]) -> tuple[type, dict[str, Any]]:
    """The class of a training's settings, by their `method`, and the settings in the form that it takes.

    `InputError` for a setting of other methods.
    """
    method = method_of(settings)
    cls, settings = training_class(method), dict(settings)
    _check_owner(method, {key: value for key, value in settings.items() if key != "method"}, METHODS)
    if cls is TrainConfig:
        settings.pop("method", None)  # LDLM's settings are older than the others', and name no method
    return cls, settings


def _check_owner(method: str, settings: Mapping[str, Any], classes: Mapping[str, type], prefix: str = "") -> None:
    """`InputError` for a setting that other methods have; `classes` are those of the settings, by method."""
    for key, value in settings.items():
        having = {name: types_of(cls)[key] for name, cls in classes.items() if key in names_of(cls)}
        if having and method not in having:
            raise InputError(f"{prefix}{key} is a setting of {', '.join(having)}, and this training is of {method}")
        nested: dict[str, Any] = {name: hint for name, hint in having.items() if is_dataclass(hint)}
        if method in nested and isinstance(value, Mapping):
            _check_owner(method, value, nested, f"{prefix}{key}.")


def unknown(what: object, method: str) -> str:
    """Error message for something that a newer version has made with a method that this one lacks."""
    return f"{what} is of the method {method!r}, which this ldlm does not know; use the newer ldlm"


def stored_training(settings: Mapping[str, Any]) -> AnyTrainConfig:
    """The configuration of a run, of any method, from its artefact (`from_stored`).

    `InputError` for a method that this version does not know.
    """
    if method_of(settings) not in METHODS:
        raise InputError(unknown("this run", method_of(settings)))
    if (found := distilled(settings)) is not None:
        return found
    cls, settings = of_method(settings)
    stored: AnyTrainConfig = from_stored(cls, settings)
    return stored


def preset_for(cls: type, name: str) -> dict[str, Any]:
    """Settings of a preset for a class of settings: for a rival's, those that it shares with LDLM."""
    overrides = preset(name).overrides
    if not issubclass(cls, TokenTrainConfig):
        return dict(overrides)
    kept = {key: overrides[key] for key in SHARED_BY_PRESETS if key in overrides}
    denoiser = overrides.get("model", {}).get("denoiser", {})
    sizes = {key: denoiser[key] for key in names_of(DenoiserSizes) if key in denoiser}
    return {**kept, "model": {"denoiser": sizes}} if sizes else kept


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
    compute: ComputeConfig = again(TrainConfig, "compute")
    seed: int = again(SampleConfig, "seed")
    device: str = again(SampleConfig, "device")


def token_sampler(method: str, settings: Mapping[str, Any]) -> SamplerOfTokens:
    """The sampler of a method that settings describe: the one that they `name`, or else the method's first.

    `InputError` for a sampler that the method does not have, and for settings that are not the sampler's or are out of
    bounds.
    """
    fitting = TOKEN_SAMPLERS[method]
    name = settings.get("name", next(iter(fitting)))
    if name not in list(fitting):
        raise InputError(f"a run of method {method} has no sampler {name!r}; it draws with {' or '.join(fitting)}")
    made: SamplerOfTokens = from_dict(fitting[name], settings, "sampler.")
    return made


@dataclass(frozen=True, kw_only=True)
class TokenExportConfig:
    """`ldlm export` of a run of a rival."""

    method: str = setting("mdlm", "method of the run")
    checkpoint: str | None = again(ExportConfig, "checkpoint")
    sampler: SamplerOfTokens = setting(MDLMConfig(), "default sampler of the exported model")
    precision: WeightPrecision = again(ExportConfig, "precision")
    push_to_hub: str | None = again(ExportConfig, "push_to_hub")

    @classmethod
    def with_defaults(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Settings with their sampler built, since which names it may have depends on the method."""
        return {**data, "sampler": token_sampler(data.get("method", cls.method), data.get("sampler", {}))}


AnySampleConfig = SampleConfig | TokenSampleConfig
AnyExportConfig = ExportConfig | TokenExportConfig
