"""Two steps in one: the identity, the way of a teacher against that of the sampler, and students that can be fitted."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from ldlm.model import distillation
from ldlm.model.diffusion import Schedule
from ldlm.sampling import solvers

SCHEDULES = [Schedule("tangent", 3.0), Schedule("tangent", 9.0), Schedule("cosine"), Schedule("linear")]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def times_down(steps, t_min=0.005):
    """A grid without regularity, from 1 to t_min."""
    inner = torch.rand(steps - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(steps))
    inner = t_min + (1 - t_min) * inner.sort(descending=True).values
    return torch.cat([torch.ones(1), inner, torch.full((1,), t_min)]).double()


def ddim(schedule, z, z_hat, s, t):
    """Take a step of DDIM as Song et al. (2021) write it: keep the noise that is left, and scale both anew."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.alpha_sigma(s), schedule.alpha_sigma(t)
    return alpha_t * z_hat + sigma_t * (z - alpha_s * z_hat) / sigma_s


# ----------------------------------------------------------------------------------------------------------------------
# The identity


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_one_step_by_the_target_ends_where_two_steps_of_the_teacher_do(schedule):
    """For any estimates at all, from t = 1 on and down to small times."""
    times_B3 = torch.tensor([[1.0, 0.7, 0.3], [1.0, 0.999, 0.998], [0.4, 0.2, 0.1], [0.02, 0.01, 0.005]]).double()
    z_s, first, second = (5 * normal(4, 3, 2, seed=seed) for seed in range(3))
    answers = iter([first, second])
    found = distillation.two_steps(schedule, lambda *_: next(answers), z_s, times_B3, torch.zeros_like(z_s))
    for row, (s, middle, t) in enumerate(times_B3):
        z_middle = ddim(schedule, z_s[row], first[row], s, middle)
        expected = ddim(schedule, z_middle, second[row], middle, t)
        assert (found.z_t[row] - expected).abs().max() < 1e-12
        assert (ddim(schedule, z_s[row], found.x_tilde[row], s, t) - expected).abs().max() < 1e-12
    assert found.z_hat is second


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_target_of_an_estimate_that_stays_the_same_is_this_estimate(schedule):
    z_s, z_hat, times_B3 = normal(2, 4), normal(2, 4, seed=1), torch.tensor([[1.0, 0.5, 0.1], [0.3, 0.2, 0.1]]).double()
    found = distillation.two_steps(schedule, lambda *_: z_hat, z_s, times_B3, z_hat)
    assert (found.x_tilde - z_hat).abs().max() < 1e-12


# ----------------------------------------------------------------------------------------------------------------------
# The teacher's way


def conditioned(z, t_B, z_hat_prev):
    """A denoiser that is not linear, and that the estimate before changes."""
    t = t_B.reshape(-1, 1)
    return torch.tanh((1.3 - t) * z + (0.5 + t) * z_hat_prev + 0.1)


def test_the_way_before_and_after_is_the_samplers_with_its_estimates():
    """From a student's time number i − 1 on: four steps of DDIM, each conditioned on the estimate before."""
    schedule, grid, z_0, eps = SCHEDULES[0], times_down(8), normal(4, 5), normal(4, 5, seed=1)
    i_B = torch.tensor([0, 1, 2, 3])
    found = distillation.lesson(schedule, conditioned, z_0, eps, grid, i_B)
    assert found.t_B.tolist() == grid[::2][:4].tolist()
    for i in range(4):
        s = max(0, 2 * i - 2)  # where the teacher begins
        alpha, sigma = schedule.alpha_sigma(grid[s])
        z, states = alpha * z_0[i : i + 1] + sigma * eps[i : i + 1], []
        z_hat = torch.zeros_like(z)
        if s > 0:
            z_hat = conditioned(z, grid[s : s + 1], z_hat)
        for index in range(s, 2 * i + 2):
            states.append(z)
            z_hat = conditioned(z, grid[index : index + 1], z_hat)
            z = ddim(schedule, z, z_hat, grid[index], grid[index + 1])
        z_t, end = states[2 * i - s], z
        assert (found.z_t[i] - z_t).abs().max() < 1e-12
        assert (ddim(schedule, z_t, found.x_tilde[i], grid[2 * i], grid[2 * i + 2]) - end).abs().max() < 1e-12
        if i == 0:
            assert found.z_hat_prev[i].eq(0).all()
        else:  # with it the student would have come here
            assert (ddim(schedule, states[0], found.z_hat_prev[i], grid[s], grid[2 * i]) - z_t).abs().max() < 1e-12


