"""Runs of any method under which rows of a store have a likelihood that is bounded, and the estimates of it.

The τ of a run of LDLM is chosen on every second row, and figures are for the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldlm import config as configs
from ldlm import files
from ldlm.baselines import likelihood as of_tokens
from ldlm.baselines import methods
from ldlm.baselines.opening import method_at, open_source
from ldlm.baselines.trained import TrainedTokenRun
from ldlm.config import LDLM, LikelihoodConfig
from ldlm.errors import InputError
from ldlm.evaluation import likelihood
from ldlm.evaluation.likelihood import RowNats
from ldlm.features.store import FeatureStore, Split
from ldlm.location import folder_name
from ldlm.progress import Progress
from ldlm.sampling import pretrained
from ldlm.sampling.likelihood import RunBound
from ldlm.sampling.source import OpenRun
from ldlm.sampling.trained_run import TrainedRun

Lines = list[dict[str, Any]]  # estimates of rows as JSON, kept on disk until all are done
OF_LATENTS = ("taus", "decoder")  # settings that only runs of LDLM have
NO_BOUND = "its loss bounds no likelihood"
DISTILLED = (
    "it is distilled: its estimate stands for two of its teacher's and is not the mean of z_0 given z_t; the run that "
    "it was distilled from has a bound"
)


class Subject(ABC):
    """A run under which rows have a bound."""

    def __init__(self, run: OpenRun, method: str) -> None:
        self.run, self.method = run, method

    def inputs(self, store: FeatureStore) -> dict[str, Any]:
        """Fingerprints of checkpoint and store, and which rows the figures are of."""
        return {"checkpoint": self.run.checkpoint.digest, "features": store.fingerprint, "halves": "alternating"}

    def own(self, config: LikelihoodConfig) -> LikelihoodConfig:
        """The settings, with those that the subject does not have as by default: they are no part of its result."""
        return config

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
    """A run of LDLM, whose bound depends on τ."""

    def __init__(self, config: LikelihoodConfig, run: TrainedRun) -> None:
        super().__init__(run, LDLM)
        self.bound = RunBound(run, run.decoder(config.decoder))
        taus = sorted(set(config.taus), reverse=True) or self.bound.levels()
        self.taus, self.schedule = tuple(taus), run.schedule

    def inputs(self, store: FeatureStore) -> dict[str, Any]:
        return {**super().inputs(store), **self.bound.decoder.record}

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


class TokenSubject(Subject):
    """A run of MDLM or Duo."""

    def __init__(self, run: TrainedTokenRun) -> None:
        super().__init__(run, run.method)
        self.network, self.of = run.network, methods.held_out_method(run.config, run.shapes)

    def own(self, config: LikelihoodConfig) -> LikelihoodConfig:
        default = LikelihoodConfig()
        return replace(config, **{name: getattr(default, name) for name in OF_LATENTS})

    def split(self, split: Split) -> Split:
        return replace(split.without_states(), encode=None)

    def passes(self, config: LikelihoodConfig) -> int:
        return 2 * of_tokens.PARTS * config.draws

    def needed(self, rows: int) -> range:
        _, reported = likelihood.halves(rows)
        return reported

    def estimates(self, config: LikelihoodConfig, split: Split, rows: np.ndarray) -> Lines:
        device = self.run.device
        tokens_BL = torch.from_numpy(split.read_tokens(rows)).to(device, torch.int64)
        nats_B, var_B = of_tokens.bounds(
            self.of, self.network, tokens_BL, torch.from_numpy(rows).to(device), draws=config.draws, seed=config.seed
        )
        figures = zip(rows.tolist(), nats_B.tolist(), var_B.tolist(), strict=True)
        return [{"row": row, "nats": nats, "var": var} for row, nats, var in figures]

    def summary(self, found: Lines, seq_len: int) -> dict[str, Any]:
        columns = (np.array([line[name] for line in found]) for name in ("row", "nats", "var"))
        rows_B, nats_B, var_B = columns
        return RowNats(rows_B, nats_B, np.sqrt(var_B)).to_json(seq_len)


def unbounded(path: Path) -> dict[str, Any] | None:
    """The record of a run that has no bound, as JSON; None for any other run."""
    method = named_method(path)
    if _is_distilled(path):
        return {"run": folder_name(path), "method": method, "is": "none", "why": DISTILLED}
    if methods.bounds_likelihood(method):
        return None
    return {"run": folder_name(path), "method": method, "is": "none", "why": NO_BOUND}


def _is_distilled(path: Path) -> bool:
    return configs.distilled(files.read_yaml(path / "config.yaml")) is not None if path.is_dir() else False


def named_method(path: Path) -> str:
    """The method of a run; `InputError` for an exported model."""
    if pretrained.model_type(path) is not None:
        raise InputError(
            f"{path} is an exported model, which has only what drawing texts needs; give the run that it was made from"
        )
    return method_at(path)


def opened(config: LikelihoodConfig, path: Path, store: FeatureStore, device: torch.device) -> Subject:
    """A run in memory; `InputError` if it has no bound, or if the store does not fit it."""
    record = unbounded(path)
    if record is not None:
        raise InputError(f"{path} has no likelihood, because {record['why']}")
    run = open_source(path, device, config.checkpoint)
    if isinstance(run, TrainedRun):
        run.check_store(store)
        return LatentSubject(config, run)
    assert isinstance(run, TrainedTokenRun)
    mine, theirs = run.features["encoder"]["tokenizer"], store.encoder["tokenizer"]
    sizes = (run.shapes.seq_len, run.shapes.vocab_size), (store.shapes.seq_len, store.shapes.vocab_size)
    if mine != theirs or sizes[0] != sizes[1]:
        raise InputError(
            f"{store.path}, with rows of {store.shapes.seq_len} tokens, has another tokenizer or length than {path} "
            f"was trained with ({run.shapes.seq_len}); give the store of the run, or one of the same text"
        )
    return TokenSubject(run)
