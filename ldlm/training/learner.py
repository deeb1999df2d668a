"""Weights in training: what a checkpoint holds of them, and what every optimiser step has in common.

`trainer.py` trains all parts jointly and `finetuning.py` a decoder alone; both take their steps from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ldlm.compute import Compute
from ldlm.config import TrainConfig
from ldlm.errors import InputError
from ldlm.features.stream import Batch
from ldlm.runtime import ALONE, World
from ldlm.training import checkpoint
from ldlm.training.checkpoint import Checkpoint
from ldlm.training.ema import EMA
from ldlm.training.optim import load_optimizer_tensors, optimizer_tensors

Item = TypeVar("Item")


@dataclass(kw_only=True)
class Learner:
    """Everything that a checkpoint holds. `step` counts the batches seen; `skipped` those that changed nothing."""

    config: TrainConfig
    model: nn.Module
    optimizer: torch.optim.AdamW
    ema: EMA
    compute: Compute
    world: World = ALONE
    parallel: DistributedDataParallel | None = None  # what is called in its place, to average over the processes
    step: int = 0
    skipped: int = 0

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.compute.device

    @property
    def position(self) -> int:
        """Rows seen so far: where the stream goes on."""
        return self.step * self.config.batch_size

    @property
    def steps(self) -> int:
        """Optimiser steps in all, when it is done."""
        return self.config.steps

    @property
    def rows_at_once(self) -> int:
        """Rows that this process takes through the network at a time."""
        return self.config.batch_size // (self.world.size * self.config.accumulate)

    def micro_batches(self, batch: Batch) -> Iterator[Batch]:
        """The parts of a process's batch. Processes exchange their gradients after the last."""
        *others, last = batch.split(self.config.accumulate)
        with nullcontext() if self.parallel is None else self.parallel.no_sync():  # type: ignore[no-untyped-call]
            yield from others
        yield last

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's loss.

        A loss that is not finite makes the gradient so, in every process, though its own may be finite.
        """
        share = torch.full_like(loss, 1 / self.config.accumulate)
        loss.backward(torch.where(loss.detach().isfinite(), share, torch.nan))  # type: ignore[no-untyped-call]

    def update(self, lr: float, averaged: int) -> tuple[Tensor, Tensor]:
        """Clip, step and average; returns the gradient's norm, and whether it was finite, both still on the device.

        `averaged` steps have gone into the average before.

        A gradient that is not finite, in any process, makes all of them leave weights and averages as they are. The
        device finds that out by itself; `Behind` reads it when the next step is under way.
        """
        gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        finite = torch.isfinite(gradient_norm)
        self.optimizer.param_groups[0]["lr"] = lr
        vars(self.optimizer)["found_inf"] = (~finite).float()  # by which torch's fused optimisers know not to step
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.model, averaged + 1, finite)
        return gradient_norm, finite

    def release(self) -> None:
        """Let go of the process group, before the job is left: one that is destroyed later can abort the process."""
        self.parallel = None

    def save(self, folder: Path) -> Checkpoint:
        """Write a checkpoint of this step and prune old ones."""
        tensors = {
            "model": self.model.state_dict(),
            "ema": self.ema.weights,
            "optimizer": optimizer_tensors(self.optimizer, self.model),
        }
        saved = checkpoint.save(folder, self.step, tensors, self.facts())
        checkpoint.prune(folder, self.config.keep)
        return saved

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds beside the tensors."""
        return {"rows_seen": self.position, "skipped": self.skipped}

    def load(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(saved.tensors("model"))
        self.ema.load(saved.tensors("ema"))
        load_optimizer_tensors(self.optimizer, self.model, saved.tensors("optimizer"))
        self.step, self.skipped = saved.step, saved.state["skipped"]


class Behind(Generic[Item]):
    """Reads each step when the next one has been launched, so that the device need not wait for the host."""

    def __init__(self, read: Callable[[Item], None]) -> None:
        self.read = read
        self._launched: list[Item] = []

    def add(self, item: Item, *, now: bool) -> None:
        """A step that was launched; `now` reads it at once, for what follows depends on it."""
        self._launched.append(item)
        self.catch_up(0 if now else 1)

    def catch_up(self, leave: int = 0) -> None:
        """Read all, or all but the last."""
        while len(self._launched) > leave:
            self.read(self._launched.pop(0))


def parallel(module: nn.Module, world: World) -> DistributedDataParallel | None:
    """The module with gradients averaged over the processes; None for one process, which has nobody to ask."""
    return DistributedDataParallel(module, gradient_as_bucket_view=True) if world.size > 1 else None


def check_shares(config: TrainConfig, world: World) -> None:
    """`InputError` when the processes and their micro-batches would get shares of different sizes."""
    parts = world.size * config.accumulate
    if config.batch_size % parts:
        raise InputError(
            f"batch_size={config.batch_size} can't be divided evenly among {world.size} processes with accumulate="
            f"{config.accumulate}; choose a multiple of {parts}"
        )
