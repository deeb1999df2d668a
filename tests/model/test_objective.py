"""The joint loss: its values against the formulas, where each gradient goes and where it must not, and that it learns.

Exact zeros are asserted as zeros: a stop-gradient that leaks a little is no stop-gradient.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from randomness import random
from torch import Tensor

from ldlm import noise
from ldlm.config import (
    AutoencoderConfig,
    DecoderNoise,
    DenoiserConfig,
    DiffusionConfig,
    ModelConfig,
    OptimizerConfig,
    RecipeConfig,
    Shapes,
    TimestepConfig,
    TokenDecoderConfig,
    TrainConfig,
)
from ldlm.features.batch import Batch
from ldlm.model.joint import JointModel, build
from ldlm.model.objective import (
    Draws,
    JointObjective,
    Losses,
    draw,
    elbo_start,
    loss_weights,
    scale_gradient,
    warmup_gamma,
)
from ldlm.model.timesteps import TimestepSampler
from ldlm.training.joint import start, train_step

SHAPES = Shapes(seq_len=6, hidden_dim=16, vocab_size=11)
MODEL = ModelConfig(
    autoencoder=AutoencoderConfig(layers=1, width=16, heads=2, num_latents=4, latent_dim=8),
    denoiser=DenoiserConfig(layers=1, width=16, heads=2, time_dim=8),
    token_decoder=TokenDecoderConfig(layers=1, heads=2),
)
BATCH = 3
PARTS = ("latent_encoder", "latent_decoder", "denoiser", "token_decoder")


def objective(config: ModelConfig = MODEL, *, scratch: bool = False, **recipe) -> JointObjective:
    """Float64 with every weight random: at initialisation the denoiser's zeros hide its gradients."""
    model = build(config, SHAPES, seed=0, scratch=scratch).double()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.2 * random(*parameter.shape, seed=i))
    return JointObjective(model, TrainConfig(model=config, recipe=RecipeConfig(**recipe)))


def draws(*, self_condition: bool = False, latents: tuple[int, int] = (4, 8)) -> Draws:
    return Draws(
        t_B=torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64),
        weight_B=torch.ones(BATCH, dtype=torch.float64),
        eps_BNC=random(BATCH, *latents, seed=100),
        eps_dec_BNC=random(BATCH, *latents, seed=101),
        self_condition=self_condition,
    )


HIDDEN = random(BATCH, 6, 16, seed=102)
TOKENS = torch.arange(BATCH * 6).reshape(BATCH, 6) % 11


def run(made: JointObjective, made_draws: Draws | None = None, gamma: float = 1.0) -> Losses:
    return made(HIDDEN, TOKENS, made_draws or draws(), gamma)


def gradients(loss: Tensor, model: JointModel) -> dict[str, Tensor]:
    """Gradient of `loss` in each part, flattened; zeros where the graph does not lead."""
    result = {}
    for name, part in model.parts().items():
        parameters = list(part.parameters())
        if not parameters:  # the identity
            continue
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        pieces = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        result[name] = torch.cat([piece.flatten() for piece in pieces])
    return result


def reached(found: dict[str, Tensor]) -> set[str]:
    return {name for name, gradient in found.items() if gradient.abs().max() > 0}


# The warm-up


def test_gamma_rises_from_gamma_min_to_1_along_a_shifted_sigmoid():
    config = RecipeConfig(warmup_steps=1_000)
    assert warmup_gamma(0, config) == 0
    assert warmup_gamma(1_000, config) == 1
    assert warmup_gamma(1_001, config) == 1
    assert warmup_gamma(10**9, config) == 1
    assert warmup_gamma(999, config) == pytest.approx(1, abs=2e-3)
    values = [warmup_gamma(step, config) for step in range(1_001)]
    assert all(a < b for a, b in pairwise(values))


@pytest.mark.parametrize("gamma_min", [0.0, 0.25])
def test_gamma_follows_equation_30(gamma_min):
    def sigmoid(x: float) -> float:
        return math.exp(x) / (1 + math.exp(x))

    config = RecipeConfig(warmup_steps=400, gamma_min=gamma_min)  # k=10, c=0.8: from σ(−8) to σ(2)
    for step in (0, 1, 100, 320, 399):
        share = (sigmoid(10 * step / 400 - 8) - sigmoid(-8)) / (sigmoid(2) - sigmoid(-8))
        assert warmup_gamma(step, config) == pytest.approx(gamma_min + (1 - gamma_min) * share, abs=1e-12)


