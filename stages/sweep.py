"""Quality against the number of evaluations: the ways to draw from a run, or from several on one frontier (Fig. 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ldlm import artifact, files, runtime
from ldlm import config as configs
from ldlm.artifact import Artifact
from ldlm.baselines import opening
from ldlm.baselines.ways import TokenSweep, check_used
from ldlm.config import AnySweepConfig, DiffusionConfig, Shapes, SweepConfig, TokenSweepConfig
from ldlm.errors import InputError
from ldlm.evaluation.beside import Beside, Judge
from ldlm.evaluation.frontier import External
from ldlm.evaluation.fronts import Fronts
from ldlm.evaluation.scorer import Scorer
from ldlm.location import folder_names, local
from ldlm.pages import plots
from ldlm.progress import SILENT, Progress
from ldlm.sampling import pretrained, trajectories
from ldlm.sampling.source import OpenRun
from ldlm.sampling.trajectories import TrajectorySweep
from ldlm.sampling.ways import Loaded, Sweep

# Of all runs of a frontier.
ABOUT = (
    "texts", "diversity_texts", "scorer", "scorer_revision", "max_tokens", "boundaries", "boundary_tokens", "clean_up",
)  # fmt: skip


def plan(config: SweepConfig, runs: Sequence[Path] = ()) -> dict[str, Any]:
    """Numbers of ways, evaluations and texts that a sweep would take; for several runs, those of each by name.

    Without a run, they are those for a run of LDLM.
    """
    if not runs:
        return trajectories.plan(config)
    sweeps, _ = _sweeps(config, runs)
    plans = {name: sweep.plan() for name, sweep in sweeps.items()}
    return {"runs": plans} if len(plans) > 1 else next(iter(plans.values()))


def run(
    config: AnySweepConfig,
    runs: Path | Sequence[Path],
    out: Path,
    *,
    reference: Path | None = None,
    externals: Sequence[External] = (),
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Artifact:
    """Sweep a run or an exported model, or several on one frontier, into the folder `out`.

    For one run it gets `sweep.json`, `table.md`, `frontier.png`, and the scores and texts of each way. For several it
    gets such a folder for each, with the run's name, and `frontier.json`, `table.md` and `frontier.png` for all. The
    same call resumes an interrupted one.
    """
    sweeps, shapes = _sweeps(config, [runs] if isinstance(runs, Path) else runs, progress)
    beside = Beside.read(config, reference, externals, progress)
    reads = local(reference, *(one.path for one in externals), config.scorer)
    device = runtime.device(config.device)

    def judge() -> Judge:
        scorer = Scorer(config.scorer, device, progress.note)
        made = Judge(config, scorer, scorer.fitting(shapes.seq_len, progress.note), beside)
        made.remark(progress)
        return made

    if len(sweeps) == 1:
        (sweep,) = sweeps.values()
        loaded = _load(config, sweep, device, progress)
        return _one(sweep, loaded, judge(), out, reads=reads, overwrite=overwrite, progress=progress)
    return _several(config, sweeps, judge(), out, reads=reads, overwrite=overwrite, progress=progress)


def _one(
    sweep: Sweep,
    loaded: Loaded[Any, Any],
    judge: Judge,
    out: Path,
    *,
    reads: Sequence[Path],
    overwrite: bool = False,
    progress: Progress,
) -> Artifact:
    """The sweep of one run."""
    inputs = {**loaded.inputs, **judge.inputs}
    reads = [sweep.path, *reads]
    with artifact.working(out, "sweep", sweep.config, inputs, overwrite=overwrite, reads=reads) as result:
        if result.complete:
            progress.note(f"{out} is complete; nothing to do")
            return result
        found = loaded.find(out, judge, progress)
        summary = found.to_json()
        files.write_json(out / "sweep.json", summary)
        files.write_atomic(out / "table.md", found.table())
        plots.sweep(out / "frontier.png", summary)
        return result.finish(**summary)


def _several(
    config: AnySweepConfig,
    sweeps: Mapping[str, Sweep],
    judge: Judge,
    out: Path,
    *,
    reads: Sequence[Path],
    overwrite: bool,
    progress: Progress,
) -> Artifact:
    """The sweeps of several runs, one after the other, and their common frontier."""
    of_runs = _inputs(config, sweeps, judge.scorer.device)
    inputs = {**_together(of_runs), **judge.inputs}
    reads = [*(sweep.path for sweep in sweeps.values()), *reads]
    with artifact.working(out, "frontier", config, inputs, overwrite=overwrite, reads=reads) as result:
        if result.complete:
            progress.note(f"{out} is complete; nothing to do")
            return result
        for name, sweep in sweeps.items():  # what is refused is found before hours of sweeping the others
            artifact.check(out / name, "sweep", sweep.config, {**of_runs[name], **judge.inputs})
        parts = {}
        for name, sweep in sweeps.items():
            progress.note(f"run {name}")
            loaded = _load(config, sweep, judge.scorer.device, progress)
            parts[name] = _one(sweep, loaded, judge, out / name, reads=reads, progress=progress)
            del loaded  # one run at a time is in memory
        summaries = {name: part.manifest for name, part in parts.items()}
        first = next(iter(summaries.values()))
        fronts = Fronts(
            points=[point for name, sweep in sweeps.items() for point in sweep.points(name, summaries[name])],
            runs={name: _origin(sweeps[name], part) for name, part in parts.items()},
            externals=judge.externals,
            real=judge.real,
            about={name: first[name] for name in ABOUT if name in first},
        )
        summary = fronts.to_json()
        files.write_json(out / "frontier.json", summary)
        files.write_atomic(out / "table.md", fronts.table())
        plots.sweep(out / "frontier.png", summary)
        return result.finish(**summary)


def _load(config: AnySweepConfig, sweep: Sweep, device: torch.device, progress: Progress) -> Loaded[Any, Any]:
    source = opening.open_source(sweep.path, device, config.checkpoint)
    if isinstance(source, OpenRun):
        source.remark_on_end(progress)
    return sweep.load(source, progress)


def _inputs(config: AnySweepConfig, sweeps: Mapping[str, Sweep], device: torch.device) -> dict[str, dict[str, Any]]:
    """Inputs of the sweep of each run by name; the runs are opened one by one."""
    return {name: _load(config, sweep, device, SILENT).inputs for name, sweep in sweeps.items()}


def _together(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Inputs of a frontier: checkpoints, decoders and stored precisions of its runs."""
    return {
        "runs": {name: one["checkpoint"] for name, one in found.items()},
        "decoder_sha256": {name: one.get("decoder_sha256", {}) for name, one in found.items()},
        "weights_precision": {name: one["weights_precision"] for name, one in found.items()},
    }