def test_a_student_of_one_step_begins_at_the_first_time():
    schedule, grid, z_0, eps = SCHEDULES[0], times_down(2), normal(3, 5), normal(3, 5, seed=1)
    asked = []

    def teacher(z, t_B, z_hat_prev):
        asked.append(t_B.tolist())
        return conditioned(z, t_B, z_hat_prev)

    found = distillation.lesson(schedule, teacher, z_0, eps, grid, torch.zeros(3, dtype=torch.int64))
    assert asked == [[t] * 3 for t in grid.tolist()[:2]]  # no step before is asked for
    recurrence = solvers.ddim(schedule, grid)
    end = solvers.solve(recurrence, lambda z, t, prev: conditioned(z, t.expand(3), prev), eps, lambda row: eps).mean
    by_student = distillation.step(schedule, eps, found.x_tilde, grid[:1].expand(3), grid[2:].expand(3))
    assert (by_student - end).abs().max() < 1e-12


def test_without_self_conditioning_the_teacher_is_asked_four_times_and_given_nothing():
    """A teacher's estimate at the first time is read by nobody, so it is not asked for one."""
    schedule, grid, z_0, eps, i_B = SCHEDULES[0], times_down(8), normal(4, 5), normal(4, 5, seed=1), torch.arange(4)
    given = []

    def teacher(z, t_B, z_hat_prev):
        given.append(z_hat_prev.abs().max().item())
        return conditioned(z, t_B, z_hat_prev)

    found = distillation.lesson(schedule, teacher, z_0, eps, grid, i_B, self_conditioned=False)
    assert given == [0] * 4
    plain = distillation.lesson(schedule, lambda z, t_B, _: conditioned(z, t_B, 0 * z), z_0, eps, grid, i_B)
    assert found.x_tilde.equal(plain.x_tilde) and found.z_t.equal(plain.z_t) and found.z_hat_prev.eq(0).all()


def test_the_lesson_teaches_no_gradient():
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    found = distillation.lesson(
        SCHEDULES[0], lambda z, t, prev: scale * z, normal(3, 5), normal(3, 5), times_down(4), torch.tensor([0, 1, 0])
    )
    assert not any(part.requires_grad for part in found)


def test_every_time_of_the_student_is_drawn_as_often_and_by_step_and_row():
    rows_B = torch.arange(4000)
    i_B = distillation.draw_steps(seed=0, step=3, rows_B=rows_B, count=5)
    assert torch.bincount(i_B, minlength=5).tolist() == pytest.approx([800] * 5, abs=100)
    assert distillation.draw_steps(seed=0, step=3, rows_B=rows_B[7:9], count=5).tolist() == i_B[7:9].tolist()
    assert not distillation.draw_steps(seed=0, step=4, rows_B=rows_B, count=5).equal(i_B)


# ----------------------------------------------------------------------------------------------------------------------
# Students that can be fitted exactly: least squares at each time, round after round


def sampled(schedule, denoise, grid, z):
    """The state at the end of the grid, from z at its beginning, by the sampler itself."""
    return solvers.solve(solvers.ddim(schedule, grid), denoise, z, lambda row: z).mean


def fitted(schedule, teacher, basis, grid, z_0):
    """A student of half the steps: at each of its times the combination of basis functions with the least error."""
    weights, eps = {}, normal(*z_0.shape, seed=2)
    for i, t in enumerate(grid[:-1:2].tolist()):
        taught = distillation.lesson(schedule, teacher, z_0, eps, grid, torch.full((len(z_0),), i))
        design = basis(taught.z_t.numpy())
        weights[t] = np.linalg.lstsq(design, taught.x_tilde.numpy(), rcond=None)[0]

    def student(z, t, z_hat_prev):
        assert t.unique().numel() == 1
        return torch.from_numpy(basis(z.numpy()) @ weights[t.flatten()[0].item()])

    return student


