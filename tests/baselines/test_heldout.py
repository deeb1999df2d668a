"""Held-out losses of the rivals: draws with the law of training's, and little noise in their mean."""

import pytest
import torch

from ldlm.baselines import heldout, methods
from ldlm.baselines.trained import TrainedTokenRun
from ldlm.features.store import FeatureStore

CPU = torch.device("cpu")


@pytest.mark.parametrize("alpha", [0.05, 0.5, 0.98])
def test_by_their_weights_each_token_is_kept_by_itself(alpha):
    draws, length = 40_000, 6
    u_BL = torch.rand(draws, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha_B, draw_B = torch.full((draws,), alpha, dtype=torch.float64), torch.arange(draws)
    u_BL, weight_B = heldout.with_noise(u_BL, alpha_B, draw_B, draw_B % 2 == 1, seed=0)
    noisy_BL, p = (u_BL >= alpha).double(), 1 - alpha
    together_LL = (weight_B[:, None] * noisy_BL).T @ noisy_BL / draws
    law_LL = torch.full((length, length), p**2, dtype=torch.float64).fill_diagonal_(p)
    assert weight_B.mean().item() == pytest.approx(1, abs=0.02)
    assert (together_LL - law_LL).abs().max() < 0.04 * p
    assert (noisy_BL.sum(1) > 0).double().mean() > 0.5


@pytest.mark.parametrize("method", ["mdlm", "duo", "candi", "flm"])
def test_another_seed_gives_the_same_loss_within_hundredths(rival, store, monkeypatch, method):
    """The rows are 256 of 16 tokens; one draw a row scatters by 0.15 nats with masks, and by 0.09 with Duo."""
    run, rows = TrainedTokenRun(rival(method), CPU), FeatureStore(store).split("train").without_states()

    def loss(seed):
        monkeypatch.setattr(heldout, "SEED", seed)
        chosen = methods.held_out_method(run.config, run.shapes)
        return heldout.evaluate(chosen, run.network, rows, bound=False, rows=256, batch_size=256, device=CPU)

    found = [loss(seed) for seed in range(6)]
    spread = torch.tensor([one.loss for one in found], dtype=torch.float64).std().item()
    assert spread < 0.04
    assert spread / 2 < found[0].loss_se < 0.05
    assert loss(0) == found[0]
    assert None not in found[0].loss_by_t and len(found[0].loss_by_t) == 20


@pytest.mark.parametrize("rows", [8, 9])
def test_half_of_each_rows_draws_have_noise_for_certain(rival, store, monkeypatch, rows):
    """Their weights balance only together, so a row with one kind alone is off, and rows of two kinds lie apart."""
    run, split = TrainedTokenRun(rival("mdlm"), CPU), FeatureStore(store).split("train").without_states()
    plain, forced = heldout.with_noise, []

    def spied(u_BL, alpha_B, draw_B, forced_B, *, seed):
        forced.append(forced_B.tolist())
        return plain(u_BL, alpha_B, draw_B, forced_B, seed=seed)

    monkeypatch.setattr(heldout, "with_noise", spied)
    chosen = methods.held_out_method(run.config, run.shapes)
    heldout.evaluate(chosen, run.network, split, bound=False, rows=rows, batch_size=rows, device=CPU)
    assert [sum(of_row) for of_row in zip(*forced, strict=True)] == [heldout.DRAWS // 2] * rows
    assert all(abs(sum(of_draw) - rows / 2) <= 0.5 for of_draw in forced)
