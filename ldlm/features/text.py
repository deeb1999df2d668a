"""Documents, and their packing into token rows (SPEC 1; Appendix C "Data preprocessing", MDLM's protocol).

Every document is tokenised without special tokens and ended by EOS; all documents form one stream; the stream is cut
into chunks of L−2 tokens, each wrapped as [BOS] … [EOS]. There is no padding, and only the last short chunk is dropped.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ldlm import hub
from ldlm.errors import InputError
from ldlm.features import digests
from ldlm.features.documents import Part, parts
from ldlm.location import Location
from ldlm.progress import SILENT, Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

TOKENIZER_BATCH = 512  # documents tokenised at once, or fewer: a tokenizer takes some 100 bytes per character
TOKENIZER_CHARACTERS = 2**19


def dataset_source(
    name: str,
    configuration: str | None = None,
    revision: str | None = None,
    progress: Progress = SILENT,
    store: Location | None = None,
) -> tuple[str | None, dict[str, str], dict[str, digests.Seen]]:
    """The current (commit on the hub or None, fingerprints by name, `Seen` of local files) of a Hugging Face dataset.

    The fingerprints are the sha256 of its files if they are local, and otherwise the commit. `store` as in `digests`.
    """
    with _reading(name):
        cached = hub.cached_dataset(name, revision)
    if cached is not None:
        return cached.name, {name: cached.name}, {}
    builder = _builder(name, configuration, revision)
    paths = [path for found in (builder.config.data_files or {}).values() for path in map(str, found)]
    if paths and all(Path(path).is_file() for path in paths):
        seen = {str(path): one for path, one in digests.seen(list(map(Path, sorted(paths))), progress, store).items()}
        return None, {path: one.sha256 for path, one in seen.items()}, seen
    return builder.hash, {name: builder.hash}, {}


def dataset_size(name: str, split: str, configuration: str | None = None, revision: str | None = None) -> int | None:
    """Rows of a split of a Hugging Face dataset, including blank ones, from its card; None if it gives no number."""
    found = (_builder(name, configuration, revision).info.splits or {}).get(split)
    return None if found is None else found.num_examples or None


def dataset_documents(
    name: str,
    split: str,
    column: str,
    configuration: str | None = None,
    revision: str | None = None,
    *,
    part: int | None = None,
) -> Iterator[str]:
    """The documents of a Hugging Face dataset (hub name or local folder) or of one of its `dataset_parts`, streamed."""
    with _reading(name, f" (split {split!r})"):
        found = _streamed(name, split, configuration, revision)
        for row in found if part is None else found.shard(found.num_shards, part, contiguous=True):
            document = _document(name, row, column)
            if document and document.strip():
                yield document


def dataset_parts(name: str, split: str, configuration: str | None = None, revision: str | None = None) -> int:
    """The number of parts (files, in most formats) in which a Hugging Face dataset can be read; in order, all of it."""
    with _reading(name, f" (split {split!r})"):
        return _streamed(name, split, configuration, revision).num_shards


def _streamed(name: str, split: str, configuration: str | None, revision: str | None) -> Any:
    from datasets import load_dataset

    place, revision = _place(name, revision)
    options: dict[str, Any] = {"split": split, "revision": revision, "streaming": True}
    return load_dataset(place, configuration, trust_remote_code=False, **options)


def _document(name: str, row: Mapping[str, Any], column: str) -> str | None:
    if column not in row:
        raise InputError(f"the dataset {name!r} has no field {column!r} (fields: {', '.join(row)}); set --text-column")
    document = row[column]
    if document is not None and not isinstance(document, str):
        raise InputError(
            f"the dataset {name!r}: field {column!r} holds {reprlib.repr(document)}, which is no text; set "
            f"--text-column to another field (fields: {', '.join(row)})"
        )
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
            f"one that consists of data files, such as parquet or jsonl"
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


def unknown_share(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of the tokens that stand for words unknown to the tokenizer; 0 if it can write any text."""
    unknown = tokenizer.unk_token_id  # GPT-2's is its end-of-text, which never stands for a word
    return 0.0 if unknown in (None, *special_tokens(tokenizer)) else float(np.mean(tokens == unknown))


