"""Euler–Maruyama against Gaussian data, whose denoiser and discrete variance are known in closed form (SPEC 8, 12.3).

The data are N(0, s²), so the exact denoiser is linear: ẑ_0 = α s² z / v with v = α² s² + σ².
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from written_out import beta, gaussian_denoiser

from ldlm import noise
from ldlm.config import DenoiserConfig, SamplerConfig
from ldlm.model.denoiser import DiT
from ldlm.model.diffusion import Schedule
from ldlm.sampling.solvers import Denoise, End, Noise, euler_maruyama, solve, time_grid

TANGENT = Schedule()


def papers(denoise: Denoise, z: Tensor, times: Tensor, noise: Noise, **settings) -> End:
    return solve(euler_maruyama(TANGENT, times, **settings), denoise, z, noise)


def papers_grid(steps: int) -> Tensor:
    return time_grid(SamplerConfig(steps=steps, grid="time", t_min=0.05))


def at(*times: float) -> Tensor:
    return torch.tensor(times, dtype=torch.float64)


def alpha_bar(t: float) -> float:
    return 1 / (1 + 9 * math.tan(math.pi * t / 2) ** 2)


def recursion(std: float, steps: int, *, beta_clip: float = 0.95, final: str = "mean") -> float:
    """Standard deviation at the end, by hand: V ← (1 + β dt (½ − 1/v))² V + β dt, without noise in the last step."""
    dt, variance = 0.95 / steps, 1.0
    for i in range(steps):
        t = 1 - i * dt
        b, v = beta(min(t, beta_clip)), alpha_bar(t) * std**2 + 1 - alpha_bar(t)
        if i == steps - 1 and final == "x0":
            return math.sqrt(alpha_bar(t) * variance) * std**2 / v
        variance *= (1 + b * dt * (0.5 - 1 / v)) ** 2
        variance += b * dt if i < steps - 1 else 0.0
    return math.sqrt(variance)


def propagated(std: float, steps: int, final: str = "mean", **settings) -> float:
    """The same from the solver: it is linear in (z, noises), so feed it unit vectors and add up the squares."""
    unit = torch.eye(steps, dtype=torch.float64)
    times = papers_grid(steps)
    end = papers(gaussian_denoiser(std), unit[0], times, lambda step: unit[step + 1], **settings)
    return getattr(end, final).norm().item()


def simulated(std: float, steps: int, count: int = 40_000, **settings) -> float:
    generator = torch.Generator().manual_seed(0)

    def draw(step: int = 0) -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    times = papers_grid(steps)
    return papers(gaussian_denoiser(std), draw(), times, draw, **settings).mean.std().item()


# The grid


def test_the_grid_goes_from_1_to_t_min_in_equal_steps():
    times = time_grid(SamplerConfig(steps=19, grid="time", t_min=0.05))
    assert times.dtype == torch.float64
    assert times.tolist() == pytest.approx([1 - 0.05 * i for i in range(20)], abs=1e-12)


# Gaussian data


def test_gaussian_data_keep_their_standard_deviation():
    assert propagated(1.0, 32) == pytest.approx(1.0, rel=0.03)
    assert simulated(1.0, 32) == pytest.approx(1.0, rel=0.03 + 0.01)
    assert propagated(1.0, 32) != pytest.approx(1.0, rel=0.02)  # the tolerance is not slack
    errors = [abs(propagated(1.0, steps) - 1) for steps in (16, 32, 64, 128, 256)]
    assert all(fine < 0.7 * coarse for coarse, fine in pairwise(errors))


@pytest.mark.parametrize("final", ["mean", "x0"])
@pytest.mark.parametrize("steps", [1, 4, 32, 128])
@pytest.mark.parametrize("std", [0.5, 1.0, 3.8])
def test_the_variance_follows_the_closed_form_recursion(std, steps, final):
    assert propagated(std, steps, final=final) == pytest.approx(recursion(std, steps, final=final), rel=1e-9)


@pytest.mark.parametrize("std", [0.5, 1.0, 3.8])
def test_simulated_samples_have_the_variance_of_the_recursion(std):
    # The standard error of a standard deviation over n samples is 1/√(2n).
    assert simulated(std, 32) == pytest.approx(recursion(std, 32), rel=4 / math.sqrt(2 * 40_000))


def test_without_the_clip_in_beta_four_steps_explode():
    assert propagated(1.0, 4, beta_clip=0.9999) == pytest.approx(21.5, abs=0.1)
    assert propagated(1.0, 4, beta_clip=0.9999) == pytest.approx(recursion(1.0, 4, beta_clip=0.9999), rel=1e-9)
    assert propagated(1.0, 4) < 1


def test_the_clip_acts_in_beta_and_nowhere_else():
    """The times that the denoiser sees are the grid's, 1 included."""
    seen = []

    def denoise(z: Tensor, t: Tensor, last: Tensor) -> Tensor:
        seen.append(t.item())
        return torch.zeros_like(z)

    times = papers_grid(4)
    papers(denoise, torch.ones(2), times, lambda step: torch.zeros(2), beta_clip=0.5)
    assert seen == times[:-1].tolist()


# What a run costs and returns


@pytest.mark.parametrize("final", ["mean", "x0"])
def test_n_steps_are_n_evaluations_and_n_minus_1_noises(final):
    evaluations, noises = [], []

    def denoise(z: Tensor, t: Tensor, last: Tensor) -> Tensor:
        evaluations.append(z)
        return 0.5 * z

    def draw(step: int) -> Tensor:
        noises.append(step)
        return torch.ones(3, dtype=torch.float64)

    z = torch.arange(3).double()
    out = getattr(papers(denoise, z, papers_grid(6), draw), final)
    assert len(evaluations) == 6
    assert noises == [0, 1, 2, 3, 4]
    assert torch.equal(evaluations[0], z)
    assert torch.equal(out, 0.5 * evaluations[-1]) == (final == "x0")


def test_one_step_from_t_1_is_the_formula_by_hand():
    # α = 0 and σ = 1 at t = 1, so the score is −z and z moves by −(−½βz + βz)·dt = −½βz·dt.
    z = torch.tensor([2.0], dtype=torch.float64)
    out = papers(lambda z, t, last: 7 + 0 * z, z, at(1.0, 0.9), lambda step: z)
    assert out.mean.item() == pytest.approx(2 * (1 - 0.5 * beta(0.95) * 0.1), rel=1e-9)


# Self-conditioning and the network


def test_self_conditioning_starts_from_zeros_and_carries_the_last_estimate():
    seen, estimates = [], []

    def network(z: Tensor, t: Tensor, previous: Tensor) -> Tensor:
        seen.append((t.item(), previous))
        estimates.append(0.5 * z + 0.1 * previous + len(seen))
        return estimates[-1]

    z = torch.ones(2, 3, 4)
    times = papers_grid(5)
    papers(network, z, times, lambda step: z)
    assert torch.equal(seen[0][1], torch.zeros_like(z))
    for (_, previous), estimate in zip(seen[1:], estimates, strict=False):
        assert torch.equal(previous, estimate)
    assert [t for t, _ in seen] == times[:-1].tolist()


def test_a_sample_depends_on_its_seed_and_not_on_its_batch():
    torch.manual_seed(0)
    network = DiT(DenoiserConfig(layers=1, width=8, heads=2, time_dim=8), num_latents=3, latent_dim=4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)

    @torch.no_grad()
    def sample(seeds: list[int]) -> Tensor:
        seeds_B = torch.tensor(seeds)
        rows_B = torch.zeros_like(seeds_B)
        return papers(
            lambda z, t, last: network(z, t.float().expand(len(z)), last),
            noise.normal(seeds_B, "z_1", 0, rows_B, (3, 4)),
            papers_grid(8),
            lambda step: noise.normal(seeds_B, "sde", step, rows_B, (3, 4)),
        ).mean

    together = sample([5, 6, 7])
    assert together.dtype == torch.float32
    assert torch.allclose(sample([6])[0], together[1], atol=1e-5)
    assert torch.allclose(sample([7, 5])[1], together[0], atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1
