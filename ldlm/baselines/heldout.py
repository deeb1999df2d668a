"""Loss of a rival on held-out rows, over t, with its standard error.

A row is judged `DRAWS` times: its times lie in as many equal parts of [0, 1], and the times of all rows in one stratum
each. Times and noise are functions of the row, so two evaluations differ only in the weights.

Shape letters: CONTRIBUTING.md. R is the draws of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldlm import noise
from ldlm.baselines.interface import Method, TrainedNetwork
from ldlm.features.store import Split
from ldlm.training.heldout import SEED, by_bin

DRAWS = 4


@dataclass(frozen=True, kw_only=True)
class TokenHeldOut:
    """Losses on held-out rows, in nats per token."""

    split: str  # the split of the rows; training rows if the store has no held-out ones
    rows: int
    loss: float  # mean over rows and their draws
    loss_se: float | None  # its standard error, from the spread of the rows' means; None for one row
    loss_by_t: list[float | None]  # in 20 equal bins of t, for FLM of warped time; None in a bin without draws
    nelbo: float | None  # the loss if it estimates a bound on the negative log-likelihood, from t = 1e-3 on; else None

    def to_json(self) -> dict[str, Any]:
        """Figures by name, without those that the method lacks."""
        return {name: figure for name, figure in vars(self).items() if figure is not None}


@torch.no_grad()
def evaluate(
    method: Method,
    network: TrainedNetwork,
    split: Split,
    *,
    bound: bool,
    rows: int,
    batch_size: int,
    device: torch.device,
) -> TokenHeldOut:
    """Losses over the first `rows` rows of the split; `bound` says whether they bound the negative log-likelihood."""
    end = min(rows, split.rows)
    times, losses = list[Tensor](), list[Tensor]()
    for start in range(0, end, batch_size):
        _, tokens = split.read(start, min(start + batch_size, end))
        tokens_BL = torch.from_numpy(tokens).to(device, torch.int64)
        rows_B = torch.arange(start, start + len(tokens_BL), device=device)
        found = [_draw(method, network, tokens_BL, rows_B, number=number, rows=end) for number in range(DRAWS)]
        times.append(torch.stack([t_B for t_B, _ in found]).cpu())
        losses.append(torch.stack([loss_B for _, loss_B in found]).cpu())
    split.check_unreplaced()
    t_RB, loss_RB = torch.cat(times, dim=1), torch.cat(losses, dim=1)
    loss = loss_RB.mean().item()
    return TokenHeldOut(
        split=split.name,
        rows=end,
        loss=loss,
        loss_se=loss_RB.mean(dim=0).std().item() / math.sqrt(end) if end > 1 else None,
        loss_by_t=by_bin(t_RB.flatten(), loss_RB.flatten()),
        nelbo=loss if bound else None,
    )


def _draw(
    method: Method, network: TrainedNetwork, x_BL: Tensor, rows_B: Tensor, *, number: int, rows: int
) -> tuple[Tensor, Tensor]:
    """Times and losses (B,) of draw `number` of each row, out of `rows` rows in all."""
    draw_B = number * rows + rows_B
    draws: Any = method.draw(seed=SEED, step=0, rows_B=draw_B, batch=DRAWS * rows, seq_len=x_BL.shape[1])
    weight_B = None
    if method.schedule is not None:
        # Half of the draws of each row and of each time, so that the two kinds balance in both.
        forced_B = (number + rows_B) % 2 == 1
        u_BL, weight_B = with_noise(draws.u_BL, method.schedule.alpha(draws.t_B), draw_B, forced_B, seed=SEED)
        draws = draws._replace(u_BL=u_BL)
    loss_B = method.losses(network, x_BL, draws).loss_BL.double().mean(dim=1)
    return draws.time_B, loss_B if weight_B is None else loss_B * weight_B


def with_noise(u_BL: Tensor, alpha_B: Tensor, draw_B: Tensor, forced_B: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Uniform numbers (B, L), below α where a token is kept; in the draws `forced_B`, one token is noise for certain.

    Also weights (B,) that compensate if half of the draws are forced: under them each token is kept independently with
    probability α, as in training. Otherwise, at a small time, nearly all draws would have no noise and a loss of 0, and
    the rest a loss of order 1/t. The token is a function of the seed and the number `draw_B` of the draw.
    """
    length, share_B = u_BL.shape[1], 1 - alpha_B
    position_B = (noise.uniform(seed, "noisy", 0, draw_B) * length).long()
    place_BL = torch.arange(length, device=u_BL.device) == position_B[:, None]
    u_BL = u_BL.masked_fill(place_BL & forced_B[:, None], 1.0)
    noisy_B = (u_BL >= alpha_B[:, None]).sum(dim=1)
    # With n noisy tokens, a draw is n/(L(1 − α)) times as likely if one is forced, as it is in half of the draws.
    return u_BL, 2 / (1 + noisy_B / (length * share_B))
