"""With --overwrite, what is refused for its settings or inputs is refused before anything is deleted."""

import json
import shutil

import pytest
from folders import content

from ldlm import files, locks
from ldlm.stages import extract_features

PREFIX = ("--set", "model.condition=prefix")


def refused(refuse, kept, *command):
    """What a command says that must refuse, and leave the folders `kept` as they were."""
    before = [content(path) for path in kept]
    line = refuse(*command, "--overwrite")
    assert [content(path) for path in kept] == before
    return line


# ----------------------------------------------------------------------------------------------------------------------
# A training and the store that it makes for itself


@pytest.fixture
def online(few, tiny_yaml, succeed, tmp_path):
    """A command that has trained on a store of its own, and with --stats-tokens begins another; its two folders."""
    run = tmp_path / "run"
    command = [
        "train", "--features", "online", "--data", *few.data, "--config", tiny_yaml, "--steps", 1, "--output", run,
    ]  # fmt: skip
    succeed(*command, "--encoder", few.encoder, "--seq-len", few.seq_len)
    return [*command, "--stats-tokens", 64], (run, tmp_path / "run-features")


def test_an_encoder_that_sees_ahead_is_refused(online, bert, refuse):
    command, kept = online
    line = refused(refuse, kept, *command, "--encoder", bert, "--seq-len", 16, *PREFIX)
    assert line.startswith(
        f"model.condition=prefix needs a causal encoder, such as GPT-2, and the states of {bert} depend on later tokens"
    )


def test_rows_that_are_too_short_for_a_prefix_are_refused(online, gpt2, refuse):
    command, kept = online
    line = refused(refuse, kept, *command, "--encoder", gpt2, "--seq-len", 8, *PREFIX)
    assert line.startswith("model.condition=prefix leaves 8 tokens of a row unwritten, and rows have 8 in all")


def test_a_prefix_of_tokens_alone_is_refused(online, gpt2, refuse):
    command, kept = online
    scratch = ("--kind", "scratch", "--set", "model.space=scratch", "--set", "recipe.reconstruction=ce")
    line = refused(refuse, kept, *command, "--encoder", gpt2, "--seq-len", 16, *PREFIX, *scratch)
    assert line.startswith("model.condition=prefix needs the states of a frozen encoder")


def test_a_causal_encoder_is_taken(online, gpt2, succeed):
    command, _ = online
    assert succeed(*command, "--encoder", gpt2, "--seq-len", 16, *PREFIX, "--overwrite")["step"] == 1


def test_an_output_of_another_kind_is_refused(online, gpt2, refuse):
    command, (run, store) = online
    shutil.rmtree(run)
    files.write_json(run / "artifact.json", {"kind": "encoder", "schema": 2})
    line = refused(refuse, (run, store), *command, "--encoder", gpt2, "--seq-len", 16)
    assert line.startswith(f"{run} holds an encoder, which --overwrite doesn't replace with a training run; choose")


def test_an_output_that_is_a_file_is_refused(online, gpt2, refuse):
    command, (run, store) = online
    shutil.rmtree(run)
    run.write_text("")
    line = refused(refuse, [store], *command, "--encoder", gpt2, "--seq-len", 16)
    assert line == f"{run} is a file and the output is a folder; choose another --output"


def test_an_output_in_which_another_trains_is_refused(online, gpt2, refuse):
    command, kept = online
    with locks.exclusive_lock(kept[0]):
        line = refused(refuse, kept, *command, "--encoder", gpt2, "--seq-len", 16)
    assert line.startswith(f"another process is at work in {kept[0]}")


def test_one_of_several_processes_is_refused_for_that_whatever_the_others_do(online, gpt2, refuse, monkeypatch):
    command, kept = online
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500}.items():
        monkeypatch.setenv(name, str(value))
    with locks.exclusive_lock(kept[0]):  # as another process has while it checks the output
        line = refused(refuse, kept, *command, "--encoder", gpt2, "--seq-len", 16)
    assert line.startswith("--overwrite is for one process, and the launcher (RANK, SLURM_… or JOB_…) names several")


