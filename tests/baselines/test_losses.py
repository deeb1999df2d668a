"""Losses of the discrete rivals: with the exact denoiser their integrals are the entropy of the language."""

import math

import numpy as np
import pytest
import torch
from toy_language import ENTROPY, JOINT, MASK, VOCAB, ExactNetwork, states

from ldlm.baselines import duo, mdlm
from ldlm.baselines.duo import Duo, position_losses
from ldlm.baselines.mdlm import MDLM
from ldlm.baselines.schedule import LogLinear
from ldlm.baselines.vocabulary import loss_by_parts, weighted_cross_entropy
from ldlm.model import token_loss

LINEAR = LogLinear(0.0)  # α = 1 − t
X = states(VOCAB, 2)


def expected(method, network, draws, z_BL, chance_BL):
    """E over x of the loss per sequence that z has, q(z|x) being the product of the chances (B, L)."""
    assert torch.equal(method.corrupt(X, draws)[chance_BL.prod(1) > 0], z_BL[chance_BL.prod(1) > 0])
    losses_B = method.losses(network, X, draws).loss_BL.sum(1)
    return (JOINT.flatten() * chance_BL.prod(1) * losses_B).nan_to_num().sum().item()


def mdlm_rate(t):
    total = 0.0
    for masked in states(2, 2).bool():
        masked_BL = masked.expand_as(X)
        draws = mdlm.Draws(torch.full((len(X),), t, dtype=torch.float64), masked_BL.double() * (1 - 1e-12))
        chance_BL = torch.where(masked_BL, torch.tensor(t, dtype=torch.float64), 1.0 - t)
        total += expected(
            MDLM(VOCAB, LINEAR), ExactNetwork(masks=True), draws, X.masked_fill(masked_BL, MASK), chance_BL
        )
    return total


def duo_rate(t, full=False):
    total = 0.0
    for z in states(VOCAB, 2):
        z_BL = z.expand_as(X)
        draws = duo.Draws(torch.full((len(X),), t, dtype=torch.float64), torch.ones(X.shape), z_BL)
        chance_BL = (1 - t) * (z_BL == X).double() + t / VOCAB
        total += expected(Duo(VOCAB, LINEAR), ExactNetwork(full=full), draws, z_BL, chance_BL)
    return total


