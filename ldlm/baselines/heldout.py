"""Loss of a rival on held-out rows, over t.

Times and noise are functions of the row, so two evaluations differ in the weights only.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldlm.baselines.interface import Method, Network
from ldlm.features.store import Split
from ldlm.training.heldout import SEED, by_bin


@dataclass(frozen=True, kw_only=True)
class TokenHeldOut:
    """Losses on held-out rows, in nats per token."""

    split: str  # the split of the rows: training rows, where a store has no held-out ones
    rows: int
    loss: float  # mean over rows, with a time in each stratum of as many
    loss_by_t: list[float | None]  # in 20 equal bins of t, of FLM's warped time; None in a bin without rows
    nelbo: float | None  # the loss where it bounds the negative log-likelihood; None of methods without a bound

    def to_json(self) -> dict[str, Any]:
        """Figures by name, without those that the method does not have."""
        return {name: figure for name, figure in vars(self).items() if figure is not None}


@torch.no_grad()
def evaluate(
    method: Method, network: Network, split: Split, *, bound: bool, rows: int, batch_size: int, device: torch.device
) -> TokenHeldOut:
    """Losses over the first `rows` rows of the split; `bound` says that they bound the negative log-likelihood."""
    end = min(rows, split.rows)
    times, losses = list[Tensor](), list[Tensor]()
    for start in range(0, end, batch_size):
        _, tokens = split.read(start, min(start + batch_size, end))
        tokens_BL = torch.from_numpy(tokens).to(device, torch.int64)
        rows_B = torch.arange(start, start + len(tokens_BL), device=device)
        draws = method.draw(seed=SEED, step=0, rows_B=rows_B, batch=end, seq_len=tokens_BL.shape[1])
        times.append(draws.time_B.cpu())
        losses.append(method.losses(network, tokens_BL, draws).double().mean(dim=1).cpu())
    t_B, loss_B = torch.cat(times), torch.cat(losses)
    loss = loss_B.mean().item()
    return TokenHeldOut(
        split=split.name,
        rows=end,
        loss=loss,
        loss_by_t=by_bin(t_B, loss_B),
        nelbo=loss if bound else None,
    )
