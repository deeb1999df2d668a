"""The stories of `ldlm stories` as the source of a quickstart: validity is known, so no scorer is needed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from ldlm.config import EvaluateConfig, QuickstartConfig
from ldlm.evaluation import samples, validity
from ldlm.pages import drawing, results
from ldlm.progress import Progress
from ldlm.stages import evaluate, stories
from ldlm.stages.sources import Claims, Judged, QuickstartText, Sizes, entropies
from ldlm.stories import process

HEADING = "The first whole stories of the samples, not chosen"
NO_STORY = "None of the samples has a whole story"


@dataclass(frozen=True)
class Stories(QuickstartText):
    """The stories of `ldlm stories`."""

    name: ClassVar[str] = "stories"
    has_tokenizer: ClassVar[bool] = True
    encoder_scores: ClassVar[bool] = True
    scorer_part: ClassVar[str] = "train"

    documents: int = 20_000
    held_out: int = 1_000
    first: int = 5  # stories that are shown
    sizes: Sizes = Sizes(
        encoder_steps=500,
        decoder_steps=250,
        decoder="layers-2",
        temperature=0.0,
        init="width",
        preset={"steps": 1_400, "recipe": {"sigma_dec": 0.5}, "optimizer": {"lr": 6e-3}},
    )

    @property
    def described(self) -> str:
        """The text, in a few words."""
        return "little English stories, ours and synthetic, written by a process with known probabilities"

    def parts(self, config: QuickstartConfig, progress: Progress) -> dict[str, list[str]]:
        """The first stories of the seed are held out, and the next are for training."""
        progress.note(f"writing {self.documents:,} {self.described}")
        end = self.held_out + self.documents
        return {
            "held-out": [*process.stories(config.seed, 0, self.held_out)],
            "train": [*process.stories(config.seed, self.held_out, end)],
        }

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer of whole words."""
        stories.write_tokenizer(folder, overwrite=True)  # a call that was killed may have left part of one

    def judge(self, judged: Judged, progress: Progress) -> dict[str, Any]:
        """Validity of the samples and of as many real stories, and the first whole stories with their errors."""
        config = EvaluateConfig(source="stories", seed=judged.seed)
        (found,) = evaluate.by_source(config, [judged.samples], progress=progress)
        rows = [{"name": "real stories", **found.real.to_json()}, {"name": "samples", **found.found.to_json()}]
        drawing.png(judged.out / "comparison.png", results.validity(rows))
        texts = samples.described(samples.read(judged.samples), judged.samples)
        first = islice(validity.whole_stories(texts), self.first)
        return {
            "judged": found.to_json(),
            "first_stories": [{"text": s.strip(), "violations": validity.kinds(s)} for s in first],
        }

    def table(self, summary: Mapping[str, Any]) -> list[str]:
        """Validity, likelihood and coverage of the samples beside real stories'."""
        drawn, real = summary["judged"], summary["judged"]["real"]
        rows = [
            ("valid sentences", *(_share(one, "sentences_valid") for one in (drawn, real))),
            ("valid stories", *(_share(one, "stories_valid") for one in (drawn, real))),
            ("choices that occur", *(f"{one['coverage']:.1%}" for one in (drawn, real))),
            ("nats per valid story", *(_number(one["nats_per_story"]) for one in (drawn, real))),
            ("nats per word of valid stories", *(_number(one["nats_per_word"]) for one in (drawn, real))),
            ("entropy", *(_number(one["entropy"]) for one in (drawn, real))),
            ("diversity", *(f"{one['diversity']:.3f}" for one in (drawn, real))),
            ("rows of words", *(f"{one['num_texts']:,}" for one in (drawn, real))),
        ]
        return [
            "Samples, judged by the process that writes the stories",
            "",
            *(f"  {name:<30}{mine:>22}{theirs:>22}" for name, mine, theirs in [("", "samples", "real stories"), *rows]),
            "  (of whole sentences and stories, with 95 % intervals; good samples are valid, and have the choices, the",
            "  nats and the entropy of real stories: fewer mean collapse to what is likely)",
        ]

    def more(self, summary: Mapping[str, Any]) -> dict[str, str]:
        """Violations by kind."""
        found = summary["judged"]["violations"]
        return {"violations": ", ".join(f"{kind} {count}" for kind, count in found.items() if count) or "none"}

    def claims(self, summary: Mapping[str, Any]) -> Claims:
        """Validity and entropy."""
        drawn, real = summary["judged"], summary["judged"]["real"]
        return [
            _valid("sentences", drawn["sentences_valid"], 0.6),
            _valid("stories", drawn["stories_valid"], 0.2),
            entropies(drawn, real, "real stories'"),
        ]

    def shown(self, summary: Mapping[str, Any]) -> list[str]:
        """The first whole stories, with their errors."""
        lines = [HEADING if summary["first_stories"] else NO_STORY, ""]
        for verdict, text in _first_stories(summary):
            lines += [f"  {verdict}", *(f"    {line}" for line in textwrap.wrap(text, 100))]
        lines += [""] if summary["first_stories"] else []
        return [
            *lines,
            "The stories are ours and synthetic: a measuring instrument, not a corpus to learn English from.",
        ]

    def shown_markdown(self, summary: Mapping[str, Any]) -> str:
        """The first whole stories, with their errors, in Markdown."""
        quoted = (f"> {text}\n>\n> *{verdict}*" for verdict, text in _first_stories(summary))
        return "\n\n".join([f"## {HEADING if summary['first_stories'] else NO_STORY}", *quoted])


def _first_stories(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each of the first stories, after the violations in it."""
    return [
        ("wrong: " + ", ".join(one["violations"]) if one["violations"] else "valid", " ".join(one["text"].split()))
        for one in summary["first_stories"]
    ]


def _valid(what: str, share: float | None, least: float) -> tuple[str, bool]:
    """The claim that a share of the samples' sentences or stories is valid."""
    told = "none is whole" if share is None else f"{share:.1%}"
    return f"at least {100 * least:.0f} % of the {what} are valid: {told}", share is not None and share >= least


def _share(found: Mapping[str, Any], name: str) -> str:
    """A share in per cent, with its interval; `none` if there was nothing to judge."""
    if found[name] is None:
        return "none"
    low, high = found["intervals"][name]
    return f"{found[name]:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