def integral(rate, points):
    """∫ over (0, 1); u³(10 − 15u + 6u²) for t makes the ends flat."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    u = (nodes + 1) / 2
    t, slope = u**3 * (10 - 15 * u + 6 * u**2), 30 * u**2 * (1 - u) ** 2
    return sum(w / 2 * s * rate(x) for x, s, w in zip(t, slope, weights, strict=True))


@pytest.mark.parametrize(("t", "rate"), [(0.1, 1.344115), (0.5, 1.720787), (0.9, 2.097458)])
def test_mdlms_loss_at_a_time(t, rate):
    assert mdlm_rate(t) == pytest.approx(rate, abs=1e-6)


def test_mdlms_loss_is_the_entropy():
    assert integral(mdlm_rate, 20) == pytest.approx(ENTROPY, abs=1e-9)


@pytest.mark.parametrize(
    ("t", "rate", "of_full"), [(0.1, 3.055084, 5.688298), (0.5, 1.611131, 2.069802), (0.9, 0.380488, 0.386285)]
)
def test_duos_loss_at_a_time(t, rate, of_full):
    assert duo_rate(t) == pytest.approx(rate, abs=1e-6)
    assert duo_rate(t, full=True) == pytest.approx(of_full, abs=1e-6)


def test_duos_loss_is_the_entropy_if_the_estimate_leaves_the_tokens_own_noise_out():
    assert integral(duo_rate, 40) == pytest.approx(ENTROPY, abs=1e-5)


def test_duos_loss_of_the_posterior_given_all_noise_is_far_above_the_entropy():
    assert integral(lambda t: duo_rate(t, full=True), 40) == pytest.approx(2.680212, abs=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Duo's loss of a position


def of_position(x, z, p, alpha, slope=1.0, dtype=torch.float64):
    at = [torch.tensor([value], dtype=torch.float64) for value in (alpha, slope)]
    return position_losses(torch.tensor([p], dtype=dtype).log(), torch.tensor([x]), torch.tensor([z]), *at).item()


def test_duos_loss_of_a_position():
    p = (0.2, 0.5, 0.3)
    assert of_position(1, 1, p, 0.6) == pytest.approx(0.2670557865, abs=1e-9)
    assert of_position(1, 0, p, 0.6) == pytest.approx(1.4769529891, abs=1e-9)


@pytest.mark.parametrize(("x", "z"), [(2, 2), (2, 4)])
@pytest.mark.parametrize("alpha", [1e-3, 0.3, 0.999])
def test_duos_loss_is_the_sum_that_the_paper_has(x, z, alpha):
    vocab = 7
    p = torch.arange(1, vocab + 1, dtype=torch.float64).softmax(0)
    bar = [vocab * alpha * q + 1 - alpha for q in (torch.eye(vocab, dtype=torch.float64)[x], p)]
    r, r_hat = (b / b[z] for b in bar)
    terms = r * (r / r_hat).log() - r + r_hat
    found = of_position(x, z, p.tolist(), alpha)
    assert found == pytest.approx((terms.sum() / (vocab * alpha)).item(), rel=1e-9)


def test_duos_loss_is_the_limit_of_the_divergence_of_posteriors():
    x, z, alpha, dt = 1, 0, 0.6, 1e-6
    one_hot, p = torch.eye(3, dtype=torch.float64)[x], torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    z_11 = torch.tensor([[z]])
    q, q_theta = (
        duo.uniform_posterior(of[z].view(1, 1), alpha, alpha + dt, 3).law(z_11, of.view(1, 1, 3), None).flatten()
        for of in (one_hot, p)
    )
    divergence = (q * (q / q_theta).log()).sum().item() / dt
    assert of_position(x, z, p.tolist(), alpha) == pytest.approx(divergence, rel=1e-4)


def test_duos_loss_in_float32_is_near_that_in_float64():
    vocab = 50_257
    logits = torch.randn(64, vocab, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    x, z = torch.arange(64), torch.arange(64) * (torch.arange(64) % 2)
    alpha = torch.linspace(1e-3, 1 - 1e-6, 64, dtype=torch.float64)
    exact = position_losses(logits, x, z, alpha, torch.ones_like(alpha))
    rounded = position_losses(logits.float(), x, z, alpha, torch.ones_like(alpha))
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-3, atol=1e-2)


# ----------------------------------------------------------------------------------------------------------------------
# Draws


def test_mdlms_masks_are_as_many_as_the_schedule_says():
    method, batch = MDLM(7), 2_000
    draws = method.draw(seed=1, step=2, rows_B=torch.arange(batch), batch=batch, seq_len=8)
    z = method.corrupt(torch.zeros(batch, 8, dtype=torch.int64), draws)
    masked, t = (z == 7).double(), draws.t_B
    for part, times in zip(masked.chunk(4), t.chunk(4), strict=True):
        assert part.mean().item() == pytest.approx(times.mean().item() * 0.999, abs=0.03)


def test_duos_noise_is_uniform_over_all_tokens():
    method, batch = Duo(7), 2_000
    draws = method.draw(seed=1, step=2, rows_B=torch.arange(batch), batch=batch, seq_len=8)
    z = method.corrupt(torch.full((batch, 8), 3), draws)
    share = torch.bincount(z.flatten(), minlength=7) / z.numel()
    kept = method.schedule.alpha(draws.t_B).mean().item()
    expected_share = [kept * (token == 3) + (1 - kept) / 7 for token in range(7)]
    assert share.tolist() == pytest.approx(expected_share, abs=0.015)


@pytest.mark.parametrize("method", [MDLM(7), Duo(7)])
def test_a_rows_draws_do_not_depend_on_the_process_that_makes_them(method):
    whole = method.draw(seed=1, step=2, rows_B=torch.arange(6), batch=6, seq_len=4)
    parts = [method.draw(seed=1, step=2, rows_B=rows, batch=6, seq_len=4) for rows in torch.arange(6).chunk(2)]
    for all_rows, *pieces in zip(whole, *parts, strict=True):
        assert torch.equal(all_rows, torch.cat(pieces))


class Head:
    """A head over states of width 5 that counts its positions."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.matrix = torch.randn(5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
        self.positions, self.head_parameters = 0, (self.matrix,)

    def logits(self, h_W):
        self.positions += h_W.shape[:-1].numel()
        return (h_W @ self.matrix).tanh()


@pytest.mark.parametrize("at_once", [30, 72], ids=["in parts", "whole"])
def test_the_loss_of_parts_has_the_gradient_of_all_logits_and_makes_each_once(monkeypatch, at_once):
    monkeypatch.setitem(token_loss.CHUNK, "cpu", at_once)
    h = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    x, head = torch.arange(12).view(3, 4) % 6, Head()
    weight = torch.linspace(0, 2, 12, dtype=torch.float64).view(3, 4)
    chances = (h @ head.matrix).tanh().softmax(-1).gather(-1, x[..., None]).squeeze(-1)
    whole = -chances.log() * weight
    expected = torch.autograd.grad(0.7 * whole.mean(), (h, head.matrix))

    found = loss_by_parts(weighted_cross_entropy, head, h, 6, x, weight)
    torch.testing.assert_close(found.loss_BL, whole.detach())
    torch.testing.assert_close(found.mean, whole.mean())
    assert not found.loss_BL.requires_grad  # its gradient would be wrong: that is of the mean alone
    torch.testing.assert_close(torch.autograd.grad(0.7 * found.mean, (h, head.matrix)), expected)
    assert head.positions == 12

    with torch.no_grad():
        assert all(map(torch.equal, loss_by_parts(weighted_cross_entropy, head, h, 6, x, weight), found))


def test_mdlms_weight_is_one_over_t_whatever_epsilon():
    for eps in (0.0, 1e-3, 0.3):
        schedule, t = LogLinear(eps), torch.tensor([0.25])
        assert schedule.slope / (1 - schedule.alpha(t)).item() == pytest.approx(4)
    assert math.isclose(LogLinear(1e-3).time(LogLinear(1e-3).alpha(torch.tensor(0.3)).item()), 0.3, rel_tol=1e-6)