def distilled(schedule, teacher, basis, grid, z_0, evaluations):
    """The student after rounds that halve the steps of the grid, and its grid."""
    while len(grid) - 1 > evaluations:
        teacher, grid = fitted(schedule, teacher, basis, grid, z_0), grid[::2]
    return teacher, grid


@pytest.mark.parametrize("evaluations", [4, 1])
@pytest.mark.parametrize("std", [0.3, 3.8])
def test_a_student_of_a_gaussian_draws_the_teachers_texts(std, evaluations):
    """The exact denoiser of N(0, s²) is linear in z, and so is every round's target: nothing is lost."""
    schedule, grid = SCHEDULES[0], times_down(16)

    def exact(z, t, z_hat_prev):
        alpha, sigma = schedule.alpha_sigma(t.reshape(-1, 1))
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * z

    student, short = distilled(schedule, exact, lambda z: z, grid, std * normal(200, 1), evaluations)
    z_1 = normal(500, 1, seed=3)
    expected, found = (sampled(schedule, *pair, z_1) for pair in ((exact, grid), (student, short)))
    assert len(short) - 1 == evaluations
    assert (found - expected).abs().max() < 1e-10 * std


def test_with_a_grid_that_ends_at_0_a_student_decodes_what_its_teacher_does():
    """Its last estimate is the teacher's last; on one that ends above 0 it is a mixture of the estimates."""
    schedule, std = SCHEDULES[0], 0.3

    def exact(z, t, z_hat_prev):
        alpha, sigma = schedule.alpha_sigma(t.reshape(-1, 1))
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * z

    def decoded(denoise, grid):
        z_1 = normal(500, 1, seed=3)
        return solvers.solve(solvers.ddim(schedule, grid), denoise, z_1, lambda row: z_1).x0

    grid = times_down(16, t_min=0.05)
    expected = decoded(exact, grid)
    for evaluations in (4, 1):
        for last, same in ((0.0, True), (0.05, False)):
            times = torch.cat([grid[:-1], torch.full((1,), last, dtype=torch.float64)])
            student, short = distilled(schedule, exact, lambda z: z, times, std * normal(200, 1), evaluations)
            found = decoded(student, torch.cat([short[:-1], grid[-1:]]))  # with t_min, as it samples
            assert ((found - expected).abs().max() < 1e-10) == same


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_step_to_time_0_ends_at_the_estimate(schedule):
    z_s, first, second = (normal(2, 3, seed=seed) for seed in range(3))
    answers, times_B3 = iter([first, second]), torch.tensor([[1.0, 0.5, 0.0], [0.2, 0.1, 0.0]]).double()
    found = distillation.two_steps(schedule, lambda *_: next(answers), z_s, times_B3, torch.zeros_like(z_s))
    assert (found.x_tilde - second).abs().max() < 1e-12


def test_a_student_of_a_mixture_draws_the_teachers_texts():
    """The data has two narrow modes, and a student is a curve through 101 points, which loses what lies between.

    A plain short cut, the teacher with the student's few steps, is far off.
    """
    schedule, grid, std = SCHEDULES[0], times_down(8), 0.2
    knots = np.linspace(-4, 4, 101)

    def exact(z, t, z_hat_prev):
        alpha, sigma = schedule.alpha_sigma(t.reshape(-1, 1))
        width = alpha**2 * std**2 + sigma**2
        mode = torch.tanh(alpha * z / width)  # E[±1 | z]
        return mode + alpha * std**2 / width * (z - alpha * mode)

    def hats(z):
        return np.clip(1 - np.abs(z - knots) / (knots[1] - knots[0]), 0, None)

    signs = normal(4_000, 1, seed=4).sign()
    student, short = distilled(schedule, exact, hats, grid, signs + std * normal(4_000, 1), 2)
    z_1 = normal(500, 1, seed=3).clamp(-3, 3)
    expected, found, cut = (sampled(schedule, *pair, z_1) for pair in ((exact, grid), (student, short), (exact, short)))
    error, of_cut = (partial(rms, expected)(other) for other in (found, cut))
    assert error < 0.005 < 0.5 < of_cut


def rms(a, b):
    return math.sqrt((a - b).square().mean().item())
