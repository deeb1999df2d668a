"""The bound on the likelihood against closed forms: Gaussian latents, two points, and a toy language with its entropy.

Where the denoiser is exact and the decoder the joint posterior, the bound of each row is −log p of it at every τ.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from randomness import random
from scipy import stats
from toy_language import JOINT

from ldlm.config import DecoderNoise, DiffusionConfig, TimestepConfig
from ldlm.errors import InputError
from ldlm.evaluation import likelihood
from ldlm.evaluation.likelihood import RowNats, bounds, levels
from ldlm.model.diffusion import Schedule, noised
from ldlm.model.objective import loss_weights
from ldlm.model.timesteps import TimestepSampler

SCHEDULE = Schedule("tangent", 3.0)
TAUS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)


def nothing(z_t, t):
    """A decoder that is certain."""
    return torch.zeros(len(z_t), dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------------------------
# Gaussian latents


def gaussian(schedule, std, rows, dims, draws):
    """Bounds of Gaussian latents with their exact denoiser, and by row the divergence of two Gaussians; per dimension.

    KL(N(μ, τ²) ‖ N(0, s² + τ²)), whose mean over all μ is ½ ln(1 + s²/τ²).
    """
    mu = std * random(rows, 1, dims)

    def exact(z_t, t):
        alpha, sigma = (of.reshape(-1, 1, 1) for of in schedule.alpha_sigma(t))
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * z_t

    found = bounds(schedule, mu, torch.arange(rows), denoise=exact, decode=nothing, taus=TAUS, draws=draws)
    tau = torch.tensor(TAUS, dtype=torch.float64)
    total = std**2 + tau**2
    square = mu.square().flatten(1).mean(1, keepdim=True)
    by_row = 0.5 * ((total / tau**2).log() + (square + tau**2) / total - 1)
    assert (by_row.mean(0) - 0.5 * (1 + (std / tau) ** 2).log()).abs().max() < 0.01
    return found.kl_BT / dims, found.kl_var_BT / dims**2, by_row


def test_the_divergence_of_gaussian_latents_is_that_of_two_gaussians_to_a_thousandth():
    found, _, by_row = gaussian(SCHEDULE, 1.0, rows=300, dims=256, draws=32)
    assert (found - by_row).mean(0).abs().max() < 1e-3


@pytest.mark.parametrize("schedule", [SCHEDULE, Schedule("cosine"), Schedule("linear")], ids=lambda one: one.kind)
def test_the_stated_error_is_that_of_the_estimate(schedule):
    """And more, where the parts of t that the draws of a row have differ."""
    found, var, by_row = gaussian(schedule, 2.0, rows=200, dims=64, draws=2)
    off = found - by_row
    assert (off.mean(0).abs() < 4 * off.std(0) / math.sqrt(200) + 1e-4).all()
    ratio = (var.mean(0) / off.square().mean(0)).sqrt()
    assert ratio[0].item() == pytest.approx(1, abs=0.2)
    assert (ratio > 0.85).all() and (ratio < 4).all()


def test_an_estimate_that_is_off_by_a_constant_costs_its_square_times_half_the_signal_to_noise_ratio():
    mu = random(3, 2, 5)
    found = bounds(
        SCHEDULE, mu, torch.arange(3), denoise=lambda z, t: mu + 0.5, decode=nothing, taus=(4.0, 3.0), draws=50
    )
    cost = torch.tensor([[10 * 0.25 / 2 / tau**2 for tau in (4.0, 3.0)]] * 3, dtype=torch.float64)
    torch.testing.assert_close(found.kl_BT[:, 0], cost[:, 0], rtol=1e-12, atol=0)
    assert found.kl_var_BT[:, 0].max() < 1e-20
    torch.testing.assert_close(found.kl_BT, cost, rtol=1e-3, atol=0)
    # The same by time: ∫ ω dt from t* = 0.5 to 1, on a grid, is the half of 1/τ².
    t = torch.linspace(0.5, 1 - 1e-7, 200_001, dtype=torch.float64)
    assert torch.trapezoid(SCHEDULE.elbo_weight(t), t).item() == pytest.approx(1 / 18, rel=1e-6)


def test_the_noise_of_three_is_at_half_of_the_time():
    assert SCHEDULE.time_of_noise(3.0) == pytest.approx(0.5, abs=1e-12)
    for schedule in (SCHEDULE, Schedule("cosine"), Schedule("linear")):
        assert schedule.noise_of_time(schedule.time_of_noise(0.7)) == pytest.approx(0.7, rel=1e-12)


def test_training_with_elbo_minimises_the_same_integral():
    """The mean over times of training of weight times squared error is the latents' part at τ = σ_dec."""
    mu, rows = random(1, 2, 5).expand(20_000, -1, -1), torch.arange(20_000)
    config = DiffusionConfig(weighting="elbo")
    sampler = TimestepSampler(TimestepConfig(bins=4), config.t_min)
    sampler.p[:] = [0.1, 0.2, 0.5, 0.2]

    def shrunk(z_t, t):
        return 0.3 * z_t

    t_B = sampler.draw((rows.double() + 0.5) / len(rows))
    z_t = noised(SCHEDULE, mu, t_B, random(*mu.shape, seed=1))
    error_B = (shrunk(z_t, t_B) - mu).square().flatten(1).sum(1)
    trained = (loss_weights(config, sampler, t_B, DecoderNoise("additive", 2.0)) * error_B).mean().item()
    found = bounds(SCHEDULE, mu[:4_000], rows[:4_000], denoise=shrunk, decode=nothing, taus=(6.0, 2.0), draws=4)
    assert trained == pytest.approx(found.kl_BT[:, 1].mean().item(), rel=0.01)


