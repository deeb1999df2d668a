"""The joint objective L = L_diff + L_h + L_w, its stop-gradients and the warm-up of the encoder (Sections 4 and 5).

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ldlm import noise
from ldlm.compute import without_cast_cache
from ldlm.config import DecoderNoise, DiffusionConfig, RecipeConfig, TrainConfig, decoder_noise
from ldlm.model.diffusion import Schedule, noised
from ldlm.model.joint import JointModel
from ldlm.model.prefix import draw_lengths
from ldlm.model.timesteps import TimestepSampler

Normal = Callable[..., Tensor]  # `noise.normal`, perhaps compiled


def at_least_float32(x: Tensor) -> Tensor:
    """Cast to float32 if autocast left less; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def row_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Squared error per row (B,), averaged over elements."""
    return (estimate - target).square().flatten(1).mean(1)


# ----------------------------------------------------------------------------------------------------------------------
# Diffusion-to-encoder warm-up (Appendix A.2)


def warmup_sigmoid(step: float, config: RecipeConfig) -> float:
    """σ̃(s) = σ(k (s/S_wu − c)), the shifted logistic sigmoid of the warm-up (Eq. 29)."""
    # σ(x) = ½(1 + tanh(x/2)), which does not overflow, however steep.
    return 0.5 * (1 + math.tanh(0.5 * config.warmup_k * (step / config.warmup_steps - config.warmup_c)))


def warmup_gamma(step: int, config: RecipeConfig) -> float:
    """γ(s), the share of L_diff's gradient that reaches E_z at step s (Eq. 30). 1 from S_wu on, and when S_wu is 0."""
    if step >= config.warmup_steps:
        return 1.0
    first, now, last = (warmup_sigmoid(s, config) for s in (0, step, config.warmup_steps))
    return config.gamma_min + (1 - config.gamma_min) * ((now - first) / (last - first))


def scale_gradient(z: Tensor, gamma: float) -> Tensor:
    """γ z + (1 − γ) sg(z): z itself, with its gradient scaled by γ (Eq. 28); sg is the stop-gradient.

    Written as sg(z) + γ (z − sg(z)), whose forward value is exactly z, bit for bit.
    """
    return z.detach() + gamma * (z - z.detach())


# ----------------------------------------------------------------------------------------------------------------------
# The randomness of a step. Its address is (seed, step, row of the global batch).


@dataclass(frozen=True)
class Draws:
    """The randomness of one step, for B rows: times, loss weights, noise of z_t and of D_h's input, and a coin."""

    t_B: Tensor
    weight_B: Tensor
    eps_BNC: Tensor
    eps_dec_BNC: Tensor
    self_condition: bool
    t_dec_B: Tensor | None = None  # times of diffused decoder noise
    k_B: Tensor | None = None  # tokens of the prefix that the denoiser sees, under model.condition=prefix
    eps_prev_BNC: Tensor | None = None  # noise of ẑ_prev, under diffusion.self_conditioning_noise


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
    """`Draws` on `device` for the rows `rows_B` (on the CPU); t is float64. `decoder` is the noise of D_h's input."""
    t_B = draw_t(timesteps, seed=seed, step=step, rows_B=rows_B)
    rows_there_B = rows_B.to(device, non_blocking=True)
    step_there = rows_there_B.new_full((), step)
    self_condition = noise.coin(seed, "self_condition", step, config.self_conditioning)
    noisy_prev = self_condition and config.self_conditioning_noise > 0
    return Draws(
        t_B=t_B.to(device, non_blocking=True),
        weight_B=loss_weights(config, timesteps, t_B, decoder).to(device, non_blocking=True),
        eps_BNC=normal(seed, "eps", step_there, rows_there_B, latent_shape),
        eps_dec_BNC=normal(seed, "eps_dec", step_there, rows_there_B, latent_shape),
        self_condition=self_condition,
        t_dec_B=draw_t_dec(decoder, seed=seed, step=step, rows_B=rows_B, device=device),
        eps_prev_BNC=normal(seed, "eps_prev", step_there, rows_there_B, latent_shape) if noisy_prev else None,
    )


