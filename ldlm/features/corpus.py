"""The text of an extraction: its documents by split, and the number of rows that they make (SPEC 1)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ldlm.config import ExtractConfig
from ldlm.errors import InputError
from ldlm.features import text, textfiles
from ldlm.features.documents import Part, count_documents, section
from ldlm.features.helpers import own_threads


def documents(config: ExtractConfig, split: str) -> Iterator[str] | None:
    """The documents of `train` or `validation`, detokenised; None if there is no such split."""
    found = _raw_documents(config, split)
    return None if found is None else detokenised(config, found)


def _raw_documents(config: ExtractConfig, split: str) -> Iterator[str] | None:
    held_out = config.validation_docs
    if split == "validation":
        if config.validation_data:
            return textfiles.file_documents(config.validation_data, config.text_column)
        if config.validation_split:
            return _all_documents(config, config.validation_split)
        if not held_out:
            return None
    if not held_out:
        return _all_documents(config, config.split)
    first = boundary(config, count_documents(_all_documents(config, config.split)))
    everything = _all_documents(config, config.split)
    return section(everything, *((0, first) if split == "train" else (first, None)))


def boundary(config: ExtractConfig, total: int) -> int:
    """How many of `total` documents are trained on; the last ones are held out."""
    if total <= config.validation_docs:
        raise InputError(
            f"--validation-docs {config.validation_docs} leaves nothing to train on: there are {total} documents"
        )
    return total - config.validation_docs


def _all_documents(config: ExtractConfig, dataset_split: str) -> Iterator[str]:
    if config.dataset:
        return text.dataset_documents(
            config.dataset, dataset_split, config.text_column, config.dataset_config, config.revision
        )
    return textfiles.file_documents(config.data, config.text_column)


def detokenised(config: ExtractConfig, found: Iterator[str]) -> Iterator[str]:
    """Documents as the configured detokeniser leaves them; parts of long ones stay parts."""
    detokenize = text.DETOKENIZERS[config.detokenizer]
    return found if detokenize is None else (type(document)(detokenize(document)) for document in found)


def check_beginning(config: ExtractConfig, tokenizer: Any) -> None:
    """`InputError` for text that can't be read from its beginning on, in any file, or that leaves no row to train on.

    What only its end shows is not found: the text is read until it has filled a row, and ahead by the documents that
    are held out.
    """
    for path in map(Path, (*config.data, *config.validation_data)):
        if next(textfiles.documents_of(path, config.text_column), None) is None:
            raise textfiles.no_text(path)
    if config.validation_split:
        next(_all_documents(config, config.validation_split), None)
    with own_threads(1):
        if next(text.pack(detokenised(config, _first_documents(config)), tokenizer, config.seq_len), None) is None:
            raise too_short(config)


def _first_documents(config: ExtractConfig) -> Iterator[str]:
    """The documents to train on, by reading ahead instead of counting all; `InputError` as of `boundary`."""
    if not config.validation_docs:
        yield from _all_documents(config, config.split)
        return
    ends = (1 for document in _all_documents(config, config.split) if not isinstance(document, Part))
    boundary(config, sum(islice(ends, config.validation_docs + 1)))
    for document in _all_documents(config, config.split):
        yield document
        if not isinstance(document, Part) and next(ends, None) is None:  # those that are left are held out
            return


def too_short(config: ExtractConfig) -> InputError:
    """The error for a text that fills no row."""
    if config.validation_docs:
        return InputError(
            f"the text that --validation-docs {config.validation_docs} leaves to train on is shorter than one row of "
            f"{config.seq_len} tokens; hold out fewer documents, give more text or lower --seq-len"
        )
    return InputError(f"the text is shorter than one row of {config.seq_len} tokens; give more text or lower --seq-len")


def held_out_too_short(config: ExtractConfig) -> str:
    """A note on held-out text that fills no row; earlier versions made such stores, so it is no error."""
    return (
        f"the held-out text is shorter than one row of {config.seq_len} tokens, so the store has no held-out rows, and "
        f"that text is not trained on either; hold out more in another --output"
    )


def holds_out(config: ExtractConfig) -> bool:
    """Whether text is held out."""
    return bool(config.validation_docs or config.validation_data or config.validation_split)


# ----------------------------------------------------------------------------------------------------------------------
# The number of rows, before the text is packed


class Count(NamedTuple):
    """The number of rows of a split, and how it was found."""

    rows: int
    exact: bool  # counted, not estimated
    packed: int  # rows that were packed to count or to estimate
    seconds: float  # of reading and packing them


def count_rows(config: ExtractConfig, tokenizer: Any, split: str, seconds: float = 20.0) -> Count:
    """The number of rows of a split: counted if packing takes no longer than `seconds`, and otherwise estimated.

    The estimate packs the first documents and counts the others; if a dataset's card states how many there are, the
    others are not fetched.
    """
    total = _stated_documents(config, split)
    if total is None:
        found = documents(config, split)
    else:
        name = config.validation_split if split == "validation" else None
        found = detokenised(config, section(_all_documents(config, name or config.split), 0, total))
    if found is None:
        return Count(0, True, 0, 0.0)
    taken, stopped, started = 0, False, time.perf_counter()

    def first() -> Iterator[str]:
        nonlocal taken, stopped
        for document in found:
            taken += count_documents([document])
            yield document
            stopped = taken >= 1000 and time.perf_counter() - started > seconds
            if stopped:
                return

    packed = sum(map(len, text.pack(first(), tokenizer, config.seq_len)))
    spent = time.perf_counter() - started
    others = 0 if not stopped else count_documents(found) if total is None else total - taken
    rows = round(packed * (taken + others) / max(1, taken))
    return Count(rows, total is None and not others, packed, spent)


def _stated_documents(config: ExtractConfig, split: str) -> int | None:
    """The number of documents in a split as its dataset's card states it; None if they must be counted."""
    if not config.dataset or (split == "validation" and not (config.validation_split or config.validation_docs)):
        return None
    name = config.validation_split if split == "validation" and config.validation_split else config.split
    total = text.dataset_size(config.dataset, name, config.dataset_config, config.revision)
    if total is None or not config.validation_docs:
        return total
    first = boundary(config, total)
    return first if split == "train" else total - first


def most_rows(config: ExtractConfig) -> dict[str, int] | None:
    """An upper bound on rows by split, since a token is at least a byte; None if the text's size isn't known."""
    if config.dataset:
        return None
    most: dict[str, int] = {}
    for split, paths in (("train", config.data), ("validation", config.validation_data)):
        sizes = [textfiles.text_bytes(Path(path)) for path in paths]
        if None in sizes:
            return None
        most[split] = sum(size + 1 for size in sizes if size is not None) // (config.seq_len - 2)
    return most