def _origin(sweep: Sweep, part: Artifact) -> dict[str, Any]:
    """What a finished sweep was drawn from, and on which device."""
    inputs, found = part.inputs, part.manifest
    return {
        "method": sweep.method,
        **{name: inputs[name] for name in ("checkpoint", "precision", "weights_precision") if name in inputs},
        **{name: found[name] for name in ("step", "device")},
        "seed": sweep.config.seed,
    }


# ----------------------------------------------------------------------------------------------------------------------
# The runs


def _sweeps(
    config: AnySweepConfig, runs: Sequence[Path], progress: Progress = SILENT
) -> tuple[dict[str, Sweep], Shapes]:
    """The sweep of each run by name, and the sizes of their texts.

    `InputError` for settings that no run has, and for runs that can't be compared.
    """
    sweeps = {name: _sweep(config, path, progress) for name, path in zip(folder_names(runs), runs, strict=True)}
    shapes = _shapes(sweeps)
    used = {field.name for sweep in sweeps.values() for field in fields(sweep.config)}
    for field in fields(config):
        if field.name not in used and getattr(config, field.name) != field.default:
            whose = " and ".join(sorted({sweep.method for sweep in sweeps.values()}))
            raise InputError(f"{field.name} is not a setting of a sweep of {whose}; leave it out")
    check_used([sweep for sweep in sweeps.values() if isinstance(sweep, TokenSweep)])
    return sweeps, shapes


def _sweep(config: AnySweepConfig, path: Path, progress: Progress) -> Sweep:
    if pretrained.model_type(path) is None:
        artifact.open_artifact(path, "run", complete=False)
    method = opening.method_at(path)
    chosen = configs.sweep_of(method, config)
    if isinstance(chosen, TokenSweepConfig):
        return TokenSweep(path, chosen, method)
    diffusion = configs.from_stored(DiffusionConfig, opening.about(path).settings.get("diffusion", {}))
    chosen = trajectories.guiding(chosen, path, diffusion, progress)
    return TrajectorySweep(path, chosen, opening.offer(path, chosen.checkpoint))


def _shapes(sweeps: Mapping[str, Sweep]) -> Shapes:
    """The sizes of the texts of all runs; `InputError` where two differ in them, or in the tokenizer."""
    found = {sweep.path: opening.about(sweep.path) for sweep in sweeps.values()}
    first, *others = found
    for other in others:
        if found[first].tokenizer != found[other].tokenizer:
            raise InputError(
                f"{first} and {other} have different tokenizers, so their entropies and diversities do not compare; "
                f"leave one of them out"
            )
        a, b = (found[path].shapes.seq_len for path in (first, other))
        if a != b:
            raise InputError(
                f"{first} draws texts of {a:,} tokens and {other} of {b:,}, and figures of texts of different length "
                f"do not compare; leave one of them out"
            )
    return found[first].shapes
