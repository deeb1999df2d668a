"""Real text as the source of a quickstart: the user's file, or prose that every machine with ldlm has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ldlm import files
from ldlm.config import EvaluateConfig, QuickstartConfig
from ldlm.errors import InputError
from ldlm.evaluation import metrics, samples
from ldlm.features import splitting, textfiles
from ldlm.features.store import FeatureStore
from ldlm.hub import load_tokenizer
from ldlm.pages import drawing, results
from ldlm.progress import Progress
from ldlm.stages import evaluate, features
from ldlm.stages.sources import Claims, Judged, QuickstartText, Sizes, entropies


@dataclass(frozen=True)
class RealText(QuickstartText):
    """The user's file, or English prose that ships with Python and the installed packages.

    It has three parts: the encoder and the LDLM train on one, the scorer trains on another, and the third is held out.
    So scorer and model have no training text in common.
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
    # Appendix B.2's decoder; `joint` rebuilds more held-out tokens here, but its samples read worse.
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
        """Documents, shuffled, in three parts; `InputError` if there are too few."""
        if self.path is None:
            progress.note("collecting English prose from Python's documentation and the installed packages")
        else:
            for remark in textfiles.remarks([self.path], config.text_column):
                progress.note(remark)
        documents = splitting.shuffled(self.path, config.text_column, seed=config.seed)[: self.most]
        characters = sum(map(len, documents))
        if len(documents) < self.fewest or characters < self.fewest_characters:
            raise InputError(
                f"{characters:,} characters in {len(documents):,} documents are too few, of {self.described}; a "
                f"quickstart needs {self.fewest_characters:,} in {self.fewest} or more, which it splits into three "
                f"parts; give {'a longer text' if self.path else '--text FILE'}"
            )
        shares = {"held-out": self.held_out_share, "scorer": self.scorer_share}
        return splitting.divided(documents, shares, rest="train")

    def judge(self, judged: Judged, progress: Progress) -> dict[str, Any]:
        """Scores of the samples, held-out text and unigram text, and the share of 8-grams that are copied."""
        sets = {
            "real text": judged.out / "real.jsonl",
            "samples": judged.samples,
            "unigram text": judged.out / "unigram.jsonl",
        }
        _write_references(judged, sets)
        config = EvaluateConfig(scorer=judged.scorer, seed=judged.seed, device=judged.device)
        scores = evaluate.run(config, list(sets.values()), progress=progress)
        rows = [{"name": name, **one.to_json()} for name, one in zip(sets, scores, strict=True)]
        drawing.png(judged.out / "comparison.png", results.comparison(rows))
        training = FeatureStore(judged.out / "features").split("train").tokens[:].tolist()
        looked_for = [samples.read(sets[name]).tokens or [] for name in ("samples", "real text")]
        copied = metrics.copied_shares(looked_for, training)
        return {"texts": rows, "copied_8grams": dict(zip(("samples", "real"), copied, strict=True))}

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
            lines.append(f"  (diversity of the first {fewest} texts of each, since it falls as their number grows)")
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
        return [(told, low), entropies(drawn, real, "real text's")]

    def shown(self, summary: Mapping[str, Any]) -> list[str]:
        """No lines: the samples are strings of fragments, and SUMMARY.md has them."""
        return []

    def shown_markdown(self, summary: Mapping[str, Any]) -> str:
        """The first three samples, in Markdown."""
        quoted: Sequence[str] = [f"> {text}" for text in summary["first_samples"]]
        return "## The first three samples\n\n" + "\n\n".join(quoted)


def _perplexity(row: Mapping[str, Any]) -> str:
    """A cell of the table; `none` if no text has a token to score."""
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
