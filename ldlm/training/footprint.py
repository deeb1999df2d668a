"""Memory of a training step, by running it once on tensors without storage and noting what is alive at each moment.

They are torch's fake tensors, which go through operators, autograd and autocast as tensors on a CPU do. Saved tensors,
temporary ones and gradients come and go as in a real step. The number of rows, and that of positions in a chunk of the
vocabulary loss, are primes that divide no size of the model: a storage whose size one of them divides grows with it,
and all others are fixed. So one run gives the memory for any number of rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from itertools import count
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldlm.config import Shapes, TrainConfig
from ldlm.features.batch import READ_AHEAD
from ldlm.model import token_loss
from ldlm.model.joint import JointModel, build_meta
from ldlm.model.layers import recompute_activations
from ldlm.model.objective import Losses, Objective
from ldlm.model.timesteps import TimestepSampler
from ldlm.training.phases import Phase, phases

BYTES_PER_PARAMETER = 4 * 4  # float32 weights, AdamW's two moments and the weight average; gradients come and go
BATCHES = READ_AHEAD + 2  # on the device: those read ahead, the one the reader holds, and the step's


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the peak of a training step."""

    weights: int  # with moments and average
    batches: int  # states and tokens, those read ahead included
    step: int  # the peak of everything else: activations, gradients, temporary tensors

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.batches + self.step


class Timeline(NamedTuple):
    """Bytes alive after each allocation of a forward and backward pass, weights and batch aside; arrays (T,)."""

    fixed_T: np.ndarray
    per_row_T: np.ndarray
    per_position_T: np.ndarray  # of a chunk of the vocabulary loss
    gradients_T: np.ndarray  # of weight gradients allocated before, part of `fixed_T`
    gradients: int  # of all weight gradients

    def peak(self, rows: int, positions: int, *, kept: bool) -> int:
        """Peak bytes; `kept` if the memory of all gradients is allocated from the start."""
        bytes_T = self.fixed_T + rows * self.per_row_T + positions * self.per_position_T
        if kept:
            bytes_T = bytes_T - self.gradients_T + self.gradients
        return round(bytes_T.max())


@dataclass(frozen=True)
class Footprint:
    """Memory of the training steps of a configuration, for any number of rows."""

    shapes: Shapes
    parameters: int
    timelines: list[Timeline]  # one per phase
    positions: int  # at most so many in a chunk of the vocabulary loss
    has_states: bool  # whether a batch has states beside tokens

    def memory(self, rows: int, share: int, *, devices: int = 1, batches: int = BATCHES) -> Memory:
        """Memory of one of `devices` processes, which processes its `share` rows of a batch `rows` at a time."""
        per_row = self.shapes.seq_len * (8 + 4 * self.shapes.hidden_dim * self.has_states)
        step = max(self._step(timeline, rows, share, devices) for timeline in self.timelines)
        return Memory(BYTES_PER_PARAMETER * self.parameters, batches * share * per_row, step)

    def _step(self, timeline: Timeline, rows: int, share: int, devices: int) -> int:
        accumulates, parallel = rows < share, devices > 1
        positions = min(rows * self.shapes.seq_len, self.positions)
        peak = timeline.peak(rows, positions, kept=accumulates or parallel)
        # DistributedDataParallel keeps a copy of the gradients; those of the last micro-batch become views of it.
        backward = peak + timeline.gradients * (accumulates and parallel)
        update = 4 * self.parameters + timeline.gradients * parallel  # what `EMA.update` adds, without the gradients
        return max(backward, update)


def footprint(config: TrainConfig, shapes: Shapes, *, bf16: bool, device: str, scratch: bool = False) -> Footprint:
    """The memory of a step in float32 or under autocast to bf16, with the chunks of a kind of device; not compiled.

    With `scratch`, embeddings are trained in place of the encoder. It holds for any number of micro-batches.
    """
    return _footprint(replace(config, accumulate=1), shapes, bf16, device, scratch)


@cache
def _footprint(config: TrainConfig, shapes: Shapes, bf16: bool, device: str, scratch: bool) -> Footprint:
    model = build_meta(config.model, shapes, scratch=scratch)
    steps = [JointTrace(config, shapes, phase, scratch) for phase in phases(config)]
    return Footprint(
        shapes,
        parameters=sum(p.numel() for p in model.parameters()),
        timelines=[timeline(step, shapes, bf16=bf16, has_states=not scratch) for step in steps],
        positions=token_loss.positions_at_once(device, shapes.vocab_size),
        has_states=not scratch,
    )


class TracedStep(Protocol):
    """Forward pass of a training step, to be run without storage."""

    @property
    def sizes(self) -> Iterable[int]:
        """Sizes of the model, which the numbers of rows and positions must not divide."""

    def draws(self, rows: int) -> Any:
        """The randomness of a step of `rows` rows: a dataclass or tuples of tensors."""

    def model(self) -> nn.Module:
        """The model in training, with gradients enabled for what the step trains."""

    def loss(self, model: Any, hidden_BLD: Tensor | None, tokens_BL: Tensor, draws: Any) -> Tensor:
        """The loss of a batch."""


