"""Memory of a training step, by running it once on tensors without storage and noting what is alive at each moment.

They are torch's fake tensors, which pass the operators, autograd and autocast as tensors on a CPU do. Saved tensors,
temporary ones and gradients come and go as in a step. The number of rows and that of the positions in a chunk of the
vocabulary loss are primes which divide no size of the model: a storage that one of them divides grows with it, and all
others are fixed. So one run tells the memory for any number of rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldlm.config import Shapes, TrainConfig
from ldlm.features.batch import READ_AHEAD
from ldlm.model import token_loss
from ldlm.model.joint import JointModel, build_meta
from ldlm.model.layers import recompute_activations
from ldlm.model.timesteps import TimestepSampler
from ldlm.training.phases import Phase, phases

BYTES_PER_PARAMETER = 4 * 4  # float32 weights, AdamW's two moments and the weight average; gradients come and go
BATCHES = READ_AHEAD + 2  # on the device: those read ahead, the one that the reader holds, and the step's


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the peak of a training step."""

    weights: int  # with moments and average
    batches: int  # states and tokens, those read ahead included
    step: int  # all else at most: activations, gradients, temporary tensors

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.batches + self.step


class Timeline(NamedTuple):
    """Bytes alive after each allocation of a forward and backward pass, weights and batch aside; arrays (T,)."""

    fixed_T: np.ndarray
    per_row_T: np.ndarray
    per_position_T: np.ndarray  # of a chunk of the vocabulary loss
    gradients_T: np.ndarray  # gradients of weights that were made before, part of `fixed_T`
    gradients: int  # in all

    def peak(self, rows: int, positions: int, *, kept: bool) -> int:
        """Bytes at most; `kept` where memory for all gradients is there from the beginning."""
        bytes_T = self.fixed_T + rows * self.per_row_T + positions * self.per_position_T
        if kept:
            bytes_T = bytes_T - self.gradients_T + self.gradients
        return round(bytes_T.max())


@dataclass(frozen=True)
class Footprint:
    """Memory of the training steps of a configuration, for any number of rows."""

    shapes: Shapes
    parameters: int
    timelines: list[Timeline]  # of each phase
    positions: int  # in a chunk of the vocabulary loss at most
    has_states: bool  # in a batch, beside tokens

    def memory(self, rows: int, share: int, *, devices: int = 1, batches: int = BATCHES) -> Memory:
        """Memory of one of `devices` processes, which takes its `share` rows of a batch `rows` at a time."""
        per_row = self.shapes.seq_len * (8 + 4 * self.shapes.hidden_dim * self.has_states)
        step = max(self._step(timeline, rows, share, devices) for timeline in self.timelines)
        return Memory(BYTES_PER_PARAMETER * self.parameters, batches * share * per_row, step)

    def _step(self, timeline: Timeline, rows: int, share: int, devices: int) -> int:
        accumulates, parallel = rows < share, devices > 1
        positions = min(rows * self.shapes.seq_len, self.positions)
        peak = timeline.peak(rows, positions, kept=accumulates or parallel)
        # DistributedDataParallel keeps a copy of the gradients, which those of the last micro-batch become views of.
        backward = peak + timeline.gradients * (accumulates and parallel)
        update = 4 * self.parameters + timeline.gradients * parallel  # what `EMA.update` adds, without the gradients
        return max(backward, update)


def footprint(config: TrainConfig, shapes: Shapes, *, bf16: bool, device: str) -> Footprint:
    """The memory of a step in float32 or under autocast to bf16, with the chunks of a kind of device; not compiled."""
    return _footprint(replace(config, accumulate=1), shapes, bf16, device)  # it serves any number of micro-batches


@cache
def _footprint(config: TrainConfig, shapes: Shapes, bf16: bool, device: str) -> Footprint:
    scratch = config.model.space == "scratch"
    model = build_meta(config.model, shapes, scratch=scratch)
    return Footprint(
        shapes,
        parameters=sum(p.numel() for p in model.parameters()),
        timelines=[_timeline(config, shapes, phase, bf16=bf16, scratch=scratch) for phase in phases(config)],
        positions=token_loss.positions_at_once(device, shapes.vocab_size),
        has_states=not scratch,
    )


