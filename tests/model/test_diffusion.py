"""The noise schedules, β, the loss weight and the score against numeric differentiation and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from ldlm.config import DiffusionConfig
from ldlm.model.diffusion import Schedule, noised, score

SCHEDULES = {
    "tangent": Schedule("tangent", 3.0),
    "tangent with d=1.5": Schedule("tangent", 1.5),
    "cosine": Schedule("cosine"),
    "linear": Schedule("linear"),
}
# λ(t) = ln(α²/σ²) of each, simplified by hand
LOG_SNR = {
    "tangent": lambda t: -2 * math.log(3 * math.tan(math.pi * t / 2)),
    "tangent with d=1.5": lambda t: -2 * math.log(1.5 * math.tan(math.pi * t / 2)),
    "cosine": lambda t: -2 * math.log(math.tan(math.pi * t / 2)),
    "linear": lambda t: math.log((1 - t) / t),
}
TIMES = [0.01, 0.05, 0.3, 0.5, 0.75, 0.95]


def at(t: float) -> torch.Tensor:
    return torch.tensor(t, dtype=torch.float64)


def derivative(f, t: float, h: float = 1e-6) -> float:
    """Central difference of fourth order."""
    return (f(t - 2 * h) - 8 * f(t - h) + 8 * f(t + h) - f(t + 2 * h)) / (12 * h)


def test_alpha_bar_of_the_tangent_schedule_has_the_check_values():
    expected = {0.05: 0.947, 0.1: 0.816, 0.25: 0.393, 0.5: 0.100, 0.75: 0.0187, 0.95: 6.9e-4}
    for t, value in expected.items():
        assert Schedule().alpha_bar(at(t)).item() == pytest.approx(value, rel=5e-3)
    assert Schedule().alpha_bar(at(0.5)).item() == pytest.approx(0.1, rel=1e-12)  # 1 / (1 + 3²)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_preserves_variance_and_falls_from_1_to_0(name):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    alpha, sigma = SCHEDULES[name].alpha_sigma(t)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(t), atol=1e-15)
    assert (alpha.diff() < 0).all()
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert alpha[-1] < 1e-15
    assert sigma[-1] == 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_beta_is_the_rate_at_which_alpha_bar_decays(name):
    schedule = SCHEDULES[name]
    for t in TIMES:
        numeric = -derivative(lambda s: math.log(schedule.alpha_bar(at(s)).item()), t)
        assert schedule.beta(at(t)).item() == pytest.approx(numeric, rel=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_log_snr_and_the_elbo_weight_follow_equations_20_and_22(name):
    schedule, log_snr = SCHEDULES[name], LOG_SNR[name]
    for t in TIMES:
        assert schedule.log_snr(at(t)).item() == pytest.approx(log_snr(t), abs=1e-10)
        expected = -0.5 * derivative(log_snr, t) * math.exp(log_snr(t))
        assert schedule.elbo_weight(at(t)).item() == pytest.approx(expected, rel=1e-7)


def test_a_schedule_is_made_from_the_configuration():
    assert Schedule.of(DiffusionConfig()) == Schedule("tangent", 3.0)
    assert Schedule.of(DiffusionConfig(schedule="cosine", d=2.0)) == Schedule("cosine", 2.0)


def test_the_smallest_training_time_keeps_its_noise_under_float32_latents():
    """1 − ᾱ cancels in float32 at t = 1e-5; the coefficients are computed in the times' float64."""
    z_0, eps = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    z_t = noised(Schedule(), z_0, torch.tensor([1e-5], dtype=torch.float64), eps)
    assert z_t.dtype == torch.float32
    assert z_t.unique().item() == pytest.approx(3 * math.tan(math.pi * 1e-5 / 2), rel=1e-5)


def test_noised_mixes_each_row_at_its_own_time():
    z_0, eps = torch.full((3, 2, 2), 2.0).double(), torch.full((3, 2, 2), 5.0).double()
    z_t = noised(Schedule(), z_0, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), eps)
    middle = 2 * math.sqrt(0.1) + 5 * math.sqrt(0.9)
    for row, expected in zip(z_t, (2.0, middle, 5.0), strict=True):
        assert torch.allclose(row, torch.full((2, 2), expected).double(), atol=1e-12)


@pytest.mark.parametrize("t", [0.05, 0.3, 0.9, 1.0])
def test_the_score_of_gaussian_data_is_the_gradient_of_its_log_density(t):
    mean, std = 0.7, 2.5
    z_t = torch.linspace(-3, 3, 7, dtype=torch.float64).requires_grad_()
    alpha_bar = 1 / (1 + 9 * math.tan(math.pi * t / 2) ** 2)
    variance = alpha_bar * std**2 + 1 - alpha_bar
    log_density = -((z_t - math.sqrt(alpha_bar) * mean) ** 2) / (2 * variance)
    (expected,) = torch.autograd.grad(log_density.sum(), z_t)
    # E[z_0 | z_t] of a Gaussian
    z_hat = mean + math.sqrt(alpha_bar) * std**2 / variance * (z_t - math.sqrt(alpha_bar) * mean)
    assert torch.allclose(score(Schedule(), z_t, z_hat, at(t)), expected, atol=1e-10)
