"""Passes over the vocabulary, a part of the positions at a time, so that the logits never all exist at once.

Shape letters: CONTRIBUTING.md. P is positions, B·L.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldlm.baselines.interface import Losses, TrainedNetwork
from ldlm.model.token_loss import positions_at_once

OfPart = Callable[..., Tensor]  # states (P, W) and other tensors (P,) of some positions → their losses (P,)


def parts(of_P: Tensor, vocab: int) -> tuple[Tensor, ...]:
    """Positions, in parts whose logits fit in memory."""
    return of_P.split(positions_at_once(of_P.device.type, vocab))


def loss_by_parts(loss: OfPart, network: TrainedNetwork, h_BLW: Tensor, vocab: int, *of_BL: Tensor) -> Losses:
    """The mean of `loss(logits(h), …)` over all positions, from states h and other tensors (B, L)."""

    def of_part(h_PW: Tensor, *of_P: Tensor) -> Tensor:
        return loss(network.logits(h_PW), *of_P)

    h_PW = h_BLW.flatten(0, 1)
    others = list(zip(*(parts(tensor.flatten(), vocab) for tensor in of_BL), strict=True))
    if torch.is_grad_enabled() and h_PW.requires_grad:
        mean, loss_P = _MeanLoss.apply(of_part, others, vocab, h_PW, *network.head_parameters)
    else:
        loss_P = torch.cat([of_part(*of_P) for of_P in _with_states(h_PW, others, vocab)])
        mean = loss_P.mean()
    return Losses(mean, loss_P.view(h_BLW.shape[:2]))


class _MeanLoss(torch.autograd.Function):
    """(mean, losses (P,)) with a gradient for the mean alone, to states (P, W) and the parameters of the head.

    As in `ldlm.model.token_loss`, a part's share of the gradient is known once its logits are: the forward pass
    computes the gradients, the backward pass scales them, and no logits are kept or computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any, of_part: OfPart, others: Sequence[Sequence[Tensor]], vocab: int, h_PW: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses, slopes, totals = list[Tensor](), list[Tensor](), [torch.zeros_like(one) for one in parameters]
        for part_PW, *of_P in _with_states(h_PW, others, vocab):
            with torch.enable_grad():
                leaf_PW = part_PW.detach().requires_grad_()
                loss_P = of_part(leaf_PW, *of_P)
                slope_PW, *of_parameters = torch.autograd.grad(loss_P.sum() / len(h_PW), (leaf_PW, *parameters))
            losses.append(loss_P.detach())
            slopes.append(slope_PW)
            for total, share in zip(totals, of_parameters, strict=True):
                total += share
        ctx.save_for_backward(torch.cat(slopes), *totals)
        loss_P = torch.cat(losses)
        ctx.mark_non_differentiable(loss_P)
        return loss_P.mean(), loss_P

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return None, None, None, *(gradient * g for gradient in ctx.saved_tensors)


def _with_states(h_PW: Tensor, others: Sequence[Sequence[Tensor]], vocab: int) -> list[tuple[Tensor, ...]]:
    """The parts of the states, each with those of the other tensors."""
    return [(part_PW, *of_P) for part_PW, of_P in zip(parts(h_PW, vocab), others, strict=True)]


def cross_entropy(logits_PV: Tensor, x_P: Tensor) -> Tensor:
    """−log softmax(logits)[x] (P,)."""
    return F.cross_entropy(logits_PV, x_P, reduction="none")


def weighted_cross_entropy(logits_PV: Tensor, x_P: Tensor, weight_P: Tensor) -> Tensor:
    """−w log softmax(logits)[x] (P,)."""
    return cross_entropy(logits_PV, x_P) * weight_P.to(logits_PV.dtype)
