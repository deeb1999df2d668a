"""CANDI: σ by rank, the W-wide noise against the V-wide, the loss in closed form, its steps, what it draws."""

import itertools
import math

import numpy as np
import pytest
import torch
from randomness import random
from scipy import integrate
from scipy.stats import chi2, norm
from toy_language import JOINT, teach

from ldlm.baselines.backbone import Backbone
from ldlm.baselines.candi import CANDI, CANDISampler, Draws, RankNoise, unit_rows
from ldlm.baselines.interface import draw_texts
from ldlm.config import BackboneConfig, CANDIConfig, CANDINoiseConfig, DenoiserConfig
from ldlm.errors import InputError

SMALL = DenoiserConfig(layers=1, width=8, heads=2, time_dim=6)
VOCAB, LENGTH = 20, 5
RANKS = RankNoise.of(VOCAB, CANDINoiseConfig())
FEW = CANDINoiseConfig(r_low=0.05, r_high=0.2)  # ranks that three tokens can have


def network(dtype=torch.float64):
    """A backbone with random weights: at initialisation every token is equally likely."""
    made, generator = Backbone(SMALL, BackboneConfig(), vocab=VOCAB, embeddings=VOCAB + 1), torch.Generator()
    generator.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return made.to(dtype)


def sampler(steps=6, **settings):
    return CANDISampler(VOCAB, LENGTH, RANKS, CANDIConfig(steps=steps, **settings))


# ----------------------------------------------------------------------------------------------------------------------
# The noise


@pytest.mark.parametrize(
    ("low", "high", "sigmas"),
    [
        (0.05, 0.25, [0.4299, 0.5518, 0.6823, 0.8402, 1.0484]),
        (0.01, 0.25, [0.3040, 0.4791, 0.6278, 0.8055, 1.0484]),
        (0.05, 0.45, [0.4299, 0.6823, 1.0484, 1.8352, 5.6281]),
    ],
)
def test_the_published_sigmas(low, high, sigmas):
    ranks = RankNoise.of(50_258, CANDINoiseConfig(r_low=low, r_high=high))
    hidden = torch.tensor([0, 0.25, 0.5, 0.75, 1])
    assert ranks.sigma(hidden).tolist() == pytest.approx(sigmas, abs=6e-4 if high > 0.4 else 6e-5)


def test_the_default_ranks_are_those_of_the_published_run():
    assert (RANKS.low, RANKS.high) == (0.05, 0.25)


def test_sigma_gives_the_true_token_its_rank():
    sigma = RANKS.sigma(torch.tensor(0.5)).item()
    y = sigma * random(50_000, VOCAB)
    y[:, 4] += 1
    shares = (y > y[:, 4:5]).double().mean(1)
    assert shares.mean().item() == pytest.approx(0.15, abs=4 * shares.std().item() / 50_000**0.5)


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.34), (0.3, 0.2)])
def test_ranks_that_no_noise_can_give_are_refused(low, high):
    with pytest.raises(InputError, match=r"must rise, and stay below 0\.333333, the rank of pure noise among 3 tokens"):
        RankNoise.of(3, CANDINoiseConfig(r_low=low, r_high=high))


# ----------------------------------------------------------------------------------------------------------------------
# Training


def test_the_input_is_the_mask_beside_the_noisy_one_hot_vector():
    """With tokens and mask along the axes, whatever their lengths, y can be read off."""
    method, embedding = CANDI(8, 9, RankNoise.of(8, CANDINoiseConfig())), torch.diag(torch.arange(1.0, 10).double())
    x_BL = torch.tensor([[2, 0, 7]])
    draws = Draws(torch.tensor([0.4], dtype=torch.float64), torch.tensor([[0.9, 0.2, 0.9]]), random(1, 3, 8))
    found = method.corrupt(embedding, x_BL, draws)[0]
    sigma = -1 / (math.sqrt(2) * norm.ppf((0.05 + 0.2 * 0.999 * 0.4) * 8 / 7))
    for i in range(3):
        y = torch.nn.functional.one_hot(x_BL[0, i], 8) + sigma * draws.zeta_BLR[0, i]
        expected = torch.cat([y / math.sqrt(1 + sigma**2) / 2, torch.tensor([0.5]).double()])
        if i == 1:  # revealed
            expected = torch.nn.functional.one_hot(x_BL[0, i], 9).double()
        assert torch.allclose(found[i], expected, rtol=0, atol=1e-12)


