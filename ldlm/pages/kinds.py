"""Contents of pages by kind of training: LDLM's joint training, a distillation, or a rival's training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldlm.config import AnyTrainConfig, DistilledConfig, TrainConfig
from ldlm.pages import curves, report_distilled, report_results, report_tokens, report_training, token_curves
from ldlm.pages.chart import Chart
from ldlm.pages.curves import Course, Row
from ldlm.pages.report_data import Figure, Report, Section


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of training: the charts of its pictures, and the parts of its report."""

    training: Callable[[Course[Any]], list[Chart]]
    timesteps: Callable[[Course[Any]], list[Chart]]
    dynamics: Callable[[Mapping[str, Sequence[Row]], Mapping[str, str]], list[Chart]]  # metrics and colours by run

    what: Callable[[Report[Any]], str]  # the run in two sentences
    steps: Callable[[Report[Any]], int]  # of the whole training
    held_out: Callable[[Report[Any]], list[Figure]]  # figures of the newest evaluation
    sections: Sequence[Callable[[Report[Any]], Section | None]]


JOINT = Kind(
    training=lambda course: curves.training(course.metrics),
    timesteps=lambda course: curves.timesteps(course.metrics),
    dynamics=curves.dynamics,
    what=report_training.what,
    steps=report_training.steps,
    held_out=report_training.held_out,
    sections=(
        report_training.losses, report_training.timesteps, report_training.latents, report_results.decoders,
        report_results.samples, report_results.trace, report_results.frontier, report_results.interpolation,
        report_results.likelihood, report_training.speed, report_training.provenance,
    ),
)  # fmt: skip
DISTILLED = Kind(
    training=report_distilled.training,
    timesteps=report_distilled.timesteps,
    dynamics=report_distilled.dynamics,
    what=report_distilled.what,
    steps=report_distilled.steps,
    held_out=report_distilled.newest,
    sections=(
        report_distilled.losses, report_results.decoders, report_results.samples, report_results.trace,
        report_results.frontier, report_results.interpolation, report_training.speed, report_training.provenance,
    ),
)  # fmt: skip
TOKENS = Kind(
    training=token_curves.training,
    timesteps=token_curves.timesteps,
    dynamics=token_curves.dynamics,
    what=report_tokens.what,
    steps=report_tokens.steps,
    held_out=report_tokens.held_out,
    sections=(
        report_tokens.losses, report_tokens.optimisation, report_tokens.samples, report_results.frontier,
        report_results.likelihood, report_training.speed, report_tokens.provenance,
    ),
)  # fmt: skip


def of(config: AnyTrainConfig) -> Kind:
    """The kind of a training."""
    if isinstance(config, DistilledConfig):
        return DISTILLED
    return JOINT if isinstance(config, TrainConfig) else TOKENS
