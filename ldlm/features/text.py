"""Documents, and their packing into token rows (SPEC 1; Appendix C "Data preprocessing", MDLM's protocol).

Every document is tokenised without special tokens and ended by EOS; all documents form one stream; the stream is cut
into chunks of L−2 tokens, each wrapped as [BOS] … [EOS]. There is no padding, and only the last short chunk is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldlm import files, hub
from ldlm.errors import InputError
from ldlm.features.documents import Part, parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_BATCH = 512  # documents that are tokenised at once, or fewer: a tokenizer takes some 100 bytes a character
TOKENIZER_CHARACTERS = 2**19


def dataset_source(
    name: str, configuration: str | None = None, revision: str | None = None
) -> tuple[str | None, dict[str, str]]:
    """The current (commit on the hub or None, fingerprints by name) of a Hugging Face dataset.

    The fingerprints are the sha256 of its files where they are local, and the commit elsewhere.
    """
    with _reading(name):
        cached = hub.cached_dataset(name, revision)
    if cached is not None:
        return cached.name, {name: cached.name}
    builder = _builder(name, configuration, revision)
    paths = [path for found in (builder.config.data_files or {}).values() for path in map(str, found)]
    if paths and all(Path(path).is_file() for path in paths):
        return None, {path: files.sha256_file(Path(path)) for path in sorted(paths)}
    return builder.hash, {name: builder.hash}


def dataset_size(name: str, split: str, configuration: str | None = None, revision: str | None = None) -> int | None:
    """Rows of a split of a Hugging Face dataset, with blank ones, by its card; None where the card has no number."""
    found = (_builder(name, configuration, revision).info.splits or {}).get(split)
    return None if found is None else found.num_examples or None


def dataset_documents(
    name: str, split: str, column: str, configuration: str | None = None, revision: str | None = None
) -> Iterator[str]:
    """The documents of a Hugging Face dataset by hub name or local folder, streamed."""
    from datasets import load_dataset

    with _reading(name, f" (split {split!r})"):
        place, revision = _place(name, revision)
        options: dict[str, Any] = {"split": split, "revision": revision, "streaming": True}
        for row in load_dataset(place, configuration, trust_remote_code=False, **options):
            document = _document(name, row, column)
            if document and document.strip():
                yield document


def _document(name: str, row: Mapping[str, Any], column: str) -> str | None:
    if column not in row:
        raise InputError(f"the dataset {name!r} has no field {column!r} (fields: {', '.join(row)}); set --text-column")
    document = row[column]
    if document is not None and not isinstance(document, str):
        raise InputError(f"the dataset {name!r}: field {column!r} holds {document!r}, no text; set --text-column")
    return document


def _builder(name: str, configuration: str | None, revision: str | None) -> Any:
    from datasets import load_dataset_builder

    with _reading(name):
        place, revision = _place(name, revision)
        return load_dataset_builder(place, configuration, revision=revision)  # it never runs the dataset's code


def _place(name: str, revision: str | None) -> tuple[str, str | None]:
    """The name or folder from which a dataset is read, and the revision: on the hub, or in its cache."""
    cached = hub.cached_dataset(name, revision)
    return (name, revision) if cached is None else (str(cached), None)


@contextmanager
def _reading(name: str, part: str = "") -> Iterator[None]:
    """Within the block, any error about a dataset becomes an `InputError` of one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # datasets and its hub client raise dozens of types here, and all mean the same
        raise _refusal(name, part, error) from None


def _refusal(name: str, part: str, error: Exception) -> InputError:
    reason = hub.why(error)
    if "scripts are no longer supported" in reason:
        return InputError(
            f"the dataset {name!r} comes as a Python program, and ldlm never runs code that comes with a dataset; use "
            f"one of data files, such as parquet or jsonl"
        )
    remedy = "it needs the Hugging Face hub or a local folder"
    if not Path(name).exists() and hub.offline():
        remedy = f"where there is a network, `hf download {name} --repo-type dataset` fetches it for later"
    return InputError(
        f"the dataset {name!r}{part} can't be read: {reason}; {remedy}; local text goes in with --data FILE"
    )


Rules = list[tuple[re.Pattern[str], str]]


def _rules(*pairs: tuple[str, str]) -> Rules:
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


