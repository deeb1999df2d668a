"""Settings of `ldlm distill`, and those of the run that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ldlm.config.fields import again, from_stored, setting
from ldlm.config.model import OptimizerConfig, SamplerConfig
from ldlm.config.stages import ComputeConfig, FinetuneConfig, TrainConfig
from ldlm.errors import InputError

T_MIN = SamplerConfig().t_min
START = 32  # evaluations of the solver that a run is distilled from


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """`ldlm distill`: progressive distillation of the denoiser (Salimans & Ho, 2022), in rounds."""

    evaluations: int = setting(4, "evaluations of the denoiser per text in the end", low=1)
    start: int | None = setting(
        None,
        f"evaluations of ddim that the first round halves; none means {START}, or for a distilled run its own number",
        low=2,
    )
    guidance: float = setting(
        1.0,
        "w of self-conditioning guidance that the student learns to draw with, in one evaluation a step; 1 is off",
        low=0,
        high=100,
    )
    grid: Literal["learned", "log-snr"] | None = setting(
        None,
        "equal steps of ddim in: learned, F(t) of adaptive timesteps; log-snr, ln(α²/σ²); auto is learned, log-snr "
        "where F(t) is t, or for a distilled run its own",
        none="auto",
    )
    t_min: float | None = again(
        SamplerConfig, "t_min", None, help=f"last time of the grid; none means {T_MIN}, or for a distilled run its own"
    )
    steps: int | None = setting(
        None,
        "optimiser steps of each round; none means 1/5 of the run's, at most 50,000, or for a distilled run those of "
        "its rounds",
        low=1,
    )
    checkpoint: str | None = again(FinetuneConfig, "checkpoint")
    batch_size: int | None = again(FinetuneConfig, "batch_size")
    shuffle_rows: int | None = again(FinetuneConfig, "shuffle_rows")
    lr: float | None = setting(
        None,
        "peak learning rate of each round, in which it falls to 0; none means 1/3 of the run's, or for a distilled run "
        "that of its rounds",
        above=0,
    )
    compute: ComputeConfig = again(TrainConfig, "compute")
    accumulate: int | None = again(FinetuneConfig, "accumulate")
    max_nonfinite: int = again(FinetuneConfig, "max_nonfinite")
    log_every: int = again(FinetuneConfig, "log_every")
    eval_every: int = again(FinetuneConfig, "eval_every")
    eval_rows: int = again(FinetuneConfig, "eval_rows")
    save_every: int = again(FinetuneConfig, "save_every")
    keep: int = again(FinetuneConfig, "keep")
    plots: bool = again(TrainConfig, "plots")
    seed: int = again(FinetuneConfig, "seed")
    device: str = again(FinetuneConfig, "device")

    @staticmethod
    def of_file(data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings in a file; those of a distilled run are a section of its config.yaml."""
        found = data.get("distillation", data)
        if not isinstance(found, Mapping):
            raise InputError(f"distillation must be a mapping of settings, not {found!r}")
        return found

    @property
    def sampler(self) -> SamplerConfig:
        """The sampler that the student is for: one evaluation a step."""
        t_min = T_MIN if self.t_min is None else self.t_min
        return SamplerConfig(steps=self.evaluations, solver="ddim", grid=self.grid, t_min=t_min)


def halvings(start: int, evaluations: int) -> int:
    """Number of rounds, each of which halves the evaluations; `InputError` if halving does not lead there."""
    rounds, left = 0, start
    while left > evaluations and left % 2 == 0:
        left, rounds = left // 2, rounds + 1
    if left != evaluations or not rounds:
        reached = ", ".join(str(start >> k) for k in range(1, start.bit_length()) if start % (1 << k) == 0)
        raise InputError(
            f"--evaluations {evaluations} can't be reached from {start} by halving, which leads to "
            f"{reached or 'no whole number'}; choose one of these, or another --start"
        )
    return rounds


@dataclass(frozen=True, kw_only=True)
class UndistilledConfig:
    """The settings of a run that a distillation replaces, and its decoders are fine-tuned with."""

    steps: int = setting(1, "optimiser steps taken", low=1)
    batch_size: int = again(TrainConfig, "batch_size")
    accumulate: int = again(TrainConfig, "accumulate")
    optimizer: OptimizerConfig = again(TrainConfig, "optimizer")


@dataclass(frozen=True, kw_only=True)
class DistilledConfig(TrainConfig):
    """A distilled run: the settings of the run that it was distilled from, with those of the distillation.

    Settings that both have are the distillation's, and `steps` counts all rounds. In `distillation`, what the user left
    at none is filled in. `undistilled` is of the first run, however often it has been distilled. Only what an earlier
    version began has another `final` than the default.
    """

    distillation: DistillConfig = setting(DistillConfig(), "the distillation")
    final: Literal["x0", "state"] = setting(
        "x0",
        "what a student's last step is taught: x0, the teacher's last ẑ, which is decoded; state, the ẑ that leads to "
        "the teacher's state at t_min, as in distillations of earlier versions",
        before="state",
    )
    undistilled: UndistilledConfig | None = setting(
        None, "settings of the run before; none where an earlier version distilled it", identity=False
    )

    def learned(self, state: Mapping[str, Any]) -> SamplerConfig:
        """The sampler that a checkpoint with this state has learned."""
        return replace(self.distillation.sampler, steps=state["evaluations"])


def distilled(settings: Mapping[str, Any]) -> DistilledConfig | None:
    """The settings of a distilled run from its config.yaml; None for any other run."""
    return from_stored(DistilledConfig, settings) if "distillation" in settings else None
