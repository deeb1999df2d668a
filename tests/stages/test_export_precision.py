"""A model that is exported in bf16 has the weights of the run, rounded once, and draws what these draw in float32."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from folders import content
from safetensors.torch import load_file

from ldlm import LDLM, TokenDiffusion, files
from ldlm import config as configs
from ldlm.config import ExportConfig, SamplerConfig, TrainConfig
from ldlm.sampling import generation
from ldlm.stages import export, train


@pytest.fixture(scope="module")
def models(trained, tmp_path_factory):
    """Exports of one run in either precision, by their names; tests only read them."""
    root = tmp_path_factory.mktemp("models")
    return {how: export.run(ExportConfig(precision=how), trained, root / how).path for how in ("fp32", "bf16")}


def tensors(folder):
    """The tensors of an exported model."""
    return load_file(folder / "model.safetensors")


def test_weights_are_those_of_the_run_rounded_once(models):
    exact, rounded = tensors(models["fp32"]), tensors(models["bf16"])
    assert exact.keys() == rounded.keys()
    for name, weight in exact.items():
        assert weight.dtype == torch.float32
        assert rounded[name].dtype == torch.bfloat16
        assert torch.equal(rounded[name], weight.bfloat16()), name
        assert ((rounded[name].float() - weight).abs() <= 2**-8 * weight.abs()).all()  # 8 bits, to the nearest
    assert any(not torch.equal(rounded[name].float(), weight) for name, weight in exact.items())
    sizes = [(models[how] / "model.safetensors").stat().st_size for how in ("fp32", "bf16")]
    assert sizes[1] < 0.6 * sizes[0]


def test_opened_it_computes_in_float32_with_the_rounded_weights(models):
    exact, rounded = (LDLM.from_pretrained(models[how]) for how in ("fp32", "bf16"))
    for name, network in rounded.networks.items():
        for key, weight in network.state_dict().items():
            assert weight.dtype == torch.float32
            assert torch.equal(weight, exact.networks[name].state_dict()[key].bfloat16().float())
    sampler, seeds_B = SamplerConfig(steps=4), generation.text_seeds(0, 0, 4)
    mine, theirs = (model.generator() for model in (rounded, exact))
    z_BNC = mine.latents(sampler, seeds_B)
    assert z_BNC.dtype == torch.float32
    assert mine.compute.precision == "fp32"
    assert not torch.equal(z_BNC, theirs.latents(sampler, seeds_B))
    theirs.denoiser.load_state_dict(rounded.networks["denoiser"].state_dict())
    assert torch.equal(z_BNC, theirs.latents(sampler, seeds_B))


def test_it_draws_the_same_texts_each_time_it_is_opened_and_as_the_command_does(models, succeed):
    draw = {"steps": 3, "temperature": 1.0}
    first, second = (LDLM.from_pretrained(models["bf16"]).sample(4, **draw) for _ in range(2))
    assert first == second
    made = succeed(
        "sample", "--run", models["bf16"], "--num-samples", 4, "--steps", 3, "--temperature", 1, "--device", "cpu"
    )
    assert [row["text"] for row in made["texts"]] == first
    assert made["precision"] == "fp32"  # that it was drawn in


def test_texts_of_rounded_weights_are_not_added_to_those_of_exact_ones(
    models, trained, gpt2, succeed, refuse, tmp_path
):
    drawn = ("sample", "--steps", 3, "--device", "cpu", "--output", tmp_path / "texts.jsonl")
    exact, rounded = ("--run", models["fp32"]), ("--run", models["bf16"])
    assert succeed(*drawn, "--run", trained, "--num-samples", 2)["weights_precision"] == "fp32"
    succeed(*drawn, *exact, "--num-samples", 3)
    assert "weights_precision: fp32 -> bf16" in refuse(*drawn, *rounded, "--num-samples", 4)
    small = ("--budgets", 2, "--solvers", "ddim", "--grids", "learned", "--guidances", 1, "--screen-texts", 2)
    swept = ("sweep", *small, "--texts", 3, "--scorer", gpt2, "--device", "cpu", "--output", tmp_path / "sweep")
    succeed(*swept, *exact)
    assert "weights_precision: fp32 -> bf16" in refuse(*swept, *rounded)


def test_drawn_in_bf16_it_takes_the_weights_as_they_are_stored(models):
    """A bf16 denoiser of the stored weights: from either export the same one, and not the one in fp32."""

    def latents(how, precision):
        model = LDLM.from_pretrained(models[how])
        generator = model.generator("joint", model.compute(configs.ComputeConfig(precision=precision)))
        return generator.latents(SamplerConfig(steps=3), generation.text_seeds(0, 0, 3))

    assert torch.equal(latents("fp32", "bf16"), latents("bf16", "bf16"))
    assert not torch.equal(latents("bf16", "bf16"), latents("bf16", "fp32"))


def test_card_manifest_and_description_say_the_precision(models, trained, succeed):
    for how, path in models.items():
        assert files.read_digested(path / "manifest.json", "")["precision"] == how
        assert files.read_digested(path / "config.json", "")["precision"] == how
        assert f"| weights are stored in | {how} |" in (path / "README.md").read_text(encoding="utf-8")
        plan = succeed("export", "--run", trained, "--precision", how, "--dry-run")
        there = tensors(path).values()
        assert plan["precision"] == how
        assert plan["parameters"] == sum(t.numel() for t in there)
        assert plan["bytes"] == sum(t.numel() * t.element_size() for t in there)


def test_saved_again_it_is_the_same_to_the_byte(models, tmp_path):
    LDLM.from_pretrained(models["bf16"]).save_pretrained(tmp_path / "again")
    of_the_stage = {"artifact.json", "config.yaml", "manifest.json"}
    assert content(tmp_path / "again") == {k: v for k, v in content(models["bf16"]).items() if k not in of_the_stage}


def test_another_precision_is_another_export(models, trained, refuse, ldlm, tmp_path):
    copy = Path(shutil.copytree(models["fp32"], tmp_path / "model"))
    assert "precision: fp32 -> bf16" in refuse("export", "--run", trained, "--output", copy, "--precision", "bf16")
    done = ldlm("export", "--run", trained, "--output", copy)
    assert "is complete; nothing to do" in done.stderr


@pytest.mark.parametrize("wrong", ["fp16", "auto", "bfloat16"])
def test_another_word_is_refused(trained, refuse, tmp_path, wrong):
    line = refuse("export", "--run", trained, "--output", tmp_path / "m", "--precision", wrong)
    assert line == f"precision is one of fp32, bf16, not '{wrong}'"
    assert not (tmp_path / "m").exists()


def test_an_export_without_the_setting_is_one_in_fp32(models, trained, ldlm, tmp_path):
    """Exports of earlier versions, whose files say nothing of precision, open, repeat and draw as before."""
    copy = Path(shutil.copytree(models["fp32"], tmp_path / "model"))
    settings = files.read_yaml(copy / "config.yaml")
    for name in ("precision", "with_encoder"):
        del settings[name]
    (copy / "config.yaml").write_text(files.dump_yaml(settings))
    described = files.read_digested(copy / "config.json", "")
    del described["precision"], described["encoder_parameters"]
    (copy / "config.json").write_text(files.dump_digested(described))
    assert "nothing to do" in ldlm("export", "--run", trained, "--output", copy).stderr
    assert LDLM.from_pretrained(copy).config.precision == "fp32"
    assert LDLM.from_pretrained(copy).sample(2, steps=2) == LDLM.from_pretrained(models["fp32"]).sample(2, steps=2)


def test_statistics_of_states_stay_as_they_are(train_config, store, tmp_path):
    """A mean of a hundred is off by a quarter in bf16, which is no weight to be rounded."""
    settings = configs.merge(configs.to_dict(train_config), {"steps": 2, "model": {"condition": "prefix"}})
    run = train.run(configs.from_dict(TrainConfig, settings), store, tmp_path / "run").path
    made = tensors(export.run(ExportConfig(precision="bf16"), run, tmp_path / "model").path)
    statistics = load_file(run / "statistics.safetensors")
    assert torch.equal(made["normalisation/mean_D"], statistics["mean"])
    assert torch.equal(made["normalisation/std_D"], statistics["std"])
    assert {name for name, tensor in made.items() if tensor.dtype != torch.bfloat16} == {
        "normalisation/mean_D", "normalisation/std_D",
    }  # fmt: skip


def test_token_level_models_have_it_too(rival, succeed, tmp_path):
    run = rival("mdlm")
    for how in ("fp32", "bf16"):
        made = succeed("export", "--run", run, "--output", tmp_path / how, "--precision", how)
        assert made["precision"] == how
        assert f"| weights are stored in | {how} |" in (tmp_path / how / "README.md").read_text(encoding="utf-8")
    exact, rounded = (tensors(tmp_path / how) for how in ("fp32", "bf16"))
    assert all(torch.equal(rounded[name], weight.bfloat16()) for name, weight in exact.items())
    first, second = (TokenDiffusion.from_pretrained(tmp_path / "bf16") for _ in range(2))
    assert {weight.dtype for weight in first.network.state_dict().values()} == {torch.float32}
    texts = first.sample(3, steps=4)
    assert texts == second.sample(3, steps=4)
    found = succeed("sample", "--run", tmp_path / "bf16", "--num-samples", 3, "--steps", 4, "--device", "cpu")
    assert [row["text"] for row in found["texts"]] == texts
    described = json.loads((tmp_path / "bf16" / "config.json").read_text())
    assert described["precision"] == "bf16"
