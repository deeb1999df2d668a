"""A text at one time on its way from noise, as cells that end where a character ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Replacements for characters that would be invisible or would change the direction of the text after them.
VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(0x20)},  # control pictures: ␀ for NUL
    **{code: "�" for code in (*range(0x80, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))},
    0x7F: "␡",
    ord("\t"): "⇥",
    ord("\n"): "↵\n",
}


@dataclass(frozen=True)
class Cell:
    """A piece of text that ends where a character ends, usually one token."""

    text: str
    start: int  # of its tokens, as positions in the row
    stop: int
    special: bool  # whether it is a special token


@dataclass(frozen=True)
class Frame:
    """The text that the decoder reads at one time t."""

    t: float
    snr: float  # α_t²/σ_t²
    tokens: list[int]  # L
    probabilities: list[float]  # of these tokens
    text: str
    cells: list[Cell]

    @property
    def confidence(self) -> float:
        """Mean probability of the frame's tokens."""
        return sum(self.probabilities) / len(self.probabilities)

    def probability(self, cell: Cell) -> float:
        """The lowest probability of the cell's tokens."""
        return min(self.probabilities[cell.start : cell.stop])

    def changes(self, before: Frame | None) -> list[bool]:
        """For each position, True if the token differs from the previous frame's; all False in the first frame."""
        if before is None:
            return [False] * len(self.tokens)
        return [a != b for a, b in zip(before.tokens, self.tokens, strict=True)]


def cells(tokenizer: Any, tokens: Sequence[int]) -> list[Cell]:
    """Split a row into the shortest runs of tokens that end where a character ends; their texts join to its text.

    A character beyond ASCII may take several tokens of a byte-level tokenizer: a run's text is what the row's text and
    the decoded tokens up to the run's end have in common, beyond the previous run.
    """
    prefixes = tokenizer.batch_decode(
        [list(tokens[:stop]) for stop in range(1, len(tokens) + 1)],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    text, special = prefixes[-1], set(tokenizer.all_special_ids)
    found: list[Cell] = []
    start = written = 0
    for stop, prefix in enumerate(prefixes, 1):
        end = _agreement(prefix, text, written)
        if end > written or stop == len(tokens):
            found.append(Cell(text[written:end], start, stop, tokens[start] in special))
            start, written = stop, end
    return found


def _agreement(a: str, b: str, start: int) -> int:
    """Length of the common beginning of two strings, which agree up to `start`."""
    end = start
    while end < min(len(a), len(b)) and a[end] == b[end]:
        end += 1
    return end


def visible(text: str) -> str:
    """The text with symbols for invisible characters; a line break still breaks the line."""
    return text.translate(VISIBLE)
