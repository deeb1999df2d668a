"""Distilled runs beside the run from which they were distilled, at few evaluations: quality, seed spread and cost.

    python -m benchmarks distill --work distill --run run --features features --scorer scorer --reference real.jsonl

Distils the run to 8, 4, 2 and 1 evaluations, each from the one before, draws `--texts` texts with each seed from every
student and from the run itself, and scores them. The teacher is the run with its default sampler, at 32 evaluations,
or with the one that `--teacher` describes: the best of a sweep. For comparison, the run also draws at few evaluations,
with its default solver and with ddim, which students are taught, and with four guided steps, which take 8. `±` is the
standard deviation over the sampling seeds. The same command resumes where it was interrupted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.drawn import FIGURES, judged, table
from benchmarks.records import keep
from ldlm import config, files, memory
from ldlm.cli import show
from ldlm.config import DistillConfig, SampleConfig, SamplerConfig
from ldlm.errors import InputError
from ldlm.paper.comparing import ONE
from ldlm.sampling import solvers
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import distill, sample

EVALUATIONS = (8, 4, 2, 1)  # of the students, each distilled from the one before
AIM = 4  # evaluations at which a student should draw as well as the teacher
GUIDANCE = 1.5  # of four steps of the run itself
TEACHER = "the teacher"


@dataclass(frozen=True)
class Way:
    """A way to draw texts: a run and a sampler."""

    name: str
    run: Path
    sampler: SamplerConfig

    @property
    def evaluations(self) -> int:
        """Evaluations of the denoiser per text."""
        return self.sampler.steps * solvers.evaluations_per_step(self.sampler)


@dataclass(frozen=True)
class Trial:
    """A run, its students, and the texts from all of them."""

    work: Path
    run: Path
    features: Path
    scorer: str
    reference: Path | None
    distilling: DistillConfig
    teacher: SamplerConfig
    texts: int
    temperature: float
    max_tokens: int | None

    @cached_property
    def trained(self) -> TrainedRun:
        """The run."""
        return TrainedRun(self.run, torch.device("cpu"))

    def students(self) -> dict[int, Path]:
        """The students by evaluations, trained if they are not yet."""
        made, source = dict[int, Path](), self.run
        for evaluations in EVALUATIONS:
            first = source == self.run
            asked = replace(self.distilling, evaluations=evaluations)
            asked = asked if first else replace(asked, guidance=1.0)  # the first student has guidance folded in
            out = self.work / f"student-{evaluations}"
            distill.run(asked, source, self.features, out, progress=show.Terminal())
            made[evaluations] = source = out
        return made

    def ways(self, students: Mapping[int, Path]) -> Iterator[Way]:
        """Every way to draw, the teacher first."""
        best = SamplerConfig(temperature=self.temperature)
        ddim = replace(best, solver="ddim")
        yield Way(TEACHER, self.run, self.teacher)
        yield Way("ddim", self.run, ddim)
        yield Way(f"{best.solver}, w = {GUIDANCE:g}", self.run, replace(best, steps=4, guidance=GUIDANCE))
        for evaluations, student in students.items():
            yield Way("student", student, replace(ddim, steps=evaluations))
            yield Way("ddim", self.run, replace(ddim, steps=evaluations))
            yield Way(best.solver, self.run, replace(best, steps=evaluations))

    def measure(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Figures of all ways by seed, and what the students cost."""
        students = self.students()
        rows = []
        for way in self.ways(students):
            found = [self._judged(self._drawn(way, seed)) for seed in seeds]
            rows.append({"way": way.name, "evaluations": way.evaluations, "figures": found})
        some = self._drawn(Way(TEACHER, self.run, self.teacher), seeds[0])
        real = None if self.reference is None else self._judged(some, self.reference)
        manifests = {count: files.read_json(path / "manifest.json") for count, path in students.items()}
        return {
            "texts": self.texts,
            "seeds": list(seeds),
            "run_steps": self.trained.checkpoint.step,
            "students": {
                str(count): {"steps": manifest["step"], **manifest["held_out"]} for count, manifest in manifests.items()
            },
            "rows": rows,
            "real": real,
        }

    def _drawn(self, way: Way, seed: int) -> Path:
        name = f"{way.name}; {way.evaluations}; {way.run.name}; T {way.sampler.temperature:g}; seed {seed}.jsonl"
        out = self.work / "texts" / name.replace("/", "-")
        settings = SampleConfig(num_samples=self.texts, sampler=way.sampler, seed=seed, device="cpu")
        sample.run(settings, way.run, out, progress=show.Terminal())
        return out

    def _judged(self, texts: Path, reference: Path | None = None) -> dict[str, float]:
        return judged(texts, self.scorer, self.max_tokens or self.trained.shapes.seq_len, reference)


