"""The states of blocks of rows, from the encoder or the spool: raw, or normalised and encoded by a codec.

All work is done on the encoder's device, and only what is stored is copied to the host. A block is started first and
awaited later: while the host works on one, a GPU makes the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ldlm.compute import fetch
from ldlm.errors import InputError
from ldlm.features import codecs
from ldlm.features.codecs import Codec, Error, Parts
from ldlm.features.encoder import FrozenEncoder
from ldlm.features.packing import TokenRows
from ldlm.features.spool import Spool

Result = TypeVar("Result")


@dataclass(frozen=True)
class Blocks:
    """Blocks of `size` token rows, by split and number."""

    size: int
    tokens: Mapping[str, TokenRows]
    encoder: FrozenEncoder
    spool: Spool

    def raw(self, split: str, block: int) -> Callable[[], np.ndarray]:
        """Start computing a block's raw states; calling the result waits for them, (rows, L, D) float32 on the host."""
        spooled = self._spooled(split, block)
        return self.encoded_raw(split, block) if spooled is None else lambda: spooled

    def encoded_raw(self, split: str, block: int) -> Callable[[], np.ndarray]:
        """`raw`, but always from the encoder, whatever is spooled."""
        states, check = self._encode(split, block)
        arrive = fetch(states)

        def finite() -> np.ndarray:
            check()
            return arrive().numpy()

        return finite

    def stored(
        self, split: str, block: int, mean_D: Tensor, std_D: Tensor, codec: Codec
    ) -> Callable[[], tuple[Parts, Error]]:
        """Start normalising and encoding a block's states; calling the result waits for the arrays to store.

        The codec's error stays on the device.
        """
        spooled = self._spooled(split, block)
        if spooled is None:
            states, check = self._encode(split, block)
        else:
            states, check = torch.from_numpy(spooled).to(self.encoder.device), lambda: None
        arrive, error = codecs.encode((states - mean_D) / std_D, codec)

        def finite() -> tuple[Parts, Error]:
            check()
            return arrive(), error

        return finite

    def stored_rows(
        self,
        split: str,
        rows: range,
        mean_D: np.ndarray,
        std_D: np.ndarray,
        codec: Codec,
        advance: Callable[[int], None],
    ) -> tuple[Parts, Error]:
        """The rows of whole blocks, normalised and encoded: the arrays to store, and the codec's error.

        `advance` counts tokens as they are encoded.
        """
        mean, std = (torch.from_numpy(values).to(self.encoder.device) for values in (mean_D, std_D))
        length, errors = self.tokens[split].seq_len, []
        stored = codec.empty((len(rows), length, len(mean_D)))
        places = range(0, len(rows), self.size)
        begun = (self.stored(split, (rows.start + place) // self.size, mean, std, codec) for place in places)
        for place, (parts, block_error) in zip(places, one_ahead(begun), strict=True):
            errors.append(block_error)
            for name, values in parts.items():
                stored[name][place : place + self.size] = values
            advance(min(self.size, len(rows) - place) * length)
        return stored, reduce(Error.merge, errors)

    def _encode(self, split: str, block: int) -> tuple[Tensor, Callable[[], None]]:
        """Raw states on the device, and a function that raises `InputError` when they are not finite."""
        start = block * self.size
        states = self.encoder(torch.from_numpy(self.tokens[split].read(start, start + self.size)))
        worst = fetch(codecs.largest(states))

        def check() -> None:
            if not worst().isfinite():
                raise InputError(
                    f"{self.encoder.name} gives states that are not finite from row {start} of {split} on; use "
                    "--precision fp32, or another --layer"
                )

        return states, check

    def _spooled(self, split: str, block: int) -> np.ndarray | None:
        """Raw states from the spool; None when they aren't there."""
        if split != "train":
            return None
        tokens = self.tokens[split]
        rows = min(self.size, tokens.rows - block * self.size)
        return self.spool.read(block, (rows, tokens.seq_len, self.encoder.hidden_dim))


def one_ahead(begun: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """The results of the work that `begun` starts as it is iterated; the next is started before each is awaited."""
    waiting: Callable[[], Result] | None = None
    for following in begun:
        if waiting is not None:
            yield waiting()
        waiting = following
    if waiting is not None:
        yield waiting()
