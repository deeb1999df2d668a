"""Duo's curriculum: the law of z, the softness of the input, and its loss, of each relaxation."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from toy_language import JOINT, VOCAB, ExactNetwork, states

from ldlm.baselines.argmax import keep_at_gamma
from ldlm.baselines.curriculum import (
    Curriculum,
    CurriculumDraws,
    Discrete,
    Full,
    TopK,
    distinct,
    largest_normals,
    log_mean_below,
)
from ldlm.baselines.duo import Draws, Duo, position_losses
from ldlm.config import DuoCurriculumConfig
from ldlm.errors import InputError

LIKELY = 1e-3


def relaxed(relaxation, gamma, *, rows=400, length=50, x=3, step=0):
    """z (R·L,) and the weights (R·L, V) with which tokens enter the input."""
    embedding = torch.eye(relaxation.vocab, dtype=torch.float64)
    x_BL = torch.full((rows, length), x)
    numbers = relaxation.draw(0, step, torch.arange(rows), length)
    gamma_B = torch.full((rows,), gamma, dtype=torch.float64)
    found = relaxation.relax(embedding, x_BL, gamma_B, numbers)
    return found.z_BL.flatten(), found.e_BLW.flatten(0, 1)


@pytest.mark.parametrize("relaxation", [Full(7, 0.01), TopK(7, 0.01, 2), TopK(7, 0.01, 6), Discrete(7)])
@pytest.mark.parametrize("gamma", [-1.0, 2.0])
def test_z_is_a_uniform_state_process(relaxation, gamma):
    z, _ = relaxed(relaxation, gamma)
    alpha = keep_at_gamma(torch.tensor(gamma), 7)[0].item()
    law = np.full(7, (1 - alpha) / 7)
    law[3] += alpha
    assert chisquare(np.bincount(z, minlength=7), law * len(z)).pvalue > LIKELY


@pytest.mark.parametrize("relaxation", [Full(7, 1e-3), TopK(7, 1e-3, 2)])
def test_the_largest_weight_is_that_of_z(relaxation):
    z, weights = relaxed(relaxation, 0.0, rows=40)
    assert torch.equal(weights.argmax(-1), z)


@pytest.mark.parametrize("k", [2, 5, 11])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_largest_entries_weigh_as_in_the_whole_vocabulary(k, temperature):
    # Over k = V − 1 entries the law is the same; over fewer, the rest is in the sum of the softmax by its mean.
    (_, whole), (_, largest) = (relaxed(one, -0.5) for one in (Full(12, temperature), TopK(12, temperature, k)))
    close = {"abs": 0.01 if k == 11 else 0.03}
    assert largest[:, 3].mean().item() == pytest.approx(whole[:, 3].mean().item(), **close)
    assert largest.max(-1).values.mean().item() == pytest.approx(whole.max(-1).values.mean().item(), **close)
    if k == 11:
        assert kstest(largest[:, 3], whole[:, 3]).pvalue > LIKELY
        assert largest.sum(-1).min().item() == pytest.approx(1)
    else:
        assert largest.sum(-1).max().item() <= 1 + 1e-9


@pytest.mark.parametrize("gamma", [-3.55, pytest.param(-2.7, marks=pytest.mark.slow), -1.85])
def test_the_published_temperature_leaves_few_positions_soft(gamma):
    relaxation, rows = TopK(50_257, 1e-3, 5), 1_500
    x_BL = torch.full((rows, 1), 17)
    numbers = relaxation.draw(0, 0, torch.arange(rows), 1)
    weights = largest_weights(relaxation, x_BL, torch.full((rows,), gamma, dtype=torch.float64), numbers)
    assert 0.9895 < weights.mean().item() < 0.9995
    assert 0.93 < (weights > 0.99).double().mean().item() < 0.995


def largest_weights(relaxation, x_BL, gamma_B, numbers):
    """The weight of z itself, by an embedding in which every token but z is 0, row by row."""
    z_BL = relaxation.relax(torch.ones(relaxation.vocab, 1), x_BL, gamma_B, numbers).z_BL
    found = []
    for row, z in enumerate(z_BL[:, 0].tolist()):
        embedding = torch.zeros(relaxation.vocab, 1)
        embedding[z] = 1
        part = slice(row, row + 1)
        found.append(relaxation.relax(embedding, x_BL[part], gamma_B[part], [n[part] for n in numbers]).e_BLW.squeeze())
    return torch.stack(found)


def test_a_gradient_reaches_the_embedding():
    embedding = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    for one in (Full(7, 0.1), TopK(7, 0.1, 3), Discrete(7)):
        numbers, x_BL = one.draw(0, 0, torch.arange(2), 5), torch.zeros(2, 5, dtype=torch.int64)
        e_BLW = one.relax(embedding, x_BL, torch.zeros(2, dtype=torch.float64), numbers).e_BLW
        (gradient,) = torch.autograd.grad(e_BLW.sum(), embedding)
        assert e_BLW.shape == (2, 5, 4) and gradient.abs().sum() > 0


# ----------------------------------------------------------------------------------------------------------------------
# Pieces


def test_the_largest_of_normal_numbers_have_their_law():
    u = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = torch.randn(20_000, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, found = drawn.sort(-1, descending=True).values[:, :3], largest_normals(u, 9)
    assert (found.diff(dim=-1) <= 0).all()
    for of_found, of_expected in zip(found.T, expected.T, strict=True):
        assert kstest(of_found, of_expected).pvalue > LIKELY
    gaps = [(of[:, 0] - of[:, 1]).mean().item() for of in (found, expected)]
    assert gaps[0] == pytest.approx(gaps[1], rel=0.03)
    assert largest_normals(torch.tensor([[1e-30, 1 - 2.0**-53]], dtype=torch.float64), 50_256).isfinite().all()


@pytest.mark.parametrize(("bound", "slope"), [(0.3, 0.5), (4.0, 10.0), (-2.0, 3.0), (3.0, -1.0)])
def test_the_mean_below_a_bound_is_the_integral(bound, slope):
    n = torch.linspace(-12, bound, 400_001, dtype=torch.float64)
    density = (-n.square() / 2).exp()
    exact = torch.trapezoid((slope * n).exp() * density, n) / torch.trapezoid(density, n)
    found = log_mean_below(*(torch.tensor(value, dtype=torch.float64) for value in (bound, slope)))
    assert found.item() == pytest.approx(exact.log().item(), abs=1e-6)


def test_the_mean_below_a_bound_at_the_published_temperature_is_finite():
    found = log_mean_below(torch.tensor(4.0, dtype=torch.float64), torch.tensor(950.0, dtype=torch.float64))
    assert 3_700 < found.item() < 4 * 950  # the largest of them would be 4 · 950


def test_tokens_are_distinct_and_every_order_is_as_likely():
    u = torch.rand(24_000, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = distinct(u, torch.full((24_000, 1), 2), 5).squeeze(1)
    orders, counts = found.unique(dim=0, return_counts=True)
    assert len(orders) == 4 * 3 * 2
    assert all(len({*order, 2}) == 4 for order in orders.tolist())
    assert chisquare(counts).pvalue > LIKELY


# ----------------------------------------------------------------------------------------------------------------------
# The curriculum


def test_its_ends_are_published_or_depend_on_the_vocabulary():
    found = Curriculum.of(DuoCurriculumConfig(), 50_257, 1_000_000)
    assert (found.gamma_min, found.gamma_max) == pytest.approx((-3.565, -1.855), abs=1e-3)
    assert found.steps == 500_000
    published = Curriculum.of(DuoCurriculumConfig(gamma_min=-3.55, gamma_max=-1.85), 50_257, 10)
    assert (published.gamma_min, published.gamma_max, published.steps) == (-3.55, -1.85, 5)
    assert Curriculum.of(DuoCurriculumConfig(kind="none"), 50_257, 10) is None


def test_ends_in_the_wrong_order_and_too_many_entries_are_refused():
    with pytest.raises(InputError, match="gamma_min=-1 must be less than gamma_max=-2"):
        Curriculum.of(DuoCurriculumConfig(gamma_min=-1.0, gamma_max=-2.0), 100, 10)
    with pytest.raises(InputError, match="top_k=5 must be less than the 5 tokens"):
        Curriculum.of(DuoCurriculumConfig(), 5, 10)


def test_it_ends_with_its_last_step():
    method = Duo(7, curriculum=Curriculum.of(DuoCurriculumConfig(), 7, 10))
    kinds = [type(method.draw(seed=0, step=step, rows_B=torch.arange(2), batch=2, seq_len=3)) for step in (0, 4, 5, 9)]
    assert kinds == [CurriculumDraws, CurriculumDraws, Draws, Draws]


def test_a_rows_numbers_do_not_depend_on_the_process_that_makes_them():
    for kind in ("top-k", "full", "discrete"):
        curriculum = Curriculum.of(DuoCurriculumConfig(kind=kind), 7, 10)
        draw = lambda rows, draws=curriculum.draw: draws(seed=1, step=2, rows_B=rows, batch=6, seq_len=4)  # noqa: E731
        whole, parts = draw(torch.arange(6)), [draw(rows) for rows in torch.arange(6).chunk(3)]
        assert torch.equal(whole.gamma_B, torch.cat([part.gamma_B for part in parts]))
        for index, numbers in enumerate(whole.numbers):
            assert torch.equal(numbers, torch.cat([part.numbers[index] for part in parts]))


def test_its_loss_is_the_part_of_the_nelbo_between_its_ends():
    curriculum = Curriculum.of(DuoCurriculumConfig(kind="discrete"), VOCAB, 10)
    nodes, weights = np.polynomial.legendre.leggauss(40)

    def mean_over_t(alphas_and_slopes):
        return sum(w / 2 * slope * rate(alpha) for w, (alpha, slope) in zip(weights, alphas_and_slopes, strict=True))

    gamma = curriculum.gamma_min + torch.from_numpy((nodes + 1) / 2) * (curriculum.gamma_max - curriculum.gamma_min)
    of_curriculum = zip(*(found.tolist() for found in curriculum.alpha_slope(gamma)), strict=True)
    of_alpha = [(0.05 + 0.9 * (node + 1) / 2, 0.9) for node in nodes]
    assert mean_over_t(of_curriculum) == pytest.approx(mean_over_t(of_alpha), abs=1e-6)


def rate(alpha):
    """The NELBO's rate at −dα/dt = 1, of the toy language with its exact denoiser."""
    x_BL, total = states(VOCAB, 2), 0.0
    for z in states(VOCAB, 2):
        z_BL = z.expand_as(x_BL)
        chance_B = (alpha * (z_BL == x_BL).double() + (1 - alpha) / VOCAB).prod(1)
        logits_BLV = ExactNetwork().hidden(torch.eye(VOCAB)[z_BL], -torch.tensor([alpha], dtype=torch.float64).log())
        flat = torch.full((x_BL.numel(),), alpha, dtype=torch.float64), torch.ones(x_BL.numel(), dtype=torch.float64)
        losses_P = position_losses(logits_BLV.flatten(0, 1), x_BL.flatten(), z_BL.flatten(), *flat)
        total += (JOINT.flatten() * chance_B * losses_P.view_as(x_BL).sum(1)).sum().item()
    return total


def test_the_relaxed_loss_trains_a_network_on_what_z_shows():
    # With T → 0 the three relaxations have the same loss, but for chance.
    x_BL = states(VOCAB, 2).repeat_interleave(200, 0)
    found = {}
    for kind in ("top-k", "full", "discrete"):
        config = DuoCurriculumConfig(kind=kind, temperature=1e-4, top_k=2)
        method = Duo(VOCAB, curriculum=Curriculum.of(config, VOCAB, 10))
        draws = method.draw(seed=0, step=0, rows_B=torch.arange(len(x_BL)), batch=len(x_BL), seq_len=2)
        order = torch.randperm(len(x_BL), generator=torch.Generator().manual_seed(0))
        losses_B = method.losses(ExactNetwork(), x_BL[order], draws).loss_BL.sum(1)
        found[kind] = (losses_B * JOINT.flatten().repeat_interleave(200)[order]).sum().item() / 200
    assert found["top-k"] == pytest.approx(found["discrete"], rel=0.1)
    assert found["full"] == pytest.approx(found["discrete"], rel=0.1)
