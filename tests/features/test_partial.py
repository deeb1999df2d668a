"""A run on the shards that an unsealed store has, and what else takes that store when it is told to."""

import json
import shutil
from dataclasses import replace

import pytest

from ldlm import files
from ldlm.config import DistillConfig, FinetuneConfig
from ldlm.errors import InputError
from ldlm.features import ledger
from ldlm.features.store import FeatureStore
from ldlm.stages import distill, finetune_decoder, train

FINETUNE = ("finetune-decoder", "--layers", 0, "--steps", 1, "--device", "cpu")


@pytest.fixture
def partial(store_copy):
    """Without its second shard."""
    ledger.forget(store_copy, [("train-00001", "")])
    return store_copy


def test_a_run_on_a_partial_store_goes_on_to_its_decoder_and_its_interpolation(
    partial, succeed, refuse, tiny_yaml, gpt2, tmp_path
):
    run, out = tmp_path / "run", tmp_path / "between"
    train = ("train", "--config", tiny_yaml, "--steps", 2, "--features", partial, "--output", run)
    interpolate = (
        "interpolate", "--pairs", 2, "--points", 2, "--scorer", gpt2, "--device", "cpu", "--output", out,
    )  # fmt: skip
    for command in (train, (*FINETUNE, "--run", run, "--features", partial)):
        assert "use what is there with --allow-partial" in refuse(*command)
        succeed(*command, "--allow-partial")
    command = (*interpolate, "--run", run, "--features", partial)
    assert "use what is there with --allow-partial" in refuse(*command)
    succeed(*command, "--allow-partial")


STAGES = ("train", "finetune-decoder", "distill")


@pytest.fixture(params=STAGES)
def begun(request, partial, trained, train_config, tmp_path, notes):
    """A run, a decoder or a student on a partial store, and what continues it to a number of steps."""
    short = {"eval_rows": 4, "batch_size": 8, "device": "cpu"}
    given = {"allow_partial": True, "progress": notes}

    def go_on(steps):
        if request.param == "train":
            return train.run(replace(train_config, steps=steps), partial, tmp_path / "run", **given).path
        run = shutil.copytree(trained, tmp_path / "trained", dirs_exist_ok=True)
        if request.param == "distill":
            config = DistillConfig(evaluations=1, start=2, steps=2, **short)
            return distill.run(config, run, partial, tmp_path / "run", **given).path
        return finetune_decoder.run(FinetuneConfig(layers=0, steps=steps, **short), run, partial, **given).path

    made = go_on(2)
    (made / "manifest.json").unlink()
    return made, go_on


def without_shards(made):
    """The record as an earlier version wrote it."""
    record = files.read_json(made / "artifact.json")
    del record["inputs"]["shards"]
    files.write_json(made / "artifact.json", record)


@pytest.mark.parametrize("old", [False, True])
def test_what_was_begun_on_some_shards_goes_on_with_these(begun, partial, notes, old):
    made, go_on = begun
    note = "training on what is there, which can be resumed only while the store has these shards and no others"
    assert [line for line in notes.lines if line.startswith(f"{partial} is not sealed") and line.endswith(note)]
    shards = len(ledger.shard_names(ledger.read_description(partial)))
    assert files.read_json(made / "artifact.json")["inputs"]["shards"] == f"{shards - 1} of {shards}"
    if old:
        without_shards(made)
    assert go_on(3) == made
    assert (made / "manifest.json").is_file()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_what_was_begun_on_some_shards_says_so_where_the_store_has_others(begun, partial, store, whole, old):
    made, go_on = begun
    shards = len(ledger.shard_names(ledger.read_description(partial)))
    if whole:
        shutil.copytree(store, partial, dirs_exist_ok=True)
    else:
        ledger.forget(partial, [("train-00002", "")])
    reason = f"it was begun on {shards - 1} of {shards} shards of a store that was not sealed, and "
    reason += "all are there now" if whole else f"{shards - 2} of {shards} are there now"
    if old:
        without_shards(made)
        reason = "its features have grown or changed since, or are others"
    with pytest.raises(InputError, match=rf"{made} was made with other settings \(inputs\.features: .*; {reason}$"):
        go_on(3)


def test_runs_on_whole_stores_record_no_shards(trained):
    assert "shards" not in files.read_json(trained / "artifact.json")["inputs"]


def test_a_store_without_one_shard_says_that_they_are_to_come(store_copy):
    names = [path.stem for path in (store_copy / "ledger").glob("train-*.json")]
    ledger.forget(store_copy, [(name, "") for name in names])
    rows = json.loads((store_copy / "store.json").read_text())["rows"]["train"]
    opened = FeatureStore(store_copy, allow_partial=True)
    with pytest.raises(InputError, match=rf"has none of its {rows} train rows yet; run the same `ldlm extract-feat"):
        opened.split("train")
    assert opened.split("validation").rows > 0