# MDLM's rules for the One Billion Word benchmark (`lm1b_detokenizer` in its dataloader.py), in its order.
_LM1B = _rules(
    (r"(https?) : / / ", r"\1://"),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    (r" \? ", "? "),
    (r" \?$", "?"),
    (r" ! ", "! "),
    (r" !$", "!"),
    (r" , ", ", "),
    (r" : ", ": "),
    (r" ; ", "; "),
    (r" / ", "/"),
    (r'" ([^"]+) "', r'"\1"'),
    (r"' ([^']+) '", r"'\1'"),
    (r"\( ([^()]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    (r"([$£]) ", r"\1"),
)

# Undoes the benchmark's tokenisation as far as it can be told from the text.
_LM1B_CLEAN = _rules(
    (r"\b(https?) : / / ?", r"\1://"),
    (r" '(\w+)", r"'\1"),  # it 's, we 're
    (r" (n't)\b", r"\1"),  # do n't
    (r" ([.?!,:;])(?= |$)", r"\1"),
    (r" / ", "/"),
    (r'" ([^"]*?) "', r'"\1"'),
    (r"(?<!\w)' ([^']*?) '(?!\w)", r"'\1'"),
    (r"\( ([^()]*?) \)", r"(\1)"),
    (r"\[ ([^\[\]]*?) \]", r"[\1]"),
    (r"([$£]) (?=\d)", r"\1"),
)


def _applied(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


# Functions from tokenised to plain text, by the name of the setting.
DETOKENIZERS: dict[str, Callable[[str], str] | None] = {
    "none": None,
    "lm1b": partial(_applied, _LM1B),
    "lm1b-clean": partial(_applied, _LM1B_CLEAN),
}


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """(BOS, EOS): GPT-2's end-of-text for both, BERT's CLS and SEP."""
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if bos is None or eos is None:
        raise InputError(
            "the tokenizer has neither BOS and EOS nor CLS and SEP tokens, which mark the ends of a row; set them in "
            "its tokenizer_config.json"
        )
    return bos, eos


def tokenize(documents: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """The token ids of each document, or `Part` of one, without special tokens."""
    for batch in _batches(documents):
        yield from tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """The documents in batches that bound the tokenizer's memory."""
    batch, characters = list[str](), 0
    for document in documents:
        if batch and (len(batch) == TOKENIZER_BATCH or characters + len(document) > TOKENIZER_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += len(document)
    if batch:
        yield batch


def pack(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, seq_len: int) -> Iterator[np.ndarray]:
    """Pack documents into token rows (rows, L) int32, in batches of any size.

    The rows depend on (documents, order, tokenizer, L) alone. A document longer than `documents.LONGEST` is tokenised
    in parts that end before white space, where GPT-2's and BERT's tokens end whatever follows. In a document without
    white space, a cut may change the token at it.
    """
    bos, eos = special_tokens(tokenizer)
    chunk = seq_len - 2
    pending: list[int] = []
    flat, followed = tee(chain.from_iterable(map(parts, documents)))
    for part, ids in zip(followed, tokenize(flat, tokenizer), strict=True):
        pending += ids
        if not isinstance(part, Part):
            pending.append(eos)
        full = len(pending) // chunk
        if full >= 256:
            yield _rows(pending, full, chunk, bos, eos)
            del pending[: full * chunk]
    if full := len(pending) // chunk:
        yield _rows(pending, full, chunk, bos, eos)


def _rows(stream: list[int], full: int, chunk: int, bos: int, eos: int) -> np.ndarray:
    rows = np.empty((full, chunk + 2), np.int32)
    rows[:, 0], rows[:, -1] = bos, eos
    rows[:, 1:-1] = np.asarray(stream[: full * chunk], np.int32).reshape(full, chunk)
    return rows


def row_of(document: str, tokenizer: PreTrainedTokenizerBase, seq_len: int) -> tuple[np.ndarray, int]:
    """The row (L,) int32 that one document fills, and the number of the document's tokens.

    It is the first row that `pack` makes of the document repeated: a longer document is cut, and a shorter one follows
    itself. Rows are never padded, and in training a document's EOS is always followed by another document.
    """
    (ids,) = tokenize([document], tokenizer)
    times = -(-(seq_len - 2) // (len(ids) + 1))
    return next(pack([document] * times, tokenizer, seq_len))[0], len(ids)


def batched(items: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    """Tuples of up to `size` items (itertools.batched, which Python 3.11 lacks)."""
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch
