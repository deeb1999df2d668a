"""The condition on a prefix: states of a text's first k tokens as extra keys and values of the denoiser's attention.

It is `model.condition=prefix`, which is not in the paper. The frozen encoder is causal, so these states depend on the
first k tokens alone: a store has them for every row, and one pass of the encoder computes them for a prompt. Latents
attend to them in every block. They have their own positions, since latent i is not token i. At k = 0 all of them are
masked, which leaves the unconditional denoiser, with nothing in place of the condition.

Shape letters: CONTRIBUTING.md. M counts keys and values of all blocks here, two for each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldlm import noise
from ldlm.attention import attention
from ldlm.errors import InputError
from ldlm.model.layers import SelfAttention, rotate, split_heads

UNCONDITIONAL = 0.1  # probability of k = 0 in training
UNWRITTEN = 8  # the fewest tokens of a row that come after a prefix, EOS counted


def longest_prefix(seq_len: int) -> int:
    """The largest k, BOS counted; `InputError` for rows that are too short to have a prefix."""
    if seq_len <= UNWRITTEN:
        raise InputError(
            f"model.condition=prefix leaves {UNWRITTEN} tokens of a row unwritten, and rows have {seq_len} in all; "
            f"extract longer ones (--seq-len), or leave model.condition at none"
        )
    return seq_len - UNWRITTEN


def draw_lengths(*, seed: int, step: int, rows_B: Tensor, seq_len: int, unconditional: float = UNCONDITIONAL) -> Tensor:
    """k (B,) int64 for rows of a global batch: 0 with probability `unconditional`, else uniform over 1 … L − 8."""
    u_B2 = noise.uniform(seed, "prefix", step, rows_B, (2,))
    k_B = 1 + (u_B2[:, 1] * longest_prefix(seq_len)).long()
    return torch.where(u_B2[:, 0] < unconditional, 0, k_B)


class Prefix(NamedTuple):
    """Extra keys and values of every block for B rows, and which of them each row may see: its first k."""

    kv_BLMW: Tensor
    seen_BL: Tensor

    def detached(self) -> Prefix:
        """This prefix, detached from the graph that computed its keys and values."""
        return Prefix(self.kv_BLMW.detach(), self.seen_BL)

    def by_block(self) -> list[Prefix]:
        """The key and the value (M = 2) of each block."""
        return [Prefix(kv_BL2W, self.seen_BL) for kv_BL2W in self.kv_BLMW.split(2, dim=2)]


class PrefixAttention(SelfAttention):
    """Self-attention (B, N, W) → (B, N, W) that also sees a prefix, if there is one."""

    def forward(self, x_BNW: Tensor, more_BL2W: Tensor | None = None, seen_BL: Tensor | None = None) -> Tensor:
        if more_BL2W is None or seen_BL is None:
            return super().forward(x_BNW)
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x_BNW).chunk(3, dim=-1))
        more_k, more_v = (split_heads(part, self.heads) for part in more_BL2W.unbind(2))
        if self.rotary:  # if latents are aligned with tokens, a token's position relative to a latent is informative
            q, k, more_k = rotate(q), rotate(k), rotate(more_k)
        k, v = torch.cat([k, more_k], dim=1), torch.cat([v, more_v], dim=1)
        seen_BL = F.pad(seen_BL, (x_BNW.shape[1], 0), value=True)  # latents see each other
        return self.out(attention(q, k, v, seen_BL).flatten(-2))


class PrefixKeys(nn.Module):
    """Normalised states (B, L, D) and lengths k (B,) → `Prefix`. The rows may be shorter than in training.

    It does not depend on time, so a sampler calls it once per text.
    """

    def __init__(self, positions_LW: Tensor, *, hidden_dim: int, blocks: int) -> None:
        super().__init__()
        width = positions_LW.shape[1]
        self.project_in = nn.Linear(hidden_dim, width)
        self.positions_LW = nn.Parameter(positions_LW)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.keys_values = nn.Linear(width, 2 * blocks * width)

    def forward(self, h_BLD: Tensor, k_B: Tensor) -> Prefix:
        length, width = h_BLD.shape[1], self.positions_LW.shape[1]
        x_BLW = self.norm(self.project_in(h_BLD) + self.positions_LW[:length])
        seen_BL = torch.arange(length, device=h_BLD.device) < k_B[:, None]
        return Prefix(self.keys_values(x_BLW).unflatten(-1, (-1, width)), seen_BL)