def draw_t(timesteps: TimestepSampler, *, seed: int, step: int, rows_B: Tensor) -> Tensor:
    """Times t (B,) float64 at which the rows `rows_B` of the global batch are denoised at a step."""
    return timesteps.draw(noise.uniform(seed, "t", step, rows_B))


def draw_t_dec(
    decoder: DecoderNoise | None, *, seed: int, step: int, rows_B: Tensor, device: torch.device | str
) -> Tensor | None:
    """Times (B,) float64 up to the size of diffused decoder noise; None for other noise."""
    if decoder is None or decoder.kind != "diffused":
        return None
    return (decoder.size * noise.uniform(seed, "t_dec", step, rows_B)).to(device, non_blocking=True)


def noise_time(schedule: Schedule, decoder: DecoderNoise) -> float:
    """t* at which the forward process has as much noise as the decoders' input in training; 0 without noise."""
    if decoder.kind == "diffused":
        return decoder.size
    return schedule.time_of_noise(decoder.size) if decoder.size > 0 else 0.0


def elbo_start(config: DiffusionConfig, decoder: DecoderNoise | None) -> float:
    """t at which the integral of the ELBO starts: `elbo_t_min`, else t* of the decoders' noise."""
    if config.elbo_t_min is not None:
        return config.elbo_t_min
    assert decoder is not None
    return noise_time(Schedule.of(config), decoder)


def loss_weights(
    config: DiffusionConfig, timesteps: TimestepSampler, t_B: Tensor, decoder: DecoderNoise | None = None
) -> Tensor:
    """Weights (B,) of the squared errors at times t ~ p(t): 1, or for `elbo` ω_ELBO(t)/p(t) (Eq. 21).

    ω_ELBO is meant for uniform t, so it is divided by the density that t was drawn from. It is 0 below `elbo_start`,
    since it diverges at t = 0. `decoder` is the noise of D_h's input.
    """
    if config.weighting == "simple":
        return torch.ones_like(t_B)
    inside_B = t_B.clamp(max=1 - 1e-9)  # β diverges at t = 1
    omega_B = Schedule.of(config).elbo_weight(inside_B) / timesteps.density(t_B)
    return torch.where(t_B >= elbo_start(config, decoder), omega_B, 0.0)


@dataclass(frozen=True)
class DecoderInput:
    """z̃_0, which the decoders read in training in place of z_0 (Section 5.4, SPEC 13.5)."""

    corruption: DecoderNoise
    schedule: Schedule

    def noisy(self, z_0_BNC: Tensor, eps_BNC: Tensor, t_B: Tensor | None) -> Tensor:
        """z_0 + σ_dec ε (Eq. 8), or for diffused noise z_t at the times `t_B`."""
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
        """z̃_0 of latents z_0 = E_z(h), outside joint training, which draws this noise with the rest of a step's.

        `rows_B` are on the device of the latents.
        """
        eps_BNC = normal(seed, "eps_dec", rows_B.new_full((), step), rows_B, (z_0_BNC.shape[1], z_0_BNC.shape[2]))
        t_B = draw_t_dec(self.corruption, seed=seed, step=step, rows_B=rows_B, device=z_0_BNC.device)
        return self.noisy(z_0_BNC, eps_BNC, t_B)


# ----------------------------------------------------------------------------------------------------------------------
# Losses


class Spread(NamedTuple):
    """Float64 sums over the latents of B rows, for a step's statistics; the latents themselves would take gigabytes."""

    sum_NC: Tensor
    square_NC: Tensor  # Σ z²
    norm: Tensor  # Σ over rows of the mean norm of a row's latent vectors

    @classmethod
    def of(cls, z_BNC: Tensor) -> Spread:
        """Sums over the latents, detached."""
        z_BNC = z_BNC.detach()
        return cls(
            z_BNC.sum(0, dtype=torch.float64),
            z_BNC.square().sum(0, dtype=torch.float64),
            z_BNC.norm(dim=-1).mean(1).sum(dtype=torch.float64),
        )

    def added_to(self, total: Spread) -> Spread:
        """The sums of `total` with these added in place, beside the norm of these latents alone.

        Otherwise the sums of many micro-batches of long rows would take gigabytes.
        """
        return Spread(total.sum_NC.add_(self.sum_NC), total.square_NC.add_(self.square_NC), self.norm)