def test_the_noise_has_the_covariance_of_v_numbers_through_the_embedding():
    model, method = network(), CANDI(VOCAB, 8, RANKS)
    unit = model.embedding / model.embedding.norm(dim=1, keepdim=True)
    assert torch.allclose(unit_rows(model.embedding), unit)
    zeta, t_B = 8**0.5 * torch.eye(8, dtype=torch.float64)[:, None], torch.full((8,), 0.6, dtype=torch.float64)
    e = method.corrupt(model.embedding, torch.full((8, 1), 3), Draws(t_B, torch.ones(8, 1), zeta))[:, 0]
    sigma = RANKS.sigma(torch.tensor(0.999 * 0.6, dtype=torch.float64)).item()
    mean = (unit[-1] + unit[3] / math.sqrt(1 + sigma**2)) / 2
    expected = sigma**2 / (1 + sigma**2) / 4 * unit[:-1].T @ unit[:-1]
    assert torch.allclose((e - mean).T @ (e - mean) / 8, expected, rtol=0, atol=1e-12)


class TwoTokens:
    """p(x | y) of one token, 0 or 1, with these prior probabilities: ∝ p(x) e^(y[x]/σ²)."""

    embedding = torch.eye(3, dtype=torch.float64)
    prior = torch.tensor([0.3, 0.7], dtype=torch.float64)

    def __init__(self, ranks):
        self.ranks = ranks

    def hidden(self, e_BLW, condition_B):
        sigma = self.ranks.sigma(1 - torch.exp(-condition_B))[:, None, None]
        y = 2 * (1 + sigma**2).sqrt() * e_BLW[..., :2]
        return self.prior.log() + y / sigma**2

    def logits(self, h):
        return h


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_loss_of_an_exact_denoiser_is_the_entropy_that_the_noise_leaves(t):
    """Of two tokens: y[0] − y[1] is normal with mean ±1 and variance 2σ², so the entropy is an integral over a line."""
    ranks = RankNoise.of(2, FEW)
    sigma = ranks.sigma(torch.tensor(0.999 * t, dtype=torch.float64)).item()
    prior = TwoTokens.prior.tolist()

    def integrand(d):
        joint = [p * norm.pdf(d, mean, math.sqrt(2) * sigma) for p, mean in zip(prior, (1, -1), strict=True)]
        return -sum(j * math.log(j / sum(joint)) for j in joint if j > 0)

    entropy = integrate.quad(integrand, -12 * sigma - 1, 12 * sigma + 1, epsabs=1e-12)[0]

    # The product's loss at the nodes of a quadrature over both numbers of noise
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    zeta = torch.tensor(list(itertools.product(nodes, nodes)))[:, None]
    weight = torch.tensor([a * b for a, b in itertools.product(weights, weights)]) / (2 * math.pi)
    times, method = torch.full((len(zeta),), t, dtype=torch.float64), CANDI(2, 3, ranks)
    total = 0.0
    for x in (0, 1):
        draws = Draws(times, torch.ones(len(zeta), 1), zeta)
        loss = method.losses(TwoTokens(ranks), torch.full((len(zeta), 1), x), draws).loss_BL[:, 0]
        total += prior[x] * (weight * loss).sum().item()
    assert total == pytest.approx(entropy / t, rel=1e-6)


def test_revealed_tokens_cost_nothing_and_the_others_cross_entropy_over_t():
    model, method = network(), CANDI(VOCAB, 8, RANKS)
    x_BL = torch.randint(VOCAB, (6, LENGTH), generator=torch.Generator().manual_seed(0))
    draws = method.draw(seed=0, step=0, rows_B=torch.arange(6), batch=6, seq_len=LENGTH)
    revealed_BL = draws.u_BL < 1 - 0.999 * draws.t_B[:, None]
    assert 3 < revealed_BL.sum() < 27
    logits = model(method.corrupt(model.embedding, x_BL, draws), -(1 - 0.999 * draws.t_B).log())
    chance_BL = logits.softmax(-1).gather(-1, x_BL[..., None]).squeeze(-1)
    expected = torch.where(revealed_BL, 0.0, -chance_BL.log() / draws.t_B[:, None])
    assert torch.allclose(method.losses(model, x_BL, draws).loss_BL, expected, rtol=0, atol=1e-12)


def test_a_row_draws_the_same_in_any_batch():
    method = CANDI(VOCAB, 8, RANKS)
    together = method.draw(seed=1, step=4, rows_B=torch.arange(6), batch=6, seq_len=LENGTH)
    alone = method.draw(seed=1, step=4, rows_B=torch.tensor([4, 1]), batch=6, seq_len=LENGTH)
    assert all(torch.equal(a, t[[4, 1]]) for a, t in zip(alone, together, strict=True))


