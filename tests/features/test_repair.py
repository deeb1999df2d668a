"""Repair of a store whose encoder is no longer where it was, and what is said of one that has lost its record."""

import shutil
from dataclasses import replace

import pytest
from folders import content

from ldlm import hub
from ldlm.errors import Unreadable
from ldlm.features import inputs
from ldlm.features.store import FeatureStore
from ldlm.stages import extract_features, features


@pytest.fixture(scope="module")
def moved(few, gpt2, tmp_path_factory):
    """A store, the folder in which its encoder was, and that in which the encoder is now; read only."""
    place = tmp_path_factory.mktemp("moved")
    before, now = place / "before", place / "now"
    shutil.copytree(gpt2, before)
    store = extract_features.run(replace(few, encoder=str(before)), place / "features").path
    before.rename(now)
    return store, before, now


@pytest.fixture
def damaged(moved, tmp_path):
    """A copy of the store with two damaged shards and a damaged description."""
    path = shutil.copytree(moved[0], tmp_path / "features")
    (path / "features.zarr/hidden/c/1/0/0").write_bytes(b"x")
    (path / "features.zarr/validation/tokens/c/0/0").unlink()
    (path / "features.zarr/hidden/zarr.json").write_text("{")
    return path


def repair(path, *encoder):
    return ("features", "repair", path, "--device", "cpu", *(("--encoder", *encoder) if encoder else ()))


def test_repair_takes_the_encoder_from_where_it_is_now(moved, damaged, succeed):
    store, before, now = moved
    assert succeed(*repair(damaged, now)) == {"repaired": ["store", "train-00001", "validation-00000"]}
    assert content(damaged) == content(store)  # also the record of where the encoder was at extraction
    assert FeatureStore(damaged).encoder["name"] == str(before)


def test_a_store_that_was_never_finished_is_finished_with_an_encoder_that_has_moved(moved, tmp_path, succeed):
    store, _, now = moved
    begun = shutil.copytree(store, tmp_path / "features")
    for name in ("manifest.json", "store.json", "statistics.safetensors", "ledger/train-00001.json"):
        (begun / name).unlink()
    assert succeed(*repair(begun, now))["repaired"]
    assert content(begun) == content(store)


@pytest.mark.parametrize("unsealed", [False, True])
def test_repair_keeps_the_commit_of_an_encoder_that_came_from_the_hub(few, gpt2, tmp_path, monkeypatch, unsealed):
    monkeypatch.setattr(hub, "revision", lambda name: "0123abc")
    store = extract_features.run(few, tmp_path / "features").path
    before, fingerprint = content(store), FeatureStore(store).fingerprint
    (store / "features.zarr/hidden/zarr.json").write_text("{")  # described by store.json, which is made anew with it
    (store / ("manifest.json" if unsealed else "store.json")).unlink()
    monkeypatch.setattr(hub, "revision", lambda name: None)
    features.repair(store, encoder=str(gpt2), device="cpu")
    assert FeatureStore(store).encoder["revision"] == "0123abc"
    assert FeatureStore(store).fingerprint == fingerprint
    assert content(store) == before


def test_repair_says_how_to_name_the_place_of_an_encoder_that_is_gone(moved, damaged, refuse):
    kept = content(damaged)
    advice = "say where the encoder is with --encoder DIR"
    assert refuse(*repair(damaged)) == f"there is no model folder {moved[1]}; {advice}"
    assert refuse(*repair(damaged, damaged.parent / "nowhere")) == f"there is no model folder {damaged.parent}/nowhere"
    assert content(damaged) == kept


def test_repair_refuses_another_encoder_wherever_it_is(moved, damaged, other_gpt2, bert, refuse):
    before, kept = moved[1], content(damaged)
    line, own = "the {} of {} here {} of {}; {}", "give that of the store"
    assert refuse(*repair(damaged, other_gpt2)) == line.format("encoder", other_gpt2, "is not that", damaged, own)
    both = line.format("encoder and the tokenizer", bert, "are not those", damaged, own)
    assert refuse(*repair(damaged, bert)) == both
    before.symlink_to(other_gpt2)
    try:
        advice = "say where the encoder is with --encoder DIR"
        assert refuse(*repair(damaged)) == line.format("encoder", before, "is not that", damaged, advice)
    finally:
        before.unlink()
    assert content(damaged) == kept


