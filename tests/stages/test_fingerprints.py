"""Results are known by the content of what made them: a decoder or scorer that changed under its name is another."""

import shutil
from pathlib import Path

import pytest

from ldlm import files
from ldlm.config import FinetuneConfig
from ldlm.stages import finetune_decoder

FINETUNE = {"layers": 1, "steps": 2, "batch_size": 8, "eval_every": 2, "device": "cpu"}
SWEEP = ("--budgets", 2, "--solvers", "ddim", "--grids", "learned", "--guidances", 1, "--screen-texts", 2, "--texts", 3)
PAIRS = ("--pairs", 3, "--points", 3)


@pytest.fixture
def run(run_copy, store):
    """A run with the decoder layers-1."""
    finetune_decoder.run(FinetuneConfig(**FINETUNE), run_copy, store)
    return run_copy


@pytest.fixture
def scorer(gpt2, tmp_path):
    """A scorer to train further."""
    return Path(shutil.copytree(gpt2, tmp_path / "scorer"))


def train_further(scorer):
    """Change the weights of a scorer in place."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(scorer)
    next(model.parameters()).data.mul_(1.5)
    model.save_pretrained(scorer)


def forget(record, *names):
    """Take fingerprints out of a record, as an earlier version left it."""

    def without(found):
        return {
            key: without(value) if isinstance(value, dict) else value
            for key, value in found.items()
            if key not in names
        }

    files.write_json(record, without(files.read_json(record)))


def commands(run, store, scorer, root, decoder=("--decoder", "layers-1")):
    """A command for each kind of result, by its name, and where it puts it."""
    decoders = ("--decoders", *decoder[1:]) if decoder else ()
    scored = ("--scorer", scorer, "--device", "cpu")
    other = Path(shutil.copytree(run, root / "other", dirs_exist_ok=True))
    found = {
        "sample": ("sample", "--run", run, *decoder, "--steps", 2, "--num-samples", 3),
        "trace": ("sample", "--run", run, *decoder, "--steps", 2, "--trace-frames", 2),
        "likelihood": ("likelihood", "--run", run, "--features", store, *decoder, "--rows", 4, "--taus", 1),
        "interpolation": ("interpolate", "--run", run, "--features", store, *decoder, *PAIRS, *scored),
        "comparison": ("interpolate", "--run", run, other, "--features", store, *decoder, *PAIRS, *scored),
        "sweep": ("sweep", "--run", run, *decoders, *SWEEP, *scored),
        "frontier": ("sweep", "--run", run, other, *decoders, *SWEEP, *scored),
    }
    where = {name: root / f"{name}.jsonl" if name == "sample" else root / name for name in found}
    return {
        name: (
            *command,
            *(() if "--device" in command else ("--device", "cpu")),
            "--trace" if name == "trace" else "--output",
            where[name],
        )
        for name, command in found.items()
    }, where


def test_a_decoder_that_was_trained_anew_under_its_name_is_another_one(
    run, store, gpt2, succeed, ldlm, refuse, tmp_path
):
    made, where = commands(run, store, gpt2, tmp_path)
    for command in made.values():
        succeed(*command)
        assert "is complete; nothing to do" in ldlm(*command).stderr
    finetune_decoder.run(FinetuneConfig(**FINETUNE, seed=1), run, store, overwrite=True)
    for name, command in made.items():
        assert "decoder_sha256" in refuse(*command), name
    for name, command in made.items():  # records of earlier versions do not have it
        record = where[name].with_name("sample.jsonl.meta.json") if name == "sample" else where[name] / "artifact.json"
        forget(record, "decoder_sha256")
        assert "is complete; nothing to do" in ldlm(*command).stderr, name


def test_a_scorer_that_was_trained_further_is_another_one(trained, store, scorer, succeed, ldlm, refuse, tmp_path):
    made, where = commands(trained, store, scorer, tmp_path, decoder=())
    scored = [name for name in made if "--scorer" in made[name]]
    assert len(scored) == 4
    revisions = [succeed(*made[name]).get("scorer_revision") for name in ("sweep", "frontier", "interpolation")]
    assert len(set(revisions)) == 1
    assert revisions[0].startswith("sha256:")
    succeed(*made["comparison"])
    train_further(scorer)
    for name in scored:
        assert "scorer_revision" in refuse(*made[name]), name
        forget(where[name] / "artifact.json", "scorer_revision")
        assert "is complete; nothing to do" in ldlm(*made[name]).stderr, name


def test_an_export_has_the_decoder_of_its_run_on_record(run, store, succeed, refuse, tmp_path):
    drawn = ("sample", "--decoder", "layers-1", "--steps", 2, "--device", "cpu", "--output", tmp_path / "texts.jsonl")
    export = ("export", "--run", run, "--output", tmp_path / "model")
    succeed(*export)
    before = succeed(*drawn, "--run", run, "--num-samples", 2)
    after = succeed(*drawn, "--run", tmp_path / "model", "--num-samples", 4)
    assert after["decoder_sha256"] == before["decoder_sha256"]
    finetune_decoder.run(FinetuneConfig(**FINETUNE, seed=1), run, store, overwrite=True)
    succeed(*export, "--overwrite")
    assert "decoder_sha256" in refuse(*drawn, "--run", tmp_path / "model", "--num-samples", 6)