def test_k_and_c_shape_the_warm_up_and_no_warm_up_means_1():
    steep = RecipeConfig(warmup_steps=100, warmup_k=40.0, warmup_c=0.5)
    assert warmup_gamma(50, steep) == pytest.approx(0.5, abs=1e-9)
    assert warmup_gamma(40, steep) < 0.03
    step = RecipeConfig(warmup_steps=100, warmup_k=1e5, warmup_c=0.5)
    assert [warmup_gamma(s, step) for s in (0, 49, 51, 100)] == [0, 0, 1, 1]
    assert warmup_gamma(0, RecipeConfig(warmup_steps=0)) == 1


def test_scaling_a_gradient_changes_no_bit_of_the_value():
    z = random(50, seed=0).float().requires_grad_()
    for gamma in (0.0, 0.3, 1.0):
        scaled = scale_gradient(z, gamma)
        assert torch.equal(scaled, z)
        (gradient,) = torch.autograd.grad((scaled**2).sum(), z)
        assert torch.allclose(gradient, gamma * 2 * z.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("self_condition", [False, True])
def test_gamma_scales_the_encoders_gradient_from_the_diffusion_loss_and_nothing_else(self_condition):
    made = objective()
    whole = run(made, draws(self_condition=self_condition), gamma=1.0)
    part = run(made, draws(self_condition=self_condition), gamma=0.3)
    assert torch.equal(part.l_diff, whole.l_diff)
    assert torch.equal(part.loss, whole.loss)

    a, b = gradients(whole.l_diff, made.model), gradients(part.l_diff, made.model)
    assert a["latent_encoder"].abs().max() > 1e-3
    assert torch.allclose(b["latent_encoder"], 0.3 * a["latent_encoder"], rtol=1e-10, atol=1e-14)
    assert torch.equal(b["denoiser"], a["denoiser"])

    joint = gradients(part.loss, made.model)
    expected = 0.3 * a["latent_encoder"] + gradients(whole.l_h, made.model)["latent_encoder"]
    assert torch.allclose(joint["latent_encoder"], expected, rtol=1e-10, atol=1e-14)
    for name in ("latent_decoder", "denoiser", "token_decoder"):
        assert torch.equal(joint[name], gradients(whole.loss, made.model)[name])


# Where gradients go


@pytest.mark.parametrize("self_condition", [False, True])
def test_without_gamma_the_diffusion_loss_trains_the_denoiser_alone(self_condition):
    made = objective()
    losses = run(made, draws(self_condition=self_condition), gamma=0.0)
    assert reached(gradients(losses.l_diff, made.model)) == {"denoiser"}


def test_with_gamma_the_diffusion_loss_trains_denoiser_and_encoder():
    made = objective()
    assert reached(gradients(run(made).l_diff, made.model)) == {"denoiser", "latent_encoder"}


def test_the_token_loss_trains_the_token_decoder_alone():
    made = objective()
    assert reached(gradients(run(made).l_w, made.model)) == {"token_decoder"}


def test_the_hidden_state_loss_trains_encoder_and_decoder_alone():
    made = objective()
    assert reached(gradients(run(made).l_h, made.model)) == {"latent_encoder", "latent_decoder"}


@pytest.mark.parametrize("reconstruction", ["ce", "ce+mse"])
def test_the_cross_entropy_ablations_let_the_token_loss_through(reconstruction):
    made = objective(reconstruction=reconstruction)
    found = gradients(run(made).l_w, made.model)
    assert reached(found) == {"latent_encoder", "latent_decoder", "token_decoder"}


def test_every_parameter_of_every_part_is_trained_by_the_joint_loss():
    made = objective()
    run(made, draws(self_condition=True)).loss.backward()
    for name, parameter in made.model.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("space", ["ldlm", "scratch"])
def test_embeddings_from_scratch_are_reached_by_the_token_loss_and_by_gamma_of_the_diffusion_loss(space):
    """Table 1's EMB_θ under cross-entropy, and Table 2's scratch embeddings, where z_0 is the embedding itself."""
    config, latents, encoders = MODEL, (4, 8), {"latent_encoder", "latent_decoder"}
    if space == "scratch":
        config, latents, encoders = replace(MODEL, space=space, autoencoder=AutoencoderConfig()), (6, 16), set()
    made = objective(config, reconstruction="ce", scratch=True)
    losses = made(None, TOKENS, draws(latents=latents), 1.0)
    assert reached(gradients(losses.l_w, made.model)) == {"embedding", "token_decoder"} | encoders
    full = gradients(losses.l_diff, made.model)
    assert reached(full) == {"embedding", "denoiser"} | (encoders & {"latent_encoder"})
    half = gradients(made(None, TOKENS, draws(latents=latents), 0.5).l_diff, made.model)
    assert torch.allclose(half["embedding"], 0.5 * full["embedding"], rtol=1e-9)
    assert torch.allclose(half["denoiser"], full["denoiser"], rtol=1e-12)
    assert reached(gradients(made(None, TOKENS, draws(latents=latents), 0.0).l_diff, made.model)) == {"denoiser"}


def test_scratch_embeddings_are_no_moving_target_of_their_own_reconstruction():
    """L_h reaches the embeddings through the encoder alone; a gradient in the target would shrink them to zero."""
    made = objective(scratch=True)
    target = made.model.embedding(TOKENS).detach()
    losses = made(None, TOKENS, draws(), 1.0)
    found = gradients(losses.l_h, made.model)["embedding"]

    z_0 = made.model.latent_encoder(made.model.embedding(TOKENS))
    h_hat = made.model.latent_decoder(z_0 + 3.0 * draws().eps_dec_BNC)
    expected = gradients(((h_hat - target) ** 2).mean(), made.model)["embedding"]
    assert expected.abs().max() > 0
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-14)


