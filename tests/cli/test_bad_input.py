"""What a user can get wrong gets one line on stderr, a non-zero exit, and leaves nothing half-written.

The fixture `refuse` runs a command and checks the shape of its complaint: status 1, nothing on stdout, exactly one line
of complaint on stderr, which begins with "Error:", and no traceback.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ldlm import LDLM
from ldlm import config as configs
from ldlm.config import TrainConfig
from ldlm.errors import InputError
from ldlm.stages import extract_features, train


@pytest.fixture
def out(tmp_path):
    """An output that must not come to be."""
    yield tmp_path / "outputs" / "out"
    assert not (tmp_path / "outputs" / "out").exists()


@pytest.fixture
def extract(refuse, gpt2, out):
    """A bad `extract-features`; returns the complaint."""

    def call(*arguments, encoder=gpt2):
        common = ("extract-features", "--encoder", encoder, "--seq-len", 16, "--device", "cpu", "--output", out)
        return refuse(*common, *arguments)

    return call


BAD_FILES = {
    "absent.txt": (None, "there is no file"),
    "empty.txt": (b"", "holds no text"),
    "blank.txt": (b"\n  \n\n", "holds no text"),
    "latin1.txt": ("first\ncafé\n".encode("latin1"), "line 2 is not UTF-8 (byte 0xe9); convert it"),
    "short.txt": (b"a\n", "too"),
    "bad.jsonl": (b'{"text": "a"}\n{"text"\n', "line 2 is not JSON"),
    "column.jsonl": (b'{"body": "a"}\n', "set --text-column"),
}


@pytest.fixture(params=BAD_FILES)
def bad_file(request, tmp_path):
    """A file that can't be used, and what must be said of it."""
    content, message = BAD_FILES[request.param]
    path = tmp_path / request.param
    if content is not None:
        path.write_bytes(content)
    return path, message


def test_text_that_can_not_be_read_is_named_by_extract_features(extract, bad_file):
    path, message = bad_file
    line = extract("--data", path)
    assert ("shorter than one row" if path.name == "short.txt" else message) in line
    assert path.name in line or path.name == "short.txt"


def test_text_that_can_not_be_read_is_named_by_pretrain_encoder(refuse, bad_file, out):
    path, message = bad_file
    line = refuse("pretrain-encoder", "--data", path, "--output", out)
    assert message in line
    assert str(path) in line


def test_text_that_can_not_be_read_is_named_by_quickstart(refuse, bad_file, out):
    path, _ = bad_file
    line = refuse("quickstart", "--text", path, "--output", out)
    assert str(path) in line


def test_texts_that_can_not_be_read_are_named_by_evaluate(refuse, bad_file, gpt2):
    path, message = bad_file
    line = refuse("evaluate", path, "--scorer", gpt2, "--max-tokens", 16)
    if path.name == "short.txt":
        assert "nothing to score" in line
    else:
        assert message in line
        assert str(path) in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", "holds no text"),
        ('{"text": "café"}\n'.encode("latin1"), "line 1 is not UTF-8 (byte 0xe9); convert it"),
        (b'{"text": "a"}\n{"text"\n', "line 2 is not JSON"),
        (b'{"text": "a"}\n{"body": "a"}\n', "line 2 has no text in 'text' (fields: body); set --text-column"),
        (b"[1]\n", "line 1 holds [1], which are token ids"),
    ],
)
def test_json_lines_that_can_not_be_evaluated_are_named(refuse, tmp_path, gpt2, content, message):
    path = tmp_path / "samples.jsonl"
    if content is not None:
        path.write_bytes(content)
    line = refuse("evaluate", path, "--scorer", gpt2, "--max-tokens", 16)
    assert str(path) in line
    assert message in line


def test_a_folder_is_no_text(extract, refuse, tmp_path, gpt2):
    folder = tmp_path / "texts.jsonl"
    folder.mkdir()
    assert "is a folder" in extract("--data", folder)
    assert "is a folder" in refuse("evaluate", folder, "--scorer", gpt2, "--max-tokens", 16)
    assert str(folder) in refuse("pretrain-encoder", "--data", folder, "--output", tmp_path / "outputs" / "out")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".txt", ".jsonl.gz", None])