def timeline(step: TracedStep, shapes: Shapes, *, bf16: bool, has_states: bool) -> Timeline:
    """Bytes alive in a step's forward and backward pass, in float32 or under autocast to bf16."""
    rows, positions = _primes(step, shapes)
    draws = step.draws(rows)
    with fake_step(positions * shapes.vocab_size):
        model = step.model()
        hidden_BLD = torch.empty(rows, shapes.seq_len, shapes.hidden_dim) if has_states else None
        tokens_BL = torch.empty(rows, shapes.seq_len, dtype=torch.int64)
        elsewhere = [*model.parameters(), tokens_BL, *([] if hidden_BLD is None else [hidden_BLD])]
        with _Allocations(elsewhere) as found:
            draws = on_cpu(draws)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = step.loss(model, hidden_BLD, tokens_BL, draws)
            loss.backward()  # type: ignore[no-untyped-call]
        return found.timeline(model, rows, positions)


@dataclass(frozen=True)
class JointTrace:
    """A step of joint training in one of its phases."""

    config: TrainConfig
    shapes: Shapes
    phase: Phase
    scratch: bool  # whether it trains embeddings in place of the encoder

    @property
    def sizes(self) -> Iterable[int]:
        """Sizes of the parts."""
        model = self.config.model
        return sizes_of(model.autoencoder, model.denoiser, model.token_decoder)

    @property
    def _objective(self) -> Callable[[JointModel], Objective]:
        # A self-conditioning pass keeps nothing.
        config = replace(self.config, diffusion=replace(self.config.diffusion, self_conditioning=0.0))
        return lambda model: self.phase.objective(model, config)

    def draws(self, rows: int) -> Any:
        """The randomness of a step, on the meta device."""
        objective = self._objective(build_meta(self.config.model, self.shapes))
        timesteps = TimestepSampler(self.config.timesteps, self.config.diffusion.t_min)
        rows_B = torch.zeros(rows, dtype=torch.int64)
        return objective.draw(timesteps, seed=0, step=0, rows_B=rows_B, device="meta")

    def model(self) -> JointModel:
        """All parts, with gradients for those that the phase trains."""
        model = JointModel(self.config.model, self.shapes, scratch=self.scratch)
        if self.config.recompute:
            recompute_activations(model)
        objective = self._objective(model)
        for name, part in model.parts().items():
            part.requires_grad_(objective.trains(name))
        return model

    def loss(self, model: JointModel, hidden_BLD: Tensor | None, tokens_BL: Tensor, draws: Any) -> Tensor:
        """The sum of the three terms."""
        losses: Losses = self._objective(model)(hidden_BLD, tokens_BL, draws, 1.0)
        return losses.loss


@contextmanager
def fake_step(logits: int) -> Iterator[None]:
    """Within the block new tensors have no storage, and the vocabulary loss on a CPU makes so many logits at a time."""
    before = token_loss.CHUNK["cpu"]
    token_loss.CHUNK["cpu"] = logits
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        token_loss.CHUNK["cpu"] = before


def on_cpu(value: Any) -> Any:
    """A dataclass or tuples with new tensors on the CPU in place of its own."""
    return mapped(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"), value)


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A dataclass or tuples with `function` applied to each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        parts = [mapped(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{field.name: mapped(function, getattr(value, field.name)) for field in fields(value)})


def sizes_of(*parts: Any) -> list[int]:
    """The whole numbers among the settings of parts."""
    return [size for part in parts for size in vars(part).values() if type(size) is int]


def _primes(step: TracedStep, shapes: Shapes) -> tuple[int, int]:
    """Numbers of rows and of positions in a chunk, which tell storages apart; a step has two chunks and a bit."""
    sizes = [size for size in (*sizes_of(shapes), *step.sizes) if size]  # a linear token decoder has 0 blocks
    free = (n for n in count(31) if _is_prime(n) and all(size % n for size in sizes))
    rows = next(free)
    below = range(rows * shapes.seq_len // 2, 1, -1)
    return rows, next(n for n in below if n != rows and _is_prime(n) and all(size % n for size in sizes))


def _is_prime(n: int) -> bool:
    return all(n % k for k in range(2, int(n**0.5) + 1))


class _Allocations(TorchDispatchMode):
    """Records when an operator allocates each storage, and when its last tensor is freed."""

    def __init__(self, elsewhere: list[Tensor]) -> None:
        super().__init__()
        self._alive: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in elsewhere}
        self._numbers: dict[int, int] = {}  # of live allocations
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

    def timeline(self, model: nn.Module, rows: int, positions: int) -> Timeline:
        """Bytes alive after each allocation so far."""
        gradients = [p.grad.untyped_storage() for p in model.parameters() if p.grad is not None]
        numbers = {self._numbers[storage._cdata] for storage in gradients}
        fixed, per_row, per_position, made = np.array(list(_snapshots(self._events, numbers, rows, positions))).T
        return Timeline(fixed, per_row, per_position, made, sum(storage.nbytes() for storage in gradients))


def _snapshots(
    events: list[tuple[bool, int, int]], gradients: set[int], rows: int, positions: int
) -> Iterator[tuple[float, float, float, int]]:
    """Bytes after each allocation: fixed, per row, per position of a chunk, and of gradients allocated before."""
    alive, made = [0.0, 0.0, 0.0], 0
    for begins, number, size in events:
        kind, unit = (1, rows) if size % rows == 0 else (2, positions) if size % positions == 0 else (0, 1)
        alive[kind] += (size if begins else -size) / unit
        if begins:
            yield alive[0], alive[1], alive[2], made
            made += size * (number in gradients)
