"""Weights in training: their optimiser step, and what a checkpoint stores of them.

`joint.py` trains all parts together, `decoder.py` a decoder alone, `distillation.py` a student of a denoiser, and
`ldlm.baselines.learner` a rival; all take their steps from here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ldlm.compute import Compute
from ldlm.config import AnyTrainConfig
from ldlm.errors import InputError
from ldlm.features.batch import Batch
from ldlm.runtime import ALONE, World
from ldlm.training import checkpoint
from ldlm.training.checkpoint import Checkpoint
from ldlm.training.ema import EMA
from ldlm.training.optim import load_optimizer_tensors, optimizer_tensors


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step launched in this process; reading one of its tensors waits for the device."""

    number: int  # of steps before it
    index_B: Tensor  # positions of this process's rows in the batch
    position: int  # of the batch's first row in the stream
    lr: float
    gradient_norm: Tensor
    finite: Tensor  # false if nothing was updated


@dataclass(frozen=True)
class Bound:
    """A setting that fixes the number of steps of a run."""

    why: str  # what it does over those steps
    unless: str  # the setting that leaves the number free


AnyStep = TypeVar("AnyStep", bound=Step)


@dataclass(kw_only=True)
class Learner(ABC, Generic[AnyStep]):
    """Everything that a checkpoint stores; `step` counts the batches seen, `skipped` those that changed nothing."""

    shown: ClassVar[tuple[str, ...]]  # names of the figures shown beside the progress

    config: AnyTrainConfig
    model: nn.Module
    optimizer: torch.optim.AdamW
    ema: EMA
    compute: Compute
    world: World = ALONE
    parallel: DistributedDataParallel | None = None  # called in its place, to average over the processes
    step: int = 0
    skipped: int = 0
    verified: dict[Path, str] = field(default_factory=dict)  # checkpoints, as `checkpoint.prune` knows them

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return self.compute.device

    @property
    def position(self) -> int:
        """Rows seen so far: where the stream continues."""
        return self.step * self.config.batch_size

    @property
    def steps(self) -> int:
        """Total optimiser steps."""
        return self.config.steps

    @property
    def binds_steps(self) -> Bound | None:
        """The reason why a run cannot continue to another number of steps; None if it can."""
        decay = self.config.optimizer.lr_decay
        if decay == "constant":
            return None
        return Bound(f"optimizer.lr_decay={decay} lets the learning rate fall", "optimizer.lr_decay=constant")

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return self.step >= self.steps

    @property
    def rows_at_once(self) -> int:
        """Rows of a micro-batch of this process."""
        return self.config.batch_size // (self.world.size * self.config.accumulate)

    def micro_batches(self, batch: Batch) -> Iterator[Batch]:
        """Micro-batches of a process's batch. Processes exchange their gradients after the last."""
        *others, last = batch.split(self.config.accumulate)
        with nullcontext() if self.parallel is None else self.parallel.no_sync():  # type: ignore[no-untyped-call]
            yield from others
        yield last

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's loss.

        A loss that is not finite makes the gradient not finite in every process, even if its own gradient is finite.
        """
        share = torch.full_like(loss, 1 / self.config.accumulate)
        loss.backward(torch.where(loss.detach().isfinite(), share, torch.nan))  # type: ignore[no-untyped-call]

    def update(self, batch: Batch, lr: float, averaged: int) -> Step:
        """Clip the gradient of a process's batch, step and average.

        `averaged` steps have gone into the average before. If the gradient is not finite in any process, all of them
        leave weights and averages as they are. The device decides that by itself, and the host reads it once the next
        step is under way (`loop.ReadLate`); with Muon the host waits for it.
        """
        gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        finite = torch.isfinite(gradient_norm)
        self.optimizer.param_groups[0]["lr"] = lr
        vars(self.optimizer)["found_inf"] = (~finite).float()  # tells torch's fused optimisers not to step
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model, averaged + 1, finite)
        self.step += 1
        return Step(
            number=self.step - 1,
            index_B=batch.index_B,
            position=batch.position,
            lr=lr,
            gradient_norm=gradient_norm,
            finite=finite,
        )

    def read_step(self, step: AnyStep) -> bool:
        """Wait for a step; returns whether it updated anything, and counts those that did not.

        Steps are read in order.
        """
        finite = bool(step.finite)
        self.skipped += not finite
        return finite

    @property
    def next_step_depends_on_last(self) -> bool:
        """Whether the last step must be read before the next is launched."""
        return False

    @abstractmethod
    def figures(self, step: AnyStep) -> dict[str, float]:
        """Figures of a step over all processes, as recorded in the metrics."""

    @abstractmethod
    def losses_of(self, step: AnyStep) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of a step by name, and by row of this process (B,)."""

    @property
    @abstractmethod
    def remedy(self) -> str:
        """Advice to a user whose losses are not finite."""

    def release(self) -> None:
        """Release the process group before leaving the job: a group destroyed later can abort the process."""
        self.parallel = None

    def save(self, folder: Path) -> Checkpoint:
        """Write a checkpoint of this step and prune old ones."""
        saved = checkpoint.save(folder, self.step, self.tensors(), self.facts())
        self.verified[saved.path] = saved.digest
        checkpoint.prune(folder, self.config.keep, self.verified)
        return saved

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Tensors of a checkpoint, by file."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.weights,
            "optimizer": optimizer_tensors(self.optimizer, self.model),
        }

    def facts(self) -> dict[str, Any]:
        """State beside the tensors, as JSON."""
        return {"rows_seen": self.position, "skipped": self.skipped}

    def load(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.model.load_state_dict(saved.tensors("model"))
        self.ema.load(saved.tensors("ema"))
        load_optimizer_tensors(self.optimizer, self.model, saved.tensors("optimizer"))
        self.step, self.skipped = saved.step, saved.state["skipped"]


def parallel(module: nn.Module, world: World) -> DistributedDataParallel | None:
    """The module with gradients averaged over the processes; None if there is only one process."""
    return DistributedDataParallel(module, gradient_as_bucket_view=True) if world.size > 1 else None


def accumulation(run: AnyTrainConfig, batch_size: int, processes: int) -> int:
    """The fewest micro-batches per step that have no more rows than those of `run`; 1 if that does not accumulate.

    They divide the share of each process, if the batch can be divided among the processes.
    """
    if run.accumulate == 1:
        return 1
    share, most = max(1, batch_size // processes), max(1, run.batch_size // (run.accumulate * processes))
    return next(count for count in range(1, share + 1) if share % count == 0 and share // count <= most)


def check_shares(config: AnyTrainConfig, world: World) -> None:
    """`InputError` when the batch can't be divided evenly among the processes and their micro-batches."""
    parts = world.size * config.accumulate
    if config.batch_size % parts:
        processes = "1 process" if world.size == 1 else f"{world.size} processes"
        raise InputError(
            f"batch_size={config.batch_size} can't be divided evenly among {processes} with accumulate="
            f"{config.accumulate}; choose a --batch-size that is a multiple of {parts}, or another --accumulate"
        )
