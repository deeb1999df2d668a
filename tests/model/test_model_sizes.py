"""The networks at the paper's sizes, on the meta device: parameter counts, FLOPs and memory (SPEC 3-5, 12.14)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ldlm.config import (
    AutoencoderConfig,
    DenoiserConfig,
    DiffusionConfig,
    ModelConfig,
    Shapes,
    TokenDecoderConfig,
    TrainConfig,
    from_dict,
    merge,
    preset,
)
from ldlm.model.joint import build, build_meta
from ldlm.training import cost
from ldlm.training.joint_method import JointTraining
from ldlm.training.phases import phases


def gpt2_shapes(length: int) -> Shapes:
    return Shapes(seq_len=length, hidden_dim=768, vocab_size=50_257)


@pytest.mark.parametrize(("length", "autoencoder", "denoiser"), [(128, 49.8e6, 131.4e6), (1024, 51.2e6, 132.07e6)])
def test_the_parts_have_the_papers_numbers_of_parameters(length, autoencoder, denoiser):
    model = build_meta(ModelConfig(), gpt2_shapes(length))
    counts = cost.parameters(model)
    assert counts["latent_encoder"] == pytest.approx(autoencoder, abs=0.05e6)
    assert counts["latent_decoder"] == pytest.approx(autoencoder, abs=0.05e6)
    assert counts["denoiser"] == pytest.approx(denoiser, abs=0.05e6 if length == 128 else 0.005e6)
    assert counts["token_decoder"] == pytest.approx(66.9e6, abs=0.05e6)
    assert sum(p.numel() for p in model.token_decoder.head.parameters()) == pytest.approx(38.6e6, abs=0.05e6)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())


def test_a_resampler_is_counted_by_hand():
    d, n = 768, 128
    layer = 6 * d * d + (8 * d * d + 5 * d) + 3 * d + 2 * 64  # attention, MLP, three norms, query and key norms
    counts = cost.parameters(build_meta(ModelConfig(), gpt2_shapes(n)))
    assert counts["latent_encoder"] == 6 * layer + 2 * n * d  # queries and positions


def test_a_deferred_token_decoder_counts_nothing():
    config = ModelConfig(token_decoder=TokenDecoderConfig(mode="deferred"))
    assert cost.parameters(build_meta(config, gpt2_shapes(128)))["token_decoder"] == 0


def test_flops_per_token_of_the_main_preset_agree_with_a_count_by_hand():
    """Multiply-adds per token, ×2 FLOPs, ×3 for forward and backward; half a denoiser forward for self-conditioning."""
    main = preset("owt-1024")
    d, length, vocab = 768, 1024, 50_257
    resampler = 6 * (6 * d * d + 8 * d * d + 2 * (2 * length) * d)
    denoiser = 2 * d * d + 12 * (4 * d * d + 8 * d * d + 2 * length * d) + d * d
    denoiser += (12 * 6 + 2 + 1) * d * d / length + 256 * d / length  # the condition: once per row
    token_decoder = 3 * (4 * d * d + 12 * d * d + 2 * length * d) + d * vocab
    expected = 3 * 2 * (2 * resampler + denoiser + token_decoder) + 0.5 * 2 * denoiser

    found = cost.training_cost(JointTraining(from_dict(TrainConfig, main.overrides)), main.shapes)
    assert found["flops_per_token"] == pytest.approx(expected, rel=0.01)
    assert found["flops_per_token"] == pytest.approx(2.0e9, rel=0.01)


def test_flops_follow_the_probability_of_self_conditioning():
    shapes = Shapes(seq_len=16, hidden_dim=32, vocab_size=50)
    small = ModelConfig(
        autoencoder=AutoencoderConfig(layers=1, width=32, heads=2, num_latents=8),
        denoiser=DenoiserConfig(layers=2, width=32, heads=2, time_dim=16),
        token_decoder=TokenDecoderConfig(layers=1, heads=2),
    )

    def flops(p: float) -> int:
        config = TrainConfig(model=small, diffusion=DiffusionConfig(self_conditioning=p))
        return cost.flops_per_token(config, shapes)

    extra = cost.denoiser_flops(small, shapes) / shapes.seq_len
    by_hand = 2 * 8 * (2 * 32 * 32 + 2 * (12 * 32 * 32 + 2 * 8 * 32) + 32 * 32) + 2 * (
        (2 * 6 + 2 + 1) * 32 * 32 + 16 * 32
    )
    assert extra == by_hand / 16
    assert flops(1.0) - flops(0.0) == pytest.approx(extra, abs=1)
    assert flops(0.5) - flops(0.0) == pytest.approx(0.5 * extra, abs=1)


def test_initial_weights_depend_on_the_seed_alone():
    shapes = Shapes(seq_len=4, hidden_dim=8, vocab_size=11)
    small = ModelConfig(
        autoencoder=AutoencoderConfig(layers=1, width=8, heads=2),
        denoiser=DenoiserConfig(layers=1, width=8, heads=2, time_dim=8),
        token_decoder=TokenDecoderConfig(layers=1, heads=2),
    )
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(small, shapes, seed=0).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = build(small, shapes, seed=0).state_dict(), build(small, shapes, seed=3).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["latent_encoder.body.latents_NW"], other["latent_encoder.body.latents_NW"])


def test_latents_may_be_fewer_and_narrower_than_the_states():
    config = ModelConfig(autoencoder=AutoencoderConfig(layers=1, width=8, heads=2, num_latents=3, latent_dim=4))
    shapes = Shapes(seq_len=6, hidden_dim=12, vocab_size=11)
    model = build_meta(dataclasses.replace(config, token_decoder=TokenDecoderConfig(layers=1, heads=2)), shapes)
    z_0 = model.latent_encoder(torch.empty(2, 6, 12, device="meta"))
    assert z_0.shape == (2, 3, 4)
    assert model.denoiser(z_0, torch.empty(2, device="meta"), z_0).shape == (2, 3, 4)
    h_hat = model.latent_decoder(z_0)
    assert h_hat.shape == (2, 6, 12)
    assert model.token_decoder(h_hat).shape == (2, 6, 11)


def test_flops_that_are_needed_leave_out_what_is_computed_again_and_what_a_phase_does_not_train():
    tiny = preset("tiny")

    def flops(phase="joint", **changes):
        config = from_dict(TrainConfig, merge(tiny.overrides, changes))
        return cost.flops_per_token(config, tiny.shapes, {found.name: found for found in phases(config)}[phase])

    whole = flops()
    assert flops(recompute=True) == whole
    cosmos = {"model": {"space": "cosmos"}}
    first, second = flops("autoencoder", **cosmos), flops("diffusion", **cosmos)
    assert first < whole
    assert second < whole
    # Both encode forward, and the joint step does so once; it alone takes the encoder's gradient from the denoiser.
    assert whole < first + second < 1.25 * whole
