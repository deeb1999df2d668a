"""Boundary tokens of rows and documents in decoded text, and how a scorer reads them (SPEC 13.6).

A row is `[BOS] … [EOS] … [EOS]`, and texts are decoded with these tokens kept. GPT-2 scores its own `<|endoftext|>` as
one token, but spells BERT's `[CLS]` and `[SEP]` letter by letter. So that texts of any tokenizer are scored alike,
boundary tokens are rewritten before a scorer reads them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ldlm.errors import InputError

if TYPE_CHECKING:  # it imports torch, and `pages` reads sets of texts without torch
    from ldlm.evaluation.scorer import Scorer

NAMES = ("bos_token", "eos_token", "cls_token", "sep_token")  # attributes of a tokenizer


@dataclass(frozen=True)
class Boundaries:
    """Strings that mark boundaries in a set of texts; without any, texts are scored as written."""

    tokens: tuple[str, ...] = ()
    spaced: bool = False  # decoding puts a space on both sides of them, which is not part of the text

    @classmethod
    def of(cls, tokenizer: Any) -> Boundaries:
        """The boundary tokens of a tokenizer, as it decodes them."""
        there = {name: getattr(tokenizer, name) for name in NAMES}
        tokens = tuple(dict.fromkeys(str(token) for token in there.values() if token is not None))
        ids = tokenizer.convert_tokens_to_ids(list(tokens[:1])) * 2
        pair = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cls(tokens, " " in pair.strip().replace(tokens[0], "") if tokens else False)

    @classmethod
    def in_texts(cls, tokens: Sequence[str], texts: Sequence[str]) -> Boundaries:
        """Boundaries that the user names; spaced if most of them have spaces beside them in the texts."""
        named = cls(tuple(dict.fromkeys(tokens)))
        if not named.tokens:
            return named
        set_off, joined = (re.compile(rf"{by}(?:{named._either})|(?:{named._either}){by}") for by in (" ", r"\S"))
        spaced, close = (sum(len(by.findall(text)) for text in texts) for by in (set_off, joined))
        return cls(named.tokens, spaced > close)

    @classmethod
    def from_json(cls, record: Any) -> Boundaries:
        """Inverse of `to_json`."""
        return cls(tuple(record["tokens"]), record["spaced"])

    def to_json(self) -> dict[str, Any]:
        """The JSON in the record beside a file of texts."""
        return {"tokens": list(self.tokens), "spaced": self.spaced}

    def are_the_scorers(self, scorer: Scorer) -> bool:
        """Whether the scorer's own EOS is the only boundary token, so that texts are scored as written."""
        return not self.tokens or (self.tokens == (scorer.eos,) and not self.spaced)

    def spell(self, texts: Sequence[str], how: str, scorer: Scorer) -> Sequence[str]:
        """Texts for a scorer, each boundary token replaced with its EOS (`eos`), kept (`text`), or removed (`drop`).

        A boundary token removed between two words leaves a space. `InputError` if the scorer has no EOS to replace it
        with.
        """
        if how == "text" or not self.tokens or (how == "eos" and self.are_the_scorers(scorer)):
            return texts
        if how == "drop":
            return [self._without(text) for text in texts]
        eos = scorer.eos
        if eos is None:
            if not any(map(self._pattern.search, texts)):
                return texts
            raise InputError(
                f"the scorer {scorer.name} has no end-of-text token to stand for {', '.join(self.tokens)}; use "
                f"--boundaries drop, or text"
            )
        return [self._pattern.sub(lambda _: eos, text) for text in texts]

    def pieces(self, text: str) -> list[str]:
        """The pieces before, between and after the boundary tokens of a text; the text itself if it has none."""
        return self._pattern.split(text) if self.tokens else [text]

    def _without(self, text: str) -> str:
        joined, *rest = self._pattern.split(text)
        for part in rest:
            apart = not joined or not part or joined[-1].isspace() or part[0].isspace()
            joined += part if apart else f" {part}"
        return joined

    @cached_property
    def _either(self) -> str:
        return "|".join(map(re.escape, sorted(self.tokens, key=len, reverse=True)))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(f" ?(?:{self._either}) ?" if self.spaced else self._either)
