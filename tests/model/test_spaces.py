"""The latent spaces of Table 2 through the same trainer: what each trains, on what, and what it refuses."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
import yaml

from ldlm import artifact, files
from ldlm import config as configs
from ldlm.config import (
    DecoderNoise,
    FinetuneConfig,
    RecipeConfig,
    SampleConfig,
    SamplerConfig,
    TrainConfig,
    decoder_noise,
)
from ldlm.errors import InputError, Stopped
from ldlm.features.store import FeatureStore
from ldlm.model.cosmos import SmoothedInput
from ldlm.model.diffusion import Schedule
from ldlm.model.objective import DecoderInput, draw_t_dec
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import extract_features, finetune_decoder, sample, train
from ldlm.training import checkpoint
from ldlm.training.log import MetricsFile
from ldlm.training.optim import learning_rate

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
    fine = replace(draw, decoder="layers-1")
    assert sample.run(fine, made.path, tmp_path / "fine.jsonl")["decoder"] == "layers-1"


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
    """Five steps of the autoencoder, then eight of the denoiser."""
    return in_space(train_config, "cosmos", cosmos={"steps": 5}, recipe={"reconstruction": "ce+mse"})


@pytest.fixture(scope="module")
def finished(cosmos, store, tmp_path_factory):
    """The run of `cosmos` that nothing interrupted; read only."""
    return train.run(cosmos, store, tmp_path_factory.mktemp("cosmos") / "run")


AUTOENCODER = {"latent_encoder", "latent_decoder", "token_decoder"}


def saved(run, step):
    return checkpoint.Checkpoint(run / f"checkpoints/step-{step:08d}")


def part_of(name):
    return name.split(".")[0]


def moved(run, first, last, of="model"):
    """The parts of the model that changed between two steps."""
    old, new = (saved(run, step).tensors(of) for step in (first, last))
    return {part_of(name) for name in old if not old[name].equal(new[name])}


def test_the_autoencoder_trains_first_and_then_the_denoiser_alone(finished, tmp_path):
    run = finished.path
    assert finished.manifest["step"] == 13
    assert moved(run, 1, 5) == AUTOENCODER
    assert moved(run, 6, 13) == {"denoiser"}
    lines = [line for line in MetricsFile(run / "metrics.jsonl").read() if line["kind"] == "train"]
    assert [line["l_diff"] > 0 for line in lines] == [False] * 5 + [True] * 8
    assert [line["l_h"] > 0 for line in lines] == [True] * 5 + [False] * 8
    steps = {name: int(value) for name, value in saved(run, 13).tensors("optimizer").items() if "step/" in name}
    assert {part_of(name.removeprefix("step/")): count for name, count in steps.items()} == {
        **dict.fromkeys(AUTOENCODER, 5),
        "denoiser": 8,  # as many as in every other space
    }
    sample.run(SampleConfig(num_samples=2, sampler=SamplerConfig(steps=2), device="cpu"), run, tmp_path / "s.jsonl")


def test_the_autoencoder_is_frozen_at_its_average_which_the_denoiser_learns_and_sampling_uses(finished):
    run = finished.path
    average, raw = saved(run, 5).tensors("ema"), saved(run, 5).tensors("model")
    mine = [name for name in average if part_of(name) in AUTOENCODER]
    assert not all(raw[name].equal(average[name]) for name in mine)
    for step in (6, 9, 13):
        for which in ("model", "ema"):
            found = saved(run, step).tensors(which)
            assert all(found[name].equal(average[name]) for name in mine), (step, which)


def test_each_phase_has_a_learning_rate_and_an_average_of_its_own(cosmos, store, tmp_path):
    optimizer = replace(cosmos.optimizer, lr_decay="cosine", lr_warmup_steps=2, lr_start=1e-5)
    run = train.run(replace(cosmos, optimizer=optimizer), store, tmp_path / "run").path
    lines = [line for line in MetricsFile(run / "metrics.jsonl").read() if line["kind"] == "train"]
    expected = [learning_rate(n, 5, optimizer) for n in range(5)] + [learning_rate(n, 8, optimizer) for n in range(8)]
    assert [line["lr"] for line in lines] == expected
    before, after, average = (saved(run, s).tensors(w) for s, w in ((5, "model"), (6, "model"), (6, "ema")))
    for name in average:
        if part_of(name) == "denoiser":  # its first update counts as a first: δ = 2/11
            expected = before[name] * (2 / 11) + after[name] * (9 / 11)
            assert torch.allclose(average[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("at", [5, 10, *(pytest.param(at, marks=pytest.mark.slow) for at in (3, 4, 6))])
def test_it_is_taken_up_in_either_phase(cosmos, finished, store, tmp_path, interrupted, at):
    with pytest.raises((KeyboardInterrupt, Stopped)):
        train.run(cosmos, store, tmp_path / "run", progress=interrupted(at=at))
    run = train.run(cosmos, store, tmp_path / "run").path
    newest = [path / "checkpoints/step-00000013" for path in (finished.path, run)]
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"):
        assert (newest[0] / name).read_bytes() == (newest[1] / name).read_bytes()


def test_a_finished_one_grows_by_steps_of_the_denoiser(cosmos, finished, store, tmp_path):
    short = train.run(replace(cosmos, steps=4), store, tmp_path / "run").path
    assert train.run(replace(cosmos, steps=4), store, short).manifest["step"] == 9
    train.run(cosmos, store, short)
    for name in ("model", "ema", "optimizer"):
        grown, once = (run / f"checkpoints/step-00000013/{name}.safetensors" for run in (short, finished.path))
        assert grown.read_bytes() == once.read_bytes()


def test_progress_status_and_report_count_the_steps_of_both_phases(cosmos, store, tmp_path, interrupted, ldlm):
    with pytest.raises((KeyboardInterrupt, Stopped)):
        train.run(cosmos, store, tmp_path / "run", progress=interrupted(at=6))
    assert json.loads((tmp_path / "run" / "status.json").read_text())["steps"] == 13
    assert ldlm("report", tmp_path / "run").exit_code == 0
    assert re.search(r"(46|54)% of 13\b", (tmp_path / "run" / "report.html").read_text())


def test_a_dry_run_counts_each_phase(ldlm):
    preset = ("train", "--preset", "tiny", "--set", "model.space=cosmos", "--set", "cosmos.steps=300", "--dry-run")
    plan = json.loads(ldlm(*preset, "--json").stdout)
    assert plan["steps"] == {"autoencoder": 300, "diffusion": 1000}
    assert plan["flops_per_token"].keys() == {"autoencoder", "diffusion"}
    assert "autoencoder" in ldlm(*preset).stdout
    whole = json.loads(ldlm("train", "--preset", "tiny", "--dry-run", "--json").stdout)
    assert 0 < plan["memory_bytes"] <= whole["memory_bytes"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), "mse"),
        (("model.space=cosmos",), "ce+mse"),
        (("model.space=cosmos", "recipe.reconstruction=mse"), "mse"),
        (("model.space=cosmos", "recipe.edition=1"), "mse"),
        (("model.space=tencdm",), "mse"),
    ],
)
def test_cosmos_learns_tokens_and_states_together_unless_told_otherwise(given, expected):
    assert configs.from_dict(TrainConfig, configs.assignments(given)).recipe.reconstruction == expected


# ----------------------------------------------------------------------------------------------------------------------
# Runs of earlier versions, whose config.yaml names no edition


def as_earlier(run):
    """Take out of a run's settings what the first edition did not have."""
    data = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("edition", "decoder_noise", "t_dec"):
        del data["recipe"][name]
    (run / "config.yaml").write_text(yaml.safe_dump(data))


