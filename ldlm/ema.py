"""Exponential moving average of all trainable parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Averages w̄ ← δ w̄ + (1 − δ) w after each step, with δ = min(decay, (1 + n)/(10 + n)) at step n.

    The ramp lets a short run forget its initialisation.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average = list(self.weights.values())
        torch._foreach_lerp_(average, [p.detach() for p in model.parameters()], 1 - decay)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Go on from saved averages, wherever they lie."""
        for name, value in weights.items():
            self.weights[name].copy_(value)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model computes with the averaged weights; afterwards it has its own back."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.data, self.weights[name] = self.weights[name], parameter.data
