"""The adaptive timestep sampler: Eq. 5 by hand, its draws, what it converges to, its state and its averages."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ldlm import noise
from ldlm.config import TimestepConfig
from ldlm.model.timesteps import TimestepSampler, bin_probabilities


def sampler(p: list[float] | None = None, **settings) -> TimestepSampler:
    made = TimestepSampler(TimestepConfig(**settings), t_min=1e-5)
    if p is not None:
        made.p = np.array(p)
    return made


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pooled(values: list[float]) -> list[float]:
    """Isotonic regression by pooling adjacent violators, as one does it on paper."""
    blocks: list[list[float]] = []  # [mean, size]
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    return [mean for mean, size in blocks for _ in range(size)]


# Eq. 5


def test_probabilities_are_the_shares_of_the_loss_increments():
    p = bin_probabilities(np.array([1.0, 2.0, 2.5, 5.0]), floor=0.0)
    assert p.tolist() == pytest.approx([0.25, 0.125, 0.625], abs=1e-15)


def test_a_curve_that_falls_is_made_monotone_first():
    # 3 and 1 pool to 2, so the curve is 0, 2, 2, 4, 8.
    p = bin_probabilities(np.array([0.0, 3.0, 1.0, 4.0, 8.0]), floor=0.0)
    assert p.tolist() == pytest.approx([0.25, 0.0, 0.25, 0.5], abs=1e-15)


def test_ragged_curves_follow_pooled_adjacent_violators():
    curves = np.random.default_rng(0).normal(size=(20, 12)).cumsum(axis=1) + np.arange(12)
    assert (np.diff(curves) < 0).any(axis=1).sum() > 10
    for curve in curves:
        increments = np.diff(pooled(curve.tolist()))
        assert bin_probabilities(curve, floor=0.0) == pytest.approx(increments / increments.sum(), abs=1e-12)


def test_no_bin_falls_to_zero_under_the_floor():
    floor, bins = 1e-3, 4
    p = bin_probabilities(np.array([0.0, 0.0, 1.0, 1.0, 2.0]), floor=floor)
    total = 1 + 2 * floor / bins  # the two flat bins are raised, then all are shared out again
    assert p.tolist() == pytest.approx(
        [floor / bins / total, 0.5 / total, floor / bins / total, 0.5 / total], abs=1e-15
    )
    assert p.sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("curve", [[2.0] * 5, [5.0, 4.0, 3.0, 2.0, 1.0]], ids=["flat", "falling"])
def test_a_curve_without_a_rise_gives_the_uniform_distribution(curve):
    assert bin_probabilities(np.array(curve), floor=1e-3).tolist() == [0.25] * 4


# Drawing


def test_draws_fall_into_the_bins_with_their_probabilities():
    p = [0.5, 0.1, 0.0, 0.4]
    t = sampler(p, bins=4).draw((torch.arange(10_000).double() + 0.5) / 10_000).numpy()
    counts = np.histogram(t, bins=np.linspace(0, 1, 5))[0] / 10_000
    assert counts.tolist() == pytest.approx(p, abs=2e-4)
    # Inside a bin t is even: the mean of each is its middle.
    for i in (0, 1, 3):
        inside = t[(t > i / 4) & (t <= (i + 1) / 4)]
        assert inside.mean() == pytest.approx((i + 0.5) / 4, abs=1e-4)


def test_draws_are_uniform_before_the_first_refresh_and_stay_within_t_min_and_1():
    fresh = TimestepSampler(TimestepConfig(), t_min=0.02)
    u = noise.uniform(0, "t", 0, torch.arange(5_000))
    t = fresh.draw(u)
    assert t.dtype == torch.float64
    assert torch.allclose(t, u.clamp(min=0.02), atol=1e-12)
    assert t.min() == 0.02
    assert fresh.draw(times(1 - 1e-16, 1.0)).max() == 1.0


def test_the_density_is_the_derivative_of_the_distribution_that_is_drawn_from():
    made = sampler([0.5, 0.1, 0.3, 0.1], bins=4)
    u = times(0.2, 0.55, 0.7, 0.95)  # one in each bin
    h = 1e-7
    slope = 2 * h / (made.draw(u + h) - made.draw(u - h))
    assert torch.allclose(made.density(made.draw(u)), slope, rtol=1e-6)
    assert made.density(times(0.2, 0.55, 0.9)).tolist() == pytest.approx([2.0, 1.2, 0.4])
    # A bin is open below and closed above, as in Eq. 5.
    assert made.density(times(0.25, 0.2500001, 1.0)).tolist() == pytest.approx([2.0, 0.4, 0.4])


# Averaging


def test_losses_are_averaged_per_nearest_edge_and_decay():
    made = sampler(bins=4, ema_decay=0.9)
    made.observe(times(0.26, 0.2, 0.99), torch.tensor([1.0, 3.0, 8.0]))
    assert made.edge_losses[[1, 4]].tolist() == [2.0, 8.0]  # the first values stand as they are
    assert np.isnan(made.edge_losses[[0, 2, 3]]).all()
    made.observe(times(0.3, 0.55), torch.tensor([4.0, 5.0]))
    assert made.edge_losses[[1, 2, 4]].tolist() == pytest.approx([0.9 * 2 + 0.1 * 4, 5.0, 8.0], abs=1e-12)
    assert np.isnan(made.edge_losses[[0, 3]]).all()


def test_an_edge_decays_also_while_nothing_touches_it():
    made = sampler(bins=4, ema_decay=0.9)
    made.observe(times(0.0, 0.5, 1.0), torch.tensor([1.0, 1.0, 1.0]))
    for _ in range(4):
        made.observe(times(0.5), torch.tensor([2.0]))
    made.observe(times(0.5, 1.0), torch.tensor([2.0, 2.0]))
    assert made.edge_losses[[2, 4]].tolist() == pytest.approx([2 - 0.9**5, 2 - 0.9**5], abs=1e-12)  # rarely or always
    assert made.edge_losses[0] == 1.0  # nothing else is known of it
    assert made.unseen[[0, 2, 4]].tolist() == [5, 0, 0]


@pytest.mark.parametrize(
    "curve",
    [lambda u: 0.05 + 0.95 * np.tanh(3 * u), lambda u: 1.01 - 1 / (1 + 9 * np.tan(np.pi * u / 2) ** 2)],
    ids=["tanh", "the forward process"],
)
def test_edges_that_are_rarely_drawn_follow_a_loss_that_falls(curve):
    """To 1/e over 50,000 steps, of which these are the first; it is flat at u = 1, where hardly any draw falls."""
    made, uniform = sampler(bins=100, refresh_steps=1_000), np.random.default_rng(0)
    errors, shares = [], []
    for step in range(1, 6_001):
        t = made.draw(torch.from_numpy(uniform.random(512)))
        made.observe(t, torch.from_numpy(curve(t.numpy()) * np.exp(-step / 50_000)))
        made.refresh_if_due(step)
        errors.append(made.edge_losses[-1] / (curve(1.0) * np.exp(-step / 50_000)) - 1)
        shares.append(made.p[-1])
    assert min(shares) < 0.002 / 100
    assert np.abs(errors[1_000:]).max() < 0.02


def test_a_floor_that_visits_keeps_a_rare_edge_right_where_losses_are_noisy():
    """Decay by time leaves an edge that is hardly drawn with a row or two; `timesteps.floor` says how often it is."""

    def curve(u):
        return 0.5 * (1 + np.tanh(8 * (u - 0.5)))

    made = sampler(bins=100, refresh_steps=500, floor=0.1)
    draw, errors = np.random.default_rng(0), []
    for step in range(1, 4_001):
        t = made.draw(torch.from_numpy(draw.random(512)))
        falling = np.exp(-step / 50_000)
        made.observe(t, torch.from_numpy(curve(t.numpy()) * falling * (1 + 0.1 * draw.standard_normal(512))))
        made.refresh_if_due(step)
        errors.append(made.edge_losses[-1] / (curve(1.0) * falling) - 1)
    assert np.sqrt(np.mean(np.square(errors[1_000:]))) < 0.02


def test_probabilities_change_only_every_refresh_steps():
    made = sampler(bins=2, refresh_steps=3)
    for step in (1, 2):
        made.observe(times(0.0, 0.5, 1.0), torch.tensor([0.0, 1.0, 4.0]))
        made.refresh_if_due(step)
        assert made.p.tolist() == [0.5, 0.5]
    made.refresh_if_due(3)
    assert made.p.tolist() == pytest.approx([0.25, 0.75], abs=1e-12)


def test_edges_that_nothing_touched_take_the_line_between_their_neighbours():
    made = sampler(bins=4, floor=0.0)
    made.edge_losses = np.array([np.nan, 1.0, np.nan, 5.0, np.nan])
    made.refresh()
    assert made.p.tolist() == pytest.approx([0.0, 0.5, 0.5, 0.0], abs=1e-12)
    made.edge_losses = np.array([np.nan, 1.0, np.nan, np.nan, np.nan])  # one point is no curve
    made.refresh()
    assert made.p.tolist() == pytest.approx([0.0, 0.5, 0.5, 0.0], abs=1e-12)


def test_the_uniform_sampler_never_learns():
    made = sampler(kind="uniform", bins=4, refresh_steps=1)
    made.observe(times(0.0, 0.5, 1.0), torch.tensor([0.0, 1.0, 4.0]))
    made.refresh_if_due(1)
    assert made.p.tolist() == [0.25] * 4


def test_on_a_known_curve_the_loss_becomes_linear_in_the_samplers_own_time():
    """The aim of Section 5.3: L(u) − L(0) = a·F(u)."""

    def curve(u):
        return 0.1 + 0.9 * u**3 / (u**3 + 0.05)

    made = sampler(bins=100, refresh_steps=20)
    noise_of_loss = np.random.default_rng(0)
    for step in range(1, 401):
        t = made.draw(noise.uniform(0, "t", step, torch.arange(64)))
        loss = curve(t) * torch.from_numpy(noise_of_loss.uniform(0.9, 1.1, 64))
        made.observe(t, loss)
        made.refresh_if_due(step)
    edges = np.linspace(0, 1, 101)
    own_time, loss = np.concatenate([[0], made.p.cumsum()]), curve(edges)
    assert np.corrcoef(own_time, loss)[0, 1] ** 2 >= 0.99
    slope, start = np.polyfit(own_time, loss, 1)
    assert slope == pytest.approx(loss[-1] - loss[0], rel=0.05)
    assert start == pytest.approx(loss[0], abs=0.03)
    assert np.corrcoef(edges, loss)[0, 1] ** 2 < 0.97  # in t itself it is not


# State


def test_a_state_of_an_earlier_version_goes_on_from_where_it_was():
    state = sampler(bins=4).state_dict()
    del state["unseen"]
    other = sampler(bins=4)
    other.unseen[:] = 7
    other.load_state_dict(state)
    assert other.unseen.tolist() == [0] * 5


def test_the_state_survives_json_to_the_bit():
    made = sampler(bins=10, refresh_steps=1)
    made.observe(times(0.11, 0.47, 0.93), torch.tensor([0.1, 1 / 3, 0.7]))
    made.refresh_if_due(1)
    state = json.loads(json.dumps(made.state_dict(), allow_nan=False))
    other = sampler(bins=10, refresh_steps=1)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.edge_losses, made.edge_losses)
    np.testing.assert_array_equal(other.p, made.p)
    u = noise.uniform(0, "t", 0, torch.arange(100))
    assert not torch.equal(other.draw(u), sampler(bins=10).draw(u))
    for step in (2, 3):
        for each in (made, other):
            each.observe(each.draw(u), u)
            each.refresh_if_due(step)
        np.testing.assert_array_equal(other.edge_losses, made.edge_losses)
        np.testing.assert_array_equal(other.p, made.p)
