"""Exported models of the rivals draw the texts of their runs, by `ldlm sample` and in Python; no class opens both."""

import json
import re
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from folders import content
from safetensors.torch import load_file

from ldlm import LDLM, TokenDiffusion, files
from ldlm.baselines.trained import TrainedTokenRun
from ldlm.errors import InputError

CPU = torch.device("cpu")
METHODS = ["mdlm", "duo", "candi", "flm"]
NAMED = {"mdlm": "remdm", "duo": "psi", "candi": "cached", "flm": "euler"}


@pytest.fixture(scope="module")
def exported(rival, succeed, tmp_path_factory):
    """`exported(method)` is what `ldlm export` makes of a run; read only."""
    from functools import cache

    @cache
    def made(method):
        out = tmp_path_factory.mktemp(method) / "model"
        steps = ("--set", "sampler.steps=5")
        succeed("export", "--run", rival(method), "--output", out, "--sampler", NAMED[method], *steps)
        return out

    return made


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of MDLM's to break."""
    return Path(shutil.copytree(exported("mdlm"), tmp_path / "copy"))


@pytest.mark.parametrize("method", METHODS)
def test_it_draws_the_texts_of_the_run_to_the_byte(rival, exported, succeed, tmp_path, method):
    draw = ("sample", "--num-samples", 4, "--seed", 3, "--batch-size", 4, "--device", "cpu")
    named = ("--sampler", NAMED[method], "--steps", 5)
    succeed(*draw, *named, "--run", rival(method), "--output", tmp_path / "run.jsonl")
    found = succeed(*draw, "--run", exported(method), "--output", tmp_path / "model.jsonl")  # as it was exported
    assert (found["method"], found["run"]) == (method, "model")
    lines = (tmp_path / "run.jsonl").read_bytes()
    assert lines == (tmp_path / "model.jsonl").read_bytes()

    model = TokenDiffusion.from_pretrained(exported(method))
    texts = [json.loads(line)["text"] for line in lines.splitlines()]
    assert model.sample(4, seed=3, batch_size=3) == texts
    assert model.sample(4, seed=4) != texts
    assert deepcopy(model).to("cpu").sample(2, seed=3) == texts[:2]
    assert model.origin == TrainedTokenRun(rival(method), CPU).origin


