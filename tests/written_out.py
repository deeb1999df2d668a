"""Formulas written out, which tests compare the library with."""

import math

import torch
from torch import Tensor

from ldlm.model.diffusion import Schedule
from ldlm.sampling.solvers import Denoise


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·k/√K)·v with the softmax written out; (B, sequence, H, K)."""
    weight = torch.exp(torch.einsum("bnhk,blhk->bhnl", q, k) / math.sqrt(q.shape[-1]))
    return torch.einsum("bhnl,blhk->bnhk", weight / weight.sum(-1, keepdim=True), v)


def gaussian_denoiser(std: float, schedule: Schedule | None = None) -> Denoise:
    """The exact denoiser of data N(0, s²), which is linear; of the tangent schedule unless another is given."""
    schedule = schedule or Schedule()

    def denoise(z: Tensor, t: Tensor, last: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(t)
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * z

    return denoise


def beta(t: float) -> float:
    """−d ln ᾱ/dt of the tangent schedule, in sines and cosines: 9π tan / (cos² + 9 sin²)."""
    half = math.pi * t / 2
    return 9 * math.pi * math.tan(half) / (math.cos(half) ** 2 + 9 * math.sin(half) ** 2)
