"""Exponential moving average of all trainable parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Averages w̄ ← δ w̄ + (1 − δ) w after each step, with δ = min(decay, (1 + n)/(10 + n)) at step n (SPEC 7).

    The ramp lets a short run forget its initialisation. Skipped steps count in n but are not averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, finite: Tensor | None = None) -> None:
        """Average in the weights after step `step`, counted from 1, unless `finite` is false.

        `finite` is a tensor so that the host need not wait for the device.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        average, weights = list(self.weights.values()), [p.detach() for p in model.parameters()]
        share = torch.full((), 1 - decay, device=average[0].device)
        if finite is not None:
            share = share * finite
        # With `share` a tensor, lerp would need a launch per parameter. This takes three launches in all, at the cost
        # of briefly holding another copy of the weights, when the gradients are gone.
        change = torch._foreach_sub(weights, average)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(average, change)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Restore saved averages, from any device."""
        for name, value in weights.items():
            self.weights[name].copy_(value)

    @torch.no_grad()
    def put_into(self, model: nn.Module, parts: Collection[str]) -> None:
        """Permanently replace the weights of these children of the model with their averages."""
        for name, parameter in model.named_parameters():
            if name.partition(".")[0] in parts:
                parameter.copy_(self.weights[name])

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Swap the averaged weights into the model within the block."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.data, self.weights[name] = self.weights[name], parameter.data
