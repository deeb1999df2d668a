"""Held-out figures against their definitions, written out here, and the warnings about latents."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldlm import config as configs
from ldlm import noise
from ldlm.config import RecipeConfig, TimestepConfig, TrainConfig
from ldlm.features.store import FeatureStore
from ldlm.model.objective import JointObjective
from ldlm.model.timesteps import TimestepSampler
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import train
from ldlm.training import heldout
from ldlm.training.log import MetricsFile

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured(trained, store):
    """Objective, held-out rows and what `evaluate` finds on the first 30."""
    run = TrainedRun(trained, CPU)
    objective = JointObjective(run.model, TrainConfig(recipe=RecipeConfig(sigma_dec=0.5)))
    split = FeatureStore(store).held_out()
    timesteps = TimestepSampler(TimestepConfig(bins=4), 1e-5)
    timesteps.p = np.array([0.4, 0.3, 0.2, 0.1])
    found = heldout.evaluate(objective, split, rows=30, batch_size=8, device=CPU, timesteps=timesteps)
    return objective, split, found


def rows_of(split, count):
    parts, tokens = split.read(0, count)
    tokens_BL = torch.from_numpy(tokens).long()
    return split.states(parts, tokens_BL), tokens_BL


@torch.no_grad()
def test_figures_without_noise_are_those_of_their_definitions(measured):
    objective, split, found = measured
    h_BLD, tokens_BL = rows_of(split, 30)
    model = objective.model
    z = model.latent_encoder(h_BLD)
    logits = model.token_decoder(model.latent_decoder(z))
    assert found.rows == 30
    assert found.split == "validation"
    assert found.token_accuracy_clean == pytest.approx((logits.argmax(-1) == tokens_BL).float().mean().item())
    assert found.latent_std == pytest.approx(np.std(z.numpy(), axis=0).mean(), rel=1e-5)
    assert found.latent_norm == pytest.approx(np.linalg.norm(z.numpy(), axis=-1).mean(), rel=1e-5)
    mean_error = ((z - z.mean(dim=0)) ** 2).mean().item()
    assert found.l_diff_mean == pytest.approx(mean_error, rel=1e-5)


@torch.no_grad()
def test_reconstruction_is_measured_under_the_noise_of_training(measured):
    """Against noise drawn otherwise, to the spread of 30 rows."""
    objective, split, found = measured
    h_BLD, tokens_BL = rows_of(split, 30)
    model, generator = objective.model, torch.Generator().manual_seed(0)
    z = model.latent_encoder(h_BLD)
    h_hat = model.latent_decoder(z + 0.5 * torch.randn(z.shape, generator=generator))
    assert found.l_h == pytest.approx(F.mse_loss(h_hat, h_BLD).item(), rel=0.05)
    l_w = F.cross_entropy(model.token_decoder(h_hat).flatten(0, 1), tokens_BL.flatten()).item()
    assert found.l_w == pytest.approx(l_w, rel=0.05)


@torch.no_grad()
def test_the_denoising_loss_is_equation_1_in_two_passes_at_times_of_a_golden_ratio_walk(measured):
    """The second pass sees the first one's estimate of z_0, as a step of a sampler does."""
    objective, split, found = measured
    model = objective.model
    z_0 = model.latent_encoder(rows_of(split, 30)[0])
    eps = noise.normal(heldout.SEED, "eps", 0, torch.arange(30), z_0.shape[1:])
    losses, by_t = [], [[] for _ in range(heldout.T_BINS)]
    for row in range(30):
        t = (row + 0.5) * (math.sqrt(5) - 1) / 2 % 1
        alpha = 1 / math.sqrt(1 + 9 * math.tan(math.pi * t / 2) ** 2)
        z_t = alpha * z_0[row : row + 1] + math.sqrt(1 - alpha**2) * eps[row : row + 1]
        first = model.denoiser(z_t, torch.tensor([t]), torch.zeros_like(z_t))
        second = model.denoiser(z_t, torch.tensor([t]), first)
        losses.append(((second - z_0[row]) ** 2).mean().item())
        by_t[int(t * heldout.T_BINS)].append(losses[-1])
    assert found.l_diff == pytest.approx(np.mean(losses), rel=1e-5)
    expected = [np.mean(some) if some else None for some in by_t]
    assert [x is None for x in found.l_diff_by_t] == [x is None for x in expected]
    assert [x for x in found.l_diff_by_t if x] == pytest.approx([x for x in expected if x], rel=1e-4)