def test_a_folder_is_answered_with_the_ending_of_files_that_are_there(refuse, tmp_path, gpt2, ending):
    folder = tmp_path / "draws.v1"
    folder.mkdir()
    for name in ("seed-1.5" + (ending or ".jsonl.meta.json"), "a.png"):
        (folder / name).touch()
    line = refuse("evaluate", folder, "--scorer", gpt2, "--max-tokens", 16)
    example = f", for example {folder}/*{ending}" if ending else ""
    assert line == f"{folder} is a folder; give the text files in it{example}"


def test_held_out_text_that_can_not_be_read_leaves_nothing_either(extract, corpus, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert "empty.txt holds no text" in extract("--data", corpus, "--validation-data", tmp_path / "empty.txt")


def test_what_a_refused_command_left_does_not_stand_in_the_way_of_the_corrected_one(
    refuse, succeed, gpt2, corpus, tmp_path
):
    text, out = tmp_path / "text.txt", tmp_path / "features"
    text.write_bytes(b"caf\xe9\n")
    command = ("extract-features", "--encoder", gpt2, "--data", text, "--seq-len", 16, "--output", out)
    refuse(*command)
    text.write_bytes(corpus.read_bytes())
    assert succeed(*command)["rows"]["train"] > 0


# ----------------------------------------------------------------------------------------------------------------------
# Models and datasets


def test_a_dataset_that_needs_a_hub_that_is_not_there(extract):
    line = extract("--dataset", "nosuch/corpus")
    assert line.startswith("the dataset 'nosuch/corpus' can't be read")
    assert "local text goes in with --data FILE" in line


@pytest.mark.parametrize("name", ["gpt2", "nosuch/model"])
def test_a_model_that_needs_a_hub_that_is_not_there(extract, refuse, corpus, trained, store, tmp_path, name):
    line = extract("--data", corpus, encoder=name)
    assert f"'{name}' is not a folder here, and can't be fetched from the Hugging Face hub" in line
    assert "give a local folder" in line
    assert name in refuse("evaluate", corpus, "--scorer", name)
    arguments = ("--run", trained, "--features", store, "--pairs", 2, "--output", tmp_path / "outputs" / "out")
    assert name in refuse("interpolate", *arguments, "--scorer", name)


@pytest.mark.parametrize("name", ["./nosuch", "/nosuch/model", "nosuch/model/folder"])
def test_a_model_folder_that_is_not_there(extract, corpus, name):
    assert extract("--data", corpus, encoder=name) == f"there is no model folder {name}"


def test_a_folder_that_holds_no_model(extract, corpus, tmp_path):
    (tmp_path / "photos").mkdir()
    line = extract("--data", corpus, encoder=tmp_path / "photos")
    assert "is not a usable model folder" in line


def test_a_folder_of_ours_that_is_no_encoder(extract, corpus, store, refuse):
    for line in (extract("--data", corpus, encoder=store), refuse("evaluate", corpus, "--scorer", store)):
        assert f"'{store}' holds a feature store of ldlm, and a transformers model is needed" in line


@pytest.mark.parametrize("layer", [-6, 5, 100])
def test_a_layer_out_of_range(extract, corpus, layer):
    assert f"--layer {layer} is out of range" in extract("--data", corpus, "--layer", layer)


def test_rows_longer_than_the_encoders_positions(extract, corpus):
    assert "--seq-len 17 is longer than the 16 positions" in extract("--data", corpus, "--seq-len", 17)


def test_texts_longer_than_the_scorers_positions(refuse, corpus, gpt2):
    line = refuse("evaluate", corpus, "--scorer", gpt2, "--max-tokens", 17)
    assert "--max-tokens 17 is longer than the 16 positions of the scorer" in line


def test_a_scorer_that_looks_ahead(refuse, corpus, bert):
    assert "is no causal model" in refuse("evaluate", corpus, "--scorer", bert, "--max-tokens", 16)


def test_more_pairs_than_rows(refuse, trained, store, gpt2, out):
    arguments = ("--run", trained, "--features", store, "--pairs", 21, "--scorer", gpt2, "--output", out)
    line = refuse("interpolate", *arguments)
    assert "--pairs 21 needs 42 held-out rows, and the store has 40; use at most 20" in line


@pytest.mark.parametrize("device", ["tpu9000", "cuda:99", "meta"])
def test_a_device_that_is_not_there(extract, refuse, corpus, trained, tmp_path, device):
    assert f"--device {device}" in extract("--data", corpus, "--device", device).replace("'", "")
    line = refuse("sample", "--run", trained, "--device", device, "--output", tmp_path / "s.jsonl")
    assert f"--device {device}" in line.replace("'", "")
    assert not (tmp_path / "s.jsonl").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Outputs that are there


def test_an_output_made_otherwise_needs_overwrite(refuse, succeed, gpt2, corpus, store, tmp_path):
    out = shutil.copytree(store, tmp_path / "features")
    before = (out / "manifest.json").read_bytes()
    command = ("extract-features", "--encoder", gpt2, "--data", corpus, "--seq-len", 12, "--output", out)
    line = refuse(*command)
    assert "seq_len: 16 -> 12" in line
    assert "--overwrite" in line
    assert (out / "manifest.json").read_bytes() == before
    assert succeed(*command, "--overwrite")["shapes"]["seq_len"] == 12


@pytest.mark.parametrize(
    "command",
    [
        ("extract-features", "--encoder", "GPT2", "--data", "CORPUS", "--seq-len", 16),
        ("pretrain-encoder", "--data", "CORPUS"),
        ("train", "--features", "STORE", "--config", "YAML"),
        ("interpolate", "--run", "RUN", "--features", "STORE", "--scorer", "GPT2", "--pairs", 2),
        ("quickstart", "--text", "CORPUS"),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("content", ["foreign", "another kind", "a file"])
def test_no_stage_touches_what_it_did_not_make(
    refuse, request, gpt2, corpus, store, trained, tiny_yaml, tmp_path, command, content
):
    out = tmp_path / "out"
    if content == "foreign":
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
    elif content == "another kind":
        shutil.copytree(trained if command[0] != "train" else store, out)
    else:
        out.write_text("years of work")
    before = {p: p.read_bytes() for p in (out, *out.rglob("*")) if p.is_file()}
    places = {"GPT2": gpt2, "CORPUS": corpus, "STORE": store, "RUN": trained, "YAML": tiny_yaml}
    line = refuse(*(places.get(argument, argument) for argument in command), "--output", out, "--device", "cpu")
    assert str(out) in line
    assert "choose another --output" in line
    assert {p: p.read_bytes() for p in (out, *out.rglob("*")) if p.is_file()} == before


@pytest.mark.parametrize(
    "command",
    [
        ("extract-features", "--encoder", "MODEL", "--data", "CORPUS", "--seq-len", 16),
        ("pretrain-encoder", "--tokenizer", "MODEL", "--data", "CORPUS"),
        ("quickstart", "--encoder", "MODEL"),
        ("quickstart", "--scorer", "MODEL"),
        ("interpolate", "--run", "RUN", "--features", "STORE", "--scorer", "MODEL", "--pairs", 2),
        ("interpolate", "--run", "RUN", "COPY", "--features", "STORE", "--scorer", "MODEL", "--pairs", 2),
        ("sweep", "--run", "RUN", "--scorer", "MODEL"),
        ("sweep", "--run", "RUN", "COPY", "--scorer", "MODEL"),
    ],
    ids=lambda command: " ".join(map(str, command)),
)
def test_overwriting_spares_what_is_to_be_read(refuse, gpt2, corpus, store, trained, tmp_path, command):
    out = tmp_path / "out"
    model = shutil.copytree(gpt2, out / "model")
    places = {"MODEL": model, "CORPUS": corpus, "STORE": store, "RUN": trained}
    if "COPY" in command:
        places["COPY"] = shutil.copytree(trained, tmp_path / "copy")
    named = (places.get(argument, argument) for argument in command)
    line = refuse(*named, "--output", out, "--device", "cpu", "--overwrite")
    assert line == f"--overwrite would delete {model}, which is to be read; choose another --output"
    assert (model / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "command",
    [
        "pretrain-encoder --output", "quickstart --output", "train --output", "distill --run run --output",
        "sample --run run --output", "sample --run run --trace", "sweep --run run --output", "report run --output",
        "interpolate --run run --output", "likelihood --run run --features features --output", "plot run --output",
        "export --run run --output", "stories --output", "stories --output a.txt --tokenizer", "paper table-1 --output",
        "paper table-1 --scale paper --script", "features texts features --output", "train --output run --features",
        "export --run",
    ],
)  # fmt: skip
def test_an_object_store_takes_feature_stores_alone(refuse, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    place = "s5://bucket/run" if command.endswith("--features") else "s3://bucket/run"
    line = refuse(*command.split(), place)
    flag = command.split()[-1]
    if flag == "--features":
        assert "s5 is not among the object stores" in line
    else:
        assert line == f"{flag} {place} is in an object store, where only feature stores can be; give a path"
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_bytes_that_are_no_text_is_one_line(refuse, corpus, gpt2, out, tmp_path):
    path = shutil.copy(corpus, tmp_path / "t\udcff.txt")
    for command in (
        ("pretrain-encoder", "--data", path),
        ("extract-features", "--encoder", gpt2, "--data", path, "--seq-len", 16),
        ("extract-features", "--encoder", gpt2, "--data", corpus, "--validation-data", path, "--seq-len", 16),
        ("quickstart", "--text", path),
    ):
        name = command[-4 if command[-2] == "--seq-len" else -2].removeprefix("--").replace("-", "_")
        line = refuse(*command, "--output", out)
        assert line == rf"{name} holds '\udcff', which is no whole character of UTF-8; remove it, or rename the file"


@pytest.mark.parametrize("command", ["pretrain-encoder --output", "train --output", "sample --run", "report --output"])
def test_a_place_with_bytes_that_are_no_text_is_one_line(refuse, command):
    flag = command.split()[-1]
    assert refuse(*command.split(), "t\udcff").startswith(rf"{flag} holds '\udcff', which is no whole character")


def test_an_output_that_can_not_be_made_is_one_line(refuse, gpt2, corpus, trained, tmp_path):
    (tmp_path / "file").write_text("")
    command = ("extract-features", "--encoder", gpt2, "--data", corpus, "--seq-len", 16)
    assert str(tmp_path / "file") in refuse(*command, "--output", tmp_path / "file" / "features")
    command = ("sample", "--run", trained, "--num-samples", 1, "--steps", 1)
    assert str(tmp_path / "file") in refuse(*command, "--output", tmp_path / "file" / "s.jsonl")
    assert str(tmp_path) in refuse(*command, "--output", tmp_path)


# ----------------------------------------------------------------------------------------------------------------------
# Artefacts that do not belong together


@pytest.fixture(scope="module")
def foreign_store(extract_config, other_gpt2, tmp_path_factory):
    """A store like `store`, made by another encoder."""
    from dataclasses import replace

    config = replace(extract_config, encoder=str(other_gpt2))
    return extract_features.run(config, tmp_path_factory.mktemp("foreign") / "features").path


def test_a_store_made_by_another_encoder_than_the_runs(refuse, run_copy, foreign_store, gpt2, out):
    line = refuse("finetune-decoder", "--run", run_copy, "--features", foreign_store, "--layers", 1)
    assert "was made with another encoder" in line
    assert "give the store that the run was trained on" in line
    assert not (run_copy / "decoders").exists()
    arguments = ("--run", run_copy, "--features", foreign_store, "--pairs", 2, "--scorer", gpt2, "--output", out)
    assert "was made with another encoder" in refuse("interpolate", *arguments)


def test_the_wrong_kind_of_artefact_names_what_was_found_what_was_needed_and_what_makes_it(
    refuse, trained, store, gpt2, out, tiny_yaml
):
    line = refuse("train", "--features", trained, "--output", out, "--config", tiny_yaml)
    assert line == (f"{trained} holds a training run, and a feature store is needed; `ldlm extract-features` makes one")
    line = refuse("sample", "--run", store, "--output", out)
    assert line == f"{store} holds a feature store, and a training run is needed; `ldlm train` makes one"
    line = refuse("sample", "--run", gpt2, "--output", out)
    assert line == f"{gpt2} holds an encoder, and a training run is needed; `ldlm train` makes one"
    line = refuse("finetune-decoder", "--run", trained, "--features", out)
    assert line == f"there is no folder {out}; `ldlm extract-features` makes a feature store"


def test_a_run_without_a_checkpoint_is_not_sampled(refuse, run_copy, out):
    shutil.rmtree(run_copy / "checkpoints")
    assert "has no checkpoint yet" in refuse("sample", "--run", run_copy, "--output", out)


def test_too_few_rows_for_one_batch(refuse, store, tiny_yaml, trained, out):
    command = ("train", "--features", store, "--config", tiny_yaml, "--output", out)
    assert "403 train rows, too few for one batch of 404" in refuse(*command, "--batch-size", 404)
    line = refuse("finetune-decoder", "--run", trained, "--features", store, "--batch-size", 404)
    assert "too few for one batch of 404" in line
    assert not (trained / "decoders").exists()


def test_too_few_rows_for_one_batch_of_pretraining(refuse, tmp_path, out):
    (tmp_path / "short.txt").write_text("One short line of text.\n")
    line = refuse("pretrain-encoder", "--data", tmp_path / "short.txt", "--positions", 16, "--output", out)
    assert "are too few for one batch of 32; give more text, or lower --batch-size or --positions" in line


# ----------------------------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "model.denoiser.depth=3"), "unknown setting model.denoiser.depth"),
        (("--set", "recipe.sigma_dek=3"), "unknown setting recipe.sigma_dek; did you mean recipe.sigma_dec?"),
        (("--set", "modl.denoiser.layers=3"), "unknown setting modl; did you mean model?"),
        (("--set", "steps"), "--set takes KEY=VALUE"),
        (("--set", "model=3"), "model must be a mapping of settings, not '3'"),
        (("--steps", "many"), "steps takes a whole number, not 'many'"),
        (("--steps", "1.5"), "steps takes a whole number, not '1.5'"),
        (("--steps", "-1"), "steps must be at least 1, not -1"),
        (("--set", "optimizer.lr=nan"), "optimizer.lr must be a finite number, not 'nan'"),
        (("--set", "recipe.sigma_dec=inf"), "recipe.sigma_dec must be a finite number, not 'inf'"),
        (("--seed", "nan"), "seed must be a finite number, not 'nan'"),
        (("--seed", "1180591620717411303424"), "seed must be at most"),
        (("--preset", "huge"), "there is no preset 'huge'; choose one of owt-1024"),
        (("--config", "NOSUCH.yaml"), "there is no file NOSUCH.yaml"),
        (("--config", "."), ". is a folder"),
        (("--set", "model.autoencoder.heads=3"), "heads"),
        (("--set", "model.denoiser.heads=3"), "heads"),
        (("--set", "model.token_decoder.heads=3"), "heads"),
        (("--set", "model.denoiser.time_dim=7"), "time_dim"),
    ],
)
def test_a_bad_setting_is_named(refuse, store, tiny_yaml, out, arguments, message):
    config = () if "--config" in arguments else ("--config", tiny_yaml)
    assert message in refuse("train", "--features", store, "--output", out, *config, *arguments)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["train", "dry run"])
@pytest.mark.parametrize("method", ["ldlm", "mdlm", "flm"])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (("time_dim=9",), "model.denoiser.time_dim=9 must be even"),
        (
            ("width=30", "heads=10"),
            "model.denoiser.heads=10 leaves heads of odd width 3, and rotary positions turn pairs; set it to one of 1, "
            "3, 5, 15, or model.denoiser.width to a multiple of 20",
        ),
        (
            ("width=15", "heads=1"),
            "model.denoiser.heads=1 leaves heads of odd width 15, and rotary positions turn pairs; set "
            "model.denoiser.width to a multiple of 2",
        ),
    ],
)
def test_sizes_of_the_denoiser_that_no_method_can_have_are_named(refuse, store, out, method, sizes, message, dry):
    settings = [part for size in sizes for part in ("--set", f"model.denoiser.{size}")]
    line = refuse(
        "train", "--method", method, "--features", store, "--preset", "tiny", *settings, "--output", out, *dry
    )
    assert message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("steps: 3\nbatch_size: 2\nsteps: 4\n", "line 3: steps is set twice; keep one"),
        ("model:\n  denoiser:\n    layers: 1\n    layers: 2\n", "line 4: layers is set twice"),
        ("stepz: 3\n", "unknown setting stepz; did you mean steps?"),
        ("steps: .nan\n", "steps must be a finite number, not nan"),
        ("optimizer: {lr: [1]}\n", "optimizer.lr takes a number, not [1]"),
        ("steps: true\n", "steps takes a whole number, not True"),
        ("- steps\n", "must hold a mapping of settings"),
        ("steps: [1\n", "is not valid YAML"),
        ("model:\n", "model must be a mapping of settings, not None"),
    ],
)
def test_a_bad_configuration_file_is_named(refuse, store, tmp_path, out, content, message):
    (tmp_path / "c.yaml").write_text(content)
    line = refuse("train", "--features", store, "--output", out, "--config", tmp_path / "c.yaml")
    assert message in line


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (
            "method: duo\ncurriculum: {kind: none}\n",
            ("--method", "mdlm"),
            "--method is mdlm, and CONFIG has settings of duo",
        ),
        (
            "curriculum: {kind: none}\n",
            ("--method", "mdlm"),
            "curriculum is a setting of duo, and this training is of mdlm",
        ),
        (
            "steps: 3\n",
            ("--method", "mdlm", "--set", "recipe.sigma_dec=3"),
            "recipe is a setting of ldlm, and this training",
        ),
        ("noise: {r_low: 0.1}\n", (), "noise is a setting of candi, and this training is of ldlm"),
        ("method: [duo]\n", (), "method is one name of ldlm, mdlm, duo, candi, flm, not ['duo']"),
        ("method: null\nsteps: 0\n", (), "steps must be at least 1, not 0"),
        ("method: null\nsteps: 0\n", ("--method", "mdlm"), "steps must be at least 1, not 0"),
    ],
)
def test_settings_of_another_method_are_named(refuse, store, tmp_path, out, content, arguments, message):
    (tmp_path / "c.yaml").write_text(content)
    line = refuse("train", "--features", store, "--output", out, "--config", tmp_path / "c.yaml", *arguments)
    assert message.replace("CONFIG", str(tmp_path / "c.yaml")) in line


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (("extract-features", "--encoder", "x", "--data", "y"), "--output"),
        (("train",), "--features"),
        (("train", "--features", "x"), "--output"),
        (("sample",), "--run"),
        (("finetune-decoder",), "--run"),
        (("finetune-decoder", "--run", "x"), "--features"),
        (("interpolate",), "--run"),
        (("pretrain-encoder", "--data", "x"), "--output"),
        (("quickstart",), "--output"),
    ],
)
def test_a_missing_path_is_asked_for_with_an_example(refuse, command, flag):
    assert refuse(*command).startswith(f"{flag} is missing; for example {flag} ")


