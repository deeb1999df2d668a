"""Settings of a sweep of runs of the rivals, and of runs of any methods together."""

from __future__ import annotations

import typing
from dataclasses import dataclass, fields
from typing import Any

from ldlm.config.baselines import TokenSamplerName
from ldlm.config.fields import again, setting
from ldlm.config.methods import TokenTrainConfig, training_class
from ldlm.config.stages import ComputeConfig, Spelling, SweepConfig, TrainConfig
from ldlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TokenSweepConfig:
    """`ldlm sweep` of a run of a rival: its samplers at every budget, with published settings or others."""

    budgets: tuple[int, ...] = again(SweepConfig, "budgets")
    token_samplers: tuple[str, ...] = setting(
        (),
        "samplers for runs of rivals, as published or with other settings, like remdm:schedule=cap,eta=0.02; none "
        "given means all that a run's method has, as published",
        metavar="NAME[:KEY=VALUE,...]",
    )
    top_ps: tuple[float, ...] = setting(
        (1.0, 0.9), "p of nucleus filtering, for rivals' samplers that have none, published or given", above=0, high=1
    )
    checkpoint: str | None = again(SweepConfig, "checkpoint")
    texts: int = again(SweepConfig, "texts")
    clean_up: bool = again(SweepConfig, "clean_up")
    boundaries: Spelling = again(SweepConfig, "boundaries")
    boundary_tokens: tuple[str, ...] = again(SweepConfig, "boundary_tokens")
    scorer: str = again(SweepConfig, "scorer")
    text_column: str = again(SweepConfig, "text_column")
    batch_size: int | None = again(SweepConfig, "batch_size")
    compute: ComputeConfig = again(TrainConfig, "compute")
    seed: int = again(SweepConfig, "seed")
    device: str = again(SweepConfig, "device")


@dataclass(frozen=True, kw_only=True)
class FrontierConfig(SweepConfig):
    """`ldlm sweep` of any runs together: the settings of LDLM's runs and of the rivals'."""

    token_samplers: tuple[str, ...] = again(TokenSweepConfig, "token_samplers")
    top_ps: tuple[float, ...] = again(TokenSweepConfig, "top_ps")


AnySweepConfig = SweepConfig | TokenSweepConfig


def sampler_in_words(text: str) -> dict[str, Any]:
    """The settings of a sampler as `token_samplers` spells it, like `remdm:schedule=cap,eta=0.02`.

    `InputError` for a name that no method has, for what is not a setting, and for `steps`, which the budgets give.
    """
    name, colon, listed = text.partition(":")
    if name not in typing.get_args(TokenSamplerName):
        raise InputError(f"token_samplers is one of {', '.join(typing.get_args(TokenSamplerName))}, not {name!r}")
    given: dict[str, Any] = {"name": name}
    for pair in listed.split(",") if colon else ():
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise InputError(
                f"token_samplers takes NAME or NAME:KEY=VALUE,..., like remdm:schedule=cap,eta=0.02, and not {text!r}"
            )
        if key in ("name", "steps"):
            why = "the budgets give" if key == "steps" else "stands before the colon"
            raise InputError(f"{text!r} in token_samplers sets its {key}, which {why}; leave {key}= out")
        given[key] = value
    return given


def sweep_of(method: str, config: AnySweepConfig) -> AnySweepConfig:
    """The settings that concern a run of a method; those that it doesn't share take their defaults."""
    cls = TokenSweepConfig if issubclass(training_class(method), TokenTrainConfig) else SweepConfig
    shared = {field.name for field in fields(cls)} & {field.name for field in fields(config)}
    return cls(**{name: getattr(config, name) for name in shared})