def test_another_sampler_has_its_own_settings_and_the_default_keeps_those_that_it_was_exported_with(
    rival, exported, succeed, tmp_path
):
    model = TokenDiffusion.from_pretrained(exported("mdlm"))
    draw = ("sample", "--num-samples", 3, "--device", "cpu")
    succeed(*draw, "--run", rival("mdlm"), "--steps", 7, "--end", "draw", "--output", tmp_path / "run.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    assert model.sample(3, sampler="ancestral", steps=7, end="draw") == [line["text"] for line in lines]
    found = succeed(*draw, "--run", exported("mdlm"), "--eta", 0.2, "--output", tmp_path / "model.jsonl")
    assert {"name": "remdm", "eta": 0.2, "steps": 5}.items() <= found["config"]["sampler"].items()
    found = succeed(*draw, "--run", exported("mdlm"), "--schedule", "cap", "--output", tmp_path / "c.jsonl")
    assert {"schedule": "cap", "eta": 0.008, "steps": 5}.items() <= found["config"]["sampler"].items()
    found = succeed(*draw, "--run", exported("mdlm"), "--sampler", "ancestral", "--output", tmp_path / "b.jsonl")
    assert {"name": "ancestral", "steps": 128, "top_p": 1.0}.items() <= found["config"]["sampler"].items()


def test_it_holds_the_averaged_weights_and_nothing_of_the_machine(rival, exported, succeed, gpt2, tmp_path_factory):
    run, model = rival("duo"), exported("duo")
    weights = load_file(model / "model.safetensors")
    averaged = TrainedTokenRun(run, CPU).checkpoint.tensors("ema")
    assert {f"network/{name}" for name in averaged} == set(weights)
    assert all(torch.equal(weights[f"network/{name}"], tensor) for name, tensor in averaged.items())
    plan = succeed("export", "--run", run, "--dry-run")
    assert plan == {
        "step": 40, "method": "duo", "parameters": sum(t.numel() for t in weights.values()),
        "bytes": 4 * sum(t.numel() for t in weights.values()), "precision": "fp32",
    }  # fmt: skip
    absolute = re.compile(r"(?<![\w./<])/(?:[\w.-]+/)+[\w.-]*")
    for name, data in content(model).items():
        assert str(tmp_path_factory.getbasetemp()).encode() not in data, name
        if name != "model.safetensors":
            assert not absolute.search(data.decode()), name


def test_the_card_says_what_it_is_and_saved_again_all_is_the_same(rival, exported, tmp_path):
    from huggingface_hub import ModelCard

    card = ModelCard.load(exported("duo") / "README.md")
    assert card.data.tags == ["diffusion", "duo"]
    facts = [
        "TokenDiffusion.from_pretrained", "by the method `duo`, after *The Diffusion Duality*", "| name | psi |",
        "Its sampler `psi` is after *The Diffusion Duality, Chapter II*", "`loss_se` its standard error",
        TrainedTokenRun(rival("duo"), CPU).checkpoint.digest, "40 steps of 16 rows", "No licence has been declared",
    ]  # fmt: skip
    assert [fact for fact in facts if fact not in card.text] == []
    assert "{" not in card.text
    of_mdlm = (exported("mdlm") / "README.md").read_text()
    assert "Its sampler `remdm` is after *Remasking Discrete Diffusion Models with Inference-Time Scaling*" in of_mdlm
    TokenDiffusion.from_pretrained(exported("duo")).save_pretrained(tmp_path / "again")
    of_the_stage = {"artifact.json", "config.yaml", "manifest.json"}
    again = {k: v for k, v in content(exported("duo")).items() if k not in of_the_stage}
    assert content(tmp_path / "again") == again


def test_the_same_command_again_does_nothing_and_another_setting_is_refused(rival, trained, copy, ldlm, refuse):
    export = ("export", "--run", rival("mdlm"), "--output", copy, "--sampler", "remdm", "--set", "sampler.steps=5")
    before = content(copy)
    assert ldlm(*export).stderr.strip().endswith("nothing to do")
    assert "sampler.eta: 0.015 -> 0.1" in refuse(*export, "--set", "sampler.eta=0.1")
    assert "sampler.name: remdm -> ancestral" in refuse("export", "--run", rival("mdlm"), "--output", copy)
    for run, method in ((rival("flm"), "flm"), (trained, "ldlm")):
        said = f"{copy} is a model of method mdlm, not {method}; choose another --output, or add --overwrite"
        assert refuse("export", "--run", run, "--output", copy) == said
    assert content(copy) == before


def test_a_default_sampler_that_can_not_draw_is_refused_before_anything_is_written(rival, refuse, tmp_path):
    loop = ("--sampler", "remdm", "--set", "sampler.schedule=loop", "--set", "sampler.t_on=0.01")
    said = refuse("export", "--run", rival("mdlm"), "--output", tmp_path / "model", *loop)
    assert "t_off=0.05 must be less than t_on=0.01" in said
    assert list(tmp_path.iterdir()) == []


def test_the_class_of_the_other_kind_says_which_opens_it(exported, trained, succeed, tmp_path):
    with pytest.raises(InputError, match=r"holds a model of type ldlm-tokens; open it with ldlm\.TokenDiffusion"):
        LDLM.from_pretrained(exported("flm"))
    succeed("export", "--run", trained, "--output", tmp_path / "latent")
    with pytest.raises(InputError, match=r"holds a model of type ldlm; open it with ldlm\.LDLM"):
        TokenDiffusion.from_pretrained(tmp_path / "latent")


def test_what_is_damaged_or_pickled_is_refused(copy):
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        TokenDiffusion.from_pretrained(copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pickled weights are never read"):
        TokenDiffusion.from_pretrained(copy)
    record = files.read_digested(copy / "config.json", "")
    (copy / "config.json").write_text(files.dump_digested({**record, "format": 2}))
    with pytest.raises(InputError, match=r"has format 2, and this ldlm reads 1"):
        TokenDiffusion.from_pretrained(copy)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampler": "psi"}, "a run of method mdlm has no sampler 'psi'; it draws with ancestral or remdm"),
        ({"solver": "heun"}, "sampler.solver is a setting of LDLM, and not of remdm of mdlm"),
        ({"eta": 2}, "sampler.eta must be at most 1"),
        ({"n": 0}, "num_samples must be at least 1"),
        ({"stepz": 3}, "unknown setting sampler.stepz; did you mean sampler.steps?"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(exported, settings, said):
    with pytest.raises(InputError, match=re.escape(said)):
        TokenDiffusion.from_pretrained(exported("mdlm")).sample(**{"n": 1, **settings})


# ----------------------------------------------------------------------------------------------------------------------
# What makes no sense for a token-level run


def test_what_takes_latents_is_refused_for_a_token_level_run(rival, exported, refuse, store, tmp_path):
    run, out = rival("mdlm"), tmp_path / "out"
    ends = ("--from", "The old captain.", "--to", "A letter.")
    commands = [
        ("finetune-decoder", "--features", store, "--steps", 2),
        ("finetune-decoder", "--dry-run"),
        ("finetune-decoder", "--list"),
        ("interpolate", "--features", store, "--scorer", "nowhere"),
        ("interpolate", *ends),
        ("sample", "--trace", out),
        ("sample", "--trace", out, "--dry-run"),
    ]
    for command, *arguments in commands:
        line = refuse(command, "--run", run, *arguments)
        assert f"{run} is a token-level run, of method mdlm: it has no latents and no decoders" in line, command
    for place in (run, exported("mdlm")):
        line = refuse("sample", "--run", place, "--decoder", "joint", "--output", out)
        assert "--decoder is for runs of LDLM, and this one is of mdlm, which has no latents; leave it out" in line
        line = refuse("export", "--run", place, "--decoder", "joint", "--output", out)
        assert "--decoder is for runs of LDLM" in line
    line = refuse("sample", "--run", exported("mdlm"), "--trace", out)
    assert f"{exported('mdlm')} is a token-level model, of method mdlm: it has no latents and no decoders" in line
    for command in (("interpolate", *ends), ("finetune-decoder", "--list")):
        assert "holds a model" in refuse(command[0], "--run", exported("mdlm"), *command[1:])
    assert not out.exists()
    assert not (run / "decoders").exists()