def _timeline(config: TrainConfig, shapes: Shapes, phase: Phase, *, bf16: bool, scratch: bool) -> Timeline:
    config = replace(config, diffusion=replace(config.diffusion, self_conditioning=0.0))  # whose pass keeps nothing
    rows, positions = _primes(config, shapes)
    draws = _draws(config, shapes, phase, rows)
    with FakeTensorMode(), _chunks_of(positions * shapes.vocab_size):
        model = JointModel(config.model, shapes, scratch=scratch)
        if config.recompute:
            recompute_activations(model)
        objective = phase.objective(model, config)
        for name, part in model.parts().items():
            part.requires_grad_(objective.trains(name))
        hidden_BLD = None if scratch else torch.empty(rows, shapes.seq_len, shapes.hidden_dim)
        tokens_BL = torch.empty(rows, shapes.seq_len, dtype=torch.int64)
        elsewhere = [*model.parameters(), tokens_BL, *([] if hidden_BLD is None else [hidden_BLD])]
        with _Allocations(elsewhere) as found:
            draws = _on_cpu(draws)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                losses = objective(hidden_BLD, tokens_BL, draws, 1.0)
            losses.loss.backward()
        return found.timeline(model, rows, positions)


@contextmanager
def _chunks_of(logits: int) -> Iterator[None]:
    """Within the block the vocabulary loss on a CPU makes so many logits at a time."""
    before = token_loss.CHUNK["cpu"]
    token_loss.CHUNK["cpu"] = logits
    try:
        yield
    finally:
        token_loss.CHUNK["cpu"] = before


def _draws(config: TrainConfig, shapes: Shapes, phase: Phase, rows: int) -> Any:
    """The randomness of a step on the meta device."""
    objective = phase.objective(build_meta(config.model, shapes), config)
    timesteps = TimestepSampler(config.timesteps, config.diffusion.t_min)
    rows_B = torch.zeros(rows, dtype=torch.int64)
    return objective.draw(timesteps, seed=0, step=0, rows_B=rows_B, device="meta")


def _on_cpu(value: Any) -> Any:
    """New tensors in place of those of a dataclass."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="cpu")
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{field.name: _on_cpu(getattr(value, field.name)) for field in fields(value)})


def _primes(config: TrainConfig, shapes: Shapes) -> tuple[int, int]:
    """Numbers of rows, and of positions in a chunk, two chunks and a bit, by which storages are told apart."""
    model = config.model
    parts = (model.autoencoder, model.denoiser, model.token_decoder)
    sizes = [size for part in (shapes, *parts) for size in vars(part).values() if type(size) is int]
    free = (n for n in count(31) if _is_prime(n) and all(size % n for size in sizes))
    rows = next(free)
    below = range(rows * shapes.seq_len // 2, 1, -1)
    return rows, next(n for n in below if n != rows and _is_prime(n) and all(size % n for size in sizes))


def _is_prime(n: int) -> bool:
    return all(n % k for k in range(2, int(n**0.5) + 1))


class _Allocations(TorchDispatchMode):
    """Notes each storage when an operator makes it, and when the last tensor on it goes."""

    def __init__(self, elsewhere: list[Tensor]) -> None:
        super().__init__()
        self._alive: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in elsewhere}
        self._numbers: dict[int, int] = {}  # of the allocations that are alive
        self._events: list[tuple[bool, int, int]] = []  # whether it begins, number of the allocation, bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        number = self._numbers[key] = len(self._events)
        self._events.append((True, number, size))

        def ends(_: Any) -> None:
            self._events.append((False, number, size))
            del self._alive[key], self._numbers[key]

        self._alive[key] = weakref.ref(storage, ends)

    def timeline(self, model: JointModel, rows: int, positions: int) -> Timeline:
        """Bytes that were alive after each allocation so far."""
        gradients = [p.grad.untyped_storage() for p in model.parameters() if p.grad is not None]
        numbers = {self._numbers[storage._cdata] for storage in gradients}
        fixed, per_row, per_position, made = np.array(list(_snapshots(self._events, numbers, rows, positions))).T
        return Timeline(fixed, per_row, per_position, made, sum(storage.nbytes() for storage in gradients))


def _snapshots(
    events: list[tuple[bool, int, int]], gradients: set[int], rows: int, positions: int
) -> Iterator[tuple[float, float, float, int]]:
    """Bytes after each allocation: fixed, per row, per position of a chunk, and of gradients made before."""
    alive, made = [0.0, 0.0, 0.0], 0
    for begins, number, size in events:
        kind, unit = (1, rows) if size % rows == 0 else (2, positions) if size % positions == 0 else (0, 1)
        alive[kind] += (size if begins else -size) / unit
        if begins:
            yield alive[0], alive[1], alive[2], made
            made += size * (number in gradients)