def test_nothing_to_work_on_is_said(refuse, out):
    assert "no texts to evaluate" in refuse("evaluate")
    assert "nothing to train on: give --data FILE" in refuse("pretrain-encoder", "--output", out)
    assert "give the text either as --data" in refuse("extract-features", "--output", out)
    assert "--features DIR or --preset NAME" in refuse("train", "--dry-run")


@pytest.mark.parametrize("heads", [3, 5])
def test_heads_that_do_not_divide_the_width_of_an_encoder(refuse, corpus, out, heads):
    sizes = ("--width", 16, "--heads", heads, "--positions", 16)
    line = refuse("pretrain-encoder", "--data", corpus, *sizes, "--output", out)
    assert f"--heads {heads} must divide --width 16" in line


def test_a_damaged_artefact_is_one_line(refuse, store_copy, run_copy, tiny_yaml, out):
    (store_copy / "manifest.json").write_text('{"kind": "feat')
    line = refuse("train", "--features", store_copy, "--config", tiny_yaml, "--output", out)
    assert f"{store_copy / 'manifest.json'} is damaged" in line
    (run_copy / "config.yaml").write_text("steps: [")
    assert "config.yaml is not valid YAML" in refuse("sample", "--run", run_copy, "--output", out)


def test_a_latent_count_that_no_decoder_can_read(refuse, store, tmp_path, interrupted, tiny_yaml):
    changes = {"model": {"autoencoder": {"num_latents": 8}}, "save_every": 1}
    data = configs.merge(json.loads(tiny_yaml.read_text()), changes)
    with pytest.raises(KeyboardInterrupt):
        train.run(configs.from_dict(TrainConfig, data), store, tmp_path / "run", progress=interrupted(at=1))
    line = refuse("finetune-decoder", "--run", tmp_path / "run", "--features", store, "--layers", 1)
    assert "8 latents for 16 tokens" in line
    assert not (tmp_path / "run" / "decoders").exists()