class Tokens(NamedTuple):
    """Some documents, or parts of them, as tokens: the next ones of the stream."""

    ids: np.ndarray  # int32, each document followed by EOS
    ends: np.ndarray  # int64, the number of `ids` up to the end of each document that ends here


def stream(batches: Iterable[list[str]], tokenizer: Tokenizer, eos: int) -> Iterator[Tokens]:
    """The token stream of `batched_parts`: documents without special tokens, each followed by EOS.

    `tokenizer` is the bare one of the library tokenizers: transformers' own call costs a tenth more.
    """
    keep_whole(tokenizer)
    for batch in batches:
        ids, ends = list[int](), list[int]()
        for part, found in zip(batch, tokenizer.encode_batch_fast(batch, add_special_tokens=False), strict=True):
            ids += found.ids
            if not isinstance(part, Part):
                ids.append(eos)
                ends.append(len(ids))
        yield Tokens(np.array(ids, np.int32), np.array(ends, np.int64))


def keep_whole(tokenizer: Tokenizer) -> None:
    """Have a bare tokenizer neither truncate nor pad, as a tokenizer.json may ask for.

    One that does neither is left alone: changing it fails while another thread encodes with it.
    """
    if tokenizer.truncation or tokenizer.padding:
        tokenizer.no_truncation()
        tokenizer.no_padding()


def batched_parts(documents: Iterable[str]) -> Iterator[list[str]]:
    """The documents, cut into `documents.parts`, in batches that bound the tokenizer's memory."""
    batch, characters = list[str](), 0
    for part in chain.from_iterable(map(parts, documents)):
        if batch and (len(batch) == TOKENIZER_BATCH or characters + len(part) > TOKENIZER_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(part)
        characters += len(part)
    if batch:
        yield batch


def pack(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, seq_len: int) -> Iterator[np.ndarray]:
    """Pack documents into token rows (rows, L) int32, in batches of any size.

    The rows depend only on (documents, order, tokenizer, L). A document longer than `documents.LONGEST` is tokenised
    in parts that end before white space, where GPT-2's and BERT's tokens end whatever follows. In a document without
    white space, a cut may change the tokens beside it.
    """
    bos, eos = special_tokens(tokenizer)
    chunk = seq_len - 2
    pending: list[np.ndarray] = []
    for tokens in stream(batched_parts(documents), tokenizer.backend_tokenizer, eos):
        pending.append(tokens.ids)
        if sum(map(len, pending)) >= 256 * chunk:
            found = np.concatenate(pending)
            full = len(found) // chunk * chunk
            yield wrapped(found[:full], chunk, bos, eos)
            pending = [found[full:]]
    found = np.concatenate([np.empty(0, np.int32), *pending])
    if full := len(found) // chunk * chunk:
        yield wrapped(found[:full], chunk, bos, eos)


def wrapped(ids: np.ndarray, chunk: int, bos: int, eos: int) -> np.ndarray:
    """Rows [BOS] … [EOS] (rows, chunk + 2) int32 of a stretch of the stream, a whole number of chunks."""
    rows = np.empty((len(ids) // chunk, chunk + 2), np.int32)
    rows[:, 0], rows[:, -1] = bos, eos
    rows[:, 1:-1] = ids.reshape(-1, chunk)
    return rows


def row_of(document: str, tokenizer: PreTrainedTokenizerBase, seq_len: int) -> tuple[np.ndarray, int]:
    """The row (L,) int32 that one document fills, and the number of the document's tokens.

    It is the first row that `pack` makes from the document repeated: a longer document is cut, and a shorter one
    follows itself. Rows are never padded, and in training a document's EOS is always followed by another document.
    """
    _, eos = special_tokens(tokenizer)
    tokens = sum(len(found.ids) for found in stream(batched_parts([document]), tokenizer.backend_tokenizer, eos))
    times = -(-(seq_len - 2) // tokens)
    return next(pack([document] * times, tokenizer, seq_len))[0], tokens - 1


def batched(items: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    """Tuples of up to `size` items (itertools.batched, which Python 3.11 lacks)."""
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch
