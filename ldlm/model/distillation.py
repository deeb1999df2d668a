"""Progressive distillation: a student learns to do in one step what its teacher does in two (Salimans & Ho, 2022).

The teacher samples with noise-free DDIM (Song et al., 2021, Eq. 12), which steps from z_s to z_t with an estimate ẑ of
z_0:

    z_t = (σ_t/σ_s) z_s + (α_t − α_s σ_t/σ_s) ẑ

Its grid has 2E steps, t_0 > t_1 > … > t_2E; the student's grid is every second time of it. One step of the student from
t_2i ends where two of the teacher's do if its estimate is x̃, the ẑ that solves this equation (Salimans & Ho,
Algorithm 2):

    x̃ = (z_t − (σ_t/σ_s) z_s) / (α_t − α_s σ_t/σ_s)

So the loss is L_diff (Eq. 1) with x̃ in place of z_0, at the student's times, all equally likely. The weight is 1, as
in Eq. 1; theirs is max(α²/σ², 1). Nothing divides by zero under any schedule here: the denominator is positive where
α/σ grows, and t_0 may be 1, where α = 0 and σ = 1. t_2E may be 0, where α = 1 and σ = 0: then the last x̃ is the
teacher's last ẑ, which is what is decoded.

The denoiser is conditioned on the estimate of the previous step. At t_2i the teacher takes that step, without gradient:
from z_s ~ q(z_s | z_0) at s = t_2i−2 it takes two steps, which end at z_t. The student is conditioned on their x̃, its
own estimate at s once it has learned, and the teacher on its own last ẑ. At t_0 there is no previous estimate, as in
sampling, and never if the run was trained without self-conditioning.

Shape letters: CONTRIBUTING.md. E counts the steps of the student's grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ldlm import noise
from ldlm.model.diffusion import Schedule, noised, ode_step, per_row

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # z_t (B, …), t (B,) float64 and ẑ_prev (B, …) → ẑ (B, …)


class TwoSteps(NamedTuple):
    """Two steps of a teacher from z_s; each field has z's shape."""

    z_t: Tensor  # where they end
    x_tilde: Tensor  # the estimate that leads there in one step
    z_hat: Tensor  # the teacher's last


class Lesson(NamedTuple):
    """A student's input and target, for B rows."""

    z_t: Tensor
    t_B: Tensor
    z_hat_prev: Tensor
    x_tilde: Tensor


def step(schedule: Schedule, z_s: Tensor, z_hat: Tensor, s_B: Tensor, t_B: Tensor) -> Tensor:
    """z_t after a step of DDIM from s (B,) down to t (B,) with the estimate ẑ (Song et al., 2021, Eq. 12)."""
    shrink_B, gain_B = ode_step(schedule, s_B, t_B)
    return per_row(shrink_B, z_s) * z_s + per_row(gain_B, z_hat) * z_hat


def single_step_estimate(schedule: Schedule, z_s: Tensor, z_t: Tensor, s_B: Tensor, t_B: Tensor) -> Tensor:
    """x̃, the estimate with which one step from z_s ends at z_t (Salimans & Ho, Algorithm 2); the inverse of `step`."""
    shrink_B, gain_B = ode_step(schedule, s_B, t_B)
    return (z_t - per_row(shrink_B, z_s) * z_s) / per_row(gain_B, z_t)


def two_steps(schedule: Schedule, teacher: Denoise, z_s: Tensor, times_B3: Tensor, z_hat_prev: Tensor) -> TwoSteps:
    """Two steps of the teacher over the times (B, 3), the first with ẑ_prev."""
    s_B, middle_B, t_B = times_B3.unbind(1)
    first = teacher(z_s, s_B, z_hat_prev)
    z_middle = step(schedule, z_s, first, s_B, middle_B)
    second = teacher(z_middle, middle_B, first)
    z_t = step(schedule, z_middle, second, middle_B, t_B)
    return TwoSteps(z_t, single_step_estimate(schedule, z_s, z_t, s_B, t_B), second)


@torch.no_grad()
def lesson(
    schedule: Schedule,
    teacher: Denoise,
    z_0: Tensor,
    eps: Tensor,
    grid: Tensor,
    i_B: Tensor,
    *,
    self_conditioned: bool = True,
) -> Lesson:
    """A student's input and target at its times with indices i (B,), from latents z_0 (B, …) and noise ε.

    `grid` is the teacher's, (2E + 1,) float64 on the device of z_0. If the teacher is not `self_conditioned`, it and
    the student are given zeros for ẑ_prev.
    """
    if not self_conditioned:
        teacher = _unconditioned(teacher)
    # The previous step. Its first estimate is self-conditioned as in training: on an estimate at the same z_s that was
    # made without. At t_0 there is none.
    before_B = (2 * i_B - 2).clamp(min=0)
    s_B, none = grid[before_B], torch.zeros_like(z_0)
    z_s = noised(schedule, z_0, s_B, eps)
    if len(grid) == 3:  # the student takes a single step: all rows begin here
        z_t, student_prev, teacher_prev = z_s, none, none
    else:
        z_hat_prev = _where(before_B == 0, none, teacher(z_s, s_B, none)) if self_conditioned else none
        before = two_steps(schedule, teacher, z_s, _three(grid, before_B), z_hat_prev)
        z_t, student_prev, teacher_prev = (
            _where(i_B == 0, of_first, of_others)
            for of_first, of_others in ((z_s, before.z_t), (none, before.x_tilde), (none, before.z_hat))
        )

    # The teacher's two steps from here, which the student learns to take as one.
    x_tilde = two_steps(schedule, teacher, z_t, _three(grid, 2 * i_B), teacher_prev).x_tilde
    return Lesson(z_t, grid[2 * i_B], student_prev if self_conditioned else none, x_tilde)


def draw_steps(*, seed: int, step: int, rows_B: Tensor, count: int) -> Tensor:
    """Indices i (B,) int64 of the student's times, uniform over 0 … count − 1, for the rows of a batch at a step."""
    return (noise.uniform(seed, "distill", step, rows_B) * count).long()


def _unconditioned(denoise: Denoise) -> Denoise:
    return lambda z_t, t_B, z_hat_prev: denoise(z_t, t_B, torch.zeros_like(z_hat_prev))


def _three(grid: Tensor, index_B: Tensor) -> Tensor:
    """The times (B, 3) of two steps of the teacher, from index `index_B` of its grid on."""
    return grid[index_B[:, None] + torch.arange(3, device=grid.device)]


def _where(condition_B: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition_B.reshape(-1, *[1] * (no.ndim - 1)), yes, no)
