"""The backbone that the rivals share, so that the method is the only thing that varies (Sahoo et al., 2024, MDLM).

A bidirectional transformer with rotary positions, modulated as in DiT by a narrow embedding of a scalar condition. Each
method feeds it an embedding row per position, or a weighted sum of rows, and reads V logits. Depth, width and heads
are those that the preset gives LDLM's denoiser; with `owt-1024` and `lm1b-128` it is the published small model.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldlm import noise
from ldlm.compute import without_autocast
from ldlm.config import BackboneConfig, DenoiserSizes
from ldlm.model.denoiser import check_sizes, modulate
from ldlm.model.layers import MLP, SelfAttention, rotate, sinusoids, split_heads

CONDITION_WIDTH = 128  # of the published model; a narrower network has a condition as wide as itself


Kept = Callable[..., Tensor]  # `noise.kept`, perhaps compiled


@dataclass(frozen=True)
class Dropout:
    """Dropout of a training step, whose masks are functions of their address: seed, step, block, row of global batch.

    So a step has the same masks when it is resumed, recomputed or divided among processes. `step` is an int or a tensor
    of one element. The masks are drawn outside the blocks, which are compiled without the option that random numbers
    need on a GPU (`Compute.normal`).
    """

    seed: int
    step: int | Tensor
    rows_B: Tensor
    kept: Kept = noise.kept

    def masks(self, share: float, block: int, blocks: int, shape: tuple[int, ...]) -> Tensor | None:
        """Masks of both branches of block `block`, bool (B, 2, L, W), True for what stays; None without dropout."""
        if share == 0:
            return None
        return self.kept(self.seed, "dropout", self.step * blocks + block, self.rows_B, (2, *shape), 1 - share)


# ----------------------------------------------------------------------------------------------------------------------
# Attention


def soft_capped(x: Tensor, cap: float) -> Tensor:
    """cap·tanh(x/cap), which bounds |x| by `cap`; a cap of 0 means no cap."""
    return cap * torch.tanh(x / cap) if cap else x


def capped_attention(q_BNHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, cap: float) -> Tensor:
    """softmax(cap·tanh(s/cap))·v with s = q·k/√K, (B, N, H, K) against (B, L, H, K); returns (B, N, H, K).

    It is separate from `ldlm.attention`: the fused kernels take a bias on the scores but no function of them, so here
    the scores (B, H, N, L) are materialised, and their softmax is taken in float32.
    """
    q_BHNK, k_BHLK, v_BHLK = (x.transpose(1, 2) for x in (q_BNHK, k_BLHK, v_BLHK))
    scores_BHNL = (q_BHNK @ k_BHLK.transpose(-1, -2)) / math.sqrt(q_BHNK.shape[-1])
    exact = torch.promote_types(scores_BHNL.dtype, torch.float32)
    weight_BHNL = soft_capped(scores_BHNL.to(exact), cap).softmax(-1).to(v_BHLK.dtype)
    return (weight_BHNL @ v_BHLK).transpose(1, 2)


class RotaryAttention(SelfAttention):
    """`SelfAttention` without biases and with rotary positions, whose scores can be capped; a cap of 0 means no cap."""

    def __init__(self, width: int, heads: int, cap: float) -> None:
        super().__init__(width, heads, bias=False, rotary=True)
        self.cap = cap

    def forward(self, x_BND: Tensor) -> Tensor:
        if not self.cap:
            return super().forward(x_BND)
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x_BND).chunk(3, dim=-1))  # (B, N, H, K)
        return self.out(capped_attention(rotate(q), rotate(k), v, self.cap).flatten(-2))


# ----------------------------------------------------------------------------------------------------------------------
# The network


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (B, C); at initialisation the gates are zero.

    In training both have dropout before the gate: `keep_B2LW` marks what stays; None keeps everything.
    """

    def __init__(self, width: int, heads: int, condition: int, config: BackboneConfig) -> None:
        super().__init__()
        self.kept_share = 1 - config.dropout
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = RotaryAttention(width, heads, config.attention_cap)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp = MLP(width, approximate="tanh")
        self.modulation = nn.Linear(condition, 6 * width)

    def forward(self, x_BLW: Tensor, condition_BC: Tensor, keep_B2LW: Tensor | None = None) -> Tensor:
        modulation_B6W = self.modulation(condition_BC).unflatten(-1, (6, -1))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation_B6W.unbind(1)

        # Attention
        attended = self.attention(modulate(self.attention_norm(x_BLW), shift_a, scale_a))
        if keep_B2LW is not None:
            attended = attended * keep_B2LW[:, 0] / self.kept_share
        x_BLW = x_BLW + gate_a[:, None] * attended

        # MLP
        mixed = self.mlp(modulate(self.mlp_norm(x_BLW), shift_m, scale_m))
        if keep_B2LW is not None:
            mixed = mixed * keep_B2LW[:, 1] / self.kept_share
        return x_BLW + gate_m[:, None] * mixed