def test_the_times_are_stratified_above_the_smallest():
    draws = CANDI(VOCAB, 8, RANKS).draw(seed=1, step=4, rows_B=torch.arange(4_000), batch=4_000, seq_len=1)
    assert draws.t_B.min() > 1e-3
    assert ((draws.t_B - 1e-3) / 0.999 * 4_000).long().tolist() == list(range(4_000))


def test_a_few_steps_learn_texts_that_agree_with_themselves():
    torch.manual_seed(0)
    model, method = Backbone(SMALL, BackboneConfig(), vocab=VOCAB, embeddings=VOCAB + 1), CANDI(VOCAB, 8, RANKS)
    teach(method, model, torch.tensor([3, 7, 11, 12]).repeat(8)[:, None].expand(-1, LENGTH))
    drawn = draw_texts(sampler(16), model, torch.arange(200))
    alike = (drawn.tokens_BL == drawn.tokens_BL[:, :1]).all(1)
    kinds, counts = drawn.tokens_BL[alike, 0].unique(return_counts=True)
    assert alike.double().mean() > 0.7
    assert kinds.tolist() == [3, 7, 11, 12]
    assert counts.min() > 10
    assert drawn.rows == drawn.evaluations == 16


# ----------------------------------------------------------------------------------------------------------------------
# The sampler


def test_the_published_grid():
    """t from 0.999 to 1e-5, while the share that becomes clean has (1 − 1e-5)/N."""
    grid = sampler(4).grid
    t = [0.999, 0.7492525, 0.499505, 0.2497575, 1e-5]
    assert [row.condition for row in grid] == pytest.approx([-math.log(1 - 0.999 * x) for x in t[:4]])
    assert [row.cleans for row in grid] == pytest.approx([0.9999900 / 4 / x if x > 0.25 else 1 for x in t[:4]])
    sigma = RANKS.sigma(torch.tensor([0.999 * x for x in t])).tolist()
    assert [row.sigma for row in grid] == pytest.approx(sigma[:4])
    assert [row.sigma_next for row in grid] == pytest.approx(sigma[1:])


class Recorded:
    """A network whose inputs are kept."""

    def __init__(self, model):
        self.model, self.embedding, self.seen = model, model.embedding, []

    def hidden(self, e_BLW, condition_B):
        self.seen.append((e_BLW, condition_B))
        return self.model.hidden(e_BLW, condition_B)

    def logits(self, h):
        return self.model.logits(h)


@pytest.mark.parametrize("update", ["published", "flow"])
def test_the_steps_are_the_published_ones_on_a_state_as_wide_as_the_vocabulary(update):
    model, chain = Recorded(network()), sampler(6, update=update, step_size=0.7)
    unit = model.embedding / model.embedding.norm(dim=1, keepdim=True)
    t = torch.linspace(0.999, 1e-5, 7, dtype=torch.float64)
    sigma = RANKS.sigma(0.999 * t)
    y = sigma[0] * random(3, LENGTH, VOCAB)
    state = chain.begin(model, torch.arange(3))._replace(y_BLW=y @ unit[:-1])
    for i in range(6):
        before, state = state, chain.step(model, state, i)
        # What the network saw: σ of the row after, and t of this one
        e, condition = model.seen[-1]
        expected = (unit[-1] + y @ unit[:-1] / (1 + sigma[i + 1] ** 2).sqrt()) / 2
        expected = torch.where(before.clean_BL[..., None], unit[before.token_BL], expected)
        assert torch.allclose(e, expected, rtol=0, atol=1e-12)
        assert condition.item() == pytest.approx(-math.log(1 - 0.999 * t[i].item()))
        # Clean tokens stay; the noisy vector moves towards those that were drawn.
        assert torch.equal(state.token_BL[before.clean_BL], before.token_BL[before.clean_BL])
        assert (state.clean_BL | ~before.clean_BL).all()
        power = 2 if update == "published" else 1
        drawn = torch.nn.functional.one_hot(state.token_BL, VOCAB).double()
        y = y - 0.7 * (sigma[i] - sigma[i + 1]) * (y - drawn) / sigma[i + 1] ** power
        assert torch.allclose(state.y_BLW, y @ unit[:-1], rtol=0, atol=1e-12)
    assert state.clean_BL.double().mean() > 0.9


