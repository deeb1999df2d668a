"""Documents, which are strings; a long one comes in parts, so that memory doesn't grow with it.

All parts of a document but the last are of class `Part`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ldlm.errors import InputError

LONGEST = 2**16  # characters of a document tokenised at once, and bytes of a line read at once


class Part(str):
    """A part of a document, which the next string continues."""

    __slots__ = ()


def parts(document: str) -> Iterator[str]:
    """Cut a document into parts of at most `LONGEST` characters; the cuts depend only on its text."""
    if len(document) <= LONGEST:
        return iter((document,))
    return cut(document[start : start + LONGEST] for start in range(0, len(document), LONGEST))


def cut(pieces: Iterable[str]) -> Iterator[str]:
    """Cut a document that comes in pieces of any size into parts; the last may be empty."""
    held = ""
    for piece in pieces:
        held += piece
        while len(held) > LONGEST:
            place = _place(held)
            yield Part(held[:place])
            held = held[place:]
    yield held


# Places where a token ends whatever follows, best first: before a space, with which GPT-2's tokens begin and which BERT
# drops; before other white space, except control characters, which are within BERT's words; between a letter and
# punctuation, for scripts without spaces. The last such place is taken.
_PLACES = [
    re.compile(f"(?s:.*){here}")
    for here in (r"(?<=\S)(?= )", r"(?<=\S)(?=[^\S\v\f\x1c-\x1f\x85])", r"(?<=[^\W_])(?=[.,;:!?…。、，；：！？])")
]


def _place(text: str) -> int:
    """The position at which to cut a text, within its first `LONGEST` characters."""
    found = (pattern.match(text, 0, LONGEST) for pattern in _PLACES)
    return next((match.end() for match in found if match), LONGEST)


def not_blank(documents: Iterable[str | None]) -> Iterator[str]:
    """The documents that hold more than white space. Parts of a document stay together."""
    inside = False
    for document in documents:
        if document is not None and (inside or document.strip()):
            yield document
            inside = isinstance(document, Part)


def count_documents(documents: Iterable[str]) -> int:
    """The number of documents, some of which may be in parts."""
    return sum(not isinstance(document, Part) for document in documents)


def section(documents: Iterable[str], start: int, stop: int | None = None) -> Iterator[str]:
    """The documents from number `start` up to, but not including, `stop`, or to the end."""
    number = 0
    for document in documents if stop != 0 else ():
        if number >= start:
            yield document
        number += not isinstance(document, Part)
        if number == stop:
            return


def whole(documents: Iterable[str]) -> Iterator[str]:
    """The documents, with their parts joined."""
    held: list[str] = []
    for document in documents:
        held.append(document)
        if not isinstance(document, Part):
            yield document if len(held) == 1 else "".join(held)
            held.clear()


def check_whole(text: str, place: object) -> None:
    """`InputError` for a lone surrogate, which JSON may contain, as may a command line whose bytes are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place} holds half a character, {error.object[error.start]!a}, which no tokenizer reads; remove it"
        ) from None
