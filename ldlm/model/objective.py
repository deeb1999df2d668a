"""The joint objective L = L_diff + L_h + L_w (Eq. 2-4), the diffusion-to-encoder warm-up and the stop-gradients.

Shapes in names: B batch, L tokens, N latents, D width of h, C width of a latent, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ldlm import noise
from ldlm.compute import without_cast_cache
from ldlm.config import CosmosConfig, DecoderNoise, DiffusionConfig, RecipeConfig, decoder_noise
from ldlm.model.diffusion import Schedule, noised
from ldlm.model.joint import JointModel
from ldlm.model.timesteps import TimestepSampler

Phase = Literal["joint", "autoencoder", "diffusion"]
Normal = Callable[..., Tensor]


def set_trainable(model: JointModel, phase: Phase) -> None:
    """Let train what the phase trains: everything, or in COSMOS's phases all but the denoiser, then it alone."""
    for name, part in model.parts().items():
        part.requires_grad_(phase == "joint" or (name == "denoiser") == (phase == "diffusion"))


def warmup_gamma(step: int, config: RecipeConfig) -> float:
    """γ(s): how much of L_diff's gradient reaches E_z at step s (Eq. 29-30). 1 beyond S_wu, and when S_wu is 0."""
    if step >= config.warmup_steps:
        return 1.0

    def rise(s: float) -> float:  # Eq. 29
        # σ(x) = ½(1 + tanh(x/2)), which no steepness can overflow.
        return 0.5 * (1 + math.tanh(0.5 * config.warmup_k * (s / config.warmup_steps - config.warmup_c)))

    progress = (rise(step) - rise(0)) / (rise(config.warmup_steps) - rise(0))
    return config.gamma_min + (1 - config.gamma_min) * progress  # Eq. 30


def scale_gradient(z: Tensor, gamma: float) -> Tensor:
    """γ z + (1 − γ) sg(z): z itself, with its gradient scaled by γ (Eq. 28).

    Written as sg(z) + γ (z − sg(z)), whose forward value is z to the bit.
    """
    return z.detach() + gamma * (z - z.detach())


@dataclass(frozen=True)
class Smoothing:
    """What COSMOS does to the inputs of its autoencoder: which tokens are seen, noise on h, features that are kept."""

    seen_BL1: Tensor
    eps_BLD: Tensor  # scaled
    keep_BNC: Tensor  # scaled, so that the mean stays


@dataclass(frozen=True)
class Draws:
    """The randomness of one step, for B rows: times, loss weights, noise of z_t and of D_h's input, and the coin."""

    t_B: Tensor
    weight_B: Tensor
    eps_BNC: Tensor
    eps_dec_BNC: Tensor
    self_condition: bool
    t_dec_B: Tensor | None = None  # of diffused decoder noise


def draw_smoothing(
    config: CosmosConfig,
    *,
    seed: int,
    step: int,
    rows_B: Tensor,
    h_shape: tuple[int, int],
    latent_shape: tuple[int, int],
    normal: Normal = noise.normal,
) -> Smoothing:
    """`Smoothing` keyed by (seed, step, row of the global batch); `normal` is `noise.normal`, perhaps compiled."""
    seen_BL = noise.uniform(seed, "mask", step, rows_B, h_shape[:1]) >= config.mask
    keep_BNC = noise.uniform(seed, "dropout", step, rows_B, latent_shape) >= config.dropout
    return Smoothing(
        seen_BL1=seen_BL[..., None].float(),
        eps_BLD=config.noise * normal(seed, "eps_h", rows_B.new_full((), step), rows_B, h_shape),
        keep_BNC=keep_BNC.float() / (1 - config.dropout),
    )


