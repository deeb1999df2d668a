"""The source of a quickstart: how its text is made and cut into tokens, and how samples of it are judged and shown.

A quickstart asks its source, and never checks which one it is. There are two: `source_stories`, whose probabilities are
known, so that samples are valid or not, and `source_text`, real text, whose scorer never saw the LDLM's text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ldlm.config import QuickstartConfig
from ldlm.progress import Progress

Claims = list[tuple[str, bool]]  # each with whether it is met


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes with which all stages together take about ten minutes on two cores."""

    texts: int = 256  # to draw
    encoder_steps: int
    decoder_steps: int
    decoder: str  # to draw with: the fine-tuned one or `joint`
    temperature: float  # of its tokens
    init: Literal["published", "width"] = "published"  # initial weights of the encoder
    preset: Mapping[str, Any] = field(default_factory=dict)  # settings of `train` that override those of preset tiny


@dataclass(frozen=True)
class Judged:
    """Everything a source needs to judge the samples of a quickstart in the folder `out`."""

    out: Path
    texts: int  # that were drawn
    scorer: str  # name or folder of the model that scores real text
    seed: int
    device: str

    @property
    def samples(self) -> Path:
        """File of the samples."""
        return self.out / "run" / "samples.jsonl"


class QuickstartText(ABC):
    """A source of text, from its documents to the table of what was drawn."""

    name: ClassVar[str]  # in the manifest
    sizes: Sizes
    has_tokenizer: ClassVar[bool]  # of its own; else the encoder trains one
    encoder_scores: ClassVar[bool]  # whether the encoder scores interpolations; else a model trained on other text does
    scorer_part: ClassVar[str]  # the part of the text that a scorer trains on

    @property
    def files(self) -> list[str]:
        """The user's files that it reads."""
        return []

    @property
    @abstractmethod
    def described(self) -> str:
        """The text, in a few words."""

    @abstractmethod
    def parts(self, config: QuickstartConfig, progress: Progress) -> dict[str, list[str]]:
        """Documents by part: `train`, `held-out`, and another if a scorer has its own part."""

    def write_tokenizer(self, folder: Path) -> None:
        """Write the text's own tokenizer to a folder, if it has one."""
        assert not self.has_tokenizer

    @abstractmethod
    def judge(self, judged: Judged, progress: Progress) -> dict[str, Any]:
        """Figures of the samples and of their references, as keys of the manifest; also writes `comparison.png`."""

    @abstractmethod
    def table(self, summary: Mapping[str, Any]) -> list[str]:
        """Lines of the table that a quickstart prints."""

    @abstractmethod
    def more(self, summary: Mapping[str, Any]) -> dict[str, str]:
        """Further figures, by name."""

    @abstractmethod
    def claims(self, summary: Mapping[str, Any]) -> Claims:
        """Claims about the samples that a working pipeline meets, and whether this one does."""

    @abstractmethod
    def shown(self, summary: Mapping[str, Any]) -> list[str]:
        """Lines with the first samples, or none."""

    @abstractmethod
    def shown_markdown(self, summary: Mapping[str, Any]) -> str:
        """The first samples, with a heading, in Markdown."""


def entropies(drawn: Mapping[str, Any], real: Mapping[str, Any], whose: str) -> tuple[str, bool]:
    """The claim that the samples' entropy is near that of the text."""
    told = f"entropy within 15 % of {whose}: {drawn['entropy']:.2f} against {real['entropy']:.2f}"
    return told, abs(drawn["entropy"] / real["entropy"] - 1) <= 0.15