def report(found: Mapping[str, Any]) -> str:
    """The table, whether the aim is met, and the cost of each student."""
    costs, spent = list[str](), 0
    for count, student in found["students"].items():
        spent += student["steps"]
        costs.append(
            f"to {count} evaluations: {spent:,} steps in all, {spent / found['run_steps']:.0%} of the run's "
            f"{found['run_steps']:,}; held-out loss {show.value(student['l_distill'])}, with the teacher in its place "
            f"{show.value(student['l_distill_teacher'])}"
        )
    return "\n\n".join(
        [
            table(found),
            verdict(found["rows"]),
            "\n".join(costs),
        ]
    )


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far the student with `AIM` evaluations is from the teacher, beside the spread of the teacher's seeds."""
    (teacher,) = (row["figures"] for row in rows if row["way"] == TEACHER)
    (student,) = (row["figures"] for row in rows if row["way"] == "student" and row["evaluations"] == AIM)
    said = []
    for key, name in FIGURES.items():
        of_teacher, of_student = ([one[key] for one in figures] for figures in (teacher, student))
        apart = statistics.mean(of_student) - statistics.mean(of_teacher)
        spread = max(of_teacher) - min(of_teacher)
        inside = "within" if abs(apart) <= spread else "outside"
        beside = f"{inside} the {spread:.3g} that the teacher's seeds differ" if len(of_teacher) > 1 else ONE
        said.append(f"{name} {apart:+.3g}, {beside}")
    return f"student of {AIM} evaluations, and the teacher: " + "; ".join(said)


def main(arguments: Sequence[str] | None = None) -> None:
    """Distil, draw and score."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks distill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the students and the texts")
    parser.add_argument("--run", type=Path, required=True, help="the run to distil")
    parser.add_argument("--features", type=Path, required=True, help="its feature store")
    parser.add_argument("--scorer", required=True, help="causal model that scores the texts")
    parser.add_argument("--reference", type=Path, help="real text, of which as many texts are taken")
    parser.add_argument("--max-tokens", type=int, help="tokens of a text that are scored; default those of a row")
    parser.add_argument("--steps", type=int, help="steps of each round; default that of ldlm distill")
    parser.add_argument("--lr", type=float, help="learning rate; default that of ldlm distill")
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance w that the students learn")
    parser.add_argument("--temperature", type=float, default=0.0, help="temperature of all samplers")
    of_teacher = "the teacher's sampler, like solver=heun steps=8 guidance=1.5; default that of ldlm sample"
    parser.add_argument("--teacher", nargs="+", metavar="KEY=VALUE", default=[], help=of_teacher)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3], help="seeds of sampling")
    parser.add_argument("--output", type=Path, help="folder for the table and its JSON")
    chosen = parser.parse_args(arguments)
    memory.keep_freed()  # as the commands do
    settings: Any = {"steps": chosen.steps, "lr": chosen.lr, "guidance": chosen.guidance, "device": "cpu"}
    distilling = DistillConfig(**settings)
    try:
        asked = config.merge({"temperature": chosen.temperature}, config.assignments(chosen.teacher))
        teacher = config.from_dict(SamplerConfig, asked)
        trial = Trial(
            chosen.work,
            chosen.run,
            chosen.features,
            chosen.scorer,
            chosen.reference,
            distilling,
            teacher,
            chosen.texts,
            chosen.temperature,
            chosen.max_tokens,
        )
        found = trial.measure(chosen.seeds)
    except InputError as error:
        sys.exit(f"Error: {error}")
    keep(report(found), "distill", chosen.output, found)
