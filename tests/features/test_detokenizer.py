"""The detokenisers of stores that were begun by an earlier version, and of new ones."""

import json

import pytest

from ldlm import artifact
from ldlm.config import ExtractConfig
from ldlm.errors import InputError
from ldlm.features import text
from ldlm.stages import extract_features

LM1B = ["He said 5 % .", "And so it was , he said .", "They left ( at 8 a.m. ) ."]


@pytest.fixture
def of_an_earlier_version(monkeypatch):
    """Begins or finishes a store as the version before `lm1b-clean` did, whose `lm1b` it was."""

    def make(config, out, **options):
        with monkeypatch.context() as patched:
            patched.setattr(artifact, "SCHEMA", 1)
            patched.setitem(text.DETOKENIZERS, "lm1b", text.DETOKENIZERS["lm1b-clean"])
            return extract_features.run(config, out, **options)

    return make


def contents(folder):
    """Every file of a store but its manifest, which has the time and the version that sealed it."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path: path.read_bytes() for path in paths}


def test_a_store_of_an_earlier_version_keeps_the_meaning_of_its_detokeniser(
    of_an_earlier_version, refuse, succeed, tmp_path, gpt2, notes
):
    (tmp_path / "a.txt").write_text("\n".join(LM1B * 40))
    common = {"encoder": str(gpt2), "data": (str(tmp_path / "a.txt"),), "seq_len": 16, "device": "cpu"}
    config = ExtractConfig(**common, detokenizer="lm1b")
    made = of_an_earlier_version(config, tmp_path / "old")
    assert json.loads((made.path / "artifact.json").read_text())["schema"] == 1
    assert "detokenizer: lm1b\n" in (made.path / "config.yaml").read_text()
    before = contents(made.path)

    assert made.config["detokenizer"] == "lm1b-clean"
    assert extract_features.run(config, made.path, progress=notes).complete
    assert any("whose lm1b is lm1b-clean now" in note for note in notes.lines)
    assert extract_features.run(ExtractConfig(**common, detokenizer="lm1b-clean"), made.path).complete
    next(path for path in before if "features.zarr" in str(path) and "tokens" in str(path)).unlink()
    assert succeed("features", "repair", made.path, "--device", "cpu")
    assert contents(made.path) == before


def test_new_stores_tell_the_two_detokenisers_apart(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text("\n".join(LM1B * 40))
    common = {"encoder": str(gpt2), "data": (str(tmp_path / "a.txt"),), "seq_len": 16, "device": "cpu"}
    made = extract_features.run(ExtractConfig(**common, detokenizer="lm1b"), tmp_path / "new")
    assert made.config["detokenizer"] == "lm1b"
    assert extract_features.run(ExtractConfig(**common, detokenizer="lm1b"), tmp_path / "new").complete
    with pytest.raises(InputError, match="detokenizer: lm1b -> lm1b-clean"):
        extract_features.run(ExtractConfig(**common, detokenizer="lm1b-clean"), tmp_path / "new")