def test_a_folder_where_a_file_should_be_written(refuse, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (".", tmp_path):
        assert "is a folder; --output names the file" in refuse("sample", "--run", trained, "--output", place)


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "--run", "run", "--output"),
        ("stories", "--documents", 2, "--output"),
        ("features", "texts", "features", "--output"),
        ("report", "run", "--output"),
        ("paper", "table-1", "--output", "paper", "--script"),
    ],
)
def test_a_name_that_ends_as_a_folders_is_no_file(refuse, tmp_path, command):
    line = refuse(*command, f"{tmp_path}/draws/")
    assert line == f"{tmp_path}/draws/ is the name of a folder; {command[-1]} names the file, without / at its end"
    assert not (tmp_path / "draws").exists()


@pytest.mark.parametrize("place", ["-", "/dev/stdout", "/dev/fd/63", "/proc/self/fd/63"])
def test_a_stream_where_a_file_should_be_written(refuse, trained, store, tmp_path, monkeypatch, place):
    """`-` is standard input where a file is read, and no file called so appears where one is written."""
    monkeypatch.chdir(tmp_path)
    no_file = f"{place} is a device or a pipe, not a file; "
    named = f"{no_file}--output names the file to write, for example "
    assert refuse("stories", "--documents", 1, "--output", place) == f"{named}stories.txt"
    assert refuse("features", "texts", store, "--rows", 1, "--output", place) == f"{named}real.jsonl"
    assert refuse("report", trained, "--output", place) == f"{named}report.html"
    line = refuse("sample", "--run", trained, "--num-samples", 1, "--output", place)
    assert line == f"{named}samples.jsonl; without it the texts are printed"
    line = refuse("paper", "table-7", "--scale", "paper", "--script", place)
    assert (
        line == f"{no_file}--script names the file to write, for example table-7.sh; without it the script is printed"
    )
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("below", ["st.txt", "a/st.txt"])
def test_a_file_where_an_output_needs_a_folder_is_named(refuse, tmp_path, below):
    (tmp_path / "file").write_text("kept")
    line = refuse("stories", "--documents", 3, "--output", tmp_path / "file" / below)
    assert line == f"{tmp_path / 'file'} is a file, and a folder is needed there; choose another path"
    assert (tmp_path / "file").read_text() == "kept"