class Losses(NamedTuple):
    """Losses of a micro-batch. `loss` carries the gradient; the others are recorded."""

    loss: Tensor
    l_diff: Tensor
    l_h: Tensor
    l_w: Tensor
    l_diff_B: Tensor
    token_accuracy: Tensor
    latents: Spread

    def detached(self) -> Losses:
        """Values without the graph behind them."""
        losses = {name: getattr(self, name).detach() for name in ("loss", "l_diff", "l_h", "l_w")}
        return self._replace(**losses)


class Scales(NamedTuple):
    """Factors that turn each term's mean over its own elements into the term of the loss."""

    diff: float = 1.0
    h: float = 1.0
    w: float = 1.0

    @classmethod
    def of(cls, model: JointModel, diffusion: DiffusionConfig, recipe: RecipeConfig) -> Scales:
        """Factors of `recipe.loss_reduction`.

        `sum`: elements of a row. `mean`: 1. With ELBO weights: elements of a row divided by L, for the ratios of the
        NELBO with σ_rec² = ½ (Eq. 23); the second edition has these for `mean` only, the first for neither.
        """
        length, elbo = model.shapes.seq_len, diffusion.weighting == "elbo"
        latents, states = model.num_latents * model.latent_dim, length * model.shapes.hidden_dim
        if elbo and recipe.edition > (1 if recipe.loss_reduction == "mean" else 2):
            return cls(latents / length, states / length)
        if recipe.loss_reduction == "sum":
            return cls(latents, states, length if recipe.edition > 1 else 1.0)
        return cls()


