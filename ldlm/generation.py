"""Texts from noise: the reverse process in the latent space, then one pass through a decoder (Section 4.3).

A `TextGenerator` is all that drawing texts takes. It comes from a run (`TrainedRun.generator`) or from an exported
model, and gives the same texts from both.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ldlm import noise, samplers
from ldlm.compute import Compute, Replay
from ldlm.config import TEXTS_PER_SEED, SampleConfig, SamplerConfig
from ldlm.denoiser import DiT
from ldlm.diffusion import Schedule
from ldlm.samplers import End
from ldlm.scorer import LOGITS_AT_ONCE
from ldlm.timesteps import TimestepSampler

Watch = Callable[[Tensor, Tensor], None]  # (t, ẑ_0 at t) of each evaluation

JOINT = "joint"  # the name of D_w∘D_h among the decoders
LARGEST_BATCH = 256  # of a batch size that is measured: an interruption costs a batch
MEASURE_SECONDS = 0.1  # of each size that is measured, at least


@dataclass(frozen=True)
class Decoder:
    """z_0 (B, N, C) → logits (B, L, V), and its name."""

    name: str
    logits: nn.Module


@dataclass(frozen=True)
class TextGenerator:
    """Denoiser, decoder and what belongs to them. Every text is a function of its seed, not of its batch."""

    denoiser: DiT
    decoder: Decoder
    schedule: Schedule
    timesteps: TimestepSampler  # whose F(t) is the `learned` grid
    latent_shape: tuple[int, int]  # (N, C)
    seq_len: int
    vocab_size: int
    compute: Compute

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.compute.device

    @torch.no_grad()
    def ends(self, sampler: SamplerConfig, seeds_B: Tensor, watch: Watch | None = None) -> End:
        """Where the reverse process ends, (B, N, C) each; `watch` sees every estimate on the way."""
        seeds_B = seeds_B.to(self.device)
        row_B = torch.zeros_like(seeds_B)
        times = samplers.time_grid(sampler, self.schedule, self.timesteps.draw)
        denoise = samplers.self_conditioned(self._at(times), sampler.guidance)

        def watched(z_BNC: Tensor, t: Tensor) -> Tensor:
            z_hat_BNC = denoise(z_BNC, t)
            if watch is not None:
                watch(t, z_hat_BNC)
            return z_hat_BNC

        return samplers.solver(sampler)(
            watched,
            self.schedule,
            noise.normal(seeds_B, "z_1", 0, row_B, self.latent_shape),
            times,
            lambda step: self.compute.normal(seeds_B, "sde", row_B.new_full((), step), row_B, self.latent_shape),
        )

    def _at(self, times: Tensor) -> samplers.Network:
        """The denoiser at the times of a grid, what they decide being computed here, in float32."""
        modulations_TMW = self.denoiser.modulations(times.to(self.device, torch.float32)).to(self.compute.dtype)
        number = {t: i for i, t in enumerate(times.tolist())}

        def network(z_BNC: Tensor, t: Tensor, previous_BNC: Tensor) -> Tensor:
            i, dtype = number[t.item()], self.compute.dtype
            return self._estimate(z_BNC.to(dtype), previous_BNC.to(dtype), modulations_TMW[i : i + 1]).float()

        return network

    @cached_property
    def _eager(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """`DiT.estimate` in the precision of `compute`."""
        exact = self.compute.dtype == torch.float32
        return (self.denoiser if exact else copy.deepcopy(self.denoiser).to(self.compute.dtype)).estimate

    @cached_property
    def _estimate(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The same, compiled where `compute` says so, and on a GPU as a CUDA graph."""
        if not self.compute.compiled:
            return self._eager
        compiled = torch.compile(self._eager, dynamic=False)
        return Replay(compiled) if self.device.type == "cuda" else compiled

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

        It doubles while that gains at least a twentieth, and stops where the device's memory does.
        """
        best, rate, size = 1, 0.0, 1
        while size <= max(1, most):
            try:
                found = size / self._seconds(size)
            except torch.OutOfMemoryError:
                break
            if found < 1.05 * rate:
                break
            best, rate, size = size, found, 2 * size
        return best

    @torch.no_grad()
    def _seconds(self, size: int) -> float:
        """Of one evaluation of so many texts, the fastest. Not compiled, for that takes long for each size.

        A single small evaluation says little: the slowest of ten takes twice as long as the fastest.
        """
        z = torch.zeros(size, *self.latent_shape, device=self.device, dtype=self.compute.dtype)
        modulations = self.denoiser.modulations(torch.full((1,), 0.5, device=self.device)).to(self.compute.dtype)
        began, seconds = time.perf_counter(), list[float]()
        while len(seconds) < 3 or time.perf_counter() - began < MEASURE_SECONDS:
            started = time.perf_counter()
            self._eager(z, z, modulations).sum().item()  # which waits for the device
            seconds.append(time.perf_counter() - started)
        return min(seconds)


def text_seeds(seed: int, start: int, stop: int) -> Tensor:
    """Seeds (stop − start,) int64 of texts start … stop−1 drawn with `seed`; no two seeds share a text."""
    return seed * TEXTS_PER_SEED + torch.arange(start, stop)


def batches(generator: TextGenerator, config: SampleConfig, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Seeds (B,) and token rows (B, L), on the CPU, of the texts that are asked for, from number `done` on."""
    size = config.batch_size or generator.batch_size(min(config.num_samples - done, LARGEST_BATCH))
    for start in range(done, config.num_samples, size):
        seeds_B = text_seeds(config.seed, start, min(start + size, config.num_samples))
        yield seeds_B, generator.tokens(config.sampler, seeds_B).cpu()


def draw_tokens(logits_BLV: Tensor, seeds_B: Tensor, temperature: float) -> Tensor:
    """The most likely tokens (B, L), or tokens drawn at the temperature, by one uniform number each."""
    if temperature == 0:
        return logits_BLV.argmax(-1)
    uniform_BL = noise.uniform(seeds_B, "token", 0, torch.zeros_like(seeds_B), (logits_BLV.shape[1],))
    cdf_BLV = (logits_BLV / temperature).softmax(-1).cumsum(-1).double()
    drawn_BL1 = torch.searchsorted(cdf_BLV / cdf_BLV[..., -1:], uniform_BL[..., None])
    return drawn_BL1.squeeze(-1).clamp(max=logits_BLV.shape[-1] - 1)
