"""Latent encoder E_z, latent decoder D_h and token decoder D_w (Section 4.1, Appendix B.4 and C).

E_z: h_BLD → z_BNC and D_h: z_BNC → ĥ_BLD are Perceiver Resamplers (Alayrac et al., 2022): learned queries attend to
the inputs, whose states stay fixed across layers. D_w: ĥ_BLD → logits_BLV.

Shape letters: CONTRIBUTING.md. M is inputs + queries here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldlm.attention import attention
from ldlm.config import AutoencoderConfig
from ldlm.errors import InputError
from ldlm.model.layers import MLP, RMSNorm, SelfAttention, SwiGLU, head_width, rotary_head_width, split_heads
from ldlm.model.token_loss import TokenLosses, token_losses


class ResamplerAttention(nn.Module):
    """Cross-attention of N queries to [inputs; queries], with separate key/value projections for the two."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv_inputs = nn.Linear(width, 2 * width, bias=False)
        self.kv_latents = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(width // heads, eps=1e-6)
        self.k_norm = RMSNorm(width // heads, eps=1e-6)

    def forward(self, inputs_BLW: Tensor, latents_BNW: Tensor) -> Tensor:
        # Queries from the latents, normalised per head.
        q_BNHK = self.q_norm(split_heads(self.q(latents_BNW), self.heads))

        # Keys and values from inputs and latents, each with its own projection.
        kv_BMW = torch.cat([self.kv_inputs(inputs_BLW), self.kv_latents(latents_BNW)], dim=1)
        k_BMHK, v_BMHK = (split_heads(part, self.heads) for part in kv_BMW.chunk(2, dim=-1))

        return self.out(attention(q_BNHK, self.k_norm(k_BMHK), v_BMHK).flatten(-2))


class ResamplerLayer(nn.Module):
    """Pre-norm cross-attention and MLP on the latents."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inputs_norm = RMSNorm(width, eps=1e-6)
        self.latents_norm = RMSNorm(width, eps=1e-6)
        self.attention = ResamplerAttention(width, heads)
        self.mlp_norm = RMSNorm(width, eps=1e-6)
        self.mlp = MLP(width)

    def forward(self, inputs_BLW: Tensor, latents_BNW: Tensor) -> Tensor:
        latents_BNW = latents_BNW + self.attention(self.inputs_norm(inputs_BLW), self.latents_norm(latents_BNW))
        return latents_BNW + self.mlp(self.mlp_norm(latents_BNW))


class PerceiverResampler(nn.Module):
    """(B, length_in, dim_in) → (B, length_out, dim_out) through `config.layers` layers of learned queries.

    On either side, a linear map adapts the width if it differs from `config.width`. In the paper all widths are 768.
    """

    def __init__(
        self, config: AutoencoderConfig, *, length_in: int, dim_in: int, length_out: int, dim_out: int
    ) -> None:
        super().__init__()
        width = config.width
        head_width(width, config.heads, "model.autoencoder")
        self.project_in = nn.Identity() if dim_in == width else nn.Linear(dim_in, width)
        self.positions_LW = nn.Parameter(config.position_std * torch.randn(length_in, width))
        self.latents_NW = nn.Parameter(0.02 * torch.randn(length_out, width))
        self.layers = nn.ModuleList(ResamplerLayer(width, config.heads) for _ in range(config.layers))
        if config.aligned:
            self._align(config.position_std)
        self.project_out = nn.Identity() if dim_out == width else nn.Linear(width, dim_out)

    @torch.no_grad()
    def _align(self, position_std: float) -> None:
        """Initialise query i and the key of input i alike: the same directions, through the same projection."""
        if self.positions_LW.shape != self.latents_NW.shape:
            raise InputError(
                f"model.autoencoder.aligned needs as many latents as tokens, not {self.latents_NW.shape[0]} and "
                f"{self.positions_LW.shape[0]}; leave num_latents at none"
            )
        self.positions_LW.copy_(self.latents_NW * (position_std / 0.02))
        for module in self.modules():
            if isinstance(module, ResamplerAttention):
                module.kv_inputs.weight[: module.q.out_features].copy_(module.q.weight)

    def forward(self, x: Tensor) -> Tensor:
        inputs_BLW = self.project_in(x) + self.positions_LW
        latents_BNW = self.latents_NW.expand(x.shape[0], -1, -1)
        for layer in self.layers:
            latents_BNW = layer(inputs_BLW, latents_BNW)
        return self.project_out(latents_BNW)


class SelfAttentionLayer(nn.Module):
    """A pre-norm bidirectional transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, heads, bias=False)
        self.mlp_norm = RMSNorm(width, eps=1e-6)
        self.mlp = MLP(width)

    def forward(self, x_BLW: Tensor) -> Tensor:
        x_BLW = x_BLW + self.attention(self.attention_norm(x_BLW))
        return x_BLW + self.mlp(self.mlp_norm(x_BLW))


class SelfAttentionEncoder(nn.Module):
    """The variant of Table 7: transformer blocks over the states, one latent per token."""

    def __init__(
        self, config: AutoencoderConfig, *, length_in: int, dim_in: int, length_out: int, dim_out: int
    ) -> None:
        super().__init__()
        if length_in != length_out:
            raise InputError(
                f"model.autoencoder.kind=self_attention has one latent per token, and num_latents asks for "
                f"{min(length_in, length_out)} against {max(length_in, length_out)} tokens; use the resampler"
            )
        width = config.width
        head_width(width, config.heads, "model.autoencoder")
        self.project_in = nn.Identity() if dim_in == width else nn.Linear(dim_in, width)
        self.positions_LW = nn.Parameter(config.position_std * torch.randn(length_in, width))
        self.layers = nn.ModuleList(SelfAttentionLayer(width, config.heads) for _ in range(config.layers))
        self.project_out = nn.Identity() if dim_out == width else nn.Linear(width, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project_in(x) + self.positions_LW
        for layer in self.layers:
            x = layer(x)
        return self.project_out(x)


BODIES = {"resampler": PerceiverResampler, "self_attention": SelfAttentionEncoder}


class LatentEncoder(nn.Module):
    """E_z: normalised states h (B, L, D) → latents z_0 (B, N, C), normalised only with `output_norm`."""

    def __init__(
        self, config: AutoencoderConfig, *, seq_len: int, hidden_dim: int, num_latents: int, latent_dim: int
    ) -> None:
        super().__init__()
        self.body = BODIES[config.kind](
            config, length_in=seq_len, dim_in=hidden_dim, length_out=num_latents, dim_out=latent_dim
        )
        self.output_norm = RMSNorm(latent_dim, eps=1e-6) if config.output_norm else nn.Identity()

    def forward(self, h_BLD: Tensor) -> Tensor:
        return self.output_norm(self.body(h_BLD))


class LatentDecoder(nn.Module):
    """D_h: latents (B, N, C), noisy in training → estimates ĥ (B, L, D) of the normalised states."""

    def __init__(
        self, config: AutoencoderConfig, *, seq_len: int, hidden_dim: int, num_latents: int, latent_dim: int
    ) -> None:
        super().__init__()
        self.body = BODIES[config.kind](
            config, length_in=num_latents, dim_in=latent_dim, length_out=seq_len, dim_out=hidden_dim
        )

    def forward(self, z_BNC: Tensor) -> Tensor:
        return self.body(z_BNC)


class DecoderBlock(nn.Module):
    """A pre-norm bidirectional block with rotary attention and SwiGLU, without biases."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, heads, bias=False, rotary=True)
        self.mlp_norm = RMSNorm(width, eps=1e-6)
        self.mlp = SwiGLU(width, mlp_ratio * width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD))
        return x_BLD + self.mlp(self.mlp_norm(x_BLD))


class TokenDecoder(nn.Module):
    """D_w: (B, L, D) → logits (B, L, V). `layers` blocks, a norm, and a bias-free vocabulary head.

    In joint training it reads ĥ; a decoder of `finetune-decoder` is the same network and reads the latents. Its only
    positions are rotary, since its input already carries positions.
    """

    def __init__(self, *, width: int, layers: int, heads: int, mlp_ratio: int, vocab_size: int) -> None:
        super().__init__()
        if layers:
            rotary_head_width(width, heads, "model.token_decoder", "its layers to 0")
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, mlp_ratio) for _ in range(layers))
        self.norm = RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.head(self._features(x_BLD))

    def losses(self, x_BLD: Tensor, tokens_BL: Tensor) -> TokenLosses:
        """Cross-entropy and correct tokens; the logits are computed a chunk at a time."""
        return token_losses(self._features(x_BLD), self.head.weight, tokens_BL)

    def _features(self, x_BLD: Tensor) -> Tensor:
        """Input (B, L, D) of the vocabulary head."""
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.norm(x_BLD)
