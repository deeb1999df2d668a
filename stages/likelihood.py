"""The likelihood of rows of a store, or a bound on it, under runs of any method and causal language models.

All are given the same rows: the τ of an LDLM is chosen on every second one, and figures are for the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldlm import artifact, files, runtime
from ldlm import config as configs
from ldlm.artifact import Artifact
from ldlm.baselines import likelihood as of_tokens
from ldlm.baselines import methods
from ldlm.baselines.opening import method_at, open_source
from ldlm.baselines.trained import TrainedTokenRun
from ldlm.config import LDLM, LikelihoodConfig
from ldlm.errors import InputError
from ldlm.evaluation import likelihood
from ldlm.evaluation.likelihood import RowNats
from ldlm.evaluation.scorer import Scorer
from ldlm.features.encoder import online_encoder, tokenizer_fingerprint
from ldlm.features.store import FeatureStore, Split
from ldlm.location import Location, folder_name
from ldlm.progress import SILENT, Progress
from ldlm.sampling import pretrained
from ldlm.sampling.likelihood import RunBound
from ldlm.sampling.source import OpenRun
from ldlm.sampling.trained_run import TrainedRun

Lines = list[dict[str, Any]]  # estimates of rows as JSON, kept on disk until all are done
KEPT = "rows.partial.jsonl"
NO_BOUND = "its loss bounds no likelihood"
DISTILLED = (
    "it is distilled: its estimate stands for two of its teacher's and is not the mean of z_0 given z_t; the run that "
    "it was distilled from has a bound"
)
OF_LATENTS = ("taus", "decoder")  # settings that only runs of LDLM have
OF_RUNS = ("checkpoint", "draws", "seed")  # those that causal models have not


def check_used(
    config: LikelihoodConfig,
    run_paths: Sequence[Path],
    causal: Sequence[str] = (),
    *,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """`InputError` for what changes nothing, given all runs and causal models whose likelihood is asked for."""
    found = sorted({_method(path) for path in run_paths if not unbounded(path)})
    whose = " and ".join([*found, *(["causal models"] if causal else [])]) or "these runs, which have none"
    for name in (*(OF_LATENTS if LDLM not in found else ()), *(OF_RUNS if not found else ())):
        if getattr(config, name) != getattr(LikelihoodConfig(), name):
            raise InputError(f"{name} is not a setting of the likelihood of {whose}; leave it out")
    for option, given in (("--overwrite", overwrite), ("--output", out is not None)):
        if given and not found:
            raise InputError(f"{option} is for the result of a run, and no run here has one; leave it out")


def check_all(config: LikelihoodConfig, run_paths: Sequence[Path], causal: Sequence[str], features: Location) -> None:
    """`InputError` for a run or causal model that does not fit the store, before hours of measuring the others."""
    plan(config, run_paths, features)
    for name in causal:
        _scorer(name, FeatureStore(features), torch.device("cpu"))


def plan(
    config: LikelihoodConfig, run_paths: Sequence[Path], features: Location, causal: Sequence[str] = ()
) -> dict[str, Any]:
    """Rows that `run` and `of_causal` would read, and passes of the network for each, by the path of run or model."""
    store = FeatureStore(features)
    rows, passes = _rows(config, store), dict[str, int]()
    for path in run_paths:
        if not unbounded(path):
            passes[str(path)] = _subject(config, path, store, torch.device("cpu")).passes(config)
    return {"rows": rows, "passes_per_row": {**passes, **dict.fromkeys(causal, 1)}}


def run(
    config: LikelihoodConfig,
    run_path: Path,
    features: Location,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Artifact:
    """Write the figures and each row's log-likelihood to the manifest of `out`, by default `likelihood` in the run.

    The same call resumes an interrupted one at the batch where it stopped.
    """
    store = FeatureStore(features)
    rows = _rows(config, store)
    subject = _subject(config, run_path, store, runtime.device(config.device))
    config, out = subject.own(config), out or run_path / "likelihood"
    inputs, reads = subject.inputs(store), [run_path, *store.reads]
    if not overwrite:
        check_halves(out)
    # A row is known by the number of its line, so two processes must not write lines.
    with artifact.working(out, "likelihood", config, inputs, overwrite=overwrite, reads=reads) as result:
        if result.complete:
            with suppress(OSError):  # it may be read-only by now
                (out / KEPT).unlink(missing_ok=True)
            progress.note(f"{out} is complete; nothing to do")
            return result
        subject.remark(config, progress)
        found = _estimated(config, subject, store, rows, out / KEPT, progress)
        summary = {**_of_rows(config, store, rows), **subject.facts, **subject.summary(found, store.shapes.seq_len)}
        finished = result.finish(**summary)
        (out / KEPT).unlink(missing_ok=True)
        subject.advise(summary, progress)
        return finished


def check_halves(out: Path) -> None:
    """`InputError` for a result of an earlier version: its rows are others, so figures of both can't be compared."""
    record = files.read_json(out / "artifact.json") if (out / "artifact.json").is_file() else {}
    if record.get("kind") == "likelihood" and "halves" not in record.get("inputs", {"halves": "none yet"}):
        raise InputError(
            f"{out} is of the second half of the rows, as earlier versions reported, and every second row is reported "
            f"now; add --overwrite to measure it anew"
        )