# ----------------------------------------------------------------------------------------------------------------------
# A store whose encoder is needed and gone


@pytest.fixture(scope="module")
def encoder_gone(few, gpt2, tiny_yaml, succeed, tmp_path_factory):
    """The options for a run on a store without states, and every result of both; the store's encoder is gone."""
    place = tmp_path_factory.mktemp("gone")
    encoder = shutil.copytree(gpt2, place / "encoder")
    store, run, student = (place / name for name in ("features", "run", "student"))
    device = ("--device", "cpu")
    text = ("--data", *few.data, "--seq-len", few.seq_len, "--validation-docs", few.validation_docs)
    succeed("extract-features", "--encoder", encoder, *text, "--codec", "online", *device, "--output", store)
    on = ("--features", store, *device)
    commands = {
        "train": ("train", *on, "--config", tiny_yaml, "--steps", 1, "--output", run),
        "distill": ("distill", "--run", run, *on, "--start", 4, "--evaluations", 2, "--steps", 1, "--output", student),
        "finetune-decoder": ("finetune-decoder", "--run", run, *on, "--layers", 0, "--steps", 1),
        "interpolate": ("interpolate", "--run", run, *on, "--pairs", 2, "--points", 2, "--scorer", gpt2),
        "likelihood": ("likelihood", "--run", run, *on, "--rows", 4),
    }
    for command in commands.values():
        succeed(*command)
    shutil.rmtree(encoder)
    return commands, encoder, (run, student)


@pytest.mark.parametrize("name", ["train", "distill", "finetune-decoder", "interpolate", "likelihood"])
def test_what_needs_an_encoder_that_is_gone_is_refused(encoder_gone, refuse, name):
    commands, encoder, kept = encoder_gone
    assert f"there is no model folder {encoder}" in refused(refuse, kept, *commands[name], "--seed", 1)


# ----------------------------------------------------------------------------------------------------------------------
# An extraction and its text


@pytest.fixture(scope="module")
def sealed(few, tmp_path_factory):
    """A store; read only."""
    return extract_features.run(few, tmp_path_factory.mktemp("sealed") / "features").path


@pytest.fixture
def extracted(sealed, few, tmp_path):
    """The beginning of an extraction's command, and a store at its output."""
    out = shutil.copytree(sealed, tmp_path / "features")
    return ("extract-features", "--encoder", few.encoder, "--seq-len", 16, "--device", "cpu", "--output", out), out


@pytest.mark.parametrize(
    ("name", "text", "more", "message"),
    [
        ("t.jsonl", json.dumps({"body": "A letter."}), (), "has no text in 'text' (fields: body); set --text-column"),
        ("t.jsonl", json.dumps({"text": "A letter." * 20}), ("--text-column", "body"), "has no text in 'body'"),
        ("t.txt", "\n \n", (), "holds no text"),
        ("t.txt", "A letter.\n", (), "the text is shorter than one row of 16 tokens"),
        ("t.txt", "A letter.\n" * 20, ("--validation-docs", 20), "--validation-docs 20 leaves nothing to train on"),
        (
            "t.txt",
            "A letter.\n" * 20,
            ("--validation-docs", 19),
            "the text that --validation-docs 19 leaves to train on is shorter than one row of 16 t",
        ),
        ("t.txt", "An answer\0 before dawn.\n" * 20, (), "holds a NUL byte"),
    ],
    ids=["no such field", "no such column", "blank", "short", "all held out", "most held out", "NUL"],
)
def test_text_that_makes_no_store_is_refused(extracted, refuse, tmp_path, name, text, more, message):
    command, out = extracted
    (tmp_path / name).write_text(text)
    assert message in refused(refuse, [out], *command, "--data", tmp_path / name, *more)


def test_held_out_text_that_is_none_is_refused(extracted, few, refuse, tmp_path):
    command, out = extracted
    (tmp_path / "held.txt").write_text("\n")
    more = ("--data", *few.data, "--validation-data", tmp_path / "held.txt")
    assert "held.txt holds no text" in refused(refuse, [out], *command, *more)
