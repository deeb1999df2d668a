"""Bounds on token rows under a run of LDLM: its denoiser, self-conditioned in two passes, and one of its decoders.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldlm.config import DecoderNoise
from ldlm.evaluation import likelihood
from ldlm.evaluation.likelihood import Bounds
from ldlm.features.store import Split
from ldlm.model.diffusion import per_row
from ldlm.model.objective import at_least_float32, noise_time
from ldlm.sampling.generation import Decoder
from ldlm.sampling.trained_run import TrainedRun


@dataclass(frozen=True, eq=False)
class RunBound:
    """Bounds on rows under a run: that of the reverse SDE with its ẑ down to t*, then that of tokens by the decoder."""

    run: TrainedRun
    decoder: Decoder

    @cached_property
    def noise(self) -> DecoderNoise:
        """The noise on the decoder's input in training."""
        return self.run.noise(self.decoder.name)

    @property
    def passes(self) -> int:
        """Denoiser passes behind an estimate: 2 if it was trained with self-conditioning."""
        return 2 if self.run.self_conditioned else 1

    def levels(self) -> tuple[float, ...]:
        """Default noise levels τ: around that of the decoder's training, or 1 if it had none."""
        start = noise_time(self.run.schedule, self.noise)
        return likelihood.levels(self.run.schedule.noise_of_time(start) if start > 0 else 1.0)

    @torch.no_grad()
    def of(self, split: Split, rows: np.ndarray, taus: tuple[float, ...], draws: int, seed: int = 0) -> Bounds:
        """Bounds on rows of a split, whose latents are the μ of the bound."""
        parts, tokens = split.read_rows(rows)
        tokens_BL = torch.from_numpy(tokens).to(self.run.device, torch.int64)
        h_BLD = self.run.model.states(split.states(parts, tokens_BL), tokens_BL)
        return likelihood.bounds(
            self.run.schedule,
            at_least_float32(self.run.model.latent_encoder(h_BLD)),
            torch.from_numpy(rows).to(self.run.device),
            denoise=self.estimate,
            decode=partial(self.coding, tokens_BL),
            taus=taus,
            draws=draws,
            seed=seed,
        )

    def estimate(self, z_t_BNC: Tensor, t_B: Tensor) -> Tensor:
        """ẑ_0, a function of z_t and t alone: the self-conditioning estimate is computed from them as well."""
        z_hat_BNC = torch.zeros_like(z_t_BNC)
        for _ in range(self.passes):
            z_hat_BNC = self.run.model.denoiser(z_t_BNC, t_B.float(), z_hat_BNC)
        return z_hat_BNC

    def coding(self, tokens_BL: Tensor, z_t_BNC: Tensor, t_B: Tensor) -> Tensor:
        """−log p(w | z̃) per row (B,), by the decoder at temperature 1, whose input is scaled as in training."""
        if self.noise.kind != "diffused":
            alpha_B, _ = self.run.schedule.alpha_sigma(t_B)
            z_t_BNC = z_t_BNC / per_row(alpha_B, z_t_BNC)
        network: Any = self.decoder.logits
        loss_BL: Tensor = network.losses(z_t_BNC, tokens_BL).loss_BL
        return loss_BL.double().sum(1)
