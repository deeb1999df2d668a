"""The bounds of MDLM and Duo, row by row: with the exact network they are −log p of each row of the toy language."""

import math

import pytest
import torch
from toy_language import JOINT, ExactNetwork, states

from ldlm.baselines import likelihood
from ldlm.baselines.duo import Duo
from ldlm.baselines.mdlm import MDLM
from ldlm.baselines.schedule import LogLinear

REPEATS = 1_000


def bounds_of(method, network, repeats=REPEATS, draws=2, seed=0):
    """Mean bounds (9,) of the sequences over repeats, their standard errors, and the mean of those that are stated."""
    x_BL = states(3, 2).repeat_interleave(repeats, dim=0)
    nats, var = likelihood.bounds(method, network, x_BL, torch.arange(len(x_BL)), draws=draws, seed=seed)
    nats, var = nats.view(9, repeats), var.view(9, repeats)
    return nats.mean(1), nats.std(1) / math.sqrt(repeats), (var.mean(1) / repeats).sqrt()


@pytest.mark.parametrize(
    ("method", "network"),
    [(MDLM(3), ExactNetwork(masks=True)), (Duo(3), ExactNetwork())],
    ids=["mdlm", "duo"],
)
def test_with_the_exact_network_the_bound_of_a_row_is_its_likelihood(method, network):
    mean, se, stated = bounds_of(method, network)
    exact = -JOINT.flatten().log()
    assert ((mean - exact).abs() < 4.5 * se).all()
    assert (JOINT.flatten() @ mean).item() == pytest.approx(1.7207866433, abs=0.04)
    assert (se < 0.1).all()
    assert (stated > 0.85 * se).all() and (stated < 1.5 * se).all()


def test_all_of_the_time_counts_whatever_the_methods_schedule_leaves_out():
    """MDLM's schedule in training keeps ε of the tokens at t = 1; with much of it the bound is the same."""
    network = ExactNetwork(masks=True)
    little, much = (bounds_of(MDLM(3, LogLinear(eps)), network, repeats=50)[0] for eps in (1e-3, 0.5))
    assert torch.equal(little, much)
    # Duo's keeps them, and its prior is uniform: the bound is above by the divergence of the law of z_1 from that.
    assert likelihood.prior(Duo(3)) == pytest.approx(1e-6, rel=0.01)
    kept = Duo(3, LogLinear(0.4))
    own, other = 0.4 + 0.2, 0.2
    assert likelihood.prior(kept) == pytest.approx(own * math.log(own * 3) + 2 * other * math.log(other * 3))
    mean, se, _ = bounds_of(kept, ExactNetwork())
    noisy = 0.4 * torch.eye(3, dtype=torch.float64) + 0.2
    law = noisy.T @ JOINT @ noisy
    gap = (law * (9 * law).log()).sum().item()
    error = ((JOINT.flatten() ** 2) @ se**2).sqrt().item()
    assert (JOINT.flatten() @ mean).item() == pytest.approx(1.7207866433 + gap, abs=3 * error)
    assert 3 * error < 0.75 * gap  # less than it takes to see that it is there


def test_a_rows_bound_does_not_depend_on_its_batch():
    method, network, x_BL = Duo(3), ExactNetwork(), states(3, 2)
    rows = torch.arange(40, 49)
    whole, _ = likelihood.bounds(method, network, x_BL, rows, draws=2)
    parts = [likelihood.bounds(method, network, x_BL[at], rows[at], draws=2)[0] for at in (slice(0, 2), slice(2, 9))]
    torch.testing.assert_close(whole, torch.cat(parts))


class Fixed:
    """A network whose logits at a position are those of its place: rows of log probabilities (L, V)."""

    def __init__(self, log_LV):
        self.log_LV, self.embedding = log_LV, torch.eye(log_LV.shape[1] + 1, dtype=torch.float64)

    def hidden(self, e_BLW, condition_B):
        """The logits, whatever the input."""
        return self.log_LV.expand(e_BLW.shape[0], -1, -1)

    def logits(self, h_W):
        """They are made already."""
        return h_W

    @property
    def head_parameters(self):
        """None that are trained."""
        return ()


def test_over_the_seeds_the_mean_bound_of_a_row_is_its_value():
    """The estimate is that of a single row, whose token of noise must not be the same for each seed.

    With logits that see nothing, MDLM's bound is their NLL, which may differ between positions.
    """
    log_LV = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.6, 0.3], [0.01, 0.98, 0.01], [0.3, 0.3, 0.4]]).double().log()
    x_BL, rows_B, seeds = torch.tensor([[1, 0, 0, 2]]), torch.tensor([3]), 120
    found = torch.cat(
        [likelihood.bounds(MDLM(3), Fixed(log_LV), x_BL, rows_B, draws=2, seed=seed)[0] for seed in range(seeds)]
    )
    se, value = found.std().item() / math.sqrt(seeds), -log_LV[torch.arange(4), x_BL[0]].sum().item()
    assert found.mean().item() == pytest.approx(value, abs=4 * se)
    assert se < 0.01 * value
