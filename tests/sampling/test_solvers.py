"""Every solver against data whose denoiser is exact: a Gaussian, and a mixture of Gaussians (SPEC 8).

For a Gaussian N(0, s²) the ODE keeps z_t / √(α² s² + σ²). For a mixture the reference is scipy's adaptive integrator.
The error of a deterministic solver must fall at its order.
"""

from __future__ import annotations

import math
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from written_out import gaussian_denoiser

from ldlm.config import SamplerConfig
from ldlm.model.diffusion import Schedule
from ldlm.sampling.solvers import Denoise, End, Noise, evaluations_per_step, guided, solve, solver, time_grid

TANGENT = Schedule()
papers_end = partial(SamplerConfig, t_min=0.05, final="mean")
SOLVERS = ("euler-maruyama", "ddim", "heun", "dpm++2m", "dpm++2m-sde")
ODE = {"ddim": 1, "heun": 2, "dpm++2m": 2}  # order of convergence
STEPS = (4, 8, 16, 32, 128)

MEANS = torch.tensor([-1.5, 0.5, 2.0], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
STD = 0.25
MIXTURE_STD = math.sqrt(STD**2 + (WEIGHTS @ MEANS**2 - (WEIGHTS @ MEANS) ** 2).item())

UNIT = gaussian_denoiser(1.0)


def mixture(z: Tensor, t: Tensor, last: Tensor | None = None) -> Tensor:
    """E[z_0 | z_t] by Bayes: each component's posterior mean, weighted by how likely it is."""
    alpha, sigma = TANGENT.alpha_sigma(t)
    variance = alpha**2 * STD**2 + sigma**2
    odds = WEIGHTS.log() - (z[..., None] - alpha * MEANS) ** 2 / (2 * variance)
    posterior = MEANS + alpha * STD**2 / variance * (z[..., None] - alpha * MEANS)
    return (odds.softmax(-1) * posterior).sum(-1)


def solved(name: str, denoise: Denoise, z: Tensor, steps: int, seed: int = 0, **settings) -> Tensor:
    config = papers_end(**{"grid": "time", "solver": name, "steps": steps, **settings})
    generator = torch.Generator().manual_seed(seed)

    def draw(step: int) -> Tensor:
        return torch.randn(z.shape, generator=generator, dtype=z.dtype)

    return getattr(solved_by(config, denoise, z, draw), config.final)


def solved_by(config: SamplerConfig, denoise: Denoise, z: Tensor, draw: Noise, schedule: Schedule = TANGENT) -> End:
    return solve(solver(config)(schedule, time_grid(config, schedule)), denoise, z, draw)


def log_rho(t: float) -> float:
    """ln σ/α of the tangent schedule, which at t = 1 is beyond what scipy likes: e^12 will do for infinity."""
    return 12.0 if t == 1 else math.log(3 * math.tan(math.pi * t / 2))


def ode_end(z: float, t: float = 1.0, t_min: float = 0.05) -> float:
    """The mixture's ODE from z at t, in the variables x = z/α and ρ = σ/α, where dx/dρ = (x − ẑ_0)/ρ."""

    def slope(at: float, x: np.ndarray) -> np.ndarray:
        alpha = 1 / math.sqrt(1 + math.exp(2 * at))
        t = TANGENT.time_of_log_snr(torch.tensor(-2 * at, dtype=torch.float64))
        return x - mixture(torch.tensor(alpha * x), t).numpy()

    start, end = log_rho(t), log_rho(t_min)
    x = np.array([z]) * math.sqrt(1 + math.exp(2 * start))
    found = solve_ivp(slope, (start, end), x, rtol=1e-10, atol=1e-10)
    return float(found.y[0, -1]) / math.sqrt(1 + math.exp(2 * end))


def normals(count: int) -> Tensor:
    """The middles of so many parts of the standard normal law that are equally likely: more even than random ones."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)


@cache
def table(denoise: Denoise) -> dict[str, list[float]]:
    """The standard deviation of what each solver returns at each number of steps; `pytest -s` prints it."""
    z = normals(5_000)
    found = {name: [solved(name, denoise, z, steps).std().item() for steps in STEPS] for name in SOLVERS}
    print("\nsteps".ljust(18) + "".join(f"{steps:>8}" for steps in STEPS))
    for name, row in found.items():
        print(name.ljust(17) + "".join(f"{value:8.3f}" for value in row))
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Gaussian data


def scale(std: float, t: Tensor) -> float:
    alpha, sigma = TANGENT.alpha_sigma(t)
    return math.sqrt(alpha**2 * std**2 + sigma**2)


@pytest.mark.parametrize("grid", ["time", "log-snr"])
@pytest.mark.parametrize("std", [0.5, 1.0, 3.8])
@pytest.mark.parametrize("name", ODE)
def test_an_ode_solver_converges_to_the_gaussians_closed_form_at_its_order(name, std, grid):
    times = time_grid(papers_end(grid=grid), TANGENT)
    exact = scale(std, times[-1]) / scale(std, times[0])
    one = torch.ones(1, dtype=torch.float64)
    found = [solved(name, gaussian_denoiser(std), one, n, grid=grid).item() for n in (128, 256, 512, 1024)]
    errors = [abs(end - exact) for end in found]
    rates = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert errors[-1] < 1e-2
    # A multistep method begins with a step of first order; from t = 1 it is a long one, since λ(1) = −∞.
    slack = 0.05 if name != "dpm++2m" else {"time": 0.3, "log-snr": 0.15}[grid]
    assert rates[-1] == pytest.approx(ODE[name], abs=slack)


@pytest.mark.parametrize("grid", ["time", "log-snr"])
@pytest.mark.parametrize("std", [0.5, 1.0, 3.8])
@pytest.mark.parametrize(
    ("name", "settings", "order"),
    [("euler-maruyama", {}, 1), ("ddim", {"eta": 1.0}, 1), ("dpm++2m-sde", {}, 2)],
)
def test_a_stochastic_solver_converges_to_the_gaussians_standard_deviation_at_its_order(
    name, settings, order, std, grid
):
    """Without drawing anything: all is linear, so the state is a vector of what each noise contributes."""
    errors = []
    for steps in (128, 256, 512):
        config = papers_end(solver=name, steps=steps, grid=grid, **settings)
        times = time_grid(config, TANGENT)
        beyond = torch.cat([times, times[-1:] - 1e-9])  # the state at t_min, with its noise, is what one step more sees
        noises, states = torch.eye(len(times) + 1, dtype=torch.float64), []

        def denoise(z: Tensor, t: Tensor, last: Tensor, states: list[Tensor] = states) -> Tensor:
            states.append(z)
            return gaussian_denoiser(std)(z, t, last)

        solve(solver(config)(TANGENT, beyond), denoise, noises[0], lambda row, noises=noises: noises[row + 1])
        errors.append(abs(states[-1].norm().item() - scale(std, times[-1])))
    assert errors[-1] < 0.03
    assert [math.log2(coarse / fine) for coarse, fine in pairwise(errors)] == pytest.approx([order] * 2, abs=0.1)


@pytest.mark.parametrize("name", SOLVERS)
def test_gaussian_data_keep_their_standard_deviation_at_128_steps(name):
    std = table(UNIT)[name]
    assert std[-1] == pytest.approx(1.0, rel=0.03)
    assert abs(std[-1] - 1) <= abs(std[0] - 1) + 0.005


# ----------------------------------------------------------------------------------------------------------------------
# A mixture


@pytest.mark.parametrize("name", ODE)
def test_an_ode_solver_follows_the_mixtures_trajectory_at_its_order(name):
    start = time_grid(papers_end(grid="log-snr"), TANGENT)[0].item()
    z = torch.tensor([-1.3, -0.2, 0.4, 1.7], dtype=torch.float64)
    exact = torch.tensor([ode_end(one, start) for one in z.tolist()], dtype=torch.float64)
    errors = [
        (solved(name, mixture, z, steps, grid="log-snr") - exact).abs().max().item() for steps in (64, 128, 256, 512)
    ]
    assert errors[-1] < (0.02 if ODE[name] == 1 else 1e-3)
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(ODE[name], abs=0.15)


@pytest.mark.parametrize("grid", ["time", "log-snr"])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_draws_the_mixture(name, grid):
    """Its modes with their weights, and its standard deviation. `eta` 1 too, whose noise is all fresh."""
    z = normals(20_000 if name == "ddim" else 10_000)
    for settings in ({}, {"eta": 1.0}) if name == "ddim" else ({},):
        drawn = solved(name, mixture, z, 256, grid=grid, final="x0", **settings)
        shares = torch.bincount((drawn[:, None] - MEANS).abs().argmin(1), minlength=3) / len(drawn)
        assert shares.tolist() == pytest.approx(WEIGHTS.tolist(), abs=0.02)
        assert drawn.std().item() == pytest.approx(MIXTURE_STD, rel=0.02)


def mixture_density(z: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = TANGENT.alpha_sigma(t)
    variance = alpha**2 * STD**2 + sigma**2
    parts = (-((z[..., None] - alpha * MEANS) ** 2) / (2 * variance)).exp() / (2 * math.pi * variance).sqrt()
    return parts @ WEIGHTS


def distance_in_distribution(config: SamplerConfig) -> float:
    """∫ |p − q| between what a stochastic solver draws and the mixture at t_min, by quadrature: nothing is drawn.

    The solver starts from the mixture at the grid's first time. A next state depends on the last two, so the joint
    density of two neighbours is carried along. For a normal kernel the sum over a grid finer than its standard
    deviation is the integral, to many digits.
    """
    times = time_grid(config, TANGENT)
    beyond = torch.cat([times, times[-1:] - 1e-9])  # the last step's noise is in what one step more would see
    rows = solver(config)(TANGENT, beyond)
    step = rows.eps[:-1].min().item()
    z = torch.arange(-6, 6, step, dtype=torch.float64)
    joint = mixture_density(z, times[0]).expand(1, -1) * step  # of (before, now); there is nothing before the first
    d_before = torch.zeros(1, dtype=torch.float64)
    for t, state, estimate, last, std in list(zip(*rows, strict=True))[:-1]:
        d = mixture(z, t)
        if not last:  # what was before plays no part
            joint, d_before = joint.sum(0, keepdim=True), torch.zeros(1, dtype=torch.float64)
        mean = state * z + estimate * d + last * d_before[:, None]  # (before, now)
        kernel = torch.distributions.Normal(mean[..., None], std)
        joint = torch.einsum("bn,bnx->nx", joint, kernel.log_prob(z).exp() * step)
        d_before = d
    assert joint.sum().item() == pytest.approx(1, abs=1e-4)
    return (joint.sum(0) - mixture_density(z, times[-1]) * step).abs().sum().item()


@pytest.mark.parametrize(
    ("name", "settings", "order"),
    [("euler-maruyama", {}, 1), ("ddim", {"eta": 1.0}, 1), ("dpm++2m-sde", {}, 2)],
)
def test_what_a_stochastic_solver_draws_comes_to_be_the_mixture_at_its_order(name, settings, order):
    errors = [
        distance_in_distribution(papers_end(solver=name, steps=steps, grid="log-snr", **settings))
        for steps in (16, 32, 64)
    ]
    assert errors[-1] < (0.06 if order == 1 else 0.006)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.1)


def test_the_second_order_solvers_beat_the_first_on_the_mixture_at_few_steps():
    start = time_grid(papers_end(grid="log-snr"), TANGENT)[0].item()
    z = torch.tensor([-1.3, -0.2, 0.4, 1.7], dtype=torch.float64)
    exact = torch.tensor([ode_end(one, start) for one in z.tolist()], dtype=torch.float64)
    error = {name: (solved(name, mixture, z, 32, grid="log-snr") - exact).abs().mean().item() for name in ODE}
    assert error["dpm++2m"] < 0.5 * error["ddim"]
    assert error["heun"] < 0.5 * error["ddim"]


@pytest.mark.parametrize("name", SOLVERS)
def test_the_table_of_standard_deviations_on_the_mixture(name):
    assert table(mixture)[name][-1] == pytest.approx(MIXTURE_STD, rel=0.05)


# ----------------------------------------------------------------------------------------------------------------------
# As the papers write them: a step at a time, in the variables of the paper


def as_written(config: SamplerConfig, denoise: Denoise, z: Tensor, times: Tensor, draw: Noise) -> End:
    intervals, last, h_last = list(pairwise(times)), torch.zeros_like(z), None
    for i, (s, t) in enumerate(intervals):
        (a_s, sigma_s), (a_t, sigma_t) = TANGENT.alpha_sigma(s), TANGENT.alpha_sigma(t)
        h = (TANGENT.log_snr(t) - TANGENT.log_snr(s)) / 2
        x0, before = denoise(z, s, last), last
        if config.solver == "euler-maruyama":  # SPEC 8
            b, dt = TANGENT.beta(s.clamp(max=config.beta_clip)), s - t
            drift = -b * z / 2 - b * (-(z - a_s * x0) / sigma_s**2)
            z, std = z - drift * dt, (b * dt).sqrt()
        elif config.solver == "ddim":  # Song et al., Eq. 12 and 16
            std = config.eta * ((1 - a_t**2) / (1 - a_s**2)).sqrt() * (1 - a_s**2 / a_t**2).sqrt()
            z = a_t * x0 + (1 - a_t**2 - std**2).sqrt() * (z - a_s * x0) / sigma_s
        elif config.solver == "heun":  # the trapezium of x̂_0 in e^λ, on x/σ (Karras et al., Algorithm 1)
            growth, std = a_t / sigma_t - a_s / sigma_s, 0
            predicted = sigma_t * (z / sigma_s + growth * x0)
            again = denoise(predicted, t, x0)
            z, x0 = sigma_t * (z / sigma_s + growth * (x0 + again) / 2), again
        else:  # Lu et al., Algorithm 2, and Eq. B.7
            r = math.inf if h_last is None or h_last.isinf() else h_last / h
            d = x0 if h_last is None else (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
            if config.solver == "dpm++2m":
                z, std = sigma_t / sigma_s * z - a_t * torch.expm1(-h) * d, 0
            else:
                z = sigma_t / sigma_s * torch.exp(-h) * z + a_t * (1 - torch.exp(-2 * h)) * d
                std = sigma_t * (1 - torch.exp(-2 * h)).sqrt()
        if i < len(intervals) - 1:
            z = z + std * draw(i)
        last, h_last = x0, h
    return End(z, x0)


@pytest.mark.parametrize("grid", ["time", "log-snr"])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(("name", "eta"), [*((name, 0.0) for name in SOLVERS), ("ddim", 0.7), ("ddim", 1.0)])
def test_the_table_of_a_solver_takes_the_steps_that_its_paper_writes(name, eta, steps, grid):
    config = papers_end(solver=name, steps=steps, grid=grid, eta=eta, beta_clip=0.9)
    times = time_grid(config, TANGENT)
    z, *noises = torch.randn(1 + steps, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def denoise(z: Tensor, t: Tensor, last: Tensor) -> Tensor:
        return torch.tanh(z + t) - 0.3 * last

    expected = as_written(config, denoise, z, times, noises.__getitem__)
    found = solve(solver(config)(TANGENT, times), denoise, z, noises.__getitem__)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.x0, expected.x0, rtol=1e-9, atol=1e-9)


# ----------------------------------------------------------------------------------------------------------------------
# What they cost and return


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_evaluations_are_as_the_budget_counts_them(name, guidance):
    count = 0

    def network(z: Tensor, t: Tensor, previous: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return 0.5 * z

    solved(name, network if guidance == 1 else guided(network, guidance), torch.ones(1, dtype=torch.float64), 6)
    per_step = evaluations_per_step(papers_end(solver=name, guidance=guidance))
    assert count == 6 * per_step


@pytest.mark.parametrize("kind", ["tangent", "cosine", "linear"])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_starts_from_pure_noise_under_every_schedule(name, kind):
    """At t = 1 the log-SNR is infinite, or nearly so."""
    config, schedule = papers_end(solver=name, steps=256, grid="time", eta=1.0), Schedule(kind)
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draw = torch.Generator().manual_seed(2)
    end = solved_by(
        config,
        lambda z, t, last: schedule.alpha_sigma(t)[0] * z,  # exact for data of standard deviation 1
        z,
        lambda row: torch.randn(z.shape, generator=draw, dtype=z.dtype),
        schedule,
    ).mean
    assert end.std().item() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("name", SOLVERS)
def test_x0_is_the_last_estimate(name):
    estimates = []

    def denoise(z: Tensor, t: Tensor, last: Tensor) -> Tensor:
        estimates.append(mixture(z, t))
        return estimates[-1]

    z = torch.linspace(-2, 2, 5, dtype=torch.float64)
    assert torch.equal(solved(name, denoise, z, 6, final="x0"), estimates[-1])
    assert not torch.equal(solved(name, denoise, z, 6), estimates[-1])


@pytest.mark.parametrize("name", SOLVERS)
def test_the_last_step_adds_no_noise(name):
    steps = []
    config = papers_end(solver=name, steps=5, grid="time", eta=1.0)

    def draw(step: int) -> Tensor:
        steps.append(step)
        return torch.ones(2, dtype=torch.float64)

    solved_by(config, mixture, torch.ones(2, dtype=torch.float64), draw)
    assert steps == ([] if name in ("heun", "dpm++2m") else [0, 1, 2, 3])


def test_guidance_extrapolates_from_the_estimate_without_self_conditioning():
    def network(z: Tensor, t: Tensor, last: Tensor) -> Tensor:
        return z + 0.5 * last

    z, t, denoise = torch.ones(1, 3), torch.tensor(0.5), guided(network, 3.0)
    first = denoise(z, t, torch.zeros(1, 3))
    assert first.tolist() == [[1.0] * 3]
    assert denoise(z, t, first).tolist() == [[1 + 3.0 * 0.5] * 3]
    assert guided(network, 1.0)(z, t, first).tolist() == network(z, t, first).tolist()


# ----------------------------------------------------------------------------------------------------------------------
# Grids


@pytest.mark.parametrize("kind", ["tangent", "cosine", "linear"])
def test_the_log_snr_grid_has_equal_steps_in_log_snr(kind):
    schedule = Schedule(kind)
    times = time_grid(papers_end(steps=10, grid="log-snr"), schedule)
    steps = schedule.log_snr(times).diff()
    assert times[-1].item() == pytest.approx(0.05)
    assert steps.tolist() == pytest.approx([steps[0].item()] * 10, rel=1e-6)
    assert schedule.alpha_sigma(times[0])[0].item() == pytest.approx(0.01, rel=1e-2)


def test_the_learned_grid_has_equal_steps_in_the_learned_time():
    def quantile(u: Tensor) -> Tensor:  # F(t) = t²
        return u.clamp(min=1e-10).sqrt()

    times = time_grid(papers_end(steps=10, grid="learned", t_min=0.1), TANGENT, quantile)
    assert (times[0], times[-1]) == (1.0, pytest.approx(0.1))
    assert (times**2).diff().tolist() == pytest.approx([-0.99 / 10] * 10, abs=1e-9)


def test_the_learned_grid_of_uniform_timesteps_is_the_papers():
    learned = time_grid(papers_end(steps=7, grid="learned"), TANGENT, lambda u: u.clamp(1e-5, 1))
    assert learned.tolist() == pytest.approx(time_grid(papers_end(steps=7, grid="time")).tolist(), abs=1e-9)