class Objective(nn.Module):
    """The terms of the loss; a subclass draws a step's randomness, adds terms up and says which parts learn from them.

    It is a module so that a data-parallel wrapper sees every trainable parameter in its forward pass.
    """

    draws_times: ClassVar[bool] = True  # the timestep sampler learns from its losses by t

    def __init__(self, model: JointModel, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.schedule = Schedule.of(config.diffusion)
        self.scales = Scales.of(model, config.diffusion, config.recipe)
        self.decoder_input = self.make_decoder_input()

    def make_decoder_input(self) -> DecoderInput:
        """Input of the decoders in training (SPEC 13.5)."""
        return DecoderInput(decoder_noise(self.model.config.space, self.config.recipe), self.schedule)

    def trains(self, part: str) -> bool:
        """Whether the part of the model called `part` learns from this loss."""
        return True

    def draw(
        self,
        timesteps: TimestepSampler,
        *,
        seed: int,
        step: int,
        rows_B: Tensor,
        device: torch.device | str = "cpu",
        normal: Normal = noise.normal,
    ) -> Any:
        """A step's randomness, the input of `forward`, on `device`, for the rows `rows_B` of the global batch."""
        draws = draw(
            self.config.diffusion,
            timesteps,
            seed=seed,
            step=step,
            rows_B=rows_B,
            latent_shape=self.model.latent_shape,
            device=device,
            normal=normal,
            decoder=self.decoder_input.corruption,
        )
        if self.model.denoiser.prefix is None:
            return draws
        k_B = draw_lengths(seed=seed, step=step, rows_B=rows_B, seq_len=self.model.shapes.seq_len)
        return replace(draws, k_B=k_B.to(device, non_blocking=True))

    def denoising_loss(self, z_0_BNC: Tensor, draws: Draws, h_BLD: Tensor | None = None) -> Tensor:
        """L_diff = ‖ẑ_θ(z_t, t, ẑ_prev) − z_0‖² per row (B,) (Eq. 1), self-conditioned when the coin says so.

        If the draws have lengths k, the denoiser sees the first k states of each row of h.
        """
        z_t_BNC, t_B = noised(self.schedule, z_0_BNC, draws.t_B, draws.eps_BNC), draws.t_B.float()
        prefix = self.model.prefix(h_BLD, draws.k_B)

        # The self-conditioning estimate is made at the same t and z_t, without gradient (Chen et al., 2023).
        z_hat_prev_BNC = torch.zeros_like(z_t_BNC)
        if draws.self_condition:
            with torch.no_grad(), without_cast_cache(z_t_BNC.device):
                fixed = prefix and prefix.detached()
                z_hat_prev_BNC = self.model.denoiser(z_t_BNC, t_B, z_hat_prev_BNC, prefix=fixed)
                z_hat_prev_BNC = self.noisy_prev(z_hat_prev_BNC, draws.eps_prev_BNC)

        z_hat_BNC = self.model.denoiser(z_t_BNC, t_B, z_hat_prev_BNC, prefix=prefix)
        return self.scales.diff * row_loss(z_hat_BNC, z_0_BNC)

    def noisy_prev(self, z_hat_BNC: Tensor, eps_BNC: Tensor | None) -> Tensor:
        """ẑ_prev with noise of `self_conditioning_noise` times each row's root mean square; unchanged without draws."""
        if eps_BNC is None:
            return z_hat_BNC
        rms_B11 = z_hat_BNC.square().mean(dim=(1, 2), keepdim=True).sqrt()
        return z_hat_BNC + self.config.diffusion.self_conditioning_noise * rms_B11 * eps_BNC

    def state_loss(self, h_hat_BLD: Tensor, h_BLD: Tensor) -> Tensor:
        """L_h = ‖ĥ − h‖² (Eq. 2); 0 if the latents are h itself."""
        if not self.model.encodes:
            return h_BLD.new_zeros(())
        # Detached: as targets of their own reconstruction, trainable embeddings would shrink to zero.
        return self.scales.h * row_loss(h_hat_BLD, h_BLD.detach()).mean()

    def token_loss(self, h_hat_BLD: Tensor, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
        """L_w = −log p(w | sg(ĥ)) (Eq. 3), and the token accuracy; zeros while D_w is deferred.

        `reconstruction=mse` stops the gradient at ĥ, so that it trains D_w alone; the CE ablations let it through.
        """
        if self.model.token_decoder is None:
            zero = h_hat_BLD.new_zeros(())
            return zero, zero
        stops = self.config.recipe.reconstruction == "mse"
        found = self.model.token_decoder.losses(h_hat_BLD.detach() if stops else h_hat_BLD, tokens_BL)
        return self.scales.w * found.mean, found.right_BL.float().mean()

    def learned(self, l_h: Tensor) -> Tensor:
        """L_h, or 0 with `reconstruction=ce`, which records it without learning from it (Table 1)."""
        return l_h if "mse" in self.config.recipe.reconstruction else torch.zeros_like(l_h)


def weighted_mean(weight_B: Tensor, loss_B: Tensor) -> Tensor:
    """Mean over rows of weight times loss, in the loss's dtype."""
    return (weight_B.to(loss_B.dtype) * loss_B).mean()


class JointObjective(Objective):
    """The paper's objective: encoder, denoiser and decoders learn together."""

    def forward(self, hidden_BLD: Tensor | None, tokens_BL: Tensor, draws: Draws, gamma: float) -> Losses:
        """L = L_diff + L_h + L_w (Eq. 4) of a micro-batch, with its terms.

        `hidden_BLD` are normalised states, None for scratch embeddings; `tokens_BL` is int64.
        """
        h_BLD = self.model.states(hidden_BLD, tokens_BL)
        z_0_BNC = at_least_float32(self.model.latent_encoder(h_BLD))

        # Denoise; the encoder gets a share γ of the gradient.
        l_diff_B = self.denoising_loss(scale_gradient(z_0_BNC, gamma), draws, h_BLD)
        l_diff = weighted_mean(draws.weight_B, l_diff_B)

        # Reconstruct states and tokens from noisy latents.
        h_hat_BLD = self.model.latent_decoder(self.decoder_input.noisy(z_0_BNC, draws.eps_dec_BNC, draws.t_dec_B))
        l_h = self.state_loss(h_hat_BLD, h_BLD)
        l_w, token_accuracy = self.token_loss(h_hat_BLD, tokens_BL)

        loss = l_diff + (self.learned(l_h) + l_w)  # in this order: another rounds differently
        return Losses(loss, l_diff, l_h, l_w, l_diff_B.detach(), token_accuracy, Spread.of(z_0_BNC))
