"""A run on the shards that an unsealed store has, and what else takes that store when it is told to."""

import json

import pytest

from ldlm.errors import InputError
from ldlm.features import ledger
from ldlm.features.store import FeatureStore

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


def test_a_store_without_one_shard_says_that_they_are_to_come(store_copy):
    names = [path.stem for path in (store_copy / "ledger").glob("train-*.json")]
    ledger.forget(store_copy, [(name, "") for name in names])
    rows = json.loads((store_copy / "store.json").read_text())["rows"]["train"]
    opened = FeatureStore(store_copy, allow_partial=True)
    with pytest.raises(InputError, match=rf"has none of its {rows} train rows yet; run the same `ldlm extract-feat"):
        opened.split("train")
    assert opened.split("validation").rows > 0
