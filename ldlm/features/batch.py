"""A batch on its device, whoever read it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A process's rows of a batch on its device: states in float32 (None for scratch embeddings), tokens in int64.

    Their places are on the CPU: what is worked out from them must not wait for the device.
    """

    hidden_BLD: Tensor | None
    tokens_BL: Tensor
    index_B: Tensor  # where each row stands in the whole batch, int64
    position: int  # of the batch's first row in the endless sequence

    def split(self, parts: int) -> list[Batch]:
        """The same in so many parts."""
        hidden = [None] * parts if self.hidden_BLD is None else self.hidden_BLD.chunk(parts)
        rows = zip(hidden, self.tokens_BL.chunk(parts), self.index_B.chunk(parts), strict=True)
        return [Batch(*part, self.position) for part in rows]
