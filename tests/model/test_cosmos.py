"""The corruption of the inputs of COSMOS's autoencoder, and its loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ldlm.config import CosmosConfig, Shapes
from ldlm.model.cosmos import AutoencoderObjective, Smoothing, draw_smoothing
from ldlm.model.joint import build


def test_smoothing_masks_tokens_adds_noise_and_drops_features_at_its_rates():
    config = CosmosConfig(mask=0.3, noise=0.7, dropout=0.4)
    shapes = {"h_shape": (50, 12), "latent_shape": (40, 10)}
    found = draw_smoothing(config, seed=1, step=2, rows_B=torch.arange(100), **shapes)
    assert found.seen_BL1.shape == (100, 50, 1)
    assert set(found.seen_BL1.unique().tolist()) == {0.0, 1.0}
    assert found.seen_BL1.mean().item() == pytest.approx(0.7, abs=0.02)
    assert found.eps_BLD.std().item() == pytest.approx(0.7, rel=0.02)
    assert found.keep_BNC.mean().item() == pytest.approx(1, abs=0.02)
    assert found.keep_BNC.max().item() == pytest.approx(1 / 0.6)
    again = draw_smoothing(config, seed=1, step=2, rows_B=torch.arange(60, 70), **shapes)
    assert again.eps_BLD.equal(found.eps_BLD[60:70])  # by row, whatever the share of the batch
    off = draw_smoothing(CosmosConfig(mask=0, noise=0, dropout=0), seed=1, step=2, rows_B=torch.arange(3), **shapes)
    assert off.seen_BL1.min() == off.keep_BNC.min() == 1
    assert off.eps_BLD.abs().max() == 0


def test_the_autoencoder_loss_is_that_of_the_formula(train_config):
    recipe = replace(train_config.recipe, reconstruction="ce+mse")
    config = replace(train_config, model=replace(train_config.model, space="cosmos"), recipe=recipe)
    model = build(config.model, Shapes(seq_len=16, hidden_dim=16, vocab_size=320), seed=0)
    objective = AutoencoderObjective(model, config)
    h_BLD, tokens_BL = torch.randn(3, 16, 16), torch.randint(320, (3, 16))
    seen, eps, keep = (torch.rand(3, 16, 1) > 0.3).float(), 0.7 * torch.randn(3, 16, 16), torch.rand(3, 16, 16)
    losses = objective(h_BLD, tokens_BL, Smoothing(seen, eps, keep), 1.0)
    h_hat = model.latent_decoder(model.latent_encoder((h_BLD + eps) * seen) * keep)
    assert losses.l_h.item() == pytest.approx((h_hat - h_BLD).square().mean().item(), rel=1e-6)
    assert losses.loss.item() == pytest.approx((losses.l_h + losses.l_w).item())
    losses.loss.backward()
    assert all(p.grad is None for p in model.denoiser.parameters())
    assert all(p.grad is not None for p in model.latent_encoder.parameters())
