"""The interface between a run and a sweep, and the drawing and scoring of texts in the run's ways.

A *way* is one setting of a sampler at one budget of evaluations. A run of LDLM (`trajectories`) and one of a rival
(`ldlm.baselines.ways`) each define their ways and draw texts in them. The rest is the same for all: each way's scores
are written to a file of their own, from which the same command resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from ldlm import files
from ldlm.config import AnySweepConfig
from ldlm.evaluation import metrics, samples
from ldlm.evaluation.beside import Judge
from ldlm.evaluation.boundaries import Boundaries
from ldlm.evaluation.frontier import RECORDED
from ldlm.evaluation.fronts import Point
from ldlm.evaluation.samples import Texts
from ldlm.progress import Progress, Task
from ldlm.sampling.generation import text_seeds


class Way(Protocol):
    """One setting of a sampler at one budget."""

    @property
    def name(self) -> str:
        """Name of the file of its scores."""

    @property
    def budget(self) -> int:
        """The most evaluations of the network per text."""


class Row(Protocol):
    """Scores of texts that were drawn in a way, with its settings and their cost."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""


W_contra = TypeVar("W_contra", bound=Way, contravariant=True)
W = TypeVar("W", bound=Way)
R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Drawn(Generic[R]):
    """Texts that a run has drawn."""

    name: str  # of their file
    tokens_BL: Tensor  # on the CPU
    row: Callable[..., R]  # makes their row; the scores are its arguments by name


class Found(Protocol):
    """The findings of a sweep of a run."""

    def to_json(self) -> dict[str, Any]:
        """The content of `sweep.json`."""

    def table(self) -> str:
        """The content of `table.md`."""


class Loaded(Protocol[W_contra, R]):
    """A run in memory, which draws texts in its ways and is swept."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of its tokens."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The checkpoint and everything else that determines its texts, as inputs of the artefact."""

    def find(self, out: Path, judge: Judge, progress: Progress) -> Found:
        """Draw and score everything, with files in `out`."""

    def draw(self, way: W_contra, seeds_B: Tensor) -> Iterator[Drawn[R]]:
        """Draw the texts of these seeds: one set, or several that differ only in what follows the reverse process."""

    def read(self, row: Mapping[str, Any]) -> R:
        """The inverse of a row's `to_json`."""


@dataclass(frozen=True)
class Bench(Generic[W, R]):
    """Draws and scores texts in the ways of a run, once each."""

    config: AnySweepConfig
    out: Path
    loaded: Loaded[W, R]
    judge: Judge

    def rows(self, what: str, ways: Sequence[W], numbers: range, progress: Progress) -> list[R]:
        """The rows of these ways over the texts of these numbers; `what` names the task for the user, and in files.

        Texts from number 0 on are those of the result.
        """
        evaluations = len(numbers) * sum(way.budget for way in ways)
        with progress.task(what, evaluations, "evaluation") as task:
            return [row for way in ways for row in self._rows(what, way, numbers, task)]

    def _rows(self, what: str, way: W, numbers: range, task: Task) -> list[R]:
        """The rows of a way, from its file if they have been measured."""
        count = len(numbers)
        path = self.out / "trajectories" / f"{f'{what}_' if numbers.start else ''}{way.name}-{count}.json"
        if not path.exists():
            files.write_json(path, [row.to_json() for row in self._measure(way, numbers)])
        task.advance(count * way.budget)
        return [self.loaded.read(row) for row in files.read_json(path)]

    def _measure(self, way: W, numbers: range) -> Iterator[R]:
        seeds_B = text_seeds(self.config.seed, numbers.start, numbers.stop)
        for drawn in self.loaded.draw(way, seeds_B):
            tokens = drawn.tokens_BL.tolist()
            written = metrics.decode_tokens(self._tokenizer, drawn.tokens_BL, clean_up=self.config.clean_up)
            texts = Texts(written, tokens, boundaries=self._boundaries, clean_up=self.config.clean_up)
            yield drawn.row(**self.judge.score(texts).pick(*RECORDED))
            if numbers == range(self.config.texts):
                self._keep(drawn.name, texts, tokens, seeds_B)

    def _keep(self, name: str, texts: Texts, tokens: list[list[int]], seeds_B: Tensor) -> None:
        rows, path = samples.rows(texts.texts, tokens, seeds_B.tolist()), self.out / "texts" / f"{name}.jsonl"
        samples.write_record(path, "texts", samples.record_of(self._tokenizer, self.config.clean_up))
        files.write_atomic(path, files.dump_jsonl(rows))

    @property
    def about(self) -> dict[str, Any]:
        """Settings and sizes that the scores depend on, as in the JSON of a sweep."""
        return {**self.judge.about, "boundary_tokens": list(self._boundaries.tokens), "clean_up": self.config.clean_up}

    @cached_property
    def _tokenizer(self) -> Any:
        return self.loaded.tokenizer

    @cached_property
    def _boundaries(self) -> Boundaries:
        return Boundaries.of(self._tokenizer)


class Sweep(Protocol):
    """The sweep of a run or an exported model, none of which is in memory before `load`.

    Creating one checks its settings. What is said of a run here also holds for an exported model.
    """

    @property
    def path(self) -> Path:
        """Folder of the run."""

    @property
    def config(self) -> AnySweepConfig:
        """The settings that apply to it."""

    @property
    def method(self) -> str:
        """Name of its method."""

    def plan(self) -> dict[str, Any]:
        """Numbers of ways, evaluations and texts that it would take."""

    def load(self, source: Any, progress: Progress) -> Loaded[Any, Any]:
        """The run at a checkpoint, or the exported model, held in memory by `source`."""

    def points(self, name: str, summary: Mapping[str, Any]) -> list[Point]:
        """What a finished sweep, given the content of its `sweep.json`, adds to a frontier of several runs."""
