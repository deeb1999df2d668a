"""A run as one page to read and to share, from the run's own files and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldlm import artifact, config, files
from ldlm.baselines.registry import training_method
from ldlm.completion import is_complete
from ldlm.config import AnyTrainConfig, Shapes
from ldlm.errors import InputError
from ldlm.evaluation import samples
from ldlm.evaluation.frontier import read_finalists, verdict
from ldlm.location import check_output, folder_name
from ldlm.pages.report import page
from ldlm.pages.report_data import AnyReport, Report, SampleSet
from ldlm.training.log import MetricsFile


def run(run_path: Path, out: Path | None = None) -> Path:
    """Write the report of a run, in whatever state it is, to `out`, by default `report.html` in the run.

    It is written anew each time, and the same files give the same bytes. Returns its path.
    """
    out = out or run_path / "report.html"
    report = read(run_path)
    _check(out)
    files.write_atomic(out, page(report))
    return out


def _check(out: Path) -> None:
    """Refuse to replace anything but a page: a slip could name the run's `config.yaml`."""
    check_output(out, "report.html")
    if out.suffix != ".html":
        raise InputError(f"a report is a page, and {out} does not end in .html; choose another --output")


def read(path: Path) -> AnyReport:
    """Read the records of a run."""
    found = artifact.open_artifact(path, "run", complete=False)
    trained = config.stored_training(found.config)
    features = _json(path / "features.json")
    sweep, interpolation = _finished(path, "sweep"), _finished(path, "interpolation")
    return Report(
        name=folder_name(path),
        config=trained,
        manifest=found.manifest if found.complete else None,
        status=_json(path / "status.json"),
        features=features,
        parameters={} if features is None else _parameters(trained, features),
        metrics=MetricsFile(path / "metrics.jsonl").read(),
        decoders=_decoders(path),
        samples=list(_samples(path)),
        special_tokens=_special_tokens(path),
        sweep=sweep,
        verdict="" if sweep is None or "points" in sweep else verdict(read_finalists(sweep)),
        interpolation=interpolation,
        path=[] if interpolation is None else _first_pair(path / "interpolation" / "texts.jsonl"),
        trace=None if _finished(path, "trace") is None else files.read_json(path / "trace" / "trace.json"),
        likelihood=_finished(path, "likelihood"),
    )


def _json(path: Path) -> Any:
    """The content of a JSON file; None if it does not exist."""
    return files.read_json(path) if path.is_file() else None


def _finished(run_path: Path, kind: str) -> dict[str, Any] | None:
    """The manifest of the finished artefact that a stage left in the run; None if there is none of this kind."""
    path = run_path / kind
    return artifact.open_artifact(path, kind).manifest if _holds(path, kind) else None


def _holds(path: Path, kind: str) -> bool:
    """Whether a folder is a finished artefact of this kind; a user may have put others where the run has its own."""
    return (_json(path / "artifact.json") or {}).get("kind") == kind and is_complete(path)


def _parameters(trained: AnyTrainConfig, features: dict[str, Any]) -> dict[str, int]:
    method = training_method(trained)
    return method.parameters(method.network(Shapes(**features["shapes"]), features["encoder"]["kind"]))


def _decoders(run_path: Path) -> list[dict[str, Any]]:
    """Manifests of the fine-tuned decoders, oldest first."""
    folders = (path.parent for path in (run_path / "decoders").glob("*/manifest.json"))
    manifests = (artifact.open_artifact(folder, "decoder").manifest for folder in folders if _holds(folder, "decoder"))
    return sorted(manifests, key=lambda manifest: manifest["created"])


def _samples(run_path: Path) -> Iterator[SampleSet]:
    """The sets of texts that `ldlm sample` finished in the run's folder."""
    for path in [run_path / "samples.jsonl", *files.matching(run_path / "samples", "*.jsonl")]:
        about = _json(samples.record_path(path))
        if about is not None and about.get("kind", "samples") == "samples" and path.is_file():
            yield SampleSet(path.relative_to(run_path).as_posix(), about, list(files.read_jsonl(path)))


def _special_tokens(run_path: Path) -> list[str]:
    tokenizer = _json(run_path / "tokenizer" / "tokenizer.json") or {"added_tokens": []}
    return [token["content"] for token in tokenizer["added_tokens"] if token["special"]]


def _first_pair(path: Path) -> list[dict[str, Any]]:
    return [row for row in files.read_jsonl(path) if row["pair"] == 0]