# ----------------------------------------------------------------------------------------------------------------------
# Languages whose likelihood is known


class Language:
    """Sequences (S, L) with probabilities, and one latent each; its exact denoiser, and two decoders."""

    def __init__(self, tokens, p, mu):
        self.tokens, self.p, self.mu = tokens, p, mu

    def posterior(self, z_t, t):
        """p(sequence | z_t) (B, S), in logarithms."""
        alpha, sigma = (of.reshape(-1, 1) for of in SCHEDULE.alpha_sigma(t))
        far = (z_t.flatten(1)[:, None] - alpha[..., None] * self.mu.flatten(1)).square().sum(-1)
        return (self.p.log() - far / (2 * sigma**2)).log_softmax(-1)

    def denoise(self, z_t, t):
        return torch.einsum("bs,snc->bnc", self.posterior(z_t, t).exp(), self.mu)

    def found(self, repeats, joint=True, taus=TAUS, seed=0):
        """Bounds of every sequence, each `repeats` times: means (S, T) over these, with their standard errors."""
        which = torch.arange(len(self.p)).repeat_interleave(repeats)

        def decode(z_t, t):
            log_p = self.posterior(z_t, t)
            if joint:
                return -log_p.gather(-1, which[:, None]).squeeze(-1)
            total = torch.zeros(len(which), dtype=torch.float64)
            for place in range(self.tokens.shape[1]):
                alike = self.tokens[:, place] == self.tokens[which, place][:, None]
                total -= log_p.masked_fill(~alike, -torch.inf).logsumexp(-1)
            return total

        rows = torch.arange(len(which))
        made = bounds(
            SCHEDULE, self.mu[which], rows, denoise=self.denoise, decode=decode, taus=taus, draws=2, seed=seed
        )
        split = (made.decoding_BT + made.kl_BT).reshape(len(self.p), repeats, -1)
        return split.mean(1), split.std(1) / math.sqrt(repeats)


@pytest.fixture(scope="module")
def toy():
    """The toy of two tokens, whose latents are one-hot rows."""
    tokens = torch.tensor(list(itertools.product(range(3), repeat=2)))
    return Language(tokens, JOINT.flatten(), 2.0 * torch.eye(3, dtype=torch.float64)[tokens])


@pytest.fixture(scope="module")
def exact(toy):
    return toy.found(1_000)


@pytest.fixture(scope="module")
def coin():
    """Two texts of one token, whose latents are −1 and 1."""
    p = torch.tensor([0.25, 0.75], dtype=torch.float64)
    return Language(torch.tensor([[0], [1]]), p, torch.tensor([[[-1.0]], [[1.0]]], dtype=torch.float64))


def test_two_points_cost_the_logarithm_of_their_probability_at_every_noise_level(coin):
    mean, se = coin.found(5_000)
    assert ((mean + coin.p.log()[:, None]).abs() < 4.5 * se + 1e-6).all()
    entropy = (coin.p @ mean).tolist()
    assert entropy == pytest.approx([0.5623351446] * len(TAUS), abs=0.02)


@pytest.mark.slow
def test_of_two_points_it_is_flat_to_a_thousandth(coin):
    found = torch.stack([coin.p @ coin.found(200_000, seed=seed)[0] for seed in range(10)])
    assert (found.mean(0) - 0.5623351446).abs().max() < 1e-3


def test_with_the_joint_posterior_the_bound_is_the_entropy_at_every_noise_level(toy, exact):
    mean, se = exact
    assert ((mean + toy.p.log()[:, None]).abs() < 4.5 * se + 1e-6).all()
    off, error = toy.p @ mean - 1.7207866433, ((toy.p**2) @ se**2).sqrt()
    assert (off.abs() < 4 * error).all()
    assert error.max() < 0.03


@pytest.mark.slow
def test_the_bound_is_flat_over_the_noise_levels_to_a_thousandth(toy):
    found = torch.stack([toy.p @ toy.found(20_000, seed=seed)[0] for seed in range(48)])
    assert (found.mean(0) - 1.7207866433).abs().max() < 1e-3


