"""The denoiser: a diffusion transformer that estimates z_0 from z_t (Appendix C; Peebles & Xie, 2023, adaLN-Zero).

Shape letters: CONTRIBUTING.md. M counts modulation vectors here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldlm.config import DenoiserConfig, DenoiserSizes, Shapes
from ldlm.errors import InputError
from ldlm.model.layers import MLP, head_width, rotary_head_width, sinusoids, time_features
from ldlm.model.prefix import Prefix, PrefixAttention, PrefixKeys, longest_prefix


def modulate(x_BNW: Tensor, shift_BW: Tensor, scale_BW: Tensor) -> Tensor:
    """x·(1 + scale) + shift, feature by feature; zero shift and scale leave x as it is."""
    return x_BNW * (1 + scale_BW[:, None]) + shift_BW[:, None]


def check_sizes(sizes: DenoiserSizes, *, rotary: bool) -> None:
    """`InputError` for sizes that attention, rotary positions or the time embedding can't have."""
    width, heads, name = sizes.width, sizes.heads, "model.denoiser"
    if rotary:
        rotary_head_width(width, heads, name, f"{name}.width to a multiple of {2 * heads}")
    else:
        head_width(width, heads, name)
    if sizes.time_dim % 2:
        raise InputError(f"{name}.time_dim={sizes.time_dim} must be even: it holds sines and cosines")


def first_positions(config: DenoiserConfig, count: int) -> Tensor:
    """Learned positions (count, W) at initialisation: DiT's sines and cosines, or normal with standard deviation 0.02.

    Beside content of size 1, the normal ones are so small that a short training run never tells the latents apart.
    """
    if config.positions == "normal":
        return 0.02 * torch.randn(count, config.width)
    if config.width % 2:
        raise InputError(
            f"model.denoiser.width={config.width} must be even: its positions are sines and cosines; or take "
            f"model.denoiser.positions=normal"
        )
    return sinusoids(torch.arange(count), config.width)


class DiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition; at initialisation the gates are zero.

    `modulation` makes these six vectors from the condition (B, W); `DiT.modulations` calls it for all blocks at once.
    """

    def __init__(self, width: int, heads: int, *, rotary: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = PrefixAttention(width, heads, bias=True, rotary=rotary)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(width, approximate="tanh")
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x_BNW: Tensor, modulation_B6W: Tensor, more_BL2W: Tensor | None = None, seen_BL: Tensor | None = None
    ) -> Tensor:
        """x after the block; given `more_BL2W` and `seen_BL`, it also attends to a prefix."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation_B6W.unbind(1)

        # Attention
        attended = self.attention(modulate(self.attention_norm(x_BNW), shift_a, scale_a), more_BL2W, seen_BL)
        x_BNW = x_BNW + gate_a[:, None] * attended

        # MLP
        return x_BNW + gate_m[:, None] * self.mlp(modulate(self.mlp_norm(x_BNW), shift_m, scale_m))


class DiT(nn.Module):
    """ẑ_θ(z_t, t, ẑ_prev): (B, N, C) latents at time t (B,) in [0, 1] → (B, N, C) estimate of z_0.

    ẑ_prev is the self-conditioning estimate, the previous estimate of z_0; zeros stand for none, and are all that a
    network trained without self-conditioning can read. If `prefixed` gives the sizes of the features, the network can
    be conditioned on a `prefix` of the text.
    """

    def __init__(
        self, config: DenoiserConfig, *, num_latents: int, latent_dim: int, prefixed: Shapes | None = None
    ) -> None:
        super().__init__()
        width = config.width
        rotary = config.positions == "rotary"
        check_sizes(config, rotary=rotary)
        self.time_dim = config.time_dim
        self.project_in = nn.Linear(2 * latent_dim, width)
        self.positions_NW = nn.Parameter(first_positions(config, num_latents))
        self.time_mlp = nn.Sequential(nn.Linear(config.time_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(DiTBlock(width, config.heads, rotary=rotary) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.project_out = nn.Linear(width, latent_dim)
        self.prefix = self._prefix_keys(config, prefixed)
        self._initialise()

    def _prefix_keys(self, config: DenoiserConfig, shapes: Shapes | None) -> PrefixKeys | None:
        if shapes is None:
            return None
        positions_LW = first_positions(config, longest_prefix(shapes.seq_len))
        return PrefixKeys(positions_LW, hidden_dim=shapes.hidden_dim, blocks=config.layers)

    def _initialise(self) -> None:
        """adaLN-Zero: every block starts as the identity, and the estimate starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.time_mlp:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if "modulation" in name:
                nn.init.zeros_(parameter)
        nn.init.zeros_(self.project_out.weight)

    def forward(self, z_t_BNC: Tensor, t_B: Tensor, z_hat_prev_BNC: Tensor, prefix: Prefix | None = None) -> Tensor:
        return self.estimate(z_t_BNC, z_hat_prev_BNC, self.modulations(t_B), prefix)

    def modulations(self, t_B: Tensor) -> Tensor:
        """Modulation vectors (B, M, W) for the times: six for each block, and two for the output.

        A sampler knows its times before it begins, and computes their modulations once.
        """
        features = time_features(t_B, self.time_dim).to(self.positions_NW.dtype)
        condition_BW = self.time_mlp(features)
        parts = [block.get_submodule("modulation")(condition_BW) for block in self.blocks]
        parts.append(self.final_modulation(condition_BW))
        return torch.cat(parts, dim=-1).unflatten(-1, (-1, condition_BW.shape[-1]))

    def estimate(
        self, z_t_BNC: Tensor, z_hat_prev_BNC: Tensor, modulations_BMW: Tensor, prefix: Prefix | None = None
    ) -> Tensor:
        """ẑ_0 (B, N, C), given the modulations of each row's time, or of one time for all rows.

        It is unconditional without a `prefix`; if the network was built for prefixes, `self.prefix` makes one.
        """
        # Input: z_t beside the self-conditioning estimate, plus positions.
        x_BNW = self.project_in(torch.cat([z_t_BNC, z_hat_prev_BNC], dim=-1)) + self.positions_NW

        # Blocks
        *for_blocks, for_output = modulations_BMW.split([6] * len(self.blocks) + [2], dim=1)
        prefixes = [()] * len(self.blocks) if prefix is None else prefix.by_block()
        for block, modulation_B6W, more in zip(self.blocks, for_blocks, prefixes, strict=True):
            x_BNW = block(x_BNW, modulation_B6W, *more)

        # Output
        shift_BW, scale_BW = for_output.unbind(1)
        return self.project_out(modulate(self.final_norm(x_BNW), shift_BW, scale_BW))

    def unconditioned(
        self, z_t_BNC: Tensor, z_hat_prev_BNC: Tensor, modulations_BMW: Tensor, prefix: Prefix | None = None
    ) -> Tensor:
        """`estimate` with zeros for ẑ_prev, for a network trained without self-conditioning."""
        return self.estimate(z_t_BNC, torch.zeros_like(z_hat_prev_BNC), modulations_BMW, prefix)
