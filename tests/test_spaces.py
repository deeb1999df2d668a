"""The latent spaces of Table 2 through the same trainer: what each trains, on what, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from ldlm.stages import extract_features, finetune_decoder, sample, train

from ldlm import checkpoint
from ldlm import config as configs
from ldlm.config import CosmosConfig, FinetuneConfig, SampleConfig, SamplerConfig, TrainConfig
from ldlm.errors import InputError, Stopped
from ldlm.metricsfile import MetricsFile
from ldlm.model import build
from ldlm.objective import Objective, Smoothing, draw_smoothing
from ldlm.run import TrainedRun
from ldlm.store import FeatureStore

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stores(extract_config, store, tmp_path_factory):
    """A store of each kind, by name."""
    root = tmp_path_factory.mktemp("kinds")
    made = {
        kind: extract_features.run(replace(extract_config, kind=kind), root / kind).path
        for kind in ("embedding", "scratch")
    }
    return {**made, "hidden": store}


def in_space(config, space, **overrides):
    reconstruction = "ce" if space == "scratch" else "mse"
    data = {"model": {"space": space}, "recipe": {"reconstruction": reconstruction}, "keep": 99, "save_every": 1}
    return configs.from_dict(TrainConfig, configs.merge(configs.to_dict(config), data, overrides))


KINDS = {"tencdm": "hidden", "embedding": "embedding", "scratch": "scratch"}


@pytest.mark.parametrize("space", KINDS)
def test_where_h_is_the_latent_the_denoiser_and_the_token_decoder_train_on_it(train_config, stores, tmp_path, space):
    store = stores[KINDS[space]]
    config = in_space(train_config, space, steps=30, optimizer={"lr": 1e-2}, save_every=30)
    made = train.run(config, store, tmp_path / "run")
    assert made.manifest["parameters"]["latent_encoder"] == made.manifest["parameters"]["latent_decoder"] == 0
    assert "l_h" not in made.manifest["held_out"]
    run = TrainedRun(made.path, CPU)
    split = FeatureStore(store).split("train")
    parts, tokens = split.read(0, 4)
    tokens_BL = torch.from_numpy(tokens).long()
    h_BLD = run.model.states(split.states(parts, tokens_BL), tokens_BL)
    assert run.model.latent_encoder(h_BLD) is h_BLD
    losses = [line["l_w"] for line in MetricsFile(made.path / "metrics.jsonl").read() if line["kind"] == "train"]
    assert sum(losses[-5:]) < 0.98 * sum(losses[:5])

    draw = SampleConfig(num_samples=2, sampler=SamplerConfig(steps=2), device="cpu")
    sample.run(draw, made.path, tmp_path / "joint.jsonl")
    finetune_decoder.run(FinetuneConfig(layers=1, steps=2, device="cpu"), made.path, store)
    assert sample.run(draw, made.path, tmp_path / "fine.jsonl")["decoder"] == "layers-1"


def test_embeddings_from_scratch_are_shaped_by_both_losses_and_frozen_ones_are_not_there(
    train_config, stores, tmp_path
):
    made = train.run(in_space(train_config, "scratch", steps=2), stores["scratch"], tmp_path / "run")
    first, last = (
        checkpoint.Checkpoint(made.path / f"checkpoints/step-0000000{step}").tensors("model") for step in (1, 2)
    )
    assert not first["embedding.weight"].equal(last["embedding.weight"])
    frozen = train.run(in_space(train_config, "embedding", steps=1), stores["embedding"], tmp_path / "frozen")
    names = checkpoint.latest(frozen.path / "checkpoints").tensors("model")
    assert {name.split(".")[0] for name in names} == {"denoiser", "token_decoder"}


@pytest.mark.parametrize(
    ("space", "kind"), [("tencdm", "embedding"), ("tencdm", "scratch"), ("embedding", "hidden"), ("scratch", "hidden")]
)
def test_features_of_another_kind_are_refused(train_config, stores, tmp_path, space, kind):
    message = f"model.space={space} needs features of kind {KINDS[space]}, and .* holds {kind}; make them with"
    with pytest.raises(InputError, match=message):
        train.run(in_space(train_config, space), stores[kind], tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_fewer_latents_than_tokens_are_refused_where_h_is_the_latent(train_config, store, tmp_path):
    config = in_space(train_config, "tencdm", model={"autoencoder": {"num_latents": 8}})
    with pytest.raises(InputError, match=r"model\.space=tencdm has one latent per token"):
        train.run(config, store, tmp_path / "run")


# ----------------------------------------------------------------------------------------------------------------------
# COSMOS: an autoencoder first, then the denoiser on what it has become


@pytest.fixture(scope="module")
def cosmos(train_config):
    return in_space(train_config, "cosmos", cosmos={"steps": 5})


def moved(run, first, last):
    """The parts of the model that changed between two steps."""
    old, new = (checkpoint.Checkpoint(run / f"checkpoints/step-{s:08d}").tensors("model") for s in (first, last))
    return {name.split(".")[0] for name in old if not old[name].equal(new[name])}


def test_the_autoencoder_trains_first_and_then_the_denoiser_alone(cosmos, store, tmp_path):
    run = train.run(cosmos, store, tmp_path / "run").path
    assert moved(run, 1, 5) == {"latent_encoder", "latent_decoder", "token_decoder"}
    assert moved(run, 5, 8) == {"denoiser"}
    lines = [line for line in MetricsFile(run / "metrics.jsonl").read() if line["kind"] == "train"]
    assert [line["l_diff"] > 0 for line in lines] == [False] * 5 + [True] * 3
    assert [line["l_h"] > 0 for line in lines] == [True] * 5 + [False] * 3
    sample.run(SampleConfig(num_samples=2, sampler=SamplerConfig(steps=2), device="cpu"), run, tmp_path / "s.jsonl")


@pytest.mark.parametrize("at", [3, 5, 6])
def test_it_is_taken_up_in_either_phase(cosmos, store, tmp_path, interrupted, at):
    whole = train.run(cosmos, store, tmp_path / "whole").path
    with pytest.raises((KeyboardInterrupt, Stopped)):
        train.run(cosmos, store, tmp_path / "run", progress=interrupted(at=at))
    run = train.run(cosmos, store, tmp_path / "run").path
    newest = [path / "checkpoints/step-00000008" for path in (whole, run)]
    for name in ("model", "ema", "optimizer"):
        assert (newest[0] / f"{name}.safetensors").read_bytes() == (newest[1] / f"{name}.safetensors").read_bytes()


def test_an_autoencoder_that_takes_all_steps_is_refused(cosmos, store, tmp_path):
    with pytest.raises(InputError, match=r"cosmos\.steps=8 of the autoencoder leave none of 8 steps"):
        train.run(replace(cosmos, cosmos=CosmosConfig(steps=8)), store, tmp_path / "run")


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


def test_the_autoencoder_loss_is_that_of_the_formula(cosmos, store):
    opened = FeatureStore(store)
    model = build(cosmos.model, opened.shapes, seed=0)
    objective = Objective(model, cosmos.diffusion, cosmos.recipe)
    h_BLD, tokens_BL = torch.randn(3, 16, 16), torch.randint(320, (3, 16))
    seen, eps, keep = (torch.rand(3, 16, 1) > 0.3).float(), 0.7 * torch.randn(3, 16, 16), torch.rand(3, 16, 16)
    losses = objective.autoencoder_loss(h_BLD, tokens_BL, Smoothing(seen, eps, keep))
    h_hat = model.latent_decoder(model.latent_encoder((h_BLD + eps) * seen) * keep)
    assert losses.l_h.item() == pytest.approx((h_hat - h_BLD).square().mean().item(), rel=1e-6)
    assert losses.loss.item() == pytest.approx((losses.l_h + losses.l_w).item())
    losses.loss.backward()
    assert all(p.grad is None for p in model.denoiser.parameters())
    assert all(p.grad is not None for p in model.latent_encoder.parameters())
