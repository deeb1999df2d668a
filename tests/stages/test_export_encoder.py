"""A model that takes its frozen encoder along continues texts where there is no other copy of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders import content
from safetensors.torch import load_file

from ldlm import LDLM, files
from ldlm import config as configs
from ldlm.config import ExportConfig, TrainConfig
from ldlm.errors import InputError
from ldlm.features.encoder import FrozenEncoder
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import export, extract_features, train

PROMPT = "Rain lost"
DRAW = {"prompt": PROMPT, "steps": 3, "temperature": 1.0, "seed": 4}
FLAGS = ("--prompt", PROMPT, "--num-samples", 3, "--steps", 3, "--temperature", 1, "--seed", 4, "--device", "cpu")
OF_THE_STAGE = {"artifact.json", "config.yaml", "manifest.json"}


@pytest.fixture(scope="module")
def place(gpt2, tmp_path_factory):
    """Where the run's encoder lies: a GPT-2 of its own, whose settings name its place and code that comes with it."""
    path = Path(shutil.copytree(gpt2, tmp_path_factory.mktemp("place") / "encoder"))
    described = json.loads((path / "config.json").read_text())
    described |= {"_name_or_path": str(path), "auto_map": {"AutoModel": "modeling_other.Other"}}
    (path / "config.json").write_text(json.dumps(described))
    (path / "modeling_other.py").write_text("raise SystemExit('code of a model was run')\n")
    return path


@pytest.fixture(scope="module")
def run(place, extract_config, train_config, tmp_path_factory):
    """A run that continues texts, on features of that encoder."""
    root = tmp_path_factory.mktemp("prefix")
    settings = configs.merge(configs.to_dict(extract_config), {"encoder": str(place)})
    features = extract_features.run(configs.from_dict(type(extract_config), settings), root / "features").path
    rates = {"optimizer": {"lr": 2e-2}, "steps": 20, "recipe": {"sigma_dec": 0.3}, "model": {"condition": "prefix"}}
    settings = configs.merge(configs.to_dict(train_config), rates)
    return train.run(configs.from_dict(TrainConfig, settings), features, root / "run").path


@pytest.fixture(scope="module")
def model(run, tmp_path_factory):
    """Its export with the encoder; read only."""
    return export.run(ExportConfig(with_encoder=True), run, tmp_path_factory.mktemp("made") / "model").path


@pytest.fixture
def moved(run, place, tmp_path):
    """The encoder's new place for a test; nothing is left in the old one."""
    there = shutil.move(place, tmp_path / "elsewhere")
    yield Path(there)
    shutil.move(there, place)


def drawn(made):
    """The texts that `ldlm sample --json` printed."""
    return [row["text"] for row in made["texts"]]


def test_it_continues_a_text_after_the_encoders_folder_is_gone(run, model, succeed, place, request, tmp_path):
    expected = drawn(succeed("sample", "--run", run, *FLAGS))
    assert all(text.startswith(PROMPT) for text in expected)
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    request.getfixturevalue("moved")
    assert not place.exists()
    assert drawn(succeed("sample", "--run", copy, *FLAGS)) == expected
    opened = LDLM.from_pretrained(copy)
    assert opened.sample(3, **DRAW) == expected
    assert opened.sample(3, **{**DRAW, "prompt": "Nobody"}) != expected


def test_without_it_the_encoders_folder_is_asked_for(run, refuse, moved, tmp_path):
    bare = export.run(ExportConfig(), run, tmp_path / "bare").path
    assert not (bare / "encoder").exists()
    assert "say where the encoder is with --encoder DIR" in refuse("sample", "--run", bare, *FLAGS)


