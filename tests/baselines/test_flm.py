"""FLM: the W-wide state against the V-wide one, the sampler with an exact denoiser, the loss, seeds and batches."""

import itertools

import numpy as np
import pytest
import torch
from randomness import random
from scipy.stats import qmc
from toy_language import JOINT, distance, teach

from ldlm import noise
from ldlm.baselines.argmax import Unwarp, warped
from ldlm.baselines.backbone import Backbone
from ldlm.baselines.flm import FLM, Draws, FLMSampler, FlowState, euler
from ldlm.baselines.interface import draw_texts
from ldlm.config import DenoiserConfig, FLMBackboneConfig, FLMConfig

SMALL = DenoiserConfig(layers=1, width=8, heads=2, time_dim=6)
VOCAB, LENGTH = 20, 5


def network(vocab=VOCAB, dtype=torch.float64):
    """A backbone with random weights: at initialisation every token is equally likely."""
    made, generator = Backbone(SMALL, FLMBackboneConfig(), vocab=vocab, embeddings=vocab), torch.Generator()
    generator.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return made.to(dtype)


# ----------------------------------------------------------------------------------------------------------------------
# Training


def test_the_input_is_the_noisy_one_hot_vector_times_the_embedding():
    """With an embedding of as many rows as columns, the identity, e is x_t itself."""
    x_BL = torch.tensor([[2, 0, 7], [1, 1, 5]])
    draws = Draws(torch.tensor([0.3, 0.9]), torch.tensor([0.25, 0.8], dtype=torch.float64), random(2, 3, 8))
    found = FLM(8, 8).corrupt(torch.eye(8, dtype=torch.float64), x_BL, draws)
    t = draws.t_B[:, None, None]
    expected = (1 - t) * draws.zeta_BLR + t * torch.nn.functional.one_hot(x_BL, 8)
    assert torch.allclose(found, expected, rtol=0, atol=1e-15)


def test_the_noise_has_the_covariance_of_v_numbers_through_the_embedding():
    model, method = network(), FLM(VOCAB, 8)
    zeta = 8**0.5 * torch.eye(8, dtype=torch.float64)[:, None]
    x_BL, t_B = torch.full((8, 1), 3), torch.full((8,), 0.6, dtype=torch.float64)
    e = method.corrupt(model.embedding, x_BL, Draws(t_B, t_B, zeta))[:, 0] - 0.6 * model.embedding[3]
    assert torch.allclose(e.T @ e / 8, 0.4**2 * model.embedding.T @ model.embedding, rtol=0, atol=1e-12)


def test_the_times_are_stratified_in_warped_time_and_shuffled():
    method = FLM(VOCAB, 8)
    draws = method.draw(seed=1, step=4, rows_B=torch.arange(50), batch=50, seq_len=LENGTH)
    strata = (draws.tau_B * 50).long().tolist()
    assert sorted(strata) == list(range(50)) != strata
    assert torch.allclose(warped(draws.t_B, VOCAB), draws.tau_B, rtol=0, atol=1e-9)
    assert draws.zeta_BLR.shape == (50, LENGTH, 8)


def test_a_row_draws_the_same_in_any_batch():
    method = FLM(VOCAB, 8)
    together = method.draw(seed=1, step=4, rows_B=torch.arange(6), batch=6, seq_len=LENGTH)
    alone = method.draw(seed=1, step=4, rows_B=torch.tensor([4, 1]), batch=6, seq_len=LENGTH)
    assert all(torch.equal(a, t[[4, 1]]) for a, t in zip(alone, together, strict=True))