class Masked:
    """p(x_i | clean tokens) of the toy language: what is beside the mask is not looked at."""

    embedding = torch.eye(4, dtype=torch.float64)

    def hidden(self, e_BLW, condition_B):
        # A clean token is one of length 1 along its axis; the mask leaves 1/2 along its own.
        seen = torch.where(e_BLW[..., 3:] > 0.25, 1.0, e_BLW[..., :3])
        first = torch.einsum("ab,nb->na", JOINT, seen[:, 1])
        second = torch.einsum("ab,na->nb", JOINT, seen[:, 0])
        return torch.stack([first, second], dim=1).log()

    def logits(self, h):
        return h


def enumerated(chain):
    """The law of texts (3, 3) when the noise is not looked at: positions become clean alone or together."""
    first, second = JOINT.sum(1), JOINT.sum(0)
    law, both_noisy = torch.zeros(3, 3, dtype=torch.float64), 1.0
    for row in chain.grid:
        p = row.cleans
        if row is chain.grid[-1]:
            # Whatever is not clean yet keeps what it draws now, in view of the clean tokens only.
            law += both_noisy * first[:, None] * second[None]
            return law
        law += both_noisy * p * p * first[:, None] * second[None]
        law += 2 * both_noisy * p * (1 - p) * JOINT  # the other one is drawn again, given this one
        both_noisy *= (1 - p) ** 2
    raise AssertionError


@pytest.mark.parametrize(("steps", "drawing"), [(1, "exact"), (3, "exact"), (3, "race"), (8, "exact")])
def test_texts_have_the_law_that_enumeration_gives(steps, drawing):
    chain = CANDISampler(3, 2, RankNoise.of(3, FEW), CANDIConfig(steps=steps, drawing=drawing))
    count = 2_000 if drawing == "race" else 20_000
    tokens = draw_texts(chain, Masked(), torch.arange(count)).tokens_BL
    found = torch.bincount(3 * tokens[:, 0] + tokens[:, 1], minlength=9).view(3, 3)
    expected = count * enumerated(chain)
    assert ((found - expected) ** 2 / expected).sum().item() < chi2.ppf(0.9999, 8)
    assert ((found - count * JOINT.sum(1)[:, None] * JOINT.sum(0)) ** 2 / expected).sum() > 60 or steps == 1


def test_tokens_are_drawn_anew_in_every_row():
    chain = CANDISampler(3, 2, RankNoise.of(3, FEW), CANDIConfig(steps=10_000))
    first = chain.step(Masked(), chain.begin(Masked(), torch.arange(10_000)), 0)
    second = chain.step(Masked(), first, 1)
    agree = (first.token_BL[:, 0] == second.token_BL[:, 0]).double().mean().item()
    assert agree == pytest.approx((JOINT.sum(1) ** 2).sum().item(), abs=0.02)


def test_temperature_sharpens_what_is_drawn():
    chain = CANDISampler(3, 2, RankNoise.of(3, FEW), CANDIConfig(steps=1, temperature=0.5))
    tokens = draw_texts(chain, Masked(), torch.arange(20_000)).tokens_BL
    sharp = JOINT.sum(1) ** 2 / (JOINT.sum(1) ** 2).sum()
    expected = 20_000 * sharp
    assert ((tokens[:, 0].bincount(minlength=3) - expected) ** 2 / expected).sum().item() < chi2.ppf(0.9999, 2)


@pytest.mark.parametrize("drawing", ["exact", "race"])
def test_a_temperature_that_leaves_no_finite_number_is_refused(drawing):
    with pytest.raises(InputError, match="take a --temperature nearer to 1"):
        draw_texts(sampler(temperature=1e-308, drawing=drawing), network(), torch.arange(2))


def test_a_text_depends_on_its_seed_and_not_on_its_batch():
    model = network()
    together = draw_texts(sampler(), model, torch.arange(10)).tokens_BL
    assert torch.equal(draw_texts(sampler(), model, torch.tensor([7, 2])).tokens_BL, together[[7, 2]])
    assert len(together.unique(dim=0)) > 5


def test_the_start_has_the_noise_of_the_first_time():
    state = sampler().begin(network(), torch.arange(3_000))
    unit = unit_rows(network().embedding)[:-1]
    expected = RANKS.sigma(torch.tensor(0.999**2)) ** 2 * unit.T @ unit
    found = torch.einsum("blw,blu->wu", state.y_BLW, state.y_BLW) / (3_000 * LENGTH)
    assert ((found - expected).abs() / expected.diagonal().max()).max() < 0.06
    assert not state.clean_BL.any()
