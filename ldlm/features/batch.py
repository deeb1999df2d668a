"""A batch of training rows. Needs torch alone: a training step runs where nothing that reads stores is installed.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

READ_AHEAD = 2  # batches on the device that wait for their step


class Batch(NamedTuple):
    """A process's rows of a batch on its device: states in float32 (None for scratch embeddings), tokens in int64.

    `index_B` is on the CPU, so that nothing that is computed from it waits for the device.
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
