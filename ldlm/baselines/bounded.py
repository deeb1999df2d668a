"""Runs of any method under which rows of a store have a likelihood that is bounded, and those of rivals among them."""

from __future__ import annotations

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
from ldlm.sampling import pretrained
from ldlm.sampling.likelihood import LatentSubject, Lines, Subject
from ldlm.sampling.trained_run import TrainedRun

NO_BOUND = "its loss bounds no likelihood"
DISTILLED = (
    "it is distilled: its estimate stands for two of its teacher's and is not the mean of z_0 given z_t; the run that "
    "it was distilled from has a bound"
)


class TokenSubject(Subject):
    """A run of MDLM or Duo."""

    def __init__(self, run: TrainedTokenRun) -> None:
        super().__init__(run, run.method)
        self.network, self.of = run.network, methods.held_out_method(run.config, run.shapes)

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


def takes(path: Path) -> tuple[str, ...]:
    """The settings, out of `OF_RUNS`, that the likelihood under a run depends on."""
    return (LatentSubject if named_method(path) == LDLM else TokenSubject).takes


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