def test_losses_over_time_are_of_every_time_alike(measured):
    _, _, found = measured
    by_t = [x for x in found.l_diff_by_t if x is not None]
    assert len(found.l_diff_by_t) == len(found.l_diff_by_u) == heldout.T_BINS
    assert len(by_t) > 15  # 30 rows spread over 20 bins
    assert found.l_diff == pytest.approx(np.mean(by_t), rel=0.1)
    # F is steeper where t is small, so that fewer bins of F(t) lie at large t
    assert found.l_diff_by_u != found.l_diff_by_t


def test_the_batch_size_changes_nothing(measured):
    objective, split, found = measured
    again = heldout.evaluate(objective, split, rows=30, batch_size=30, device=CPU)
    for name in ("l_diff", "l_h", "l_w", "token_accuracy", "latent_std"):
        assert getattr(again, name) == pytest.approx(getattr(found, name), rel=1e-5)


@pytest.mark.parametrize(
    ("stds", "warning"),
    [
        ([0.05, 0.1, 0.15], None),  # small from the start, and within the warm-up: an untrained encoder
        ([0.05, 0.1, 0.15, 0.15], "have collapsed to a standard deviation of 0.150"),  # after it
        ([1.0, 0.6, 0.25], None),
        (
            [1.0, 0.6, 0.15],
            "have collapsed to a standard deviation of 0.150 (the most was 1.000); lengthen the warm-up",
        ),
        ([1.0, 19.0], None),
        ([1.0, 21.0], "have grown to a standard deviation of 21.0"),
    ],
)
def test_latents_that_collapse_or_explode_are_warned_about(stds, warning):
    evaluations = [{"step": 100 * number, "latent_std": std} for number, std in enumerate(stds, 1)]
    found = heldout.latent_warning(evaluations, warmup_steps=400)
    assert (found is None) == (warning is None)
    assert warning is None or warning in found
    assert warning is None or "recipe.sigma_dec" in found


def test_the_spread_of_a_few_rows_is_not_that_of_the_latents():
    """A single row has none, however large its latents are."""
    evaluations = [{"step": 500, "latent_std": 0.0, "rows": rows} for rows in (1, 7, 8)]
    found = [heldout.latent_warning([one], warmup_steps=400) is not None for one in evaluations]
    assert found == [False, False, True]
    assert heldout.latent_warning([{"step": 500, "latent_std": None, "rows": 1}], warmup_steps=400)


@pytest.mark.parametrize("std", [0.1, 30.0])
def test_the_remedy_is_a_setting_that_acts_in_the_space(std):
    evaluations = [{"step": 500, "latent_std": std}]
    found = {space: heldout.latent_warning(evaluations, 400, space) for space in ("ldlm", "cosmos", "scratch")}
    assert found["ldlm"].endswith("recipe.sigma_dec")
    assert found["cosmos"].endswith("cosmos.noise")
    assert "warm-up" not in found["cosmos"]  # which has no joint phase
    assert found["scratch"].endswith("recipe.sigma_dec, with recipe.decoder_noise=additive")


def test_a_collapse_is_said_while_it_happens(train_config, store, tmp_path, notes):
    """With nothing to hold them, and the diffusion's gradient all at once, the latents shrink (Section 5.2)."""
    overrides = {
        "steps": 200, "eval_every": 40, "save_every": 1000, "log_every": 50,
        "recipe": {"warmup_steps": 121, "warmup_c": 1.0, "warmup_k": 100.0, "sigma_dec": 1.0},
        "optimizer": {"lr": 1e-2, "ema_decay": 0.5},
        "model": {"autoencoder": {"position_std": 1.0, "aligned": True}},
    }  # fmt: skip
    config = configs.from_dict(TrainConfig, configs.merge(configs.to_dict(train_config), overrides))
    train.run(config, store, tmp_path / "run", progress=notes)
    found = [line for line in MetricsFile(tmp_path / "run" / "metrics.jsonl").read() if line["kind"] == "eval"]
    stds = [line["latent_std"] for line in found]
    assert max(stds) > heldout.COLLAPSED > stds[-1]
    assert [line for line in notes.lines if "have collapsed" in line]
