"""The plan of a comparison: methods to train, ways to draw from each, and the settings of every command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

SEQ_LEN, VOCABULARY = 64, 2048  # as in the quickstart
HELD_OUT, TRAINING = 0.02, 0.18  # shares of the documents; the rest is the scorer's
TEXTS, EVAL_ROWS = 500, 2_000  # as many rows as are held out
RATES = (3e-4, 1e-3, 3e-3, 6e-3)  # learning rates tried with each rival; the lowest is the published one
BUDGETS = (32, 128, 8, 256, 64, 16)  # evaluations per text, the most telling first
FIRST = 3  # this many of them are done for all runs before the others

EQUAL_STEPS, EQUAL_FLOPS = REGIMES = ("equal-steps", "equal-flops")
LDLM, AUTOREGRESSIVE = "ldlm", "ar"
RIVALS = ("mdlm", "duo", "candi", "flm")
NAMES = {LDLM: "LDLM", "mdlm": "MDLM", "duo": "Duo", "candi": "CANDI", "flm": "FLM", AUTOREGRESSIVE: "GPT-2"}

# The encoder is the quickstart's with more steps. The scorer is wider, and trained for longer and on other text.
ENCODER = {"layers": 4, "width": 128, "heads": 4, "steps": 1_000}
SCORER = {"layers": 4, "width": 192, "heads": 6, "steps": 1_600}
REFERENCE = {"layers": 3, "width": 128, "heads": 4}  # as deep and wide as the denoiser of preset tiny


@dataclass(frozen=True)
class Way:
    """A way to draw texts from a method's run."""

    key: str  # in file names
    name: str  # in tables
    method: str
    options: tuple[str, ...] = ()  # of `ldlm sample`
    last: int = 0  # most evaluations beyond those of its steps: the last step, which removes the remaining noise

    def steps(self, budget: int) -> int:
        """Steps with which a text takes at most `budget` evaluations."""
        return budget - self.last


WAYS = (
    Way("ldlm", "LDLM", LDLM),
    Way("ldlm-paper", "LDLM, paper's sampler", LDLM, ("--sampler", "paper")),
    Way("mdlm", "MDLM", "mdlm", ("--sampler", "ancestral"), last=1),
    Way("mdlm-p", "MDLM, p = 0.9", "mdlm", ("--sampler", "ancestral", "--top-p", "0.9"), last=1),
    Way("remdm", "ReMDM, p = 0.9, η = 0.015", "mdlm", ("--sampler", "remdm"), last=1),
    Way("duo", "Duo", "duo", ("--sampler", "ancestral"), last=1),
    Way("duo-p", "Duo, p = 0.9", "duo", ("--sampler", "ancestral", "--top-p", "0.9"), last=1),
    Way("psi", "Duo + Ψ, p = 0.9, η = 0.05", "duo", ("--sampler", "psi"), last=1),
    Way("psi-rescale", "Duo + Ψ by the formula", "duo", ("--sampler", "psi", "--mode", "rescale"), last=1),
    Way("candi", "CANDI", "candi"),
    Way("flm", "FLM", "flm"),
)


@dataclass(frozen=True)
class Draw:
    """One set of texts."""

    regime: str
    seed: int
    budget: int
    way: Way

    @property
    def run(self) -> Path:
        """The run from which they are drawn, in the folder of the comparison."""
        return run_path(self.regime, self.seed, self.way.method)

    @property
    def texts(self) -> Path:
        """Their file, in the folder of the comparison."""
        return Path("texts") / self.regime / f"seed-{self.seed}" / f"{self.way.key}-{self.budget}.jsonl"


def part(name: str) -> Path:
    """File of a part of the text, in the folder of the comparison."""
    return Path("text") / f"{name}.jsonl"


def run_path(regime: str, seed: int, method: str) -> Path:
    """The run of a method. Only LDLM has a separate one for equal FLOPs: its steps are the most expensive."""
    regime = regime if method == LDLM else EQUAL_STEPS
    return Path("runs") / regime / f"seed-{seed}" / method


def draws(seeds: Sequence[int], budgets: Sequence[int], methods: Sequence[str]) -> Iterator[Draw]:
    """All sets of texts, the most telling first."""
    for part in (budgets[:FIRST], budgets[FIRST:]):
        for regime, seed, budget, way in product(REGIMES, seeds, part, WAYS):
            own = way.method == LDLM or regime == EQUAL_STEPS
            if own and way.method in methods and way.steps(budget) > 0:
                yield Draw(regime, seed, budget, way)


def flops_per_token(cost: Mapping[str, Any]) -> float:
    """FLOPs per token of a training step, from the JSON of a dry run; the mean over steps if it has phases."""
    flops = cost["flops_per_token"]
    if not isinstance(flops, Mapping):
        return float(flops)
    return sum(flops[phase] * steps for phase, steps in cost["steps"].items()) / sum(cost["steps"].values())