def test_a_new_process_in_another_folder_finds_it(model, moved, succeed):
    code = """
import json, os, sys, torch
torch.set_num_threads(1)
from ldlm import LDLM
model = LDLM.from_pretrained("model")
os.chdir("/")
print(json.dumps(model.sample(3, **json.loads(sys.argv[1]))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(DRAW)], cwd=model.parent, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == drawn(succeed("sample", "--run", model, *FLAGS))


def test_its_folder_has_weights_and_settings_and_neither_code_nor_pickles_nor_places(run, model, place):
    assert {*content(model)} == {
        "artifact.json", "config.yaml", "manifest.json", "config.json", "README.md", "model.safetensors",
        "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
        "encoder/config.json", "encoder/model.safetensors",
    }  # fmt: skip
    described = json.loads((model / "encoder" / "config.json").read_text())
    assert "auto_map" not in described and "_name_or_path" not in described
    assert not [name for name, data in content(model).items() if str(place.parent).encode() in data]
    source = {name.removeprefix("transformer."): t for name, t in load_file(place / "model.safetensors").items()}
    mine = load_file(model / "encoder" / "model.safetensors")
    assert len(mine) > 40
    assert all(torch.equal(tensor, source[name]) for name, tensor in mine.items())
    record = TrainedRun(run, torch.device("cpu")).features["encoder"]
    opened = FrozenEncoder(str(model / "encoder"), kind=record["kind"], layer=record["layer"], seq_len=16)
    assert opened.fingerprint() == record["fingerprint"]


def test_every_byte_of_it_is_checked(model, tmp_path):
    for name in ("config.json", "model.safetensors"):
        copy = Path(shutil.copytree(model, tmp_path / name))
        data = bytearray((copy / "encoder" / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / "encoder" / name).write_bytes(data)
        with pytest.raises(InputError, match=f"encoder/{name} is damaged"):
            LDLM.from_pretrained(copy)
        (copy / "encoder" / name).unlink()
        with pytest.raises(InputError, match=f"lacks encoder/{name}"):
            LDLM.from_pretrained(copy)


def test_saved_again_it_is_the_same_to_the_byte_also_in_its_own_place(model, tmp_path):
    expected = {name: data for name, data in content(model).items() if name not in OF_THE_STAGE}
    LDLM.from_pretrained(model).save_pretrained(tmp_path / "again")
    assert content(tmp_path / "again") == expected
    LDLM.from_pretrained(tmp_path / "again").save_pretrained(tmp_path / "again")
    assert content(tmp_path / "again") == expected


def test_bf16_leaves_the_encoder_as_it_is(run, model, tmp_path):
    """Its states would not be those that the denoiser was trained on."""
    half = export.run(ExportConfig(with_encoder=True, precision="bf16"), run, tmp_path / "half").path
    names = ("encoder/config.json", "encoder/model.safetensors")
    assert [content(half)[name] for name in names] == [content(model)[name] for name in names]
    assert LDLM.from_pretrained(half).sample(2, **DRAW) == LDLM.from_pretrained(half).sample(2, **DRAW)


def test_card_manifest_and_dry_run_say_that_it_is_there(run, model, succeed, tmp_path):
    count = sum(tensor.numel() for tensor in load_file(model / "encoder" / "model.safetensors").values())
    assert files.read_digested(model / "manifest.json", "")["encoder_parameters"] == count
    assert files.read_digested(model / "config.json", "")["encoder_parameters"] == count
    card = (model / "README.md").read_text(encoding="utf-8")
    assert f"| text encoder, in `encoder/` | {count:,} parameters |" in card
    assert 'model.sample(8, prompt="The sea was calm")' in card
    assert "ENCODER" not in card and "The text encoder, the latent encoder" not in card
    plan = succeed("export", "--run", run, "--with-encoder", "--precision", "bf16", "--dry-run")
    assert plan["encoder_parameters"] == count
    assert plan["bytes"] == 2 * plan["parameters"] + 4 * count

    bare = export.run(ExportConfig(), run, tmp_path / "bare").path
    assert "encoder_parameters" not in files.read_digested(bare / "manifest.json", "")
    card = (bare / "README.md").read_text(encoding="utf-8")
    assert "encoder=ENCODER" in card and "in `encoder/`" not in card


def test_the_flag_needs_no_value_and_an_encoder_that_has_moved_is_named(run, model, moved, succeed, refuse, tmp_path):
    out = tmp_path / "model"
    line = refuse("export", "--run", run, "--output", out, "--with-encoder")
    assert "there is no model folder" in line and "say where the encoder is with --encoder DIR" in line
    assert not out.exists()
    succeed("export", "--run", run, "--output", out, "--with-encoder", "--encoder", moved)
    assert content(out / "encoder") == content(model / "encoder")
    assert not [name for name, data in content(out).items() if str(moved).encode() in data]


def test_another_encoder_is_not_taken_along_and_the_export_that_is_there_stays(run, other_gpt2, refuse, tmp_path):
    out = export.run(ExportConfig(), run, tmp_path / "model").path
    before = content(out)
    asked = ("--with-encoder", "--encoder", other_gpt2, "--overwrite")
    assert "is not the encoder that the features" in refuse("export", "--run", run, "--output", out, *asked)
    assert content(out) == before
    line = refuse("export", "--run", run, "--output", out, "--with-encoder")
    assert "with_encoder: False -> True" in line


def test_a_run_that_continues_no_texts_takes_none_along(trained, token_runs, refuse, tmp_path):
    out = tmp_path / "model"
    line = refuse("export", "--run", trained, "--output", out, "--with-encoder")
    assert line == (
        f"{trained} has not learned to continue texts (its model.condition is none), and drawing from it takes no "
        f"encoder; leave --with-encoder out"
    )
    line = refuse("export", "--run", token_runs("mdlm"), "--output", out, "--with-encoder")
    assert "--with-encoder is for runs of LDLM" in line
    for run in (trained, token_runs("mdlm")):
        line = refuse("export", "--run", run, "--output", out, "--encoder", "gpt2")
        assert line == "--encoder says where --with-encoder finds the encoder; add that, or leave --encoder out"
    assert not out.exists()


def test_a_folder_of_that_name_beside_an_export_without_one_is_none_of_ours(run, gpt2, tmp_path):
    bare = export.run(ExportConfig(), run, tmp_path / "bare").path
    shutil.copytree(gpt2, bare / "encoder")
    assert len(LDLM.from_pretrained(bare).sample(1, **DRAW, encoder=str(bare / "encoder"))) == 1
