"""The likelihood of rows of a store, or a bound on it, under runs of any method and causal language models.

All are given the same rows: the τ of an LDLM is chosen on every second one, and figures are for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldlm import artifact, files, runtime
from ldlm.artifact import Artifact
from ldlm.baselines import bounded
from ldlm.baselines.bounded import unbounded
from ldlm.completion import is_complete
from ldlm.config import LikelihoodConfig
from ldlm.errors import InputError
from ldlm.evaluation import likelihood
from ldlm.evaluation.likelihood import RowNats
from ldlm.evaluation.scorer import Scorer
from ldlm.features.encoder import online_encoder, tokenizer_fingerprint
from ldlm.features.store import FeatureStore
from ldlm.location import Location
from ldlm.progress import SILENT, Progress
from ldlm.sampling.likelihood import OF_RUNS, Lines, Subject

KEPT = "rows.partial.jsonl"


def check_used(
    config: LikelihoodConfig,
    run_paths: Sequence[Path],
    causal: Sequence[str] = (),
    *,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """`InputError` for what changes nothing, given all runs and causal models whose likelihood is asked for."""
    measured = [path for path in run_paths if not unbounded(path)]
    found = sorted({bounded.named_method(path) for path in measured})
    taken = {name for path in measured for name in bounded.takes(path)}
    whose = " and ".join([*found, *(["causal models"] if causal else [])]) or "these runs, which have none"
    for name in OF_RUNS:
        if name not in taken and getattr(config, name) != getattr(LikelihoodConfig(), name):
            raise InputError(f"{name} is not a setting of the likelihood of {whose}; leave it out")
    for option, given in (("--overwrite", overwrite), ("--output", out is not None)):
        if given and not found:
            raise InputError(f"{option} is for the result of a run, and no run here has one; leave it out")


def check_all(
    config: LikelihoodConfig,
    run_paths: Sequence[Path],
    causal: Sequence[str],
    features: Location,
    out: Path | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """`InputError` for a run, its result or a causal model that is refused, before hours of measuring the others."""
    store, cpu = FeatureStore(features), torch.device("cpu")
    _rows(config, store)
    for path in run_paths:
        if not unbounded(path):
            _check_run(config, path, store, out, overwrite, "add --overwrite" if len(run_paths) > 1 else None)
    for name in causal:
        _scorer(name, store, cpu)


def _check_run(
    config: LikelihoodConfig,
    run_path: Path,
    store: FeatureStore,
    out: Path | None,
    overwrite: bool,
    instead: str | None,
) -> None:
    """`InputError` as of `check_all`, for one run, which is in memory until this returns; `instead` as of `check`."""
    subject = bounded.opened(config, run_path, store, torch.device("cpu"))
    made = _result(config, subject, store, out, overwrite)
    if overwrite:
        artifact.check_overwrite(made["path"], made["kind"], made["reads"])
    else:
        artifact.check(**made, instead=instead)
    if overwrite or not is_complete(made["path"]):
        subject.check_states(store)


def plan(
    config: LikelihoodConfig, run_paths: Sequence[Path], features: Location, causal: Sequence[str] = ()
) -> dict[str, Any]:
    """Rows that `run` and `of_causal` would read, and passes of the network for each, by the path of run or model."""
    store = FeatureStore(features)
    rows, passes = _rows(config, store), dict[str, int]()
    for path in run_paths:
        if not unbounded(path):
            passes[str(path)] = bounded.opened(config, path, store, torch.device("cpu")).passes(config)
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
    subject = bounded.opened(config, run_path, store, runtime.device(config.device))
    made = _result(config, subject, store, out, overwrite)
    config, kept = made["config"], made["path"] / KEPT
    if overwrite:
        subject.check_states(store)
    # A row is known by the number of its line, so two processes must not write lines.
    with artifact.working(**made, overwrite=overwrite) as result:
        if result.complete:
            with suppress(OSError):  # it may be read-only by now
                kept.unlink(missing_ok=True)
            progress.note(f"{result.path} is complete; nothing to do")
            return result
        subject.remark(config, progress)
        found = _estimated(config, subject, store, rows, kept, progress)
        summary = {**_of_rows(config, store, rows), **subject.facts, **subject.summary(found, store.shapes.seq_len)}
        finished = result.finish(**summary)
        kept.unlink(missing_ok=True)
        subject.advise(summary, progress)
        return finished


def _result(
    config: LikelihoodConfig, subject: Subject, store: FeatureStore, out: Path | None, overwrite: bool
) -> dict[str, Any]:
    """The arguments with which the artefact of a run is begun, or checked; `InputError` as of `check_halves`."""
    out = out or subject.run.path / "likelihood"
    if not overwrite:
        check_halves(out)
    return {
        "path": out, "kind": "likelihood", "config": subject.own(config), "inputs": subject.inputs(store),
        "reads": [subject.run.path, *store.reads],
    }  # fmt: skip


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
            split.check_unreplaced()  # what is kept is of one store
            file.write(files.dump_jsonl(lines))
            file.flush()
            task.advance(len(batch))
    return list(files.read_jsonl(kept))
