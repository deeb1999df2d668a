"""The phases of a run: which objective its steps minimise, and over which steps the learning rate is scheduled."""

from __future__ import annotations

from typing import NamedTuple

from ldlm.config import TrainConfig, total_steps
from ldlm.model.cosmos import AutoencoderObjective, DenoiserObjective
from ldlm.model.objective import JointObjective, Objective


class Phase(NamedTuple):
    """Steps that minimise one objective."""

    name: str
    objective: type[Objective]
    begins: int  # steps before its first
    steps: int
    schedule_begins: int  # steps before its learning-rate schedule and its weight average begin
    schedule_steps: int

    @property
    def begins_anew(self) -> bool:
        """Whether the learning-rate schedule and the weight average start again with this phase."""
        return self.schedule_begins == self.begins


def phases(config: TrainConfig) -> list[Phase]:
    """The phases of a run in order: one of joint training, or COSMOS's two; no other code asks which.

    In the first edition one schedule spans both of COSMOS's phases.
    """
    if config.model.space != "cosmos":
        return [Phase("joint", JointObjective, 0, config.steps, 0, config.steps)]
    first, rest = config.cosmos.steps, total_steps(config) - config.cosmos.steps
    schedules = ((0, config.steps), (0, config.steps)) if config.recipe.edition == 1 else ((0, first), (first, rest))
    return [
        Phase("autoencoder", AutoencoderObjective, 0, first, *schedules[0]),
        Phase("diffusion", DenoiserObjective, first, rest, *schedules[1]),
    ]


def phase_at(config: TrainConfig, step: int) -> Phase:
    """The phase of the step that follows `step` steps."""
    return [phase for phase in phases(config) if phase.begins <= step][-1]