def test_a_place_where_no_folder_can_be_made_is_named(refuse, trained):
    for command, out in (("export", "--output"), ("sample", "--trace")):
        line = refuse(command, "--run", trained, out, "/proc/out")
        assert line == "/proc/out: no folder can be made here; choose another"


def test_a_file_where_a_folder_is_read_is_no_missing_folder(refuse, corpus, out):
    line = refuse("train", "--features", corpus, "--preset", "tiny", "--output", out)
    assert line.startswith(f"{corpus} is a file, and a feature store is a folder; ")


def test_a_run_is_no_model_that_python_opens(trained):
    with pytest.raises(
        InputError, match=r"is a training run; `ldlm export --run .* --output model` makes what this opens"
    ):
        LDLM.from_pretrained(trained)


def test_the_number_of_a_trace_needs_a_trace(refuse, trained):
    for given in (("--trace-text", 3), ("--trace-frames", 5), ("--trace-times", 0.3, 0.5), ("--set", "trace_text=3")):
        line = refuse("sample", "--run", trained, *given)
        assert line.startswith("--trace-") and line.endswith(" for --trace; add --trace DIR")


def test_a_missing_run_is_looked_for_where_the_command_was_called(refuse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refuse("sample", "--run", "run").startswith(f"there is no folder run in {tmp_path}; ")


def test_a_solver_is_no_sampler(refuse, trained):
    line = refuse("sample", "--run", trained, "--sampler", "ddim")
    assert line == "there is no sampler 'ddim'; choose paper, or a --solver (--solver ddim is one) and a --grid"


def test_a_dry_run_of_a_sweep_reads_what_stands_beside_it(refuse, trained, gpt2):
    words = ("sweep", "--run", trained, "--scorer", gpt2, "--external", "x=nosuch.txt", "--dry-run")
    assert "--external takes NAME=FILE,NFE,SECONDS" in refuse(*words)


@pytest.mark.parametrize("method", ["ldlm", "mdlm"])
def test_texts_and_exports_of_a_run_that_is_not_finished_say_so(trained, token_runs, ldlm, tmp_path, method):
    run = trained if method == "ldlm" else token_runs(method)
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "manifest.json").unlink()
    words = {"sample": ("--num-samples", 1, "--steps", 1, "--device", "cpu"), "export": ("--output", tmp_path / "out")}
    for command, given in words.items():
        assert "is not finished" not in ldlm(command, "--run", run, *given).stderr
        done = ldlm(command, "--run", copy, *given, *(["--overwrite"] if command == "export" else []))
        assert f"{copy} is not finished: its newest checkpoint is from step" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("finetune-decoder", "--features", "{store}", "--layers", 1, "--steps", 1),
        ("distill", "--features", "{store}", "--evaluations", 2, "--start", 4, "--steps", 1, "--output", "{out}"),
        ("likelihood", "--features", "{store}", "--split", "train", "--rows", 4, "--taus", 2, "--draws", 2),
        ("interpolate", "--features", "{store}", "--pairs", 1, "--points", 3, "--scorer", "{gpt2}"),
        ("interpolate", "--from", "The old captain.", "--to", "A letter.", "--points", 3),
        ("sweep", "--scorer", "{gpt2}", "--budgets", 2, "--screen-texts", 2, "--texts", 2, "--solvers", "ddim",
         "--grids", "learned", "--guidances", 1, "--temperatures", 0),
    ],
    ids=lambda command: command[0] + command[1],
)  # fmt: skip
def test_what_is_made_from_a_run_that_is_not_finished_says_so(run_copy, store, gpt2, ldlm, tmp_path, command):
    (run_copy / "manifest.json").unlink()
    places = {"store": store, "gpt2": gpt2, "out": tmp_path / "out"}
    words = [word.format(**places) if isinstance(word, str) else word for word in command]
    done = ldlm(*words, "--run", run_copy, "--device", "cpu")
    assert done.stderr.count(f"{run_copy} is not finished: its newest checkpoint is from step") == 1


def test_ctrl_c_says_that_the_same_command_goes_on(trained, ldlm, monkeypatch, tmp_path):
    def held_up(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ldlm.sampling.generation.batches", held_up)
    done = ldlm("sample", "--run", trained, "--num-samples", 3, "--steps", 1, "--output", tmp_path / "s.jsonl")
    assert done.exit_code == 130
    assert "interrupted; the same command continues from what was kept, if anything" in done.stderr


def test_the_real_command_prints_one_line_and_no_traceback(tmp_path):
    """Once through the console script's own entry point, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", "from ldlm.cli import main; main()", "sample", "--run", str(tmp_path / "nosuch"),
         "--output", str(tmp_path / "s.jsonl")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"Error: there is no folder {tmp_path / 'nosuch'}; `ldlm train` makes a training run\n"
    assert list(tmp_path.iterdir()) == []
