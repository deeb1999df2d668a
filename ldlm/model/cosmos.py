"""COSMOS's training in two phases: a smoothed autoencoder, then a denoiser of its latents (Meshchaninov et al., 2025).

It is one of the latent spaces that Tables 2 and 4 compare, `model.space=cosmos`.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ldlm import noise
from ldlm.config import CosmosConfig, DecoderNoise, TrainConfig, decoder_noise
from ldlm.model.diffusion import Schedule
from ldlm.model.joint import JointModel
from ldlm.model.objective import (
    DecoderInput,
    Draws,
    Losses,
    Normal,
    Objective,
    Spread,
    at_least_float32,
    weighted_mean,
)
from ldlm.model.timesteps import TimestepSampler


@dataclass(frozen=True)
class Smoothing:
    """Corruption of the autoencoder's inputs: masked tokens, noise on h, and dropout of latent features."""

    seen_BL1: Tensor
    eps_BLD: Tensor  # scaled
    keep_BNC: Tensor  # scaled to preserve the mean


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
    """`Smoothing` on the device of `rows_B`, keyed by (seed, step, row of the global batch)."""
    seen_BL = noise.uniform(seed, "mask", step, rows_B, h_shape[:1]) >= config.mask
    keep_BNC = noise.uniform(seed, "dropout", step, rows_B, latent_shape) >= config.dropout
    return Smoothing(
        seen_BL1=seen_BL[..., None].float(),
        eps_BLD=config.noise * normal(seed, "eps_h", rows_B.new_full((), step), rows_B, h_shape),
        keep_BNC=keep_BNC.float() / (1 - config.dropout),
    )


def smoothed_latents(model: JointModel, h_BLD: Tensor, smoothing: Smoothing) -> Tensor:
    """E_z of masked and noisy h, before the dropout of latent features."""
    return at_least_float32(model.latent_encoder((h_BLD + smoothing.eps_BLD) * smoothing.seen_BL1))


@dataclass(frozen=True)
class SmoothedInput(DecoderInput):
    """Input of the autoencoder's decoders in training: latents of masked and noisy h, with features dropped."""

    cosmos: CosmosConfig

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
        """z̃_0 of h; `z_0_BNC` only gives the shape."""
        smoothing = draw_smoothing(
            self.cosmos,
            seed=seed,
            step=step,
            rows_B=rows_B,
            h_shape=(h_BLD.shape[1], h_BLD.shape[2]),
            latent_shape=(z_0_BNC.shape[1], z_0_BNC.shape[2]),
            normal=normal,
        )
        return smoothed_latents(model, h_BLD, smoothing) * smoothing.keep_BNC


def decoder_input(config: TrainConfig) -> DecoderInput:
    """Input of a decoder in training, as the configured latent space defines it (SPEC 13.5)."""
    corruption, schedule = decoder_noise(config.model.space, config.recipe), Schedule.of(config.diffusion)
    if corruption.kind == "smoothed":
        return SmoothedInput(corruption, schedule, config.cosmos)
    return DecoderInput(corruption, schedule)


class CosmosObjective(Objective):
    """A phase of COSMOS, evaluated under the noise of its autoencoder; runs of the first edition had none."""

    def make_decoder_input(self) -> DecoderInput:
        """Input of the decoders: the autoencoder's own, smoothed."""
        if self.config.recipe.edition == 1:
            return DecoderInput(DecoderNoise("additive", 0.0), self.schedule)
        return decoder_input(self.config)


class AutoencoderObjective(CosmosObjective):
    """The first phase: reconstruct h and the tokens from inputs that are masked, noisy and incomplete."""

    draws_times: ClassVar[bool] = False

    def trains(self, part: str) -> bool:
        """All parts but the denoiser learn."""
        return part != "denoiser"

    def draw(
        self,
        timesteps: TimestepSampler,
        *,
        seed: int,
        step: int,
        rows_B: Tensor,
        device: torch.device | str = "cpu",
        normal: Normal = noise.normal,
    ) -> Smoothing:
        """The smoothing of a step, on `device`."""
        return draw_smoothing(
            self.config.cosmos,
            seed=seed,
            step=step,
            rows_B=rows_B.to(device, non_blocking=True),
            h_shape=(self.model.shapes.seq_len, self.model.shapes.hidden_dim),
            latent_shape=self.model.latent_shape,
            normal=normal,
        )

    def forward(self, hidden_BLD: Tensor | None, tokens_BL: Tensor, smoothing: Smoothing, gamma: float) -> Losses:
        """L_h + L_w of a micro-batch, with its terms."""
        h_BLD = self.model.states(hidden_BLD, tokens_BL)
        z_0_BNC = smoothed_latents(self.model, h_BLD, smoothing)

        # Reconstruct states and tokens from what dropout leaves of the latents.
        h_hat_BLD = self.model.latent_decoder(z_0_BNC * smoothing.keep_BNC)
        l_h = self.state_loss(h_hat_BLD, h_BLD)
        l_w, token_accuracy = self.token_loss(h_hat_BLD, tokens_BL)

        loss, none_B = self.learned(l_h) + l_w, z_0_BNC.new_zeros(len(z_0_BNC))
        return Losses(loss, none_B.mean(), l_h, l_w, none_B, token_accuracy, Spread.of(z_0_BNC))


class DenoiserObjective(CosmosObjective):
    """The second phase: the denoiser alone, on latents that no longer change."""

    def trains(self, part: str) -> bool:
        """Only the denoiser learns."""
        return part == "denoiser"

    def forward(self, hidden_BLD: Tensor | None, tokens_BL: Tensor, draws: Draws, gamma: float) -> Losses:
        """L_diff of a micro-batch."""
        h_BLD = self.model.states(hidden_BLD, tokens_BL)
        z_0_BNC = at_least_float32(self.model.latent_encoder(h_BLD))
        l_diff_B = self.denoising_loss(z_0_BNC, draws, h_BLD)
        l_diff, none = weighted_mean(draws.weight_B, l_diff_B), l_diff_B.new_zeros(())
        return Losses(l_diff, l_diff, none, none, l_diff_B.detach(), none, Spread.of(z_0_BNC))