# Values


def test_the_losses_follow_equations_1_to_4():
    made = objective(sigma_dec=2.0)
    losses, model, d = run(made), made.model, draws()
    z_0 = model.latent_encoder(HIDDEN)

    expected = []
    for row, t in enumerate((0.1, 0.4, 0.8)):
        alpha = 1 / math.sqrt(1 + 9 * math.tan(math.pi * t / 2) ** 2)
        z_t = alpha * z_0[row : row + 1] + math.sqrt(1 - alpha**2) * d.eps_BNC[row : row + 1]
        z_hat = model.denoiser(z_t, torch.tensor([t]), torch.zeros_like(z_t))
        expected.append(((z_hat - z_0[row]) ** 2).mean().item())
    assert losses.l_diff_B.tolist() == pytest.approx(expected, rel=1e-6)
    assert losses.l_diff.item() == pytest.approx(sum(expected) / 3, rel=1e-6)
    assert not losses.l_diff_B.requires_grad

    h_hat = model.latent_decoder(z_0 + 2.0 * d.eps_dec_BNC)
    assert losses.l_h.item() == pytest.approx(((h_hat - HIDDEN) ** 2).mean().item(), rel=1e-12)
    logits = model.token_decoder(h_hat)
    nll = [-logits[b, i].log_softmax(-1)[TOKENS[b, i]].item() for b in range(BATCH) for i in range(6)]
    assert losses.l_w.item() == pytest.approx(sum(nll) / len(nll), rel=1e-12)
    assert losses.token_accuracy.item() == pytest.approx((logits.argmax(-1) == TOKENS).double().mean().item(), rel=1e-6)
    assert torch.allclose(losses.latents.sum_NC, z_0.sum(0).double())
    assert torch.allclose(losses.latents.square_NC, z_0.square().sum(0).double())
    assert losses.loss.item() == pytest.approx((losses.l_diff + losses.l_h + losses.l_w).item(), rel=1e-12)


def test_a_sum_instead_of_a_mean_multiplies_by_the_number_of_elements():
    mean, total = run(objective()), run(objective(loss_reduction="sum"))
    assert total.l_diff.item() == pytest.approx(4 * 8 * mean.l_diff.item(), rel=1e-12)
    assert total.l_h.item() == pytest.approx(6 * 16 * mean.l_h.item(), rel=1e-12)
    assert total.l_w.item() == pytest.approx(6 * mean.l_w.item(), rel=1e-12)
    assert total.loss.item() == pytest.approx((total.l_diff + total.l_h + total.l_w).item(), rel=1e-12)


