"""Fresh noise around ẑ_0 in an interval of t, in place of the noise that DDIM keeps (arXiv 2604.02028).

    python -m benchmarks renoise --work renoise --run run --scorer scorer --reference real.jsonl

DDIM at η = 0 goes from s to t with the noise that its estimate leaves, z_t = α_t ẑ + σ_t (z_s − α_s ẑ)/σ_s. Here the
steps that begin in an interval of t draw new noise instead, z_t = α_t ẑ + σ_t ε, so that an early estimate, which is
still a mean over several texts, can be taken back. The last step stays as it is. Beside both stands the run's default
solver. `±` is the standard deviation over the sampling seeds. The same command resumes where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.drawn import compared, judged, mean, table
from benchmarks.records import keep
from ldlm import files, memory
from ldlm.config import SamplerConfig, Solver, to_dict
from ldlm.errors import InputError
from ldlm.evaluation import metrics, samples
from ldlm.hub import load_tokenizer
from ldlm.model.diffusion import Schedule
from ldlm.sampling import solvers
from ldlm.sampling.generation import TextGenerator
from ldlm.sampling.solvers import Recurrence
from ldlm.sampling.trained_run import TrainedRun

BUDGETS = (4, 8, 32)
INTERVALS = ((0.0, 1.0), (0.5, 1.0), (0.25, 0.75), (0.0, 0.5))
BATCH = 50


def renoised(recurrence: Recurrence, schedule: Schedule, times: Tensor, low: float, high: float) -> Recurrence:
    """The recurrence of a first-order solver on a grid, with fresh noise in steps that begin at low ≤ t ≤ high."""
    alpha, sigma = schedule.alpha_sigma(times[1:])
    inside = (low <= times[:-1]) & (times[:-1] <= high)
    inside[-1] = False
    return recurrence._replace(
        z=recurrence.z.masked_fill(inside, 0.0),
        z_hat=torch.where(inside, alpha, recurrence.z_hat),
        eps=torch.where(inside, sigma, recurrence.eps),
    )


@dataclass(frozen=True, eq=False)
class Renoising(TextGenerator):
    """Draws with DDIM and fresh noise in an interval of t."""

    interval: tuple[float, float] = (0.0, 1.0)

    def _recurrence(self, sampler: SamplerConfig) -> Recurrence:
        times = solvers.grid_of(sampler, self.schedule, self.timesteps)
        return renoised(solvers.ddim(self.schedule, times), self.schedule, times, *self.interval)


@dataclass(frozen=True)
class Trial:
    """A run, and texts drawn from it in several ways."""

    work: Path
    run: Path
    scorer: str
    texts: int
    max_tokens: int | None

    @cached_property
    def trained(self) -> TrainedRun:
        """The run."""
        return TrainedRun(self.run, torch.device("cpu"))

    @property
    def most(self) -> int:
        """Tokens of a text that are scored."""
        return self.max_tokens or self.trained.shapes.seq_len

    @cached_property
    def tokenizer(self) -> Any:
        """The run's tokenizer."""
        return load_tokenizer(str(self.run / "tokenizer"))

    def ways(self) -> dict[str, tuple[TextGenerator, Solver]]:
        """Generator and solver by name: the run's own, and those with fresh noise."""
        plain = self.trained.generator("joint")
        shared = {one.name: getattr(plain, one.name) for one in fields(plain) if not one.name.startswith("_")}
        default = SamplerConfig().solver
        found: dict[str, tuple[TextGenerator, Solver]] = {default: (plain, default), "ddim": (plain, "ddim")}
        for low, high in INTERVALS:
            found[f"fresh {low:g}-{high:g}"] = (Renoising(**shared, interval=(low, high)), "ddim")
        return found

    def measure(self, seeds: Sequence[int], reference: Path | None) -> dict[str, Any]:
        """Figures of all ways by budget and seed."""
        rows = []
        for budget in BUDGETS:
            for name, (generator, solver) in self.ways().items():
                sampler = SamplerConfig(solver=solver, steps=budget)
                files_of = [self._drawn(name, generator, sampler, seed) for seed in seeds]
                found = [judged(path, self.scorer, self.most) for path in files_of]
                rows.append({"way": name, "evaluations": budget, "figures": found})
        real = None if reference is None else judged(files_of[0], self.scorer, self.most, reference)
        return {"texts": self.texts, "seeds": list(seeds), "rows": rows, "real": real}

    def _drawn(self, name: str, generator: TextGenerator, sampler: SamplerConfig, seed: int) -> Path:
        run, how = self.trained.checkpoint.digest[:8], files.sha256_json(to_dict(sampler))[:8]
        path = self.work / f"{run}; {name}; {sampler.steps}; {self.texts} texts; seed {seed}; {how}.jsonl"
        if not path.exists():
            numbers = torch.arange(seed * self.texts, (seed + 1) * self.texts)
            drawn = torch.cat([generator.tokens(sampler, some) for some in numbers.split(BATCH)])
            decoded = metrics.decode_tokens(self.tokenizer, drawn.numpy(), clean_up=False)
            samples.write_record(path, "samples", samples.record_of(self.tokenizer, clean_up=False))
            files.write_atomic(path, files.dump_jsonl(samples.rows(decoded, drawn.tolist(), numbers.tolist())))
        return path


def report(found: Mapping[str, Any]) -> str:
    """The table, and for each budget whether fresh noise wins."""
    budgets = dict.fromkeys(row["evaluations"] for row in found["rows"])
    said = [verdict(found["rows"], budget) for budget in budgets]
    return "\n\n".join([table(found), "\n".join(said)])


def verdict(rows: Sequence[Mapping[str, Any]], budget: int) -> str:
    """Whether the best interval has a lower perplexity than the best solver, beyond the seeds and without collapse."""
    sets = {row["way"]: row["figures"] for row in rows if row["evaluations"] == budget}
    by_perplexity = sorted(sets, key=lambda name: mean(sets[name], "gen_ppl"))
    fresh, plain = (next(name for name in by_perplexity if name.startswith("fresh") == of) for of in (True, False))
    said = compared(sets[fresh], plain, sets[plain])
    return f"{budget} evaluations: the best with fresh noise ({fresh}) {said}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw and score."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks renoise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--run", type=Path, required=True, help="a run of LDLM")
    parser.add_argument("--scorer", required=True, help="causal model that scores the texts")
    parser.add_argument("--reference", type=Path, help="real text, of which as many texts are taken")
    parser.add_argument("--max-tokens", type=int, help="tokens of a text that are scored; default those of a row")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3], help="seeds of sampling")
    parser.add_argument("--output", type=Path, help="folder for the table and its JSON")
    chosen = parser.parse_args(arguments)
    memory.keep_freed()  # as the commands do
    try:
        trial = Trial(chosen.work, chosen.run, chosen.scorer, chosen.texts, chosen.max_tokens)
        found = trial.measure(chosen.seeds, chosen.reference)
    except InputError as error:
        sys.exit(f"Error: {error}")
    keep(report(found), "renoise", chosen.output, found)