def draw(
    config: DiffusionConfig,
    timesteps: TimestepSampler,
    *,
    seed: int,
    step: int,
    rows_B: Tensor,
    latent_shape: tuple[int, int],
    device: torch.device | str = "cpu",
    normal: Normal = noise.normal,
    decoder: DecoderNoise | None = None,
) -> Draws:
    """`Draws` on `device` keyed by (seed, step, row of the global batch); rows on the CPU, t in float64.

    `normal` is `noise.normal`, perhaps compiled; `decoder` the noise of D_h's input.
    """
    t_B = timesteps.draw(noise.uniform(seed, "t", step, rows_B))
    weight_B = torch.ones_like(t_B)
    if config.weighting == "elbo":
        # Eq. 22 is for uniform t, so it is divided by the density that t was drawn from.
        omega_B = Schedule.of(config).elbo_weight(t_B.clamp(max=1 - 1e-9)) / timesteps.density(t_B)
        weight_B = torch.where(t_B >= config.elbo_t_min, omega_B, 0.0)
    there_B = rows_B.to(device, non_blocking=True)
    step_there = there_B.new_full((), step)
    return Draws(
        t_B=t_B.to(device, non_blocking=True),
        weight_B=weight_B.to(device, non_blocking=True),
        eps_BNC=normal(seed, "eps", step_there, there_B, latent_shape),
        eps_dec_BNC=normal(seed, "eps_dec", step_there, there_B, latent_shape),
        self_condition=noise.coin(seed, "self_condition", step, config.self_conditioning),
        t_dec_B=draw_t_dec(decoder, seed=seed, step=step, rows_B=rows_B, device=device),
    )


def draw_t_dec(
    decoder: DecoderNoise | None, *, seed: int, step: int, rows_B: Tensor, device: torch.device | str
) -> Tensor | None:
    """Times (B,) float64 up to the size of diffused decoder noise, keyed like `Draws`; None for other noise."""
    if decoder is None or decoder.kind != "diffused":
        return None
    return (decoder.size * noise.uniform(seed, "t_dec", step, rows_B)).to(device, non_blocking=True)


class Spread(NamedTuple):
    """What the figures need of the latents of B rows, in float64: they themselves would be gigabytes."""

    sum_NC: Tensor
    square_NC: Tensor  # Σ z²
    norm: Tensor  # Σ over rows of a latent vector's mean norm

    @classmethod
    def of(cls, z_BNC: Tensor) -> Spread:
        """Of detached latents."""
        z_BNC = z_BNC.detach()
        return cls(
            z_BNC.sum(0, dtype=torch.float64),
            z_BNC.square().sum(0, dtype=torch.float64),
            z_BNC.norm(dim=-1).mean(1).sum(dtype=torch.float64),
        )


class Losses(NamedTuple):
    """What a step returns. `loss` carries the gradient, the rest is for looking at."""

    loss: Tensor
    l_diff: Tensor
    l_h: Tensor
    l_w: Tensor
    l_diff_B: Tensor
    token_accuracy: Tensor
    latents: Spread

    def detached(self) -> Losses:
        """To look at, without the graph behind them."""
        losses = {name: getattr(self, name).detach() for name in ("loss", "l_diff", "l_h", "l_w")}
        return self._replace(**losses)


@dataclass(frozen=True)
class DecoderInput:
    """z̃_0, what the decoders read in training in place of z_0 (Section 5.4, SPEC 13.5)."""

    corruption: DecoderNoise
    schedule: Schedule
    cosmos: CosmosConfig

    def noisy(self, z_0_BNC: Tensor, eps_BNC: Tensor, t_B: Tensor | None) -> Tensor:
        """z_0 + σ_dec ε, or z_t at the times `t_B`."""
        if self.corruption.kind == "diffused":
            assert t_B is not None
            return noised(self.schedule, z_0_BNC, t_B, eps_BNC)
        return z_0_BNC + self.corruption.size * eps_BNC

    def draw(
        self,
        model: JointModel,
        h_BLD: Tensor,
        z_0_BNC: Tensor,
        *,
        seed: int,
        step: int,
        rows_B: Tensor,
        normal: Normal = noise.normal,
    ) -> Tensor:
        """z̃_0 of latents z_0 = E_z(h), keyed like `Draws`; outside joint training, which draws it with the rest."""
        shape = (z_0_BNC.shape[1], z_0_BNC.shape[2])
        address: dict[str, Any] = {"seed": seed, "step": step, "rows_B": rows_B}
        if self.corruption.kind == "smoothed":
            shapes: dict[str, Any] = {"h_shape": (h_BLD.shape[1], h_BLD.shape[2]), "latent_shape": shape}
            smoothing = draw_smoothing(self.cosmos, normal=normal, **shapes, **address)
            return smoothed_latents(model, h_BLD, smoothing) * smoothing.keep_BNC
        eps_BNC = normal(seed, "eps_dec", rows_B.new_full((), step), rows_B, shape)
        return self.noisy(z_0_BNC, eps_BNC, draw_t_dec(self.corruption, device=z_0_BNC.device, **address))


