"""Cross-entropy over the vocabulary, a chunk of positions at a time, so that the logits never all exist at once.

For 32 rows of 1,024 tokens and GPT-2's vocabulary they would take 6.6 GB, and their gradient as much again. The loss is
a mean over positions, so a chunk's share of the gradients of inputs and weights is known once its logits are. The
forward pass computes both gradients, the backward pass scales them, and each logit is computed once.

Shape letters: CONTRIBUTING.md. P is positions, B·L.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Logits at a time, by kind of device. Fewer would make the gradient of W, to which every chunk adds, most of the work.
CHUNK = {"cpu": 2**24, "cuda": 2**27}


class TokenLosses(NamedTuple):
    """Cross-entropy in nats. `mean` carries the gradient; the others are recorded."""

    mean: Tensor
    loss_BL: Tensor  # of each position
    right_BL: Tensor  # whether the most likely token is the right one


def token_losses(x_BLD: Tensor, weight_VD: Tensor, tokens_BL: Tensor) -> TokenLosses:
    """Cross-entropy of `tokens_BL` under the logits x·Wᵀ. Autocast applies to products, not to sums."""
    if not torch.is_grad_enabled():
        # Otherwise torch tells the Function that gradients are needed, though none will be asked for.
        x_BLD, weight_VD = x_BLD.detach(), weight_VD.detach()
    mean, loss_P, right_P = _CrossEntropy.apply(x_BLD.flatten(0, -2), weight_VD, tokens_BL.flatten())
    return TokenLosses(mean, loss_P.view(tokens_BL.shape), right_P.view(tokens_BL.shape))


class _CrossEntropy(torch.autograd.Function):
    """(mean, loss by position, whether the most likely token is right); gradient for the mean alone."""

    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, weight_VD: Tensor, tokens_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Products in autocast's dtype, sums in float32.
        kind = x_PD.device.type
        cast = kind != "meta" and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if cast else x_PD.dtype
        with torch.autocast(kind, enabled=False) if cast else nullcontext():
            loss_P, right_P, dx_PD, dw_VD = _chunked(
                x_PD.to(dtype), weight_VD.to(dtype), tokens_P, *ctx.needs_input_grad[:2]
            )

        # The gradients are already computed; `backward` scales them.
        ctx.save_for_backward(dx_PD)
        ctx.dw_VD = dw_VD  # not an activation: as large as the weight, whose gradient it becomes. Freed with the graph
        ctx.dtypes = x_PD.dtype, weight_VD.dtype
        ctx.mark_non_differentiable(loss_P, right_P)
        return loss_P.mean(), loss_P, right_P

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, None]:
        (dx_PD,), dw_VD = ctx.saved_tensors, ctx.dw_VD
        x_dtype, w_dtype = ctx.dtypes
        return (
            None if dx_PD is None else (dx_PD * g).to(x_dtype),
            None if dw_VD is None else (dw_VD * g).to(w_dtype),
            None,
        )


def positions_at_once(device: str, vocabulary: int) -> int:
    """Positions per chunk on a kind of device."""
    return max(1, CHUNK.get(device, CHUNK["cuda"]) // vocabulary)


def _chunked(
    x_PD: Tensor, weight_VD: Tensor, tokens_P: Tensor, want_dx: bool, want_dw: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(loss, right, ∂mean/∂x, ∂mean/∂W); loss and ∂W in float32, or float64 where x is."""
    exact = torch.promote_types(x_PD.dtype, torch.float32)
    dx_PD = torch.empty_like(x_PD) if want_dx else None
    dw_VD = torch.zeros_like(weight_VD, dtype=exact) if want_dw else None
    loss_P, right_P = x_PD.new_empty(len(x_PD), dtype=exact), torch.empty_like(tokens_P, dtype=torch.bool)

    size = positions_at_once(x_PD.device.type, len(weight_VD))
    for start in range(0, len(x_PD), size):
        part = slice(start, start + size)
        logits_PV = (x_PD[part] @ weight_VD.T).to(exact)
        at_token_P1 = tokens_P[part, None]
        of_token_P1 = logits_PV.gather(-1, at_token_P1)
        most_P1, likeliest_P1 = logits_PV.max(-1, keepdim=True)
        # softmax by hand, since torch's logsumexp takes five times as long on a CPU
        weight_PV = logits_PV.sub_(most_P1).exp_()
        total_P1 = weight_PV.sum(-1, keepdim=True)
        right_P[part] = (likeliest_P1 == at_token_P1).squeeze(-1)
        loss_P[part] = (total_P1.log() + (most_P1 - of_token_P1)).squeeze(-1)
        if not (want_dx or want_dw):
            continue
        # ∂mean/∂logits = (softmax − one-hot) / P
        slope_PV = weight_PV.div_(total_P1 * len(x_PD))
        slope_PV.scatter_add_(-1, at_token_P1, torch.full_like(total_P1, -1 / len(x_PD)))
        slope_PV = slope_PV.to(x_PD.dtype)
        if dx_PD is not None:
            torch.mm(slope_PV, weight_VD, out=dx_PD[part])
        if dw_VD is not None:
            _add_product(dw_VD, slope_PV.T, x_PD[part])
    return loss_P, right_P, dx_PD, dw_VD


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a·b, in the dtype of the total."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, out=total)  # not addmm_, which FLOP counters overlook
    else:
        total += a @ b