class Backbone(nn.Module):
    """Embeddings (rows, W), `hidden` from their sums (B, L, W) to states (B, L, W), and `logits` (…, V) of states.

    `vocab` is V, and `embeddings` the number of embedding rows: V, plus one if the method has a mask.
    """

    def __init__(self, sizes: DenoiserSizes, config: BackboneConfig, *, vocab: int, embeddings: int) -> None:
        super().__init__()
        check_sizes(sizes, rotary=True)
        width, condition = sizes.width, min(CONDITION_WIDTH, sizes.width)
        self.time_dim, self.dropout = sizes.time_dim, config.dropout
        self.attention_cap, self.logit_cap = config.attention_cap, config.logit_cap
        self.embedding = nn.Parameter(torch.empty(embeddings, width))
        self.condition_mlp = nn.Sequential(
            nn.Linear(sizes.time_dim, condition), nn.SiLU(), nn.Linear(condition, condition), nn.SiLU()
        )
        self.blocks = nn.ModuleList(Block(width, sizes.heads, condition, config) for _ in range(sizes.layers))
        self.final_norm = nn.LayerNorm(width, bias=False)
        self.final_modulation = nn.Linear(condition, 2 * width)
        self.head = nn.Linear(width, vocab)
        self._initialise()

    def _initialise(self) -> None:
        """adaLN-Zero: every block starts as the identity; and every token starts equally likely."""
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))
        for name, parameter in self.named_parameters():
            if "modulation" in name or name.startswith("head"):
                nn.init.zeros_(parameter)

    def forward(self, e_BLW: Tensor, condition_B: Tensor | None = None, dropout: Dropout | None = None) -> Tensor:
        """Logits (B, L, V) of `hidden`."""
        return self.logits(self.hidden(e_BLW, condition_B, dropout))

    def hidden(self, e_BLW: Tensor, condition_B: Tensor | None = None, dropout: Dropout | None = None) -> Tensor:
        """States (B, L, W) before the head, from embeddings or sums of them.

        The condition is one scalar per row, or one (1,) for all; None stands for no condition, which is zeros. Without
        `dropout` nothing is dropped.
        """
        condition_B = e_BLW.new_zeros(1) if condition_B is None else condition_B
        # The raw scalar, whereas LDLM's denoiser embeds 1000·t.
        features = sinusoids(condition_B, self.time_dim).to(e_BLW.dtype)
        condition_BC = self.condition_mlp(features)

        x_BLW = e_BLW
        for number, block in enumerate(self.blocks):
            keep_B2LW = None
            if dropout is not None:
                keep_B2LW = dropout.masks(self.dropout, number, len(self.blocks), tuple(e_BLW.shape[1:]))
            x_BLW = block(x_BLW, condition_BC, keep_B2LW)

        shift_BW, scale_BW = self.final_modulation(condition_BC).unflatten(-1, (2, -1)).unbind(1)
        return modulate(self.final_norm(x_BLW), shift_BW, scale_BW)

    @property
    def head_parameters(self) -> tuple[Tensor, ...]:
        """Weight and bias of the head."""
        return self.head.weight, self.head.bias

    def logits(self, h_W: Tensor) -> Tensor:
        """Logits (…, V) of states (…, W), capped if the method caps them, in the head's dtype outside autocast."""
        weight, bias = self.head_parameters
        with without_autocast(h_W.device):
            # Without calling `head`: torch's FLOP counter hooks modules, and fails on a gradient taken within a forward
            # pass, as `vocabulary.loss_by_parts` does.
            return soft_capped(F.linear(h_W.to(weight.dtype), weight, bias), self.logit_cap)


@dataclass(frozen=True)
class InTraining:
    """The backbone in a training step, with dropout; a `TrainedNetwork`."""

    network: Backbone
    dropout: Dropout

    @property
    def embedding(self) -> Tensor:
        """Embeddings of the network."""
        return self.network.embedding

    def hidden(self, e_BLW: Tensor, condition_B: Tensor | None) -> Tensor:
        """States of the network, with dropout."""
        return self.network.hidden(e_BLW, condition_B, self.dropout)

    @property
    def head_parameters(self) -> tuple[Tensor, ...]:
        """Weight and bias of the network's head."""
        return self.network.head_parameters

    def logits(self, h_W: Tensor) -> Tensor:
        """Logits of the network."""
        return self.network.logits(h_W)