def test_runs_of_the_first_edition_keep_a_mean_of_the_tokens_beside_sums_and_means_under_elbo():
    mean, total = run(objective()), run(objective(loss_reduction="sum", edition=1))
    assert total.l_diff.item() == pytest.approx(4 * 8 * mean.l_diff.item(), rel=1e-12)
    assert total.l_w.item() == pytest.approx(mean.l_w.item(), rel=1e-12)
    config = TrainConfig(model=MODEL, diffusion=DiffusionConfig(weighting="elbo"), recipe=RecipeConfig(edition=1))
    weighted = JointObjective(objective().model, config)
    assert run(weighted).loss.item() == mean.loss.item()


@pytest.mark.parametrize(
    ("edition", "reduction", "tokens"), [(3, "mean", 6), (3, "sum", 6), (2, "mean", 6), (2, "sum", 1)]
)
def test_under_elbo_the_terms_stand_to_each_other_as_in_equation_23(edition, reduction, tokens):
    """CE + ‖h − ĥ‖² + ω‖z_0 − ẑ_0‖², written out with sums over the six tokens of a row.

    In the second edition `sum` is in nats per text; in the third it is refused before it comes to a loss.
    """
    model, d = objective().model, draws()
    recipe = RecipeConfig(edition=edition, loss_reduction=reduction, reconstruction="ce+mse", sigma_dec=2.0)
    omega = [0.5 * -_slope(t) * math.exp(_log_snr(t)) for t in (0.1, 0.4, 0.8)]  # Eq. 22
    weighted = dataclasses.replace(d, weight_B=torch.tensor(omega, dtype=torch.float64))
    config = TrainConfig(model=MODEL, diffusion=DiffusionConfig(weighting="elbo"), recipe=recipe)
    losses = run(JointObjective(model, config), weighted)

    z_0 = model.latent_encoder(HIDDEN)
    alpha = torch.tensor([math.sqrt(1 / (1 + math.exp(-_log_snr(t)))) for t in (0.1, 0.4, 0.8)], dtype=torch.float64)
    z_t = alpha[:, None, None] * z_0 + (1 - alpha**2).sqrt()[:, None, None] * d.eps_BNC
    z_hat = model.denoiser(z_t, d.t_B.float(), torch.zeros_like(z_t))
    h_hat = model.latent_decoder(z_0 + 2.0 * d.eps_dec_BNC)
    log_p = model.token_decoder(h_hat).log_softmax(-1).gather(-1, TOKENS[..., None])
    diffusion = sum(w * ((z_hat[row] - z_0[row]) ** 2).sum() for row, w in enumerate(omega)) / BATCH
    states, tokens_nll = ((h_hat - HIDDEN) ** 2).sum() / BATCH, -log_p.sum() / BATCH
    for term, expected in ((losses.l_diff, diffusion), (losses.l_h, states), (losses.l_w, tokens_nll)):
        assert term.item() == pytest.approx(expected.item() / tokens, rel=1e-6)
    nelbo = diffusion + states + tokens_nll
    assert losses.loss.item() == pytest.approx(nelbo.item() / tokens, rel=1e-6)
    found, expected = gradients(losses.loss, model), gradients(nelbo, model)
    for name in PARTS:
        assert torch.allclose(found[name], expected[name] / tokens, rtol=1e-5, atol=1e-8), name


def _log_snr(t: float) -> float:
    return -2 * math.log(3 * math.tan(math.pi * t / 2))


def _slope(t: float) -> float:
    return (_log_snr(t + 1e-6) - _log_snr(t - 1e-6)) / 2e-6


