"""Trainings with a setting and without it, at few evaluations: quality beside the spread between trainings.

    python -m benchmarks trainings --work trainings --scorer scorer --reference real.jsonl \\
        --way plain run-0 run-1 --way "noise 0.5" noisy-0 noisy-1

Draws `--texts` texts with each sampling seed from every run, with the default sampler at several numbers of
evaluations and the decoder that was trained with it, and scores them. A run's figure is the mean over its seeds, and
`±` the standard deviation over the runs of a way. Each way is compared with the first. The same command resumes where
it was interrupted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.drawn import FIGURES, Figures, compared, judged, table
from benchmarks.records import keep
from ldlm import files, memory
from ldlm.artifact import open_artifact
from ldlm.cli import show
from ldlm.config import SampleConfig, SamplerConfig
from ldlm.errors import InputError
from ldlm.stages import sample

BUDGETS = (4, 8, 32)


@dataclass(frozen=True)
class Trial:
    """Runs by the way in which they were trained, and texts drawn from them."""

    work: Path
    ways: Mapping[str, Sequence[Path]]
    scorer: str
    texts: int
    max_tokens: int | None

    def measure(self, seeds: Sequence[int], reference: Path | None) -> dict[str, Any]:
        """Figures of all ways by budget and run."""
        rows = [
            {
                "way": way,
                "evaluations": budget,
                "figures": [self._figures([self._drawn(run, budget, seed) for seed in seeds]) for run in runs],
            }
            for budget in BUDGETS
            for way, runs in self.ways.items()
        ]
        some = self._drawn(next(iter(self.ways.values()))[0], BUDGETS[0], seeds[0])
        real = None if reference is None else judged(some, self.scorer, self.max_tokens, reference)
        runs = {way: [_digest(run) for run in of] for way, of in self.ways.items()}
        return {"texts": self.texts, "seeds": list(seeds), "runs": runs, "rows": rows, "real": real}

    def _drawn(self, run: Path, budget: int, seed: int) -> Path:
        out = self.work / f"{_digest(run)[:8]}; {budget}; {self.texts} texts; seed {seed}.jsonl"
        sampler = SamplerConfig(steps=budget)
        settings = SampleConfig(num_samples=self.texts, seed=seed, sampler=sampler, decoder="joint", device="cpu")
        sample.run(settings, run, out, progress=show.Terminal())
        return out

    def _figures(self, texts: Sequence[Path]) -> dict[str, float]:
        found = [judged(path, self.scorer, self.max_tokens) for path in texts]
        return {key: statistics.mean(one[key] for one in found) for key in FIGURES}


def _digest(run: Path) -> str:
    """Hash of a finished run; `InputError` for anything else."""
    found: str = files.read_json(open_artifact(run, "run").path / "manifest.json")["digest"]
    return found


def report(found: Mapping[str, Any]) -> str:
    """The table, and for each budget how every other way compares with the first."""
    said = [verdict(found["rows"], budget) for budget in dict.fromkeys(row["evaluations"] for row in found["rows"])]
    return "\n\n".join([table(found), "\n".join(said)])


def verdict(rows: Sequence[Mapping[str, Any]], budget: int) -> str:
    """Whether a way has a lower perplexity than the first in each of its runs, without less entropy."""
    sets: dict[str, Figures] = {row["way"]: row["figures"] for row in rows if row["evaluations"] == budget}
    (first, plain), *others = sets.items()
    return "\n".join(f"{budget} evaluations: {name} {compared(ours, first, plain)}" for name, ours in others)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw and score."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks trainings", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the texts")
    of_ways = "a name, and the runs trained in that way; once for each way"
    parser.add_argument("--way", nargs="+", action="append", metavar="NAME RUN...", required=True, help=of_ways)
    parser.add_argument("--scorer", required=True, help="causal model that scores the texts")
    parser.add_argument("--reference", type=Path, help="real text, of which as many texts are taken")
    parser.add_argument("--max-tokens", type=int, help="tokens of a text that are scored; default those of the scorer")
    parser.add_argument("--texts", type=int, default=250)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="seeds of sampling")
    parser.add_argument("--output", type=Path, help="folder for the table and its JSON")
    chosen = parser.parse_args(arguments)
    memory.keep_freed()  # as the commands do
    ways = {name: [Path(run) for run in runs] for name, *runs in chosen.way}
    if not 2 <= len(ways) == len(chosen.way) or not all(ways.values()):
        parser.error("--way takes a name and at least one run, and there must be two ways to compare, of other names")
    try:
        found = Trial(chosen.work, ways, chosen.scorer, chosen.texts, chosen.max_tokens).measure(
            chosen.seeds, chosen.reference
        )
    except InputError as error:
        sys.exit(f"Error: {error}")
    keep(report(found), "trainings", chosen.output, found)
