"""Real texts and other models' texts beside the runs of a sweep, and the judge that scores all of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ldlm.config import AnySweepConfig, EvaluateConfig
from ldlm.errors import InputError
from ldlm.evaluation import samples
from ldlm.evaluation.frontier import External
from ldlm.evaluation.measure import measure
from ldlm.evaluation.samples import Texts
from ldlm.evaluation.scorer import Scorer
from ldlm.evaluation.scores import SetScores
from ldlm.features import digests, textfiles
from ldlm.progress import Progress


@dataclass(frozen=True)
class Beside:
    """Texts of the reference and of other models, to be scored beside those of the runs."""

    real: Texts | None
    externals: dict[External, Texts]
    fewest: int  # texts in the smallest set, the runs' included
    inputs: dict[str, Any]  # hashes of the files, and costs, as inputs of the artefact
    files: dict[Path, Texts]  # each file once, and whole, as remarks are on files; `real` is cut

    @classmethod
    def read(
        cls, config: AnySweepConfig, reference: Path | None, externals: Sequence[External], progress: Progress
    ) -> Beside:
        """Read the reference and the texts of other models; notes say how their boundaries are found."""
        if len({one.name for one in externals}) < len(externals):
            raise InputError("two --external have one name; give each a name of its own")
        paths = list(dict.fromkeys([*([reference] if reference else []), *(one.path for one in externals)]))
        seen = textfiles.seen(paths)
        with digests.as_hashed(seen):
            sets = samples.read_all(paths, config.text_column, config.boundary_tokens, progress.note)
        beside = dict(zip(paths, sets, strict=True))
        real = None if reference is None else beside[reference]
        others = {one: beside[one.path] for one in externals}
        for path, texts in beside.items():
            if not texts.tokens:
                progress.note(
                    f"{path}: no tokens, so its entropy and diversity count the scorer's, and compare with those of a "
                    f"run only if both are of one tokenizer"
                )
        fewest = min([config.texts, *(len(texts) for texts in (real, *others.values()) if texts is not None)])
        if fewest < config.texts:
            few = "one text" if fewest == 1 else f"{fewest:,} texts"
            progress.note(f"diversity is that of {few} of each set, as many as the smallest has")
        inputs = {
            "reference": None if reference is None else seen[str(reference)].sha256,
            "externals": {one.name: [seen[str(one.path)].sha256, one.nfe, one.seconds] for one in externals},
        }
        # No more texts of the reference than are drawn: diversity falls with the number of texts.
        return cls(None if real is None else real.first(config.texts), others, fewest, inputs, beside)


@dataclass(frozen=True)
class Judge:
    """Scores all sets of texts of a sweep alike; those beside the runs only once, however many runs there are."""

    config: AnySweepConfig
    scorer: Scorer
    max_tokens: int  # at which texts are cut for the scorer
    beside: Beside

    def remark(self, progress: Progress) -> None:
        """Note which texts have boundary tokens that nobody has named."""
        found = self.beside.files
        for remark in samples.unread_remarks(found, found.values(), self.config.boundaries, self.scorer):
            progress.note(remark)

    def score(self, texts: Texts) -> SetScores:
        """Scores of a set of texts, with the diversity of as many texts as the smallest set has."""
        evaluation = EvaluateConfig(scorer=self.config.scorer, boundaries=self.config.boundaries)
        return measure(texts, self.scorer, evaluation, self.max_tokens, self.beside.fewest)

    @cached_property
    def real(self) -> SetScores | None:
        """Scores of the reference."""
        return None if self.beside.real is None else self.score(self.beside.real)

    @cached_property
    def externals(self) -> dict[External, SetScores]:
        """Scores of other models' texts."""
        return {one: self.score(texts) for one, texts in self.beside.externals.items()}

    @property
    def inputs(self) -> dict[str, Any]:
        """Inputs of the artefact that say how texts are scored: other texts, and the scorer's revision."""
        return {**self.beside.inputs, "scorer_revision": self.scorer.revision}

    @property
    def about(self) -> dict[str, Any]:
        """Settings and sizes that all scores depend on, as in the JSON of a sweep."""
        return {
            "diversity_texts": self.beside.fewest,
            "scorer": self.scorer.name,
            "scorer_revision": self.scorer.revision,
            "max_tokens": self.max_tokens,
            "boundaries": self.config.boundaries,
        }
