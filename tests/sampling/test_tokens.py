"""Tokens drawn from logits, against the inverse of their distribution function in float64."""

import numpy as np
import torch

from ldlm import noise
from ldlm.sampling import tokens


def test_every_token_of_a_flat_tail_is_drawn_by_its_share_of_the_uniform_numbers(monkeypatch):
    """In float32, sums near 1 are multiples of 6e-8, so that most tokens of probability 2e-8 would never be drawn."""
    p = np.concatenate([[1.0], np.full(1000, 2e-8)])
    p /= p.sum()
    middles = np.cumsum(p) - p / 2  # the uniform number in the middle of each token's share
    monkeypatch.setattr(noise, "uniform", lambda *address: torch.from_numpy(middles)[None])
    logits_BLV = torch.from_numpy(np.log(p)).float().expand(1, len(p), -1)
    drawn = tokens.draw_tokens(logits_BLV, torch.zeros(1, dtype=torch.int64), 1.0)
    assert drawn[0].tolist() == list(range(len(p)))
