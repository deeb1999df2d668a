"""α(γ), dα/dγ, τ(t) and t(τ): closed forms, another quadrature, Monte Carlo, and the published tables."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.special import log_ndtr
from torch.utils._python_dispatch import TorchDispatchMode

from ldlm.baselines.argmax import Unwarp, gamma_range, keep_at_gamma, keep_probability, keep_slope, warped

SIZES = [2, 3, 50, 4_096, 50_258]


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def largest_is_right(mu, vocab):
    """P(μ) = ∫ φ(x−μ) Φ(x)^(K−1) dx by adaptive quadrature."""

    def integrand(x):
        return math.exp(-((x - mu) ** 2) / 2 + (vocab - 1) * log_ndtr(x)) / math.sqrt(2 * math.pi)

    return integrate.quad(integrand, mu - 12, mu + 12, epsabs=1e-15, epsrel=1e-12, limit=500, points=[mu, 3, 4, 5])[0]


def test_two_tokens_have_a_closed_form():
    mu = torch.linspace(0, 8, 50, dtype=torch.float64)
    assert torch.allclose(keep_probability(mu, 2), 2 * torch.special.ndtr(mu / math.sqrt(2)) - 1, rtol=0, atol=1e-13)
    density = torch.exp(-(mu**2) / 4) / math.sqrt(2 * math.pi) * math.sqrt(2)
    assert torch.allclose(keep_slope(mu, 2), density, rtol=0, atol=1e-13)


@pytest.mark.parametrize("vocab", SIZES)
def test_alpha_is_that_of_another_quadrature(vocab):
    mu = [0.0, 0.3, 1.0, 2.5, 4.0, 5.5, 7.0, 11.0]
    expected = [(vocab * largest_is_right(m, vocab) - 1) / (vocab - 1) for m in mu]
    assert keep_probability(double(*mu), vocab).tolist() == pytest.approx(expected, rel=0, abs=1e-11)


@pytest.mark.parametrize("vocab", SIZES)
def test_the_slope_is_that_of_a_central_difference_and_the_published_integral(vocab):
    gamma, h = torch.linspace(-6, 5, 45, dtype=torch.float64), 1e-4
    alpha, slope = keep_at_gamma(gamma, vocab)
    difference = (keep_at_gamma(gamma + h, vocab)[0] - keep_at_gamma(gamma - h, vocab)[0]) / (2 * h)
    assert torch.allclose(slope, difference, rtol=0, atol=1e-8)
    assert torch.equal(alpha, keep_probability(torch.exp(-gamma / 2), vocab))
    # −(μ/2)·K/(K−1)·∫(x−μ)φ(x−μ)Φ(x)^(K−1)dx, by the trapezoidal rule
    mu, x = np.exp(-gamma.numpy() / 2)[:, None], np.linspace(-12, 12, 4_001)
    inside = x * np.exp(-(x**2) / 2 + (vocab - 1) * log_ndtr(x + mu)) / math.sqrt(2 * math.pi)
    published = -(mu[:, 0] / 2) * vocab / (vocab - 1) * np.trapezoid(inside, x, axis=1)
    assert slope.numpy() == pytest.approx(published, rel=0, abs=1e-9)


def test_alpha_is_how_often_the_argmax_is_right():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(200_000, 50, generator=generator)
    w[:, 7] += 2.0
    right = (w.argmax(1) == 7).double().mean().item()
    probability = (49 * keep_probability(double(2.0), 50) + 1).item() / 50
    assert probability == pytest.approx(0.415983, abs=1e-6)
    assert right == pytest.approx(probability, abs=4 * math.sqrt(0.25 / 200_000))


class Copies(TorchDispatchMode):
    """Counts copies from the host to another device, which wait for it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.count += function.overloadpacket.__name__ == "_to_copy" and args[0].device != found.device
        return found


def test_nodes_and_weights_are_copied_to_a_device_once():
    mu = torch.empty(3, device="meta")
    keep_at_gamma(mu, 7)
    with Copies() as copies:
        keep_at_gamma(mu, 7)
    assert copies.count == 0


def test_the_table_of_gpt2s_vocabulary():
    gamma = double(-5, -4, -3.55, -3.5, -3, -2.5, -2, -1.85, -1.75, -1)
    expected = [1.000, 0.9987, 0.94547, 0.92835, 0.5963, 0.2380, 0.0720, 0.04932, 0.03828, 0.0062]
    assert keep_at_gamma(gamma, 50_257)[0].tolist() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("vocab", "low", "high"),
    [(4_096, -3.358, -1.292), (30_522, -3.527, -1.761), (50_257, -3.565, -1.855), (3, -2.171, 4.307)],
)
def test_the_range_of_gamma(vocab, low, high):
    found = gamma_range(vocab)
    assert found == pytest.approx((low, high), abs=6e-4)
    assert keep_at_gamma(double(*found), vocab)[0].tolist() == pytest.approx([0.95, 0.05], abs=1e-10)


# ----------------------------------------------------------------------------------------------------------------------
# The warp


@pytest.mark.parametrize(
    ("vocab", "times"),
    [
        (50_258, [0.5120, 0.6464, 0.7438, 0.7793, 0.8087, 0.8314, 0.8477, 0.8695, 0.8820]),
        (30_522, [0.4831, 0.6311, 0.7359, 0.7735, 0.8045, 0.8281, 0.8450, 0.8676, 0.8805]),
    ],
)
def test_the_published_times(vocab, times):
    tau = double(0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
    assert Unwarp.of(vocab)(tau).tolist() == pytest.approx(times, abs=6e-5)


@pytest.mark.parametrize("vocab", SIZES)
def test_unwarping_inverts_the_warp_everywhere(vocab):
    unwarp = Unwarp.of(vocab)
    tails = 10.0 ** -torch.arange(1, 11, dtype=torch.float64)
    tau = torch.cat([torch.linspace(0, 1, 20_001, dtype=torch.float64), tails, 1 - tails]).sort().values
    t = unwarp(tau)
    assert (warped(t, vocab) - tau).abs().max() < 1e-9
    assert (t.diff() >= 0).all()
    assert (t.unique().diff() > 0).all()


def test_the_ends_are_exact():
    assert Unwarp.of(4_096)(double(0, 1)).tolist() == [0.0, 1.0]
    assert warped(double(0, 1), 4_096).tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


def test_two_tokens_have_a_closed_form_of_the_warp():
    tau = torch.linspace(0, 0.999, 1_000, dtype=torch.float64)
    mu = math.sqrt(2) * torch.special.ndtri((1 + tau) / 2)
    assert torch.allclose(Unwarp.of(2)(tau), mu / (1 + mu), rtol=0, atol=1e-10)