@pytest.mark.parametrize("named", [True, False])
def test_an_encoder_that_can_not_be_read_stays_one_that_may_be_read_elsewhere(moved, damaged, monkeypatch, named):
    def unreadable(config):
        raise Unreadable("weights can't be read")

    monkeypatch.setattr(inputs, "models", unreadable)
    advice = "" if named else "; say where the encoder is with --encoder DIR"
    with pytest.raises(Unreadable, match=f"^weights can't be read{advice}$"):
        features.repair(damaged, encoder=str(moved[2]) if named else None, device="cpu")


def test_repair_says_of_a_device_that_is_none_what_is_wrong_with_it(damaged, refuse):
    line = refuse("features", "repair", damaged, "--device", "tpu")
    assert line == "--device 'tpu' is not a device; use cpu, cuda, cuda:N or auto"


def test_a_whole_store_stays_as_it_is(moved, succeed):
    store, _, now = moved
    assert succeed(*repair(store, now)) == {"repaired": []}
    assert features.verify(store) == []


# ----------------------------------------------------------------------------------------------------------------------
# A folder that does not say what it is


COMMANDS = {
    "info": (), "repair": ("--device", "cpu"), "bench": (), "texts": ("--rows", 1, "--output", "texts.jsonl")
}  # fmt: skip


def lines(refuse, path):
    """The error of each command for a folder."""
    return {refuse("features", name, path, *more) for name, more in COMMANDS.items()}


@pytest.mark.parametrize("unsealed", [False, True])
def test_a_store_that_lost_its_record_is_told_from_anything_else(moved, tmp_path, refuse, unsealed):
    path = shutil.copytree(moved[0], tmp_path / "features")
    (path / "artifact.json").unlink()
    if unsealed:
        (path / "manifest.json").unlink()
    assert lines(refuse, path) == {
        f"{path} is a feature store without its artifact.json, which says what it is made of; restore that from a "
        f"copy, or make it anew: `ldlm extract-features … --overwrite`"
    }


@pytest.mark.parametrize("text", ['{"schema": 2, "inputs": {}}', "[1, 2]"])
def test_a_record_that_does_not_say_a_kind_is_not_called_missing(moved, tmp_path, refuse, text):
    path = shutil.copytree(moved[0], tmp_path / "features")
    (path / "artifact.json").write_text(text)
    assert lines(refuse, path) == {
        f"{path} is a feature store with a damaged artifact.json, which says what it is made of; restore that from a "
        f"copy, or make it anew: `ldlm extract-features … --overwrite`"
    }


def test_the_advice_on_a_store_that_lost_its_record_makes_it_anew(few, tmp_path, succeed):
    path = extract_features.run(few, tmp_path / "features").path
    (path / "artifact.json").unlink()
    extract_features.run(few, path, overwrite=True)
    assert succeed("features", "info", path)["state"] == "sealed"


def test_an_empty_folder_and_other_files_are_told_apart(tmp_path, refuse):
    needed = "and a feature store is needed; `ldlm extract-features` makes one"
    (tmp_path / "folder").mkdir()
    assert lines(refuse, tmp_path / "folder") == {f"{tmp_path / 'folder'} is empty, {needed}"}
    (tmp_path / "folder" / "manifest.json").write_text("[1, 2")
    assert lines(refuse, tmp_path / "folder") == {
        f"{tmp_path / 'folder'} holds something that ldlm did not make, {needed}"
    }


def test_a_damaged_record_is_named_with_what_helps(moved, tmp_path, refuse):
    path = shutil.copytree(moved[0], tmp_path / "features")
    (path / "artifact.json").write_text('{"kind": "feat')
    (line,) = lines(refuse, path)
    assert line.startswith(f"{path / 'artifact.json'} is damaged")
    assert line.endswith(f"; restore it from a copy, or remove {path} and make it anew")
