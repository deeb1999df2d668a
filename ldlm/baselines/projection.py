"""Gaussian noise on one-hot vectors as the network sees it, through the embedding, without anything of width V.

FLM and CANDI add ε ~ N(0, I_V) to a one-hot vector, and feed the network the sum times E. ε·E is normal with covariance
EᵀE. So is ζ·C with ζ ~ N(0, I_R), where CᵀC = EᵀE and R = min(V, W): hundreds of numbers instead of tens of thousands.
The gradient in E also has the same mean, since both follow the same expected loss, which depends on E by EᵀE alone.

Shape letters: CONTRIBUTING.md. R is the noise numbers at a position.
"""

from __future__ import annotations

import torch
from torch import Tensor


def numbers(vocab: int, width: int) -> int:
    """R, how many noise numbers a position takes."""
    return min(vocab, width)


def factor(e_VW: Tensor) -> Tensor:
    """C (R, W) with CᵀC = EᵀE: the Cholesky factor, or E itself if the vocabulary is no larger than the width.

    In float32 or finer whatever autocast says, differentiable, and without synchronising with the host: if EᵀE is
    singular, C is NaN.
    """
    exact_VW = e_VW.to(torch.promote_types(e_VW.dtype, torch.float32))
    vocab, width = e_VW.shape
    if vocab <= width:
        return exact_VW
    with torch.autocast(e_VW.device.type, enabled=False):
        gram_WW = exact_VW.T @ exact_VW
        upper_WW, failed = torch.linalg.cholesky_ex(gram_WW.double(), upper=True)
        return torch.where(failed == 0, upper_WW, torch.nan).to(exact_VW.dtype)


def projected(zeta_BLR: Tensor, c_RW: Tensor) -> Tensor:
    """ζ·C (B, L, W), which has the law of ε·E; in the dtype of C, whatever autocast says."""
    with torch.autocast(c_RW.device.type, enabled=False):
        return zeta_BLR.to(c_RW.dtype) @ c_RW
