"""What a quickstart trains on: how its text is made and cut into tokens, and how samples of it are judged and shown.

Two kinds: the stories of `ldlm stories`, whose law is known, so that samples are valid or not; and real text, for which
a model that never saw the LDLM's text stands in. A quickstart asks its source and never which one it is.
"""

from __future__ import annotations

import random
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ldlm import files
from ldlm.config import EvaluateConfig, QuickstartConfig
from ldlm.errors import InputError
from ldlm.evaluation import metrics, samples, validity
from ldlm.features import builtin_text, textfiles
from ldlm.features.documents import whole
from ldlm.features.store import FeatureStore
from ldlm.hub import load_tokenizer
from ldlm.pages import plots
from ldlm.progress import Progress
from ldlm.stages import evaluate, features, stories
from ldlm.stories import process

Claims = list[tuple[str, bool]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes with which all stages together take about ten minutes on two cores."""

    texts: int = 256  # that are drawn
    encoder_steps: int
    decoder_steps: int
    decoder: str  # that draws: the fine-tuned one or `joint`
    temperature: float  # of its tokens
    preset: Mapping[str, Any] = field(default_factory=dict)  # settings of `train` over those of preset tiny


@dataclass(frozen=True)
class Judged:
    """What a source needs to judge the samples of a quickstart in the folder `out`."""

    out: Path
    texts: int  # that were drawn
    scorer: str  # name or folder of the model that scores real text
    seed: int
    device: str

    @property
    def samples(self) -> Path:
        """File of the samples."""
        return self.out / "run" / "samples.jsonl"


class Source(ABC):
    """A source of text, from its documents to the table of what was drawn."""

    name: ClassVar[str]  # in the manifest
    sizes: Sizes
    has_tokenizer: ClassVar[bool]  # of its own; else the encoder trains one
    encoder_scores: ClassVar[bool]  # whether the encoder scores interpolations; else a model trained on text of its own
    scorer_part: ClassVar[str]  # of the text, for a scorer

    @property
    def files(self) -> list[str]:
        """Files of the user's that it reads."""
        return []

    @property
    @abstractmethod
    def described(self) -> str:
        """The text, in a few words."""

    @abstractmethod
    def parts(self, config: QuickstartConfig, progress: Progress) -> dict[str, list[str]]:
        """Documents by part: `train`, `held-out`, and more where a scorer has a part of its own."""

    def write_tokenizer(self, folder: Path) -> None:
        """Write the text's own tokenizer to a folder, where it has one."""
        assert not self.has_tokenizer

    @abstractmethod
    def judge(self, judged: Judged, progress: Progress) -> dict[str, Any]:
        """Figures of the samples and of what they are read beside, as keys of the manifest; leaves `comparison.png`."""

    @abstractmethod
    def table(self, summary: Mapping[str, Any]) -> list[str]:
        """Lines of the table that a quickstart prints."""

    @abstractmethod
    def more(self, summary: Mapping[str, Any]) -> dict[str, str]:
        """Further figures, by name."""

    @abstractmethod
    def claims(self, summary: Mapping[str, Any]) -> Claims:
        """Claims about the samples that a working pipeline fulfils, and whether this one does."""

    @abstractmethod
    def shown(self, summary: Mapping[str, Any]) -> list[str]:
        """Lines with the first samples, or none."""

    @abstractmethod
    def shown_markdown(self, summary: Mapping[str, Any]) -> str:
        """The first samples, with a heading, in Markdown."""


def named(text: str) -> Source:
    """The source that `--text` names: stories, python, or a file."""
    return Stories() if text == Stories.name else RealText(None if text == "python" else text)


def of(summary: Mapping[str, Any]) -> Source:
    """The source of a finished quickstart; those of earlier versions, which say nothing of it, had real text."""
    return Stories() if summary.get("source") == Stories.name else RealText(None)


# ----------------------------------------------------------------------------------------------------------------------
# Stories


@dataclass(frozen=True)
class Stories(Source):
    """The stories of `ldlm stories`."""

    name: ClassVar[str] = "stories"
    has_tokenizer: ClassVar[bool] = True
    encoder_scores: ClassVar[bool] = True
    scorer_part: ClassVar[str] = "train"

    documents: int = 40_000
    held_out: int = 2_000
    first: int = 5  # stories that are shown
    sizes: Sizes = Sizes(encoder_steps=600, decoder_steps=250, decoder="layers-2", temperature=0.0)

    @property
    def described(self) -> str:
        """The text, in a few words."""
        return "little English stories, which are ours and synthetic: a process of known law writes them"

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
        stories.write_tokenizer(folder)

    def judge(self, judged: Judged, progress: Progress) -> dict[str, Any]:
        """Validity of the samples and of as many real stories, and the first whole stories with what is wrong."""
        config = EvaluateConfig(source="stories", seed=judged.seed)
        (found,) = evaluate.by_source(config, [judged.samples], progress=progress)
        rows = [{"name": "real stories", **found.real.to_json()}, {"name": "samples", **found.found.to_json()}]
        plots.validity(judged.out / "comparison.png", rows)
        texts = samples.described(samples.read(judged.samples), judged.samples)
        first = islice(validity.whole_stories(texts), self.first)
        return {
            "judged": found.to_json(),
            "first_stories": [{"text": s, "violations": validity.kinds(s)} for s in first],
        }

    def table(self, summary: Mapping[str, Any]) -> list[str]:
        """Validity, likelihood and coverage of the samples beside real stories'."""
        drawn, real = summary["judged"], summary["judged"]["real"]
        rows = [
            ("valid sentences", *(_share(one, "sentences_valid") for one in (drawn, real))),
            ("valid stories", *(_share(one, "stories_valid") for one in (drawn, real))),
            ("choices that occur", *(f"{one['coverage']:.1%}" for one in (drawn, real))),
            ("nats a valid story", *(_number(one["nats_per_story"]) for one in (drawn, real))),
            ("nats a word of these", *(_number(one["nats_per_word"]) for one in (drawn, real))),
            ("entropy", *(_number(one["entropy"]) for one in (drawn, real))),
            ("diversity", *(f"{one['diversity']:.3f}" for one in (drawn, real))),
            ("rows of words", *(f"{one['num_texts']:,}" for one in (drawn, real))),
        ]
        return [
            "Samples, judged by the process that writes the stories",
            "",
            *(f"  {name:<22}{mine:>22}{theirs:>22}" for name, mine, theirs in [("", "samples", "real stories"), *rows]),
            "  (of whole sentences and stories, with 95 % intervals; good samples are valid, and have the choices, the",
            "  nats and the entropy of real stories: fewer are collapse to what is likely)",
        ]

    def more(self, summary: Mapping[str, Any]) -> dict[str, str]:
        """Violations by kind."""
        found = summary["judged"]["violations"]
        return {"violations": ", ".join(f"{kind} {count}" for kind, count in found.items() if count) or "none"}

    def claims(self, summary: Mapping[str, Any]) -> Claims:
        """Validity and entropy."""
        drawn, real = summary["judged"], summary["judged"]["real"]
        sentences, whole_ones = (drawn[name] or 0.0 for name in ("sentences_valid", "stories_valid"))
        return [
            (f"at least 60 % of the sentences are valid: {sentences:.1%}", sentences >= 0.6),
            (f"at least 20 % of the stories are valid: {whole_ones:.1%}", whole_ones >= 0.2),
            _entropies(drawn, real, "real stories"),
        ]

    def shown(self, summary: Mapping[str, Any]) -> list[str]:
        """The first whole stories, with what is wrong with them."""
        lines = ["The first whole stories of the samples, not chosen", ""]
        for verdict, text in _first_stories(summary):
            lines += [f"  {verdict}", *(f"    {line}" for line in textwrap.wrap(text, 100))]
        return [
            *lines,
            "",
            "The stories are ours and synthetic: a measuring instrument, and no corpus to learn English from.",
        ]

    def shown_markdown(self, summary: Mapping[str, Any]) -> str:
        """The first whole stories, with what is wrong with them, in Markdown."""
        quoted = (f"> {text}\n>\n> *{verdict}*" for verdict, text in _first_stories(summary))
        return "## The first whole stories of the samples, not chosen\n\n" + "\n\n".join(quoted)


def _first_stories(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with each of the first stories, and the story."""
    return [
        ("wrong: " + ", ".join(one["violations"]) if one["violations"] else "valid", " ".join(one["text"].split()))
        for one in summary["first_stories"]
    ]


def _share(found: Mapping[str, Any], name: str) -> str:
    """A share in per cent with its interval; `none` where nothing could be valid."""
    if found[name] is None:
        return "none"
    low, high = found["intervals"][name]
    return f"{found[name]:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _entropies(drawn: Mapping[str, Any], real: Mapping[str, Any], whose: str) -> tuple[str, bool]:
    """The claim that the samples' entropy is near that of the text."""
    told = f"entropy within 15 % of {whose}': {drawn['entropy']:.2f} against {real['entropy']:.2f}"
    return told, abs(drawn["entropy"] / real["entropy"] - 1) <= 0.15


# ----------------------------------------------------------------------------------------------------------------------
# Real text


@dataclass(frozen=True)
class RealText(Source):
    """A file of the user's, or English prose that ships with Python and the installed packages.

    It has three parts: the encoder and the LDLM train on one, the scorer on another, and the third is held out, so that
    scorer and model have no training text in common.
    """

    name: ClassVar[str] = "text"
    has_tokenizer: ClassVar[bool] = False
    encoder_scores: ClassVar[bool] = False
    scorer_part: ClassVar[str] = "scorer"

    path: str | None  # None: Python's documentation
    most: int = 60_000  # documents; more would not be read in ten minutes
    fewest: int = 50  # documents
    fewest_characters: int = 500_000
    held_out_share: float = 0.06
    scorer_share: float = 0.36
    # Appendix B.2's decoder; `joint` rebuilds more held-out tokens here, and its samples read worse.
    sizes: Sizes = Sizes(encoder_steps=450, decoder_steps=250, decoder="layers-2", temperature=0.5)

    @property
    def files(self) -> list[str]:
        """The user's file, if it is one."""
        return [] if self.path is None else [self.path]

    @property
    def described(self) -> str:
        """The text, in a few words."""
        return self.path or "Python's documentation and the docstrings of installed packages"

    def parts(self, config: QuickstartConfig, progress: Progress) -> dict[str, list[str]]:
        """Documents, shuffled, in three parts; `InputError` where there are too few."""
        if self.path is None:
            progress.note("collecting English prose from Python's documentation and the installed packages")
            documents = builtin_text.documents()
        else:
            for remark in textfiles.remarks([self.path], config.text_column):
                progress.note(remark)
            documents = list(dict.fromkeys(whole(textfiles.file_documents([self.path], config.text_column))))
        random.Random(config.seed).shuffle(documents)
        documents = documents[: self.most]
        shares = (self.held_out_share, self.held_out_share + self.scorer_share)
        first, second = (int(len(documents) * share) for share in shares)
        characters = sum(map(len, documents))
        if len(documents) < self.fewest or characters < self.fewest_characters:
            raise InputError(
                f"{self.path} holds {characters:,} characters in {len(documents):,} documents; a quickstart needs "
                f"{self.fewest_characters:,} in {self.fewest}, to split into three parts"
            )
        return {"held-out": documents[:first], "scorer": documents[first:second], "train": documents[second:]}

    def judge(self, judged: Judged, progress: Progress) -> dict[str, Any]:
        """Scores of the samples, of held-out and of unigram text, and the share of 8-grams that are copied."""
        sets = {
            "real text": judged.out / "real.jsonl",
            "samples": judged.samples,
            "unigram text": judged.out / "unigram.jsonl",
        }
        _write_references(judged, sets)
        config = EvaluateConfig(scorer=judged.scorer, seed=judged.seed, device=judged.device)
        scores = evaluate.run(config, list(sets.values()), progress=progress)
        rows = [{"name": name, **one.to_json()} for name, one in zip(sets, scores, strict=True)]
        plots.comparison(judged.out / "comparison.png", rows)
        training = FeatureStore(judged.out / "features").split("train").tokens[:].tolist()
        copied = {
            name: metrics.copied_share(samples.read(sets[of]).tokens or [], training)
            for name, of in (("samples", "samples"), ("real", "real text"))
        }
        return {"texts": rows, "copied_8grams": copied}

    def table(self, summary: Mapping[str, Any]) -> list[str]:
        """Perplexity, entropy and diversity of the three sets of texts."""
        lines = [
            "Texts, scored by a model trained on text that the LDLM never sees",
            "",
            f"  {'':<14}{'gen. ppl':>10}{'entropy':>10}{'diversity':>11}{'texts':>7}",
        ]
        for row in summary["texts"]:
            scores = f"{_perplexity(row):>10}{row['entropy']:>10.2f}{row['diversity']:>11.3f}{row['num_texts']:>7}"
            lines.append(f"  {row['name']:<14}{scores}")
        lines.append("  (good samples have a low perplexity, and the entropy and diversity of real text)")
        fewest = summary["texts"][0].get("diversity_texts")
        if fewest is not None and any(row["num_texts"] > fewest for row in summary["texts"]):
            lines.append(f"  (diversity of the first {fewest} texts of each, for it falls with their number)")
        return lines

    def more(self, summary: Mapping[str, Any]) -> dict[str, str]:
        """Copied 8-grams."""
        copied = summary["copied_8grams"]
        told = f"{copied['samples']:.1%} of those in the samples occur in the training text, "
        return {"copied 8-grams": f"{told}{copied['real']:.1%} of those in held-out text"}

    def claims(self, summary: Mapping[str, Any]) -> Claims:
        """Perplexity and entropy."""
        real, drawn, unigram = (row for row in summary["texts"])
        told = f"perplexity at most a third of unigram text's: {_perplexity(drawn)} against {_perplexity(unigram)}"
        low = drawn["gen_ppl"] is not None and drawn["gen_ppl"] <= unigram["gen_ppl"] / 3
        return [(told, low), _entropies(drawn, real, "real text")]

    def shown(self, summary: Mapping[str, Any]) -> list[str]:
        """None: the samples are strings of fragments, and stand in SUMMARY.md."""
        return []

    def shown_markdown(self, summary: Mapping[str, Any]) -> str:
        """The first three samples, in Markdown."""
        quoted: Sequence[str] = [f"> {text}" for text in summary["first_samples"]]
        return "## The first three samples\n\n" + "\n\n".join(quoted)


def _perplexity(row: Mapping[str, Any]) -> str:
    """A cell of the table; `none` where no text has a token to score."""
    return "none" if row["gen_ppl"] is None else f"{row['gen_ppl']:,.0f}"


def _write_references(judged: Judged, sets: Mapping[str, Path]) -> None:
    """Write the reference sets: held-out text, and unigram text drawn from the training tokens' frequencies."""
    features_path = judged.out / "features"
    store = FeatureStore(features_path)
    features.texts(features_path, min(judged.texts, store.held_out().rows), sets["real text"])
    train_tokens = store.split("train").tokens[:]
    seq_len = train_tokens.shape[1]
    unigram = np.repeat(train_tokens[:1], judged.texts, axis=0)  # first and last token of a row
    random_ = np.random.default_rng(judged.seed)
    unigram[:, 1:-1] = random_.choice(train_tokens[:, 1:-1].ravel(), (judged.texts, seq_len - 2))
    tokenizer, out = load_tokenizer(str(store.tokenizer_path)), sets["unigram text"]
    rows = samples.rows(metrics.decode_tokens(tokenizer, unigram), unigram.tolist(), range(judged.texts))
    samples.write_record(out, "texts", samples.record_of(tokenizer, clean_up=False))
    files.write_atomic(out, files.dump_jsonl(rows))
