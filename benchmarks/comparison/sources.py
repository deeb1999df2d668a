"""Sources of a comparison: the text to train on, how texts are scored, and how findings are shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from benchmarks.comparison import plan
from ldlm import files
from ldlm.config import EvaluateConfig
from ldlm.errors import InputError
from ldlm.evaluation import samples
from ldlm.evaluation.measure import measure
from ldlm.evaluation.scorer import Scorer
from ldlm.features import digests, splitting, textfiles
from ldlm.pages.chart import Axis

if TYPE_CHECKING:
    from benchmarks.comparison.runner import Comparison

RECORD = Path("text/text.json")
Rows = Sequence[Mapping[str, Any]]
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, head and rows


class ComparisonText(ABC):
    """A source of text: its documents, its judge, and the figures in its tables."""

    stem: ClassVar[str]  # of the result files
    title: ClassVar[str]  # of the document
    models: ClassVar[Sequence[str]]  # shared by all methods
    figures: ClassVar[Mapping[str, str]]  # with a table each: title by key
    against: ClassVar[Mapping[str, Literal["ratio", "difference"]]]  # how a rival's figure is compared with LDLM's
    compared: ClassVar[str]  # the compared figures, as the head of that table
    axes: ClassVar[Mapping[str, Axis]]  # of the picture, by key
    steps: ClassVar[int]  # of every training except LDLM's with equal FLOPs
    rate_steps: ClassVar[int]  # of a rival's trial of a learning rate
    ldlm: ClassVar[Mapping[str, float]] = {}  # settings of LDLM's training on this text, beyond the preset's

    @abstractmethod
    def prepare(self, comparison: Comparison) -> None:
        """Make text, encoder and scorer, except what is finished already."""

    @abstractmethod
    def score(self, folder: Path, texts: Path, most: int) -> dict[str, Any]:
        """Figures of the first `most` texts of a file, by the models in the folder; with `num_texts`."""

    @abstractmethod
    def about(self, figures: Mapping[str, Any]) -> str:
        """A sentence on the judge, for the head of the document."""

    def more(self, rows: Rows) -> list[Table]:
        """Further tables from the rows of a regime."""
        return []


def record_text(folder: Path, text: Mapping[str, Any]) -> bool:
    """Whether the comparison has its text already; `InputError` if it has another one, by its hash."""
    if not (folder / RECORD).exists():
        return False
    if files.read_json(folder / RECORD)["sha256"] != text["sha256"]:
        raise InputError(f"{folder} holds a comparison on another text than {text['file']}; choose another --output")
    return True


def write_part(folder: Path, name: str, documents: Sequence[str]) -> None:
    """Write a part of the text, one document per line."""
    files.write_atomic(folder / plan.part(name), files.dump_jsonl({"text": document} for document in documents))


@dataclass(frozen=True)
class RealText(ComparisonText):
    """A file of text: a fifth for training and held-out rows, the rest for the scorer, with the same tokenizer."""

    stem: ClassVar[str] = "comparison"
    title: ClassVar[str] = "Comparison"
    models: ClassVar[Sequence[str]] = ("encoder", "scorer")
    figures: ClassVar[Mapping[str, str]] = {
        "gen_ppl": "generative perplexity",
        "entropy": "entropy, nats",
        "diversity": "diversity",
    }
    against: ClassVar[Mapping[str, Literal["ratio", "difference"]]] = {"gen_ppl": "ratio", "entropy": "difference"}
    compared: ClassVar[str] = "perplexity, entropy"
    axes: ClassVar[Mapping[str, Axis]] = {
        "gen_ppl": Axis("generative perplexity, log scale", log=True),
        "entropy": Axis("entropy, nats"),
    }
    steps: ClassVar[int] = 3_000
    rate_steps: ClassVar[int] = 1_000

    path: Path

    def prepare(self, comparison: Comparison) -> None:
        """Split the text, and pretrain encoder and scorer."""
        self._split(comparison.folder)
        comparison.pretrain("encoder", "train", ("--vocab-size", plan.VOCABULARY), plan.ENCODER)
        comparison.pretrain("scorer", "scorer", ("--tokenizer", "encoder"), plan.SCORER)

    def _split(self, folder: Path) -> None:
        """Write the three parts of the text; repeated documents are taken once."""
        seen = textfiles.seen([self.path])
        found = {"file": str(self.path), "sha256": seen[str(self.path)].sha256}
        if record_text(folder, found):
            return
        shares = {"held-out": plan.HELD_OUT, "train": plan.TRAINING}
        with digests.as_hashed(seen, "run the same command again"):
            parts = splitting.divided(splitting.shuffled(self.path), shares, rest="scorer")
        for name, part in parts.items():
            write_part(folder, name, part)
        characters = {name: sum(map(len, part)) for name, part in parts.items()}
        files.write_json(folder / RECORD, {**found, "file": self.path.name, "characters": characters})

    def score(self, folder: Path, texts: Path, most: int) -> dict[str, Any]:
        """Perplexity, entropy and diversity."""
        found = samples.described(samples.read(texts), texts).first(most)
        config = EvaluateConfig(scorer=str(folder / "scorer"))
        scores = measure(found, _scorer(folder), config, plan.SEQ_LEN)
        return scores.pick("gen_ppl", "entropy", "diversity", "intervals", "num_texts", "protocol", "boundaries")

    def about(self, figures: Mapping[str, Any]) -> str:
        """The scorer."""
        scorer = figures["models"]["scorer"]
        return f"Scorer: GPT-2 of {scorer['parameters']:,} parameters, final loss {scorer['final_loss']:.2f}."


@cache
def _scorer(folder: Path) -> Scorer:
    return Scorer(str(folder / "scorer"), torch.device("cpu"))