@pytest.mark.parametrize("weighting", ["simple", "elbo"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_recorded_terms_are_means_over_elements_whatever_the_loss_adds_up(weighting, reduction):
    def found(reduction, weighting):
        config = TrainConfig(
            model=MODEL,
            batch_size=BATCH,
            diffusion=DiffusionConfig(weighting=weighting),
            recipe=RecipeConfig(loss_reduction=reduction),
        )
        state = start(config, SHAPES, scratch=False, device=torch.device("cpu"))
        return state.figures(train_step(state, Batch(HIDDEN.float(), TOKENS, torch.arange(BATCH), 0)))

    plain, other = found("mean", "simple"), found(reduction, weighting)
    names = ("l_h", "l_w") if weighting == "elbo" else ("l_diff", "l_h", "l_w")
    assert [other[name] for name in names] == pytest.approx([plain[name] for name in names], rel=1e-5)


def test_the_ablations_add_up_what_they_name():
    for reconstruction, adds_mse in {"mse": True, "ce": False, "ce+mse": True}.items():
        losses = run(objective(reconstruction=reconstruction))
        expected = losses.l_diff + losses.l_w + (losses.l_h if adds_mse else 0)
        assert losses.loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_loss_weights_reach_the_loss_and_not_what_the_timestep_sampler_sees():
    made = objective()
    plain = run(made)
    weights = torch.tensor([0.5, 0.0, 4.0], dtype=torch.float64)
    weighted = run(made, dataclasses.replace(draws(), weight_B=weights))
    assert weighted.l_diff.item() == pytest.approx((weights * plain.l_diff_B).mean().item(), rel=1e-12)
    assert torch.equal(weighted.l_diff_B, plain.l_diff_B)


def test_a_deferred_token_decoder_takes_no_part():
    config = dataclasses.replace(MODEL, token_decoder=TokenDecoderConfig(mode="deferred"))
    made = objective(config)
    losses = run(made)
    assert made.model.token_decoder is None
    assert losses.l_w.item() == 0
    assert losses.loss.item() == pytest.approx((losses.l_diff + losses.l_h).item(), rel=1e-12)
    losses.loss.backward()
    assert all(p.grad is not None for p in made.model.parameters())


# Self-conditioning


def calls_of_denoiser(made: JointObjective, made_draws: Draws) -> list[tuple]:
    """(z_t, t, previous, estimate, whether it carries a gradient) of each evaluation."""
    calls = []
    hook = made.model.denoiser.register_forward_hook(
        lambda module, args, out: calls.append((*(x.detach() for x in args), out.detach(), out.requires_grad))
    )
    run(made, made_draws)
    hook.remove()
    return calls


def test_a_self_conditioned_step_estimates_twice_at_the_same_time_and_latent():
    made = objective()
    (z_a, t_a, previous_a, estimate, first_learns), (z_b, t_b, previous_b, _, second_learns) = calls_of_denoiser(
        made, draws(self_condition=True)
    )
    assert torch.equal(z_a, z_b)
    assert torch.equal(t_a, t_b)
    assert torch.equal(previous_a, torch.zeros_like(z_a))
    assert torch.equal(previous_b, estimate)
    assert (first_learns, second_learns) == (False, True)
    ((_, _, previous, _, learns),) = calls_of_denoiser(made, draws())
    assert torch.equal(previous, torch.zeros_like(z_a))
    assert learns


def test_the_self_conditioning_estimate_is_a_constant_to_the_gradient():
    made = objective()
    d = draws(self_condition=True)
    (_, _, _, estimate, _), _ = calls_of_denoiser(made, d)
    got = gradients(run(made, d).l_diff, made.model)

    alpha, sigma = made.schedule.alpha_sigma(d.t_B)
    z_0 = made.model.latent_encoder(HIDDEN)
    z_t = alpha[:, None, None] * z_0 + sigma[:, None, None] * d.eps_BNC
    expected = gradients(((made.model.denoiser(z_t, d.t_B.float(), estimate) - z_0) ** 2).mean(), made.model)
    for name in ("denoiser", "latent_encoder"):
        assert torch.allclose(got[name], expected[name], rtol=1e-9, atol=1e-13)
    without = gradients(run(made, draws()).l_diff, made.model)["denoiser"]
    assert not torch.allclose(got["denoiser"], without, rtol=1e-3)


def test_noise_on_the_self_conditioning_estimate_is_a_multiple_of_its_root_mean_square():
    made, eps = objective(), random(BATCH, 4, 8, seed=103)
    made.config = replace(made.config, diffusion=DiffusionConfig(self_conditioning_noise=0.25))
    (_, _, _, estimate, _), (_, _, previous, _, _) = calls_of_denoiser(
        made, replace(draws(self_condition=True), eps_prev_BNC=eps)
    )
    for row in range(BATCH):
        size = 0.25 * math.sqrt(estimate[row].square().sum().item() / estimate[row].numel())
        assert torch.allclose(previous[row], estimate[row] + size * eps[row], rtol=1e-12)


def test_a_step_has_noise_for_the_estimate_where_there_is_one_and_a_setting_asks_for_it():
    for p, size, has in ((1.0, 0.5, True), (1.0, 0.0, False), (0.0, 0.5, False)):
        d = some_draws(DiffusionConfig(self_conditioning=p, self_conditioning_noise=size), torch.arange(2_000))
        assert (d.eps_prev_BNC is not None) == has
    d = some_draws(DiffusionConfig(self_conditioning=1.0, self_conditioning_noise=0.5), torch.arange(2_000))
    bound = 5 / math.sqrt(d.eps_BNC.numel())
    for other in (d.eps_BNC, d.eps_dec_BNC):
        assert abs((d.eps_prev_BNC * other).mean()) < bound
    plain = some_draws(DiffusionConfig(self_conditioning=1.0), torch.arange(2_000))
    assert torch.equal(plain.t_B, d.t_B)  # everything else is as it was
    assert torch.equal(plain.eps_BNC, d.eps_BNC)


# The randomness of a step


def some_draws(
    config: DiffusionConfig, rows: Tensor, *, step: int = 5, sampler: TimestepSampler | None = None
) -> Draws:
    sampler = sampler or TimestepSampler(TimestepConfig(), config.t_min)
    return draw(config, sampler, seed=3, step=step, rows_B=rows, latent_shape=(4, 8))


def test_draws_belong_to_rows_of_the_global_batch_and_the_coin_to_the_step():
    config = DiffusionConfig(self_conditioning=1.0, self_conditioning_noise=0.5)
    whole, half = some_draws(config, torch.arange(8)), some_draws(config, torch.arange(4, 8))
    for name in ("t_B", "weight_B", "eps_BNC", "eps_dec_BNC", "eps_prev_BNC"):
        assert torch.equal(getattr(half, name), getattr(whole, name)[4:]), name
    assert half.self_condition == whole.self_condition
    later = some_draws(DiffusionConfig(), torch.arange(8), step=6)
    assert not torch.equal(later.t_B, whole.t_B)
    assert not torch.equal(later.eps_BNC, whole.eps_BNC)


def test_the_two_noises_and_the_times_of_a_step_are_unrelated():
    d = some_draws(DiffusionConfig(), torch.arange(2_000))
    bound = 5 / math.sqrt(d.eps_BNC.numel())
    assert abs((d.eps_BNC * d.eps_dec_BNC).mean()) < bound
    assert abs(torch.corrcoef(torch.stack([d.t_B, d.eps_BNC[:, 0, 0].double()]))[0, 1]) < 5 / math.sqrt(2_000)
    assert d.t_B.dtype == torch.float64
    assert 1e-5 <= d.t_B.min() < 0.01
    assert 0.99 < d.t_B.max() <= 1


def test_self_conditioning_happens_with_its_probability():
    for p, low, high in ((0.0, 0, 0), (0.5, 30, 70), (1.0, 100, 100)):
        config = DiffusionConfig(self_conditioning=p)
        heads = sum(some_draws(config, torch.arange(1), step=step).self_condition for step in range(100))
        assert low <= heads <= high


def test_simple_weights_are_1_whatever_the_density():
    sampler = TimestepSampler(TimestepConfig(bins=2), 1e-5)
    sampler.p[:] = [0.9, 0.1]
    assert some_draws(DiffusionConfig(), torch.arange(50), sampler=sampler).weight_B.unique().tolist() == [1.0]


def test_elbo_weights_estimate_the_elbo_under_any_density():
    """E_{t~p}[ω(t)/p(t)·f(t)] = ∫ω·f over the times that count, here with ω = −½λ'e^λ and f = 1."""
    config = DiffusionConfig(weighting="elbo", elbo_t_min=0.2)
    sampler = TimestepSampler(TimestepConfig(bins=4), config.t_min)
    sampler.p[:] = [0.5, 0.2, 0.1, 0.2]
    d = some_draws(config, torch.arange(40_000), sampler=sampler)
    assert (d.weight_B[d.t_B < 0.2] == 0).all()
    assert (d.weight_B[d.t_B >= 0.2] > 0).all()
    # −½ ∫ λ' e^λ dt = ½ (e^λ(0.2) − e^λ(1)), and e^λ = 1 / (3 tan(πt/2))².
    exact = 0.5 / (3 * math.tan(0.1 * math.pi)) ** 2
    spread = d.weight_B.std().item() / math.sqrt(40_000)
    assert d.weight_B.mean().item() == pytest.approx(exact, abs=4 * spread)
    assert 4 * spread < 0.05 * exact


@pytest.mark.parametrize(
    ("decoder", "start"),
    [
        (DecoderNoise("additive", 3.0), 0.5),  # σ/α = 3 tan(πt/2)
        (DecoderNoise("additive", 3 * math.tan(0.1 * math.pi)), 0.2),
        (DecoderNoise("diffused", 0.15), 0.15),
    ],
)
def test_the_integral_of_the_elbo_starts_where_z_t_has_the_noise_that_the_decoders_read(decoder, start):
    config = DiffusionConfig(weighting="elbo")
    sampler = TimestepSampler(TimestepConfig(), config.t_min)
    t_B = torch.tensor([start - 1e-6, start + 1e-6, 0.99], dtype=torch.float64)
    assert (loss_weights(config, sampler, t_B, decoder) > 0).tolist() == [False, True, True]
    old = DiffusionConfig(weighting="elbo", elbo_t_min=0.05)  # as the first editions recorded it
    assert loss_weights(old, sampler, torch.tensor([0.049, 0.051]), decoder)[0] == 0
    assert elbo_start(old, decoder) == 0.05
    assert elbo_start(config, decoder) == pytest.approx(start, abs=1e-12)


# Learning


def test_a_few_hundred_steps_learn_a_tiny_corpus_by_heart():
    """16 rows of random tokens with fixed random states: reconstruction above 95 %, and a denoiser that knows them."""
    rows, length, vocab = 16, 8, 50
    config = TrainConfig(
        steps=300,
        batch_size=rows,
        model=ModelConfig(
            autoencoder=AutoencoderConfig(layers=1, width=48, heads=2, position_std=1.0),
            denoiser=DenoiserConfig(layers=2, width=48, heads=2, time_dim=32),
            token_decoder=TokenDecoderConfig(layers=1, heads=2),
        ),
        recipe=RecipeConfig(warmup_steps=150, sigma_dec=1.0),
        timesteps=TimestepConfig(refresh_steps=50),
        optimizer=OptimizerConfig(lr=5e-3, lr_warmup_steps=20, lr_decay="cosine"),
    )
    tokens = torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(0))
    hidden = random(vocab, 32, seed=1).float()[tokens]
    state = start(
        config, Shapes(seq_len=length, hidden_dim=32, vocab_size=vocab), scratch=False, device=torch.device("cpu")
    )

    history = []
    for step in range(config.steps):
        batch = Batch(hidden, tokens, torch.arange(rows), step * rows)
        done = train_step(state, batch)
        assert state.read_step(done)
        history.append({"loss": done.losses[0].loss.item(), "gamma": done.gamma})
    assert state.step == 300
    assert history[-1]["loss"] < 0.3 * history[0]["loss"]
    assert history[0]["gamma"] == 0
    assert history[-1]["gamma"] == 1

    # With the averaged weights, and without noise on the latents: what the decoders know.
    with torch.no_grad(), state.ema.applied_to(state.model):
        model = state.model
        z_0 = model.latent_encoder(hidden)
        logits = model.token_decoder(model.latent_decoder(z_0))
        assert (logits.argmax(-1) == tokens).float().mean() > 0.95

        # The denoiser knows the rows: far below predicting their mean, and below scaling z_t, which gives 0.54 of that.
        t = torch.full((rows,), 0.1, dtype=torch.float64)
        eps = noise.normal(1, "test", 0, torch.arange(rows), tuple(z_0.shape[1:]))
        l_diff = state.objective.denoising_loss(z_0, Draws(t, torch.ones(rows), eps, eps, self_condition=True)).mean()
        assert z_0.std(dim=0).mean() > 0.2
        assert l_diff < 0.45 * z_0.var(dim=0, unbiased=False).mean()


def test_the_figures_of_a_step_are_those_of_its_batch_and_gradient(monkeypatch):
    """Standard deviations over all micro-batches together, and the norm of each part's gradient before clipping."""
    from ldlm.training import learner

    config = TrainConfig(model=MODEL, batch_size=BATCH, accumulate=BATCH, recipe=RecipeConfig(warmup_steps=0))
    state = start(config, SHAPES, scratch=False, device=torch.device("cpu"))
    seen = {}
    real = learner.nn.utils.clip_grad_norm_

    def before_clipping(parameters, most):
        seen.update({name: [p.grad.clone() for p in part.parameters()] for name, part in state.model.parts().items()})
        return real(parameters, most)

    monkeypatch.setattr(learner.nn.utils, "clip_grad_norm_", before_clipping)
    z_BNC = state.model.latent_encoder(HIDDEN.float()).detach()
    found = state.figures(train_step(state, Batch(HIDDEN.float(), TOKENS, torch.arange(BATCH), 0)))
    for name, grads in seen.items():
        expected = math.sqrt(sum(g.double().square().sum().item() for g in grads))
        assert found[f"gradient_norm_{name}"] == pytest.approx(expected, rel=1e-5)
    std_NC = z_BNC.std(dim=0, unbiased=False)
    assert found["latent_std"] == pytest.approx(std_NC.mean().item(), rel=1e-5)
    assert found["latent_std_least"] == pytest.approx(std_NC.mean(dim=0).min().item(), rel=1e-5)
    assert found["latent_std_most"] == pytest.approx(std_NC.mean(dim=0).max().item(), rel=1e-5)
    assert found["latent_norm"] == pytest.approx(z_BNC.norm(dim=-1).mean().item(), rel=1e-5)


def test_a_loss_that_is_not_finite_updates_nothing_though_its_gradient_is(monkeypatch):
    config = TrainConfig(model=MODEL, batch_size=BATCH, recipe=RecipeConfig(warmup_steps=0))
    state = start(config, SHAPES, scratch=False, device=torch.device("cpu"))
    real = JointObjective.forward

    def infinite(*arguments, **options):
        losses = real(*arguments, **options)
        return losses._replace(loss=losses.loss + math.inf)

    monkeypatch.setattr(JointObjective, "forward", infinite)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    batch = Batch(HIDDEN.float(), TOKENS, torch.arange(BATCH), 0)
    step = train_step(state, batch)
    assert not state.read_step(step)
    assert state.skipped == 1
    assert all(torch.equal(p, before[name]) for name, p in state.model.named_parameters())
    assert all(torch.equal(average, before[name]) for name, average in state.ema.weights.items())
    assert {float(found["step"]) for found in state.optimizer.state.values()} == {0.0}
    assert not any(found["exp_avg"].any() for found in state.optimizer.state.values())
    assert np.isnan(state.timesteps.edge_losses).all()


@pytest.mark.parametrize("changes", [{}, {"recompute": True}, {"accumulate": BATCH}])
@pytest.mark.parametrize("number", [0, 1])  # with and without self-conditioning
def test_a_step_never_reads_what_the_device_has_found(monkeypatch, changes, number):
    """On the meta device there is nothing to be read, and whoever tries fails."""
    from ldlm.training import joint

    meta = torch.device("meta")
    monkeypatch.setattr(joint, "optimizer", lambda model, config: torch.optim.AdamW(model.parameters()))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)  # which does not know this device
    monkeypatch.setattr(noise, "coin", lambda *address: bool(number))
    config = TrainConfig(model=MODEL, batch_size=BATCH, **changes)
    state = start(config, SHAPES, scratch=False, device=meta)
    batch = Batch(HIDDEN.float().to(meta), TOKENS.to(meta), torch.arange(BATCH), 0)
    step = train_step(state, batch)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"meta|data-dependent"):
        state.read_step(step)
