"""Passes over the vocabulary, a part of the positions at a time, so that all logits never exist at once.

Shape letters: CONTRIBUTING.md. P is positions, B·L.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = {"cpu": 2**24, "cuda": 2**27}  # elements


def parts(of_P: Tensor, vocab: int) -> tuple[Tensor, ...]:
    """Positions, in parts whose logits fit in memory."""
    most = LOGITS_AT_ONCE.get(of_P.device.type, LOGITS_AT_ONCE["cuda"])
    return of_P.split(max(1, most // vocab))


def loss_by_parts(
    loss: Callable[..., Tensor], logits: Callable[[Tensor], Tensor], h_BLW: Tensor, vocab: int, *of_BL: Tensor
) -> Tensor:
    """`loss(logits(h), …)` (B, L) of states h and of other tensors (B, L); logits are made anew for the gradient."""

    def of_part(h_PW: Tensor, *of_P: Tensor) -> Tensor:
        return loss(logits(h_PW), *of_P)

    split = [parts(tensor, vocab) for tensor in (h_BLW.flatten(0, 1), *(tensor.flatten() for tensor in of_BL))]
    pieces = list(zip(*split, strict=True))
    if len(pieces) == 1 or not torch.is_grad_enabled():
        found = [of_part(*piece) for piece in pieces]
    else:
        found = [checkpoint(of_part, *piece, use_reentrant=False) for piece in pieces]
    return torch.cat(found).view(h_BLW.shape[:2])


def cross_entropy(logits_PV: Tensor, x_P: Tensor) -> Tensor:
    """−log softmax(logits)[x] (P,)."""
    return F.cross_entropy(logits_PV, x_P, reduction="none")
