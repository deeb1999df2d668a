"""Layers that the networks share: self-attention, norms, MLPs, rotary positions and the time embedding.

Shape letters: CONTRIBUTING.md. D is the width of any network here.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldlm.attention import attention
from ldlm.errors import InputError

BASE = 10_000.0  # of the geometric series of frequencies, in rotary positions and in sinusoids

# ----------------------------------------------------------------------------------------------------------------------
# Layers


def split_heads(x_BND: Tensor, heads: int) -> Tensor:
    """Split the width into heads: (B, N, H·K) → (B, N, H, K)."""
    return x_BND.unflatten(-1, (heads, -1))


def head_width(width: int, heads: int, name: str) -> int:
    """Width of one head; `InputError` when `heads` does not divide `width`."""
    if width % heads:
        raise InputError(
            f"{name}.heads={heads} must divide its width {width}; set it to {divisors(width)}, or take a preset for "
            f"states as wide as the store's (owt and lm1b: 768; tiny: any multiple of 4)"
        )
    return width // heads


def rotary_head_width(width: int, heads: int, name: str, remedy: str) -> int:
    """Width of one head, even, since rotary positions turn pairs; `InputError` otherwise.

    `remedy` follows the word "set", beside other numbers of heads if those help.
    """
    found = head_width(width, heads, name)
    if found % 2:
        remedies = [remedy] if width % 2 else [f"it to {divisors(width)}", remedy]
        raise InputError(
            f"{name}.heads={heads} leaves heads of odd width {found}, and rotary positions turn pairs; set "
            f"{', or '.join(remedies)}"
        )
    return found


def divisors(width: int) -> str:
    """The numbers of heads that divide a width evenly, with heads of an even width, as text."""
    heads = [str(number) for number in range(1, width // 2 + 1) if width % (2 * number) == 0]
    return f"one of {', '.join(heads)}" if heads else "1"


class SelfAttention(nn.Module):
    """Bidirectional multi-head self-attention (B, N, D) → (B, N, D), optionally with rotary positions."""

    def __init__(self, width: int, heads: int, *, bias: bool, rotary: bool = False) -> None:
        super().__init__()
        self.heads, self.rotary = heads, rotary
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x_BND).chunk(3, dim=-1))  # (B, N, H, K)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        return self.out(attention(q, k, v).flatten(-2))


class RMSNorm(nn.RMSNorm):
    """RMSNorm in the dtype of its input, whatever its weight's is: torch has no fused kernel for mixed dtypes."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class MLP(nn.Sequential):
    """Linear–GELU–Linear, four times as wide inside."""

    def __init__(self, width: int, *, approximate: str = "none") -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(approximate=approximate), nn.Linear(4 * width, width))


class SwiGLU(nn.Module):
    """(SiLU(x·W_gate) ⊙ x·W_up)·W_down, without biases (Shazeer, 2020)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


# ----------------------------------------------------------------------------------------------------------------------
# Blocks


def recompute_activations(model: nn.Module) -> None:
    """Recompute every block's activations in the backward pass instead of keeping them; results do not change."""
    for block in blocks_of(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(model: nn.Module) -> None:
    """Compile every block; call this before `recompute_activations`. Blocks of the same kind share compiled code."""
    for block in blocks_of(model):
        block.forward = torch.compile(block.forward, dynamic=False)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model: every module in a `ModuleList`."""
    return [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module]


def head_widths(model: nn.Module) -> set[int]:
    """Head widths of a model's attention, which determine the kernels that accept it."""
    attention: list[Any] = [module for module in model.modules() if hasattr(module, "heads")]
    return {module.out.in_features // module.heads for module in attention}


# ----------------------------------------------------------------------------------------------------------------------
# Positions and times


def rotate(x_BNHK: Tensor) -> Tensor:
    """Rotary position embedding (Su et al., 2021): pairs (i, i + K/2) turn by position · 10000^(−2i/K)."""
    length, half = x_BNHK.shape[1], x_BNHK.shape[-1] // 2
    frequency_K = BASE ** (-torch.arange(half, device=x_BNHK.device, dtype=torch.float32) / half)
    angle_NK = torch.arange(length, device=x_BNHK.device, dtype=torch.float32)[:, None] * frequency_K
    cos, sin = angle_NK.cos()[:, None].to(x_BNHK.dtype), angle_NK.sin()[:, None].to(x_BNHK.dtype)
    first, second = x_BNHK.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def time_features(t_B: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding (B, dim) of 1000·t, as DiT embeds its integer steps: [cos | sin]."""
    return sinusoids(1000.0 * t_B.float(), dim)


def sinusoids(x_B: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding (B, dim) of a scalar: [cos | sin] of x·10000^(−2i/dim)."""
    half = dim // 2
    frequency = torch.exp(-math.log(BASE) * torch.arange(half, device=x_B.device, dtype=torch.float32) / half)
    angle = x_B.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
