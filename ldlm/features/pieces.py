"""Pieces of a text: fixed parts of it that are tokenised one by one, by any number of processes.

A piece is a range of a file's bytes, which has the lines that begin in it; or some row groups of a parquet file; or a
file that can't be divided; or a part of a Hugging Face dataset. The pieces depend only on the text, and in sequence
they hold its documents in order. A document belongs to one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ldlm.config import ExtractConfig
from ldlm.features import corpus, text, textfiles
from ldlm.features.detection import Span
from ldlm.features.shards import SPLITS

SIZE = 2**25  # bytes: some seconds of one core, the most that a kill costs


class Piece(NamedTuple):
    """A part of the text of `train` or `validation`, before any documents of `train` are held out."""

    split: str
    place: str  # a file, or the split of a dataset
    part: tuple[int, int] | int | None  # of the file (`detection.Span`), or of the dataset; None for all of it
    size: int  # about as many bytes; 1 for a part of a dataset


def plan(config: ExtractConfig, size: int) -> list[Piece]:
    """The pieces of all text that `config` names, in its order. Those of files have about `size` bytes if possible.

    `InputError` for a file or a dataset that can't be read.
    """
    return [piece for split in SPLITS for piece in _pieces(config, split, size)]


def _pieces(config: ExtractConfig, split: str, size: int) -> Iterator[Piece]:
    paths = config.data if split == "train" else config.validation_data
    for path in paths:
        for span, length in textfiles.spans(Path(path), size):
            yield Piece(split, path, None if span is None else (span.start, span.stop), length)
    name = config.split if split == "train" else config.validation_split
    if config.dataset and name:
        parts = text.dataset_parts(config.dataset, name, config.dataset_config, config.revision)
        for part in range(parts):
            yield Piece(split, name, part if parts > 1 else None, 1)


def documents(config: ExtractConfig, piece: Piece) -> Iterator[str]:
    """The documents of a piece, detokenised; a long one may come in parts."""
    part = piece.part
    if config.dataset:
        assert not isinstance(part, tuple)
        settings = (config.dataset, piece.place, config.text_column, config.dataset_config, config.revision)
        return corpus.detokenised(config, text.dataset_documents(*settings, part=part))
    assert not isinstance(part, int)
    span = None if part is None else Span(*part)
    return corpus.detokenised(config, textfiles.documents_of(Path(piece.place), config.text_column, span))