def smoothed_latents(model: JointModel, h_BLD: Tensor, smoothing: Smoothing) -> Tensor:
    """E_z of what COSMOS lets it see of h, without the dropout."""
    return at_least_float32(model.latent_encoder((h_BLD + smoothing.eps_BLD) * smoothing.seen_BL1))


class Scales(NamedTuple):
    """Factors that turn the mean over its own elements into each term of the joint loss (Eq. 4)."""

    diff: float = 1.0
    h: float = 1.0
    w: float = 1.0

    @classmethod
    def of(cls, model: JointModel, diffusion: DiffusionConfig, recipe: RecipeConfig) -> Scales:
        """`sum`: of a row's elements. `mean`: none, but under elbo the sums over L, so that Eq. 23's ratios hold."""
        length = model.shapes.seq_len
        latents, states = model.num_latents * model.latent_dim, length * model.shapes.hidden_dim
        if recipe.loss_reduction == "sum":
            return cls(latents, states, length if recipe.edition > 1 else 1.0)
        if diffusion.weighting == "elbo" and recipe.edition > 1:
            return cls(latents / length, states / length)
        return cls()


class Objective(nn.Module):
    """The joint loss as one module, so that a data-parallel wrapper sees every trainable parameter in its forward."""

    def __init__(
        self,
        model: JointModel,
        diffusion: DiffusionConfig,
        recipe: RecipeConfig,
        cosmos: CosmosConfig | None = None,
    ) -> None:
        super().__init__()
        self.model, self.diffusion, self.recipe = model, diffusion, recipe
        self.schedule = Schedule.of(diffusion)
        self.scales = Scales.of(model, diffusion, recipe)
        decoder = decoder_noise(model.config.space, recipe)
        if model.config.space == "cosmos" and recipe.edition == 1:  # which evaluated its autoencoder without noise
            decoder = DecoderNoise("additive", 0.0)
        self.decoder_input = DecoderInput(decoder, self.schedule, cosmos or CosmosConfig())

    def forward(
        self,
        hidden_BLD: Tensor | None,
        tokens_BL: Tensor,
        draws: Draws,
        gamma: float,
        phase: Phase = "joint",
        smoothing: Smoothing | None = None,
    ) -> Losses:
        """Losses of one batch. `hidden_BLD` normalised states (None for scratch embeddings), `tokens_BL` int64."""
        h_BLD = self.model.states(hidden_BLD, tokens_BL)
        if smoothing is not None:
            return self.autoencoder_loss(h_BLD, tokens_BL, smoothing)
        z_0_BNC = at_least_float32(self.model.latent_encoder(h_BLD))
        if phase == "diffusion":
            return self.diffusion_loss(z_0_BNC, draws)

        l_diff_B = self.denoising_loss(scale_gradient(z_0_BNC, gamma), draws)
        l_diff = (draws.weight_B.to(l_diff_B.dtype) * l_diff_B).mean()

        noisy_BNC = self.decoder_input.noisy(z_0_BNC, draws.eps_dec_BNC, draws.t_dec_B)
        h_hat_BLD = self.model.latent_decoder(noisy_BNC)
        l_h = self.state_loss(h_hat_BLD, h_BLD)
        l_w, accuracy = self.token_loss(h_hat_BLD, tokens_BL)

        loss = l_diff + self.reconstruction(l_h, l_w)
        return Losses(loss, l_diff, l_h, l_w, l_diff_B.detach(), accuracy, Spread.of(z_0_BNC))

    def autoencoder_loss(self, h_BLD: Tensor, tokens_BL: Tensor, smoothing: Smoothing) -> Losses:
        """The first phase of COSMOS: rebuild h and the tokens from what is masked, noisy and incomplete."""
        z_0_BNC = smoothed_latents(self.model, h_BLD, smoothing)
        h_hat_BLD = self.model.latent_decoder(z_0_BNC * smoothing.keep_BNC)
        l_h = self.state_loss(h_hat_BLD, h_BLD)
        l_w, accuracy = self.token_loss(h_hat_BLD, tokens_BL)
        none_B = torch.zeros_like(z_0_BNC[:, 0, 0]).detach()
        return Losses(self.reconstruction(l_h, l_w), none_B.mean(), l_h, l_w, none_B, accuracy, Spread.of(z_0_BNC))

    def diffusion_loss(self, z_0_BNC: Tensor, draws: Draws) -> Losses:
        """The second phase of COSMOS: the denoiser alone, on latents that no longer change."""
        l_diff_B = self.denoising_loss(z_0_BNC, draws)
        l_diff, none = (draws.weight_B.to(l_diff_B.dtype) * l_diff_B).mean(), l_diff_B.new_zeros(())
        return Losses(l_diff, l_diff, none, none, l_diff_B.detach(), none, Spread.of(z_0_BNC))

    def reconstruction(self, l_h: Tensor, l_w: Tensor) -> Tensor:
        """What the decoders learn by, and where it reaches the latents shapes them: L_w, and L_h unless it is `ce`."""
        return l_w + l_h if "mse" in self.recipe.reconstruction else l_w

    def state_loss(self, h_hat_BLD: Tensor, h_BLD: Tensor) -> Tensor:
        """L_h (Eq. 2); 0 where the latents are h itself."""
        if not self.model.encodes:
            return h_BLD.new_zeros(())
        # Detached: as targets of their own reconstruction, trainable embeddings would shrink to zero.
        return self.scales.h * row_loss(h_hat_BLD, h_BLD.detach()).mean()

    def denoising_loss(self, z_0_BNC: Tensor, draws: Draws) -> Tensor:
        """L_diff per row (B,) (Eq. 1), self-conditioned when the coin says so (Chen et al., 2023)."""
        z_t_BNC = noised(self.schedule, z_0_BNC, draws.t_B, draws.eps_BNC)
        previous_BNC = torch.zeros_like(z_t_BNC)
        t_B = draws.t_B.float()
        if draws.self_condition:
            with torch.no_grad(), without_cast_cache(z_t_BNC.device):
                previous_BNC = self.model.denoiser(z_t_BNC, t_B, previous_BNC)
        z_hat_BNC = self.model.denoiser(z_t_BNC, t_B, previous_BNC)
        return self.scales.diff * row_loss(z_hat_BNC, z_0_BNC)

    def token_loss(self, h_hat_BLD: Tensor, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
        """(L_w, token accuracy) (Eq. 3). Under MSE the cross-entropy stops at ĥ and trains D_w alone."""
        if self.model.token_decoder is None:
            nothing = h_hat_BLD.new_zeros(())
            return nothing, nothing
        stops = self.recipe.reconstruction == "mse"
        found = self.model.token_decoder.losses(h_hat_BLD.detach() if stops else h_hat_BLD, tokens_BL)
        return self.scales.w * found.mean, found.right_BL.float().mean()


def at_least_float32(x: Tensor) -> Tensor:
    """What autocast made less precise, in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def row_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Squared error per row (B,), its mean over elements."""
    return (estimate - target).square().flatten(1).mean(1)
