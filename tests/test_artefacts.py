"""Artefacts of earlier versions (SPEC 13.1) are opened, resumed, sampled from and reported on by this version.

`golden/vX.Y.Z` is what `golden/make-artefacts.sh` made with version X.Y.Z: a store, an unfinished store, a run with a
fine-tuned decoder, an export and samples. Tests work on copies. With LDLM_EXACT=1 the resumed run must be the same to
the bit, which holds on the machine and with the version of torch that made the artefacts.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from folders import lines

from ldlm import LDLM

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(path for path in GOLDEN.glob("v*") if path.is_dir())
STATES = "features.zarr"
MOST_BYTES = 400_000  # of all that is kept of earlier versions, for a clone carries it


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def kept(request, tmp_path, monkeypatch):
    """A copy of the artefacts of a version, in the current folder, as they were made."""
    copy = Path(shutil.copytree(request.param, tmp_path / "kept"))
    monkeypatch.chdir(copy)
    return copy


def sample(succeed, decoder, count, *settings):
    """`ldlm sample` with the settings that the kept file was drawn with; its lines."""
    output = f"{decoder}.jsonl"
    succeed("sample", "--run", "run", "--decoder", decoder, "--num-samples", count, *settings, "--output", output)
    return lines(Path(output))


DRAWN = [("joint", ()), ("layers-1", ("--set", "sampler.temperature=1"))]


def test_there_is_something_kept_and_it_is_small():
    assert "v0.1.0" in [path.name for path in VERSIONS]
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < MOST_BYTES


def test_the_store_is_whole_and_holds_normalised_states(kept, succeed):
    assert succeed("features", "verify", "features") == []
    group = zarr.open_group(kept / "features" / "features.zarr", mode="r")
    hidden = group["hidden"][:].astype(np.float64)
    assert hidden.shape == (105, 16, 8)
    assert hidden.mean((0, 1)) == pytest.approx(0, abs=1e-3)
    assert hidden.std((0, 1)) == pytest.approx(1, abs=1e-3)
    succeed("features", "texts", "features", "--rows", 18, "--output", "real.jsonl")
    texts = lines(Path("real.jsonl"))
    assert [text["tokens"] for text in texts] == group["validation/tokens"][:].tolist()
    assert all(text["text"].startswith("<eos>") for text in texts)


def test_the_unfinished_store_goes_on_and_keeps_what_was_finished(kept, succeed, monkeypatch):
    monkeypatch.chdir("unfinished")
    finished = [path for path in Path("features").rglob("*") if path.is_file() and path.parts[1] in ("ledger", STATES)]
    finished = {path: path.read_bytes() for path in finished if path.name != "zarr.json"}
    assert sum(path.parent.name == "ledger" for path in finished) == 1
    text = ("--encoder", "encoder", "--data", "text.txt", "--validation-docs", 10, "--seq-len", 16)
    sizes = ("--shard-rows", 16, "--batch-size", 16, "--device", "cpu")
    found = succeed("extract-features", *text, *sizes, "--output", "features")
    assert found["rows"] == {"train": 46, "validation": 7}
    assert succeed("features", "verify", "features") == []
    assert {path: path.read_bytes() for path in finished} == finished
    succeed("extract-features", *text, *sizes, "--output", "fresh")
    begun, fresh = (zarr.open_group(f"{name}/{STATES}", mode="r") for name in ("features", "fresh"))
    for split in ("", "validation/"):
        assert begun[f"{split}tokens"][:].tolist() == fresh[f"{split}tokens"][:].tolist()
        np.testing.assert_allclose(begun[f"{split}hidden"][:], fresh[f"{split}hidden"][:], atol=0.01)


def test_the_run_goes_on_as_it_would_have(kept, succeed):
    expected = json.loads(Path("resumed.json").read_text())
    before = Path("run/metrics.jsonl").read_bytes()
    succeed(
        "train", "--features", "features", "--config", "run/config.yaml", "--steps", expected["step"], "--output", "run"
    )
    assert Path("run/metrics.jsonl").read_bytes().startswith(before)
    found = {line["kind"]: line for line in lines(Path("run/metrics.jsonl")) if line["step"] == expected["step"]}
    for kind in ("train", "eval"):
        figures = {name: found[kind][name] for name in expected[kind]}
        assert figures == pytest.approx(expected[kind], rel=1e-3), kind
    if os.environ.get("LDLM_EXACT"):
        (checkpoint,) = Path("run/checkpoints").glob(f"step-{expected['step']:08d}")
        ema = (checkpoint / "ema.safetensors").read_bytes()
        assert hashlib.sha256(ema).hexdigest() == expected["ema_sha256"]


@pytest.mark.parametrize(("decoder", "settings"), DRAWN)
def test_the_run_draws_the_same_tokens(kept, succeed, decoder, settings):
    before = lines(Path(f"{decoder}.jsonl"))
    Path(f"{decoder}.jsonl").unlink()
    Path(f"{decoder}.jsonl.meta.json").unlink()
    assert sample(succeed, decoder, len(before), *settings) == before


@pytest.mark.parametrize(("decoder", "settings"), DRAWN)
def test_a_file_of_samples_grows(kept, succeed, decoder, settings):
    before = Path(f"{decoder}.jsonl").read_bytes()
    grown = sample(succeed, decoder, 6, *settings)
    assert Path(f"{decoder}.jsonl").read_bytes().startswith(before)
    assert [line["seed"] for line in grown] == list(range(6))


def test_the_run_is_reported_on_and_plotted(kept, succeed):
    shutil.copy("joint.jsonl", "run/samples.jsonl")
    shutil.copy("joint.jsonl.meta.json", "run/samples.jsonl.meta.json")
    succeed("report", "run")
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "layers-1" in page
    assert ". under house" in page  # of each of the samples
    succeed("plot", "run")
    assert all(path.stat().st_size > 1_000 for path in Path("run/plots").iterdir())


def test_the_fine_tuned_decoder_goes_on(kept, succeed):
    before = Path("run/decoders/layers-1/metrics.jsonl").read_bytes()
    made = succeed(
        "finetune-decoder", "--run", "run", "--features", "features", "--steps", 220,
        "--config", "run/decoders/layers-1/config.yaml",
    )  # fmt: skip
    assert made["step"] == 220
    after = Path("run/decoders/layers-1/metrics.jsonl").read_bytes()
    assert after.startswith(before)
    assert after != before


def test_the_export_loads_and_draws_the_runs_texts(kept, succeed):
    model = LDLM.from_pretrained(kept / "model")
    assert model.sample(4, decoder="joint") == [line["text"] for line in lines(Path("joint.jsonl"))]
    succeed("sample", "--run", "model", "--decoder", "joint", "--num-samples", 4, "--output", "exported.jsonl")
    assert lines(Path("exported.jsonl")) == lines(Path("joint.jsonl"))