def test_a_decoder_of_single_tokens_loses_what_they_tell_of_each_other_and_nothing_as_the_noise_goes(toy):
    """The gap is the total correlation of the tokens given z̃: all of it without a signal, none with little noise."""
    mean, _ = toy.found(1_500, joint=False, taus=(64.0, *TAUS, 0.125))
    gaps = (toy.p @ mean - 1.7207866433).tolist()
    first, second = JOINT.sum(1), JOINT.sum(0)
    correlation = (JOINT * (JOINT / (first[:, None] * second)).log()).sum().item()
    assert gaps[0] == pytest.approx(correlation, abs=0.02)
    assert all(gap > -0.02 for gap in gaps)
    assert gaps[1] > gaps[3] > gaps[5]
    assert abs(gaps[-1]) < 0.01


def test_a_wrong_denoiser_or_decoder_never_costs_less(toy, exact):
    right = toy.p @ exact[0]
    worse = Language(toy.tokens, torch.full_like(toy.p, 1 / 9), toy.mu)  # knows nothing of the language
    mean, _ = worse.found(1_000)
    found = toy.p @ mean
    assert found[0].item() == pytest.approx(math.log(9), abs=0.05)
    assert (found > right + 0.1).all()


# ----------------------------------------------------------------------------------------------------------------------
# Draws, and figures of many rows


def test_places_are_even_over_rows_and_draws_and_each_is_uniform_over_seeds():
    rows = torch.arange(512)
    for draw in range(2):
        places = likelihood.evenly(draw, 2, 3, rows, seed=0)
        assert draw / 2 < places.min() and places.max() < (draw + 1) / 2
        gaps = places.sort().values.diff()
        assert gaps.max() < 3 / 1024
        assert places.max() - places.min() > 0.49
    one = torch.cat([likelihood.evenly(0, 1, 0, rows[7:8], seed=seed) for seed in range(400)])
    assert one.mean().item() == pytest.approx(0.5, abs=0.06)
    assert one.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.03)


def test_a_rows_bound_does_not_depend_on_its_batch():
    mu, rows = random(6, 2, 3), torch.arange(100, 106)

    def found(part):
        made = bounds(SCHEDULE, mu[part], rows[part], denoise=lambda z, t: z, decode=nothing, taus=TAUS, draws=2)
        return made.decoding_BT + made.kl_BT

    torch.testing.assert_close(found(slice(None)), torch.cat([found(slice(0, 1)), found(slice(1, 6))]))


def test_default_levels_are_around_the_noise_of_the_decoders_training():
    assert levels(3.0)[6] == pytest.approx(3)
    assert (levels(3.0)[0], levels(3.0)[-1]) == pytest.approx((24, 3 / 8))
    assert all(high / low == pytest.approx(math.sqrt(2)) for high, low in itertools.pairwise(levels(3.0)))


def test_figures_are_sums_over_rows_by_their_tokens_with_and_without_the_ends():
    nats = np.array([10.0, 14.0, 12.0, 16.0])
    found = RowNats(np.arange(4, 8), nats, np.array([0.3, 0.4, 0.0, 0.0])).to_json(8)
    assert found["bits_per_token"] == pytest.approx(13 / 8 / math.log(2))
    assert found["bits_per_inner_token"] == pytest.approx(13 / 6 / math.log(2))
    assert found["nats_per_token"] == pytest.approx(13 / 8)
    assert found["perplexity"] == pytest.approx(math.exp(13 / 8))
    assert found["estimate_se"] == pytest.approx(0.5 / 4 / 8 / math.log(2))
    half = stats.t.ppf(0.975, 3) * nats.std(ddof=1) / 2 / 8 / math.log(2)
    assert found["interval"] == pytest.approx([13 / 8 / math.log(2) - half, 13 / 8 / math.log(2) + half])
    assert found["rows"][1] == {"row": 5, "loglikelihood": -14.0, "standard_error": 0.4}


def test_one_row_has_no_interval():
    assert RowNats(np.arange(1), np.array([10.0]), np.zeros(1)).to_json(8)["interval"] is None


def test_the_level_is_chosen_on_rows_that_are_not_reported():
    chosen_on, reported = likelihood.halves(9)
    assert sorted([*chosen_on, *reported]) == list(range(9))
    with pytest.raises(InputError, match="3 rows are too few"):
        likelihood.halves(3)


def test_the_rows_that_are_reported_are_of_the_same_documents_as_all_rows():
    """Where the second half of the store is another book, of dearer rows, the interval still has the mean of all."""
    nats = np.concatenate([np.full(500, 300.0), np.full(500, 330.0)]) + np.random.default_rng(0).normal(size=1000)
    _, reported = likelihood.halves(1000)
    found = RowNats(np.array(reported), nats[np.array(reported)], np.zeros(500)).to_json(64)
    low, high = found["interval"]
    assert low < nats.mean() / 64 / math.log(2) < high
