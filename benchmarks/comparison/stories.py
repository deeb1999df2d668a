"""LDLM against the token-level methods on stories of known distribution: validity at 2 to 256 evaluations (Figure 1).

    python -m benchmarks stories-frontier --output frontier --results benchmarks/results

It is the comparison of `python -m benchmarks comparison` with `ldlm stories` as text and its process as judge: figures
of validity, likelihood and coverage replace a scorer's perplexity. In the same way it resumes where it was interrupted,
and several `--seeds` may be worked on at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from benchmarks.comparison import plan, runner, sources
from benchmarks.comparison.plan import WAYS
from ldlm import files
from ldlm.evaluation import samples, validity
from ldlm.pages.chart import Axis
from ldlm.stages import source_stories
from ldlm.stages import stories as stage
from ldlm.stories import process
from ldlm.stories.grammar import KINDS

if TYPE_CHECKING:
    from benchmarks.comparison.runner import Comparison

# Stories, steps, initial weights of the encoder and LDLM's own settings are the quickstart's. The encoder is trained
# for more steps (`plan.ENCODER`), and more stories are held out.
QUICKSTART = source_stories.Stories()
DOCUMENTS, HELD_OUT = QUICKSTART.documents, 2_000
BUDGETS = (32, 8, 128, 2, 64, 16, 4, 256)  # evaluations per text, the most telling first
SEEDS = (0, 1, 2)
WORDS = "tokenizer"


@dataclass(frozen=True)
class Stories(sources.ComparisonText):
    """The stories of `ldlm stories`."""

    stem: ClassVar[str] = "stories-frontier"
    title: ClassVar[str] = "Frontier on stories"
    models: ClassVar[Sequence[str]] = ("encoder",)
    figures: ClassVar[Mapping[str, str]] = {
        "sentences_valid": "share of the sentences that are valid",
        "stories_valid": "share of the stories that are valid",
        "nats_per_story": "nats per valid story",
        "nats_per_word": "nats per word of valid stories",
        "coverage": "share of the source's choices that occur",
        "entropy": "entropy, nats",
        "diversity": "diversity",
    }
    against: ClassVar[Mapping[str, Literal["ratio", "difference"]]] = {
        "sentences_valid": "difference",
        "stories_valid": "difference",
        "entropy": "difference",
    }
    compared: ClassVar[str] = "valid sentences, valid stories, entropy"
    axes: ClassVar[Mapping[str, Axis]] = {
        "sentences_valid": Axis("valid sentences, share, log scale", log=True),
        "entropy": Axis("entropy, nats"),
    }
    steps: ClassVar[int] = QUICKSTART.sizes.preset["steps"]
    rate_steps: ClassVar[int] = 400
    ldlm: ClassVar[Mapping[str, float]] = {
        f"{section}.{name}": value
        for section, settings in QUICKSTART.sizes.preset.items()
        if section != "steps"
        for name, value in settings.items()
    }

    documents: int = DOCUMENTS
    held_out: int = HELD_OUT

    def prepare(self, comparison: Comparison) -> None:
        """Write the stories and their tokenizer, and pretrain the encoder."""
        folder = comparison.folder
        documents = [*process.stories(0, 0, self.held_out + self.documents)]
        digest = hashlib.sha256("\n".join([*documents, str(self.held_out)]).encode()).hexdigest()
        told = f"the first {len(documents):,} stories of seed 0"
        if not sources.record_text(folder, {"file": told, "sha256": digest}):
            stage.write_tokenizer(folder / WORDS, overwrite=True)
            parts = {"held-out": documents[: self.held_out], "train": documents[self.held_out :]}
            for name, part in parts.items():
                sources.write_part(folder, name, part)
            characters = {name: sum(map(len, part)) for name, part in parts.items()}
            files.write_json(folder / sources.RECORD, {"file": told, "sha256": digest, "characters": characters})
        comparison.pretrain("encoder", "train", ("--tokenizer", WORDS, "--init", QUICKSTART.sizes.init), plan.ENCODER)

    def score(self, folder: Path, texts: Path, most: int) -> dict[str, Any]:
        """Validity, likelihood, coverage and violations."""
        found = samples.described(samples.read(texts), texts).first(most)
        return validity.Measure(seed=0).validity(found).to_json()

    def about(self, figures: Mapping[str, Any]) -> str:
        """The judge."""
        return (
            f"Judge: the process of the stories, version {process.VERSION}, whose exact entropy is "
            f"{stage.entropies()['nats_per_story']:.3f} nats per story; rows cut stories, so the whole ones are short, "
            "also of real text."
        )

    def more(self, rows: sources.Rows) -> list[sources.Table]:
        """Violations by kind at each number of evaluations."""
        budgets = sorted({row["budget"] for row in rows})
        return [
            (
                f"violations in a hundred sentences, {budget} evaluations",
                ("", *KINDS),
                [(way.name, *_violations(found)) for way in WAYS if (found := _cell(rows, way.key, budget))],
            )
            for budget in budgets
        ]


def _cell(rows: sources.Rows, way: str, budget: int) -> sources.Rows:
    return [row for row in rows if (row["way"], row["budget"]) == (way, budget)]


def _violations(rows: sources.Rows) -> list[str]:
    """Violations of each kind per hundred sentences, whole and cut ones, over all seeds."""
    sentences = sum(row["sentences"] + row["cut_sentences"] for row in rows)
    counts = (sum(row["violations"][kind] for row in rows) for kind in KINDS)
    return [f"{100 * count / sentences:.1f}" if sentences else "–" for count in counts]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison on stories."""
    parser = runner.options(
        "python -m benchmarks stories-frontier", __doc__, seeds=SEEDS, budgets=BUDGETS, steps=Stories.steps
    )
    parser.add_argument("--documents", type=runner.positive, default=DOCUMENTS, help="stories for training")
    parser.add_argument("--held-out", type=runner.positive, default=HELD_OUT, help="held-out stories")
    chosen = parser.parse_args(arguments)
    runner.go(chosen, Stories(chosen.documents, chosen.held_out))
