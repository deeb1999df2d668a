"""Bounds on token rows under a run of LDLM: its denoiser, self-conditioned in two passes, and one of its decoders.

`Subject` is what a run of any method is to the stage that measures it.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ldlm.config import LDLM, DecoderNoise, LikelihoodConfig
from ldlm.errors import InputError
from ldlm.evaluation import likelihood
from ldlm.evaluation.likelihood import Bounds, RowNats
from ldlm.features.encoder import check_online
from ldlm.features.store import FeatureStore, Split
from ldlm.location import folder_name
from ldlm.model.diffusion import per_row
from ldlm.model.objective import at_least_float32, noise_time
from ldlm.progress import Progress
from ldlm.sampling.generation import Decoder
from ldlm.sampling.source import OpenRun
from ldlm.sampling.trained_run import TrainedRun

Lines = list[dict[str, Any]]  # estimates of rows as JSON, kept on disk until all are done


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


# ----------------------------------------------------------------------------------------------------------------------
# Runs of any method


class Subject(ABC):
    """A run of any method under which rows have a bound."""

    takes: ClassVar[tuple[str, ...]] = ("checkpoint", "draws", "seed")  # of the settings that causal models have not

    def __init__(self, run: OpenRun, method: str) -> None:
        self.run, self.method = run, method

    def inputs(self, store: FeatureStore) -> dict[str, Any]:
        """Fingerprints of checkpoint and store, and which rows the figures are of."""
        return {"checkpoint": self.run.checkpoint.digest, "features": store.fingerprint, "halves": "alternating"}

    def own(self, config: LikelihoodConfig) -> LikelihoodConfig:
        """The settings, with those that the subject does not take as by default: they are no part of its result."""
        default = LikelihoodConfig()
        return replace(config, **{name: getattr(default, name) for name in OF_RUNS if name not in self.takes})

    def check_states(self, store: FeatureStore) -> None:  # noqa: B027  # nothing to check where only tokens are read
        """`InputError` if the subject reads states that the store needs an encoder for, and that is gone or another."""

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about what was measured, as JSON."""
        return {"run": folder_name(self.run.path), "method": self.method, "is": "bound", **self.run.origin}

    def split(self, split: Split) -> Split:
        """The rows as the subject reads them."""
        return split

    def remark(self, config: LikelihoodConfig, progress: Progress) -> None:
        """Tell the user if the run is not finished, and what was chosen because no setting said otherwise."""
        self.run.remark_on_end(progress)

    def advise(self, summary: Mapping[str, Any], progress: Progress) -> None:  # noqa: B027  # there is nothing to do
        """Tell the user if the result suggests other settings."""

    @abstractmethod
    def passes(self, config: LikelihoodConfig) -> int:
        """Passes of the network for a row."""

    def check_finite(self, lines: Lines, rows: np.ndarray) -> None:
        """`InputError` if an estimate is not finite: the run's weights are not, or its values overflow."""
        for row, line in zip(rows.tolist(), lines, strict=True):
            if not np.isfinite(np.concatenate([np.ravel(value) for value in line.values()])).all():
                raise InputError(
                    f"{self.run.path} gives row {row} a likelihood that is not finite; see whether its losses are, and "
                    f"take another --checkpoint"
                )

    @abstractmethod
    def needed(self, rows: int) -> range:
        """The rows, out of `rows`, that need estimates."""

    @abstractmethod
    def estimates(self, config: LikelihoodConfig, split: Split, rows: np.ndarray) -> Lines:
        """Estimates of rows."""

    @abstractmethod
    def summary(self, found: Lines, seq_len: int) -> dict[str, Any]:
        """Figures of the rows that are reported."""


class LatentSubject(Subject):
    """A run of LDLM, whose bound depends on τ: that is chosen on every second row, and figures are for the others."""

    takes = ("taus", "decoder", *Subject.takes)

    def __init__(self, config: LikelihoodConfig, run: TrainedRun) -> None:
        super().__init__(run, LDLM)
        self.bound = RunBound(run, run.decoder(config.decoder))
        taus = sorted(set(config.taus), reverse=True) or self.bound.levels()
        self.taus, self.schedule = tuple(taus), run.schedule

    def inputs(self, store: FeatureStore) -> dict[str, Any]:
        return {**super().inputs(store), **self.bound.decoder.record}

    def check_states(self, store: FeatureStore) -> None:
        check_online(store)

    @property
    def facts(self) -> dict[str, Any]:
        return {**super().facts, "decoder": self.bound.decoder.name, "passes": self.bound.passes}

    def remark(self, config: LikelihoodConfig, progress: Progress) -> None:
        super().remark(config, progress)
        self.bound.run.remark_on_decoder(config.decoder, progress)

    def passes(self, config: LikelihoodConfig) -> int:
        return len(self.taus) * config.draws * self.bound.passes

    def needed(self, rows: int) -> range:
        return range(rows)

    def estimates(self, config: LikelihoodConfig, split: Split, rows: np.ndarray) -> Lines:
        found = self.bound.of(split, rows, self.taus, config.draws, config.seed)
        figures = {name.removesuffix("_BT"): value.tolist() for name, value in vars(found).items()}
        return [{name: values[place] for name, values in figures.items()} for place in range(len(rows))]

    def summary(self, found: Lines, seq_len: int) -> dict[str, Any]:
        decoding_BT, kl_BT, decoding_var_BT, kl_var_BT = (
            np.array([line[name] for line in found]) for name in ("decoding", "kl", "decoding_var", "kl_var")
        )
        chosen_on, reported = (np.array(rows) for rows in likelihood.halves(len(found)))
        nats_BT, var_BT = decoding_BT + kl_BT, decoding_var_BT + kl_var_BT
        best = int(nats_BT[chosen_on].mean(0).argmin())
        own = RowNats(reported, nats_BT[reported, best], np.sqrt(var_BT[reported, best]))
        bits = 1 / np.log(2) / seq_len
        curve = [
            {
                "tau": tau,
                "t": self.schedule.time_of_noise(tau),
                "decoding": decoding_BT[reported, number].mean().item() * bits,
                "kl": kl_BT[reported, number].mean().item() * bits,
                "bits_per_token": nats_BT[reported, number].mean().item() * bits,
                "chosen_by": nats_BT[chosen_on, number].mean().item() * bits,
            }
            for number, tau in enumerate(self.taus)
        ]
        return {"tau": self.taus[best], "t": curve[best]["t"], "curve": curve, **own.to_json(seq_len)}

    def advise(self, summary: Mapping[str, Any], progress: Progress) -> None:
        if len(self.taus) > 1 and summary["tau"] in (self.taus[0], self.taus[-1]):
            progress.note(
                f"the bound is lowest at the end of the curve, τ = {summary['tau']:.3g}; --taus beyond it may give a "
                f"lower one"
            )


OF_RUNS = LatentSubject.takes  # settings that not everything with a likelihood has