def test_the_loss_is_the_cross_entropy_at_every_position_of_the_condition_tau():
    model, method = network(), FLM(VOCAB, 8)
    x_BL = torch.randint(VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    draws = method.draw(seed=0, step=0, rows_B=torch.arange(3), batch=3, seq_len=LENGTH)
    chances = model(method.corrupt(model.embedding, x_BL, draws), draws.tau_B).softmax(-1)
    expected = [[-np.log(chances[b, i, x_BL[b, i]].item()) for i in range(LENGTH)] for b in range(3)]
    assert method.losses(model, x_BL, draws).loss_BL.tolist() == [pytest.approx(row, abs=1e-12) for row in expected]


def test_a_few_steps_learn_texts_that_agree_with_themselves():
    torch.manual_seed(0)
    model, method = Backbone(SMALL, FLMBackboneConfig(dropout=0), vocab=VOCAB, embeddings=VOCAB), FLM(VOCAB, 8)
    teach(method, model, torch.tensor([3, 7, 11, 12]).repeat(8)[:, None].expand(-1, LENGTH))
    drawn = draw_texts(FLMSampler(VOCAB, LENGTH, FLMConfig(steps=16)), model, torch.arange(200))
    kinds, counts = drawn.tokens_BL.unique(dim=0, return_counts=True)
    assert [text[0] for text in kinds.tolist()] == [3, 7, 11, 12]
    assert (kinds == kinds[:, :1]).all()
    assert counts.min() > 10
    assert drawn.rows == drawn.evaluations == 16


# ----------------------------------------------------------------------------------------------------------------------
# The sampler


def test_the_published_grid_of_eight_steps():
    times = [t for _, t in FLMSampler(50_258, LENGTH, FLMConfig(steps=8)).times]
    assert times == pytest.approx([0, 0.7524, 0.7793, 0.7958, 0.8087, 0.8201, 0.8314, 0.8444, 1], abs=6e-5)
    assert times[0] == 0
    assert times[-1] == 1


def test_the_projected_state_is_the_full_one():
    model, sampler = network(), FLMSampler(VOCAB, LENGTH, FLMConfig(steps=7))
    z = random(3, LENGTH, VOCAB)
    state = FlowState(z @ model.embedding, torch.zeros(3, LENGTH, dtype=torch.long))
    grid = np.linspace(0, 1, 8)
    times = Unwarp.of(VOCAB)(torch.tensor(grid)).tolist()
    for row in range(7):
        # The published step, V wide
        x_theta = model(z @ model.embedding, torch.tensor([grid[row]])).softmax(-1)
        z = z + (times[row + 1] - times[row]) * (x_theta - z) / (1 - times[row] + 1e-5)
        state = sampler.step(model, state, row)
        if row < 6:
            assert torch.allclose(state.e_BLW, z @ model.embedding, rtol=0, atol=1e-12)
    assert torch.equal(sampler.finish(state), x_theta.argmax(-1))


class ExactDenoiser:
    """E[x | z] of the toy language: p(x) e^(t/(1−t)² Σ z_i[x_i]) over sequences. With embedding 1 the state is z."""

    embedding = torch.eye(3, dtype=torch.float64)
    sequences = torch.tensor(list(itertools.product(range(3), repeat=2)))

    def __init__(self, time):
        self.time = time

    def hidden(self, e_BLW, condition_B):
        t = self.time(condition_B.item())
        log = JOINT.flatten().log() + t / (1 - t) ** 2 * (
            e_BLW[:, 0, self.sequences[:, 0]] + e_BLW[:, 1, self.sequences[:, 1]]
        )
        joint = log.softmax(-1).view(-1, 3, 3)
        return torch.stack([joint.sum(2), joint.sum(1)], dim=1).log()

    def logits(self, h):
        return h


class UniformInTime(FLMSampler):
    """Equal steps in t itself, in place of τ; the condition is t."""

    @property
    def times(self):
        t = np.linspace(0, 1, self.rows + 1).tolist()
        return list(zip(t, t, strict=True))


def law_of(tokens_BL):
    return torch.bincount(3 * tokens_BL[:, 0] + tokens_BL[:, 1], minlength=9).view(3, 3).double() / len(tokens_BL)


def distance_after(sampler, exact, points):
    """Total variation between the language and what the sampler makes of evenly spread normal noise (Sobol points)."""
    noise_P6 = torch.special.ndtri(torch.from_numpy(qmc.Sobol(6, seed=0).random_base2(points)))
    state = FlowState(noise_P6.view(-1, 2, 3), torch.zeros(len(noise_P6), 2, dtype=torch.long))
    for row in range(sampler.rows):
        state = sampler.step(exact, state, row)
    return distance(law_of(sampler.finish(state)))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(2, 0.025), (16, 0.0125), (64, 0.004), pytest.param(256, 0.002, marks=pytest.mark.slow)],
)
def test_with_an_exact_denoiser_texts_approach_the_language(steps, expected):
    found = distance_after(UniformInTime(3, 2, FLMConfig(steps=steps)), ExactDenoiser(lambda t: t), 15)
    assert found == pytest.approx(expected, abs=0.001)


def test_in_warped_time_they_do_so_as_well():
    unwarp = Unwarp.of(3)
    exact = ExactDenoiser(lambda tau: unwarp(torch.tensor(tau)).item())
    assert distance_after(FLMSampler(3, 2, FLMConfig(steps=32)), exact, 13) < 0.012


def test_the_last_step_ends_on_the_estimate():
    z, x_theta = random(4), random(4, seed=1)
    assert torch.allclose(euler(z, x_theta, 0.4, 1.0), x_theta, atol=1e-4)
    assert torch.equal(euler(z, x_theta, 0.4, 0.4), z)


def test_a_text_depends_on_its_seed_and_not_on_its_batch():
    model, sampler = network(), FLMSampler(VOCAB, LENGTH, FLMConfig(steps=6))
    together = draw_texts(sampler, model, torch.arange(10)).tokens_BL
    assert torch.equal(draw_texts(sampler, model, torch.tensor([7, 2])).tokens_BL, together[[7, 2]])
    assert len(together.unique(dim=0)) > 5


def test_the_start_is_standard_normal_noise_through_the_embedding():
    model, sampler = network(3), FLMSampler(3, 2, FLMConfig(steps=4))  # V < W: E itself is the factor
    seeds = torch.arange(5)
    zeta = noise.normal(seeds, "flm_start", 0, torch.zeros_like(seeds), (2, 3)).double()
    assert torch.allclose(sampler.begin(model, seeds).e_BLW, zeta @ model.embedding)
