"""Texts from noise: the reverse process in the latent space, then one pass through a decoder (Section 4.3).

A `TextGenerator` is all that drawing texts takes. It comes from a run (`TrainedRun.generator`) or from an exported
model, and gives the same texts from both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldlm import noise, samplers
from ldlm.config import SamplerConfig
from ldlm.diffusion import Schedule
from ldlm.metrics import LOGITS_AT_ONCE
from ldlm.samplers import End
from ldlm.timesteps import TimestepSampler

Watch = Callable[[Tensor, Tensor], None]  # (t, ẑ_0 at t) of each evaluation


@dataclass(frozen=True)
class Decoder:
    """z_0 (B, N, C) → logits (B, L, V), and its name."""

    name: str
    logits: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TextGenerator:
    """Denoiser, decoder and what belongs to them. Every text is a function of its seed, not of its batch."""

    denoiser: nn.Module
    decoder: Decoder
    schedule: Schedule
    timesteps: TimestepSampler  # whose F(t) is the `learned` grid
    latent_shape: tuple[int, int]  # (N, C)
    seq_len: int
    vocab_size: int
    device: torch.device

    @torch.no_grad()
    def ends(self, sampler: SamplerConfig, seeds_B: Tensor, watch: Watch | None = None) -> End:
        """Where the reverse process ends, (B, N, C) each; `watch` sees every estimate on the way."""
        seeds_B = seeds_B.to(self.device)
        row_B = torch.zeros_like(seeds_B)
        denoise = samplers.self_conditioned(self.denoiser, sampler.guidance)

        def watched(z_BNC: Tensor, t: Tensor) -> Tensor:
            z_hat_BNC = denoise(z_BNC, t)
            if watch is not None:
                watch(t, z_hat_BNC)
            return z_hat_BNC

        return samplers.solver(sampler)(
            watched,
            self.schedule,
            noise.normal(seeds_B, "z_1", 0, row_B, self.latent_shape),
            samplers.time_grid(sampler, self.schedule, self.timesteps.draw),
            lambda step: noise.normal(seeds_B, "sde", step, row_B, self.latent_shape),
        )

    def latents(self, sampler: SamplerConfig, seeds_B: Tensor, watch: Watch | None = None) -> Tensor:
        """Latents z_0 (B, N, C), of the two ends the one that `sampler.final` names."""
        return getattr(self.ends(sampler, seeds_B, watch), sampler.final)

    def tokens(self, sampler: SamplerConfig, seeds_B: Tensor, watch: Watch | None = None) -> Tensor:
        """Token rows (B, L) int64, each a function of its seed."""
        return self.decode(self.latents(sampler, seeds_B, watch), seeds_B, sampler.temperature)

    @torch.no_grad()
    def decode(self, z_0_BNC: Tensor, seeds_B: Tensor, temperature: float = 0.0) -> Tensor:
        """The most likely tokens (B, L), or tokens drawn at the temperature, without noise on the latents."""
        rows = max(1, LOGITS_AT_ONCE // (self.seq_len * self.vocab_size))
        pieces = zip(z_0_BNC.split(rows), seeds_B.to(self.device).split(rows), strict=True)
        return torch.cat([draw_tokens(self.decoder.logits(z), seeds, temperature) for z, seeds in pieces])

    def batch_size(self, most: int) -> int:
        """The number of texts at a time, a power of 2 up to `most`, at which the denoiser is fastest per text.

        It doubles while that gains at least a tenth, and stops where the device's memory does.
        """
        best, rate, size = 1, 0.0, 1
        while size <= max(1, most):
            try:
                found = size / self._seconds(size)
            except torch.OutOfMemoryError:
                break
            if found < 1.1 * rate:
                break
            best, rate, size = size, found, 2 * size
        return best

    @torch.no_grad()
    def _seconds(self, size: int) -> float:
        """Of one evaluation of so many texts; the first is not counted."""
        z = torch.zeros(size, *self.latent_shape, device=self.device)
        t_B = torch.full((size,), 0.5, device=self.device)
        for _ in range(2):
            started = time.perf_counter()
            self.denoiser(z, t_B, z).sum().item()  # which waits for the device
        return time.perf_counter() - started


def draw_tokens(logits_BLV: Tensor, seeds_B: Tensor, temperature: float) -> Tensor:
    """The most likely tokens (B, L), or tokens drawn at the temperature, by one uniform number each."""
    if temperature == 0:
        return logits_BLV.argmax(-1)
    uniform_BL = noise.uniform(seeds_B, "token", 0, torch.zeros_like(seeds_B), (logits_BLV.shape[1],))
    cdf_BLV = (logits_BLV / temperature).softmax(-1).cumsum(-1).double()
    drawn_BL1 = torch.searchsorted(cdf_BLV / cdf_BLV[..., -1:], uniform_BL[..., None])
    return drawn_BL1.squeeze(-1).clamp(max=logits_BLV.shape[-1] - 1)
