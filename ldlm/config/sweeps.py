"""Settings of a sweep of runs of the rivals, and of runs of any methods together."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ldlm.config.baselines import TokenSamplerName
from ldlm.config.fields import again, setting
from ldlm.config.methods import TokenTrainConfig, training_class
from ldlm.config.stages import ComputeConfig, Spelling, SweepConfig


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