@pytest.fixture(scope="module")
def first(train_config):
    """A configuration of the first edition."""
    return in_space(train_config, "cosmos", cosmos={"steps": 5}, recipe={"edition": 1})


@pytest.fixture(scope="module")
def whole(first, store, tmp_path_factory):
    """The run of `first` that nothing interrupted; read only."""
    return train.run(first, store, tmp_path_factory.mktemp("first") / "run").path


@pytest.mark.parametrize("at", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_a_cosmos_run_of_the_first_edition_goes_on_as_it_began(first, whole, store, tmp_path, interrupted, at, notes):
    assert moved(whole, 5, 8) == {"denoiser"}
    with pytest.raises((KeyboardInterrupt, Stopped)):
        train.run(first, store, tmp_path / "run", progress=interrupted(at=at))
    as_earlier(tmp_path / "run")
    today = configs.from_dict(TrainConfig, configs.merge(configs.to_dict(first), {"recipe": {"edition": 2}}))
    for reconstruction in ("mse", "ce+mse"):  # asked for, or what is the default by now
        again = replace(today, recipe=replace(today.recipe, reconstruction=reconstruction))
        train.run(again, store, tmp_path / "run", progress=notes)
    assert "its settings keep their meaning (recipe.edition=1)" in notes.lines[0]
    for name in ("model", "ema", "optimizer"):
        once, taken = (run / f"checkpoints/step-00000008/{name}.safetensors" for run in (whole, tmp_path / "run"))
        assert once.read_bytes() == taken.read_bytes()
    assert TrainedRun(tmp_path / "run", CPU).config.recipe.edition == 1


@pytest.mark.parametrize("weighting", ["elbo", pytest.param("simple", marks=pytest.mark.slow)])
def test_a_run_of_the_second_edition_goes_on_with_the_integral_it_began_with(
    train_config, store, tmp_path, notes, weighting
):
    """The second edition's loss under elbo and `sum` is in nats per text, from t = 0.05 on, unlike today's."""
    new = configs.merge(configs.to_dict(train_config), {"diffusion": {"weighting": weighting}})
    old = configs.merge(
        new, {"recipe": {"edition": 2, "loss_reduction": "sum"}, "diffusion": {"elbo_t_min": 0.05}, "steps": 4}
    )
    whole = train.run(configs.from_dict(TrainConfig, {**old, "steps": 8}), store, tmp_path / "whole").path
    train.run(configs.from_dict(TrainConfig, old), store, tmp_path / "run")
    asked = configs.merge(new, {"recipe": {"loss_reduction": "sum"}})
    train.run(configs.from_dict(TrainConfig, asked), store, tmp_path / "run", progress=notes)
    assert "its settings keep their meaning (recipe.edition=2)" in notes.lines[0]
    once, taken = (run / "checkpoints/step-00000008/model.safetensors" for run in (whole, tmp_path / "run"))
    assert once.read_bytes() == taken.read_bytes()
    assert TrainedRun(tmp_path / "run", CPU).config.diffusion.elbo_t_min == 0.05


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": {"loss_reduction": "sum"}}, r"recipe\.loss_reduction=sum is for diffusion\.weighting=simple"),
        ({"recipe": {"sigma_dec": 0}}, r"σ_dec 0\) names no t .* like --set diffusion\.elbo_t_min=0\.05"),
        ({"model": {"space": "cosmos"}}, r"noise \(cosmos\) names no t"),
    ],
)
def test_the_integral_of_the_elbo_needs_a_convention_and_a_lower_end(train_config, store, tmp_path, given, message):
    data = configs.merge(configs.to_dict(train_config), {"diffusion": {"weighting": "elbo"}}, given)
    with pytest.raises(InputError, match=message):
        train.run(configs.from_dict(TrainConfig, data), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    data = configs.merge(data, {"diffusion": {"elbo_t_min": 0.05}, "recipe": {"loss_reduction": "mean"}, "steps": 1})
    train.run(configs.from_dict(TrainConfig, configs.merge(data, {"cosmos": {"steps": 1}})), store, tmp_path / "run")


def test_an_autoencoder_that_takes_all_steps_is_refused_where_they_are_part_of_the_runs(train_config, store, tmp_path):
    first = in_space(train_config, "cosmos", cosmos={"steps": 8}, recipe={"edition": 1})
    with pytest.raises(InputError, match=r"cosmos\.steps=8 of the autoencoder leave none of 8 steps"):
        train.run(first, store, tmp_path / "run")


def test_a_finished_run_of_the_first_edition_opens_samples_reports_and_keeps_its_noise(
    train_config, store, tmp_path, ldlm
):
    run = train.run(in_space(train_config, "tencdm", recipe={"edition": 1}), store, tmp_path / "run").path
    as_earlier(run)
    opened = TrainedRun(run, CPU)
    assert decoder_noise("tencdm", opened.config.recipe) == DecoderNoise("additive", 1.0)
    draw = SampleConfig(num_samples=2, sampler=SamplerConfig(steps=2), device="cpu")
    sample.run(draw, run, tmp_path / "samples.jsonl")
    made = finetune_decoder.run(FinetuneConfig(layers=1, steps=2, device="cpu"), run, store).path
    assert artifact.open_artifact(made, "decoder").manifest["decoder_noise"] == {"kind": "additive", "size": 1.0}
    manifest = json.loads((made / "manifest.json").read_text())
    del manifest["decoder_noise"], manifest["digest"]
    files.write_atomic(made / "manifest.json", files.dump_digested(manifest))
    assert {record.noise for record in TrainedRun(run, CPU).decoders()} == {"σ_dec 1"}
    assert "σ_dec 1" in ldlm("finetune-decoder", "--run", run, "--list").stdout
    assert ldlm("report", run).exit_code == 0
    assert "decoder noise σ_dec 1" in (run / "report.html").read_text()


# ----------------------------------------------------------------------------------------------------------------------
# The noise of the decoder's input


PUBLISHED = {
    "ldlm": DecoderNoise("additive", 1.5),
    "tencdm": DecoderNoise("diffused", 0.15),
    "embedding": DecoderNoise("additive", 0.01),
    "scratch": DecoderNoise("additive", 0.12),
    "cosmos": DecoderNoise("smoothed"),
}


@pytest.mark.parametrize("space", PUBLISHED)
def test_each_space_has_the_noise_that_its_method_published_unless_told_otherwise(space):
    assert decoder_noise(space, RecipeConfig(sigma_dec=1.5)) == PUBLISHED[space]
    told = RecipeConfig(decoder_noise="additive", sigma_dec=0.2)
    assert decoder_noise(space, told) == DecoderNoise("additive", 0.2)
    told = RecipeConfig(decoder_noise="diffused", t_dec=0.4)
    assert decoder_noise(space, told) == DecoderNoise("diffused", 0.4)
    assert decoder_noise(space, RecipeConfig(edition=1, sigma_dec=1.5)) == DecoderNoise("additive", 1.5)


@pytest.mark.parametrize("preset", configs.PRESETS)
def test_a_presets_sigma_dec_is_ldlms(preset):
    data = configs.merge(configs.PRESETS[preset].overrides, {"model": {"space": "tencdm"}})
    assert decoder_noise("tencdm", configs.from_dict(TrainConfig, data).recipe) == PUBLISHED["tencdm"]


def test_diffused_noise_is_the_forward_process_up_to_its_time():
    schedule, z_0 = Schedule(), torch.randn(400, 6, 4, generator=torch.Generator().manual_seed(0))
    made = DecoderInput(DecoderNoise("diffused", 0.15), schedule)
    address = {"seed": 1, "step": 2, "rows_B": torch.arange(400)}
    t_B = draw_t_dec(made.corruption, device="cpu", **address)
    assert 0 < t_B.min() < 0.005
    assert 0.145 < t_B.max() < 0.15
    noisy = made.draw(None, z_0, z_0, **address)
    for row, t in enumerate(t_B[:20].tolist()):
        alpha = 1 / math.sqrt(1 + 9 * math.tan(math.pi * t / 2) ** 2)
        eps = (noisy[row] - alpha * z_0[row]) / math.sqrt(1 - alpha**2)
        assert 0.5 < eps.std() < 1.6
    part = made.draw(None, z_0[30:40], z_0[30:40], **{**address, "rows_B": torch.arange(30, 40)})
    assert part.equal(noisy[30:40])


@pytest.mark.parametrize("space", ["tencdm", "cosmos"])
def test_joint_training_evaluation_and_a_decoder_trained_later_have_the_same_noise(
    train_config, store, tmp_path, space, monkeypatch
):
    """All three see decoder inputs of one kind; the first of COSMOS is its autoencoder's."""
    seen = []

    def recording(real):
        return lambda self, *args, **named: (seen.append(self.corruption), real(self, *args, **named))[1]

    for kind in (DecoderInput, SmoothedInput):
        monkeypatch.setattr(kind, "draw", recording(kind.draw))
    run = train.run(in_space(train_config, space, cosmos={"steps": 3}, steps=3), store, tmp_path / "run")
    held_out = run.manifest["held_out"]
    assert held_out["token_accuracy"] != held_out["token_accuracy_clean"] or held_out["l_w"] > 0
    made = finetune_decoder.run(FinetuneConfig(layers=1, steps=2, device="cpu"), run.path, store)
    assert set(seen) == {PUBLISHED[space]}
    assert made.manifest["decoder_noise"] == vars(PUBLISHED[space])
    assert made.manifest["sigma_dec"] is None
    other = FinetuneConfig(layers=1, steps=2, sigma_dec=0.2, name="other", device="cpu")
    assert finetune_decoder.run(other, run.path, store).manifest["sigma_dec"] == 0.2
    noises = {record.name: record.noise for record in TrainedRun(run.path, CPU).decoders()}
    assert noises == {"joint": "σ_dec 0.2", "layers-1": str(PUBLISHED[space]), "other": "σ_dec 0.2"}


@pytest.mark.slow
@pytest.mark.parametrize("space", ["tencdm", "embedding", "scratch"])
def test_the_published_noise_rebuilds_more_tokens_of_a_fixed_space_than_ldlms(train_config, stores, tmp_path, space):
    accuracy = {}
    for kind in ("published", "additive"):
        recipe = {"decoder_noise": kind, "sigma_dec": 3.0}
        config = in_space(train_config, space, steps=400, save_every=400, eval_every=400, recipe=recipe)
        config = replace(config, optimizer=replace(config.optimizer, lr=5e-3, ema_decay=0.9), eval_rows=64)
        held_out = train.run(config, stores[KINDS[space]], tmp_path / kind).manifest["held_out"]
        accuracy[kind] = held_out["token_accuracy_clean"]
    print(space, accuracy)
    assert accuracy["published"] > accuracy["additive"] + 0.05
