"""Documents, of which long ones come in parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ldlm.errors import InputError

LONGEST = 2**16  # characters of a document that are tokenised at once, and bytes of a line that are read at once


class Part(str):
    """A part of a document that the next string goes on with."""

    __slots__ = ()


def parts(document: str) -> Iterator[str]:
    """A document in parts of at most `LONGEST` characters; a function of its text alone."""
    if len(document) <= LONGEST:
        return iter((document,))
    return cut(document[start : start + LONGEST] for start in range(0, len(document), LONGEST))


def cut(pieces: Iterable[str]) -> Iterator[str]:
    """The parts of a document that comes in pieces of any size; the last may be empty."""
    held = ""
    for piece in pieces:
        held += piece
        while len(held) > LONGEST:
            place = _place(held)
            yield Part(held[:place])
            held = held[place:]
    yield held


# Where tokens end whatever follows: before a space, which GPT-2's begin with and BERT's drop; else before other white
# space, but for control characters, over which BERT's words go on; else between a letter and punctuation, as in scripts
# that write no spaces. The last such place is taken.
_PLACES = [
    re.compile(f"(?s:.*){here}")
    for here in (r"(?<=\S)(?= )", r"(?<=\S)(?=[^\S\v\f\x1c-\x1f\x85])", r"(?<=[^\W_])(?=[.,;:!?…。、，；：！？])")
]


def _place(text: str) -> int:
    """Where to cut a text, by its first `LONGEST` characters."""
    found = (pattern.match(text, 0, LONGEST) for pattern in _PLACES)
    return next((match.end() for match in found if match), LONGEST)


def not_blank(documents: Iterable[str | None]) -> Iterator[str]:
    """The documents that hold more than white space; parts of one stay together."""
    inside = False
    for document in documents:
        if document is not None and (inside or document.strip()):
            yield document
            inside = isinstance(document, Part)


def count(documents: Iterable[str]) -> int:
    """How many documents there are, of which some may be in parts."""
    return sum(not isinstance(document, Part) for document in documents)


def section(documents: Iterable[str], start: int, stop: int | None = None) -> Iterator[str]:
    """The documents from number `start` to before `stop`, or to the end."""
    number = 0
    for document in documents if stop != 0 else ():
        if number >= start:
            yield document
        number += not isinstance(document, Part)
        if number == stop:
            return


def whole(documents: Iterable[str]) -> Iterator[str]:
    """The documents, each put together from its parts."""
    held: list[str] = []
    for document in documents:
        held.append(document)
        if not isinstance(document, Part):
            yield document if len(held) == 1 else "".join(held)
            held.clear()


def check_whole(text: str, place: str) -> None:
    """`InputError` for half a character: a surrogate from JSON, or from bytes of a command line that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place} holds half a character, {error.object[error.start]!a}, which no tokenizer reads; remove it"
        ) from None