def of_causal(config: LikelihoodConfig, name: str, features: Location, progress: Progress = SILENT) -> dict[str, Any]:
    """Exact figures, as JSON, of a causal language model with the store's tokenizer; `name` is its folder or hub name.

    BOS is given, and EOS at the end of a row is predicted like any other token.
    """
    store = FeatureStore(features)
    rows, scorer = _rows(config, store), _scorer(name, store, runtime.device(config.device))
    _, reported = likelihood.halves(rows)
    tokens_BL = store.split(config.split).read_tokens(np.array(reported))
    with progress.task("likelihood", len(tokens_BL), "row") as task:
        nll = scorer.token_nll(list(tokens_BL), config.batch_size, task.advance)
    nats_B = np.array([row.astype(np.float64).sum() for row in nll])
    exact = RowNats(np.array(reported), nats_B, np.zeros(len(nats_B)))
    about = {"run": Path(name).name, "method": "causal", "is": "exact", "scorer_revision": scorer.revision}
    return {**_of_rows(config, store, rows), **about, **exact.to_json(store.shapes.seq_len)}


def _scorer(name: str, store: FeatureStore, device: torch.device) -> Scorer:
    """A causal model that reads the store's rows; `InputError` for another tokenizer, or too few positions."""
    scorer, length = Scorer(name, device), store.shapes.seq_len
    if tokenizer_fingerprint(scorer.tokenizer) != store.encoder["tokenizer"]:
        raise InputError(
            f"{name} has another tokenizer than {store.path}, so bits per token can't be compared; give a model that "
            f"was trained with the tokenizer of the store"
        )
    if scorer.positions is not None and scorer.positions < length:
        raise InputError(
            f"{name} takes {scorer.positions} tokens, and the rows of {store.path} have {length}; give a model that "
            f"takes as many"
        )
    return scorer


def _rows(config: LikelihoodConfig, store: FeatureStore) -> int:
    """Number of rows to take."""
    there = store.split(config.split).rows
    rows = there if config.rows is None else min(config.rows, there)
    likelihood.halves(rows)
    return rows


def _of_rows(config: LikelihoodConfig, store: FeatureStore, rows: int) -> dict[str, Any]:
    chosen_on, reported = likelihood.halves(rows)
    return {
        "split": config.split, "seq_len": store.shapes.seq_len, "features": store.fingerprint,
        "rows_chosen_on": len(chosen_on), "rows_reported": len(reported),
    }  # fmt: skip


def _estimated(
    config: LikelihoodConfig, subject: Subject, store: FeatureStore, rows: int, kept: Path, progress: Progress
) -> Lines:
    """Estimates of all rows that the subject needs, batch by batch; those that are already kept are not made again."""
    split, needed = subject.split(store.split(config.split, online_encoder(store))), np.array(subject.needed(rows))
    data = kept.read_bytes() if kept.exists() else b""
    files.write_atomic(kept, data[: data.rfind(b"\n") + 1])  # without a line that a kill cut off
    done = data.count(b"\n")
    with open(kept, "a", encoding="utf-8") as file, progress.task("likelihood", len(needed), "row", done) as task:
        for first in range(done, len(needed), config.batch_size):
            batch = needed[first : first + config.batch_size]
            lines = subject.estimates(config, split, batch)
            subject.check_finite(lines, batch)
            file.write(files.dump_jsonl(lines))
            file.flush()
            task.advance(len(batch))
    return list(files.read_jsonl(kept))


# ----------------------------------------------------------------------------------------------------------------------
# The runs whose likelihood is bounded


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
    method = _method(path)
    if _is_distilled(path):
        return {"run": folder_name(path), "method": method, "is": "none", "why": DISTILLED}
    if methods.bounds_likelihood(method):
        return None
    return {"run": folder_name(path), "method": method, "is": "none", "why": NO_BOUND}


def _is_distilled(path: Path) -> bool:
    return configs.distilled(files.read_yaml(path / "config.yaml")) is not None if path.is_dir() else False


def _method(path: Path) -> str:
    """The method of a run; `InputError` for an exported model."""
    if pretrained.model_type(path) is not None:
        raise InputError(
            f"{path} is an exported model, which has only what drawing texts needs; give the run that it was made from"
        )
    return method_at(path)


def _subject(config: LikelihoodConfig, path: Path, store: FeatureStore, device: torch.device) -> Subject:
    record = unbounded(path)
    if record is not None:
        raise InputError(f"{path} has no likelihood, because {record['why']}")
    opened = open_source(path, device, config.checkpoint)
    if isinstance(opened, TrainedRun):
        opened.check_store(store)
        return LatentSubject(config, opened)
    assert isinstance(opened, TrainedTokenRun)
    mine, theirs = opened.features["encoder"]["tokenizer"], store.encoder["tokenizer"]
    sizes = (opened.shapes.seq_len, opened.shapes.vocab_size), (store.shapes.seq_len, store.shapes.vocab_size)
    if mine != theirs or sizes[0] != sizes[1]:
        raise InputError(
            f"{store.path}, with rows of {store.shapes.seq_len} tokens, has another tokenizer or length than {path} "
            f"was trained with ({opened.shapes.seq_len}); give the store of the run, or one of the same text"
        )
    return TokenSubject(opened)
