"""A batch of training rows. Needs only torch, so a training step runs without the libraries that read stores.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

READ_AHEAD = 2  # batches that wait on the device for their step


class Batch(NamedTuple):
    """One process's rows of a batch, on its device: float32 states (None for scratch embeddings) and int64 tokens.

    `index_B` is on the CPU, so that nothing computed from it waits for the device.
    """

    hidden_BLD: Tensor | None
    tokens_BL: Tensor
    index_B: Tensor  # index of each row in the whole batch, int64
    position: int  # of the batch's first row in the endless sequence

    def split(self, parts: int) -> list[Batch]:
        """Split the batch into `parts` micro-batches."""
        hidden = [None] * parts if self.hidden_BLD is None else self.hidden_BLD.chunk(parts)
        rows = zip(hidden, self.tokens_BL.chunk(parts), self.index_B.chunk(parts), strict=True)
        return [Batch(*part, self.position) for part in rows]
