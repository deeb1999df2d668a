"""Features made by the encoder inside the training step, against the same from a store."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from folders import content

from ldlm.config import ComputeConfig, DistillConfig, FinetuneConfig
from ldlm.errors import InputError
from ldlm.features import extraction
from ldlm.features.encoder import OnlineEncoder, online_encoder
from ldlm.features.store import FeatureStore
from ldlm.stages import distill, extract_features, finetune_decoder, train
from ldlm.training.log import MetricsFile


@pytest.fixture(scope="module")
def online(few, tmp_path_factory):
    """A store of tokens and statistics."""
    return extract_features.run(replace(few, codec="online"), tmp_path_factory.mktemp("online") / "features").path


@pytest.fixture(scope="module")
def stored(few, tmp_path_factory):
    """The same rows with their states, in single precision."""
    return extract_features.run(replace(few, codec="fp32"), tmp_path_factory.mktemp("stored") / "features").path


def split(path, name="train"):
    """A split of a store, with the encoder where the store needs one."""
    opened = FeatureStore(path)
    return opened.split(name, online_encoder(opened))


def test_it_stores_no_states(online, stored):
    opened = FeatureStore(online)
    assert opened.split("train").hidden is None
    assert sorted(p.name for p in (online / "features.zarr").iterdir()) == [
        "mean",
        "std",
        "tokens",
        "validation",
        "zarr.json",
    ]
    for one, other in zip(opened.statistics(), FeatureStore(stored).statistics(), strict=True):
        assert one.tobytes() == other.tobytes()


def test_states_are_those_of_the_store(online, stored):
    for name in ("train", "validation"):
        made, kept = split(online, name), split(stored, name)
        (parts_1, tokens_1), (parts_2, tokens_2) = made.read(0, 10), kept.read(0, 10)
        assert not parts_1
        assert tokens_1.tolist() == tokens_2.tolist()
        tokens_BL = torch.from_numpy(tokens_1).long()
        torch.testing.assert_close(
            made.states(parts_1, tokens_BL), kept.states(parts_2, tokens_BL), rtol=1e-5, atol=1e-5
        )


def test_a_batch_passes_the_encoder_in_blocks_whatever_its_size(online, stored):
    made, kept = split(online), split(stored)
    made.encode._load(torch.device("cpu"), 16)
    passes, parts = [], []
    made.encode._encoder.network.register_forward_pre_hook(
        lambda module, args, named: passes.append(len((*args, *named.values())[0])), with_kwargs=True
    )
    rows = np.resize(np.arange(kept.rows), 75)
    parts, tokens = kept.read_rows(rows)
    tokens_BL = torch.from_numpy(tokens).long()
    torch.testing.assert_close(made.states({}, tokens_BL), kept.states(parts, tokens_BL), rtol=1e-5, atol=1e-5)
    assert passes == [32, 32, 11]


def test_the_encoder_s_time_is_the_step_s_and_no_wait_for_data(online, train_config, tmp_path, monkeypatch):
    """Each pass of the encoder takes longer here, and most of a step."""
    real = OnlineEncoder.__call__

    def slowly(self, tokens_BL):
        time.sleep(0.3)
        return real(self, tokens_BL)

    monkeypatch.setattr(OnlineEncoder, "__call__", slowly)
    lines = MetricsFile(train.run(train_config, online, tmp_path / "run").path / "metrics.jsonl").read()
    waits = [line["timing"]["data_wait"] for line in lines if line["kind"] == "train"][2:]
    assert sorted(waits)[len(waits) // 2] < 0.2


@pytest.mark.parametrize(("device", "tolerance"), [("cpu", 1e-5), pytest.param("cuda", 1e-3, marks=pytest.mark.gpu)])
def test_losses_are_those_of_the_store(online, stored, train_config, tmp_path, device, tolerance):
    compute = ComputeConfig(precision="fp32", attention="sdpa", compile="off")
    config = replace(train_config, device=device, compute=compute)
    runs = [train.run(config, path, tmp_path / path.parent.name) for path in (online, stored)]
    lines = [MetricsFile(run.path / "metrics.jsonl").read() for run in runs]
    assert len(lines[0]) == len(lines[1]) > 8
    for one, other in zip(*lines, strict=True):
        for name in ("l_diff", "l_h", "l_w"):
            assert one[name] == pytest.approx(other[name], rel=tolerance)


@pytest.mark.parametrize("stage", ["train", "finetune-decoder", "distill"])
def test_states_are_in_the_encoder_s_own_precision_in_steps_and_evaluations(
    online, train_config, tmp_path, monkeypatch, stage
):
    """The encoder of the store computed in single precision; the training computes in bf16."""
    real, made = OnlineEncoder.__call__, []

    def noted(self, tokens_BL):
        made.append((self, tokens_BL, real(self, tokens_BL)))
        return made[-1][2]

    run, compute = tmp_path / "run", ComputeConfig(precision="bf16")
    train.run(replace(train_config, compute=compute), online, run)
    monkeypatch.setattr(OnlineEncoder, "__call__", noted)
    short = {"steps": 2, "eval_every": 1, "eval_rows": 10, "lr": 1e-3, "compute": compute, "device": "cpu"}
    if stage == "train":
        train.run(replace(train_config, compute=compute), online, tmp_path / "other")
    elif stage == "distill":
        distill.run(DistillConfig(evaluations=1, start=2, **short), run, online, tmp_path / "student")
    else:
        finetune_decoder.run(FinetuneConfig(layers=0, **short), run, online)
    assert len({len(tokens_BL) for _, tokens_BL, _ in made}) > 1  # batches of steps, and a last one of an evaluation
    for encoder, tokens_BL, h_BLD in made:
        assert torch.equal(h_BLD, real(encoder, tokens_BL))


def test_the_command_line_prepares_the_store_itself_and_goes_on(ldlm, succeed, few, tiny_yaml, tmp_path):
    arguments = [
        "train", "--features", "online", "--encoder", few.encoder, "--data", *few.data, "--seq-len", few.seq_len,
        "--validation-docs", few.validation_docs, "--config", tiny_yaml, "--output", tmp_path / "run",
    ]  # fmt: skip
    assert succeed(*arguments)["step"] == 8
    assert json.loads((tmp_path / "run-features/manifest.json").read_text())["codec"] == "online"
    again = ldlm(*arguments)
    assert again.exit_code == 0
    assert "nothing to do" in again.stderr


def test_overwriting_spares_the_encoder_of_the_store(few, gpt2, train_config, tmp_path):
    model = shutil.copytree(gpt2, tmp_path / "out" / "model")
    store = extract_features.run(replace(few, encoder=str(model), codec="online"), tmp_path / "features").path
    with pytest.raises(InputError, match=f"--overwrite would delete {model}, which is to be read"):
        train.run(train_config, store, tmp_path / "out", overwrite=True)


@pytest.fixture
def from_text(few, tiny_yaml):
    """The beginning of a training command with its own encoder, and the text for it."""
    return [
        "train", "--features", "online", "--encoder", few.encoder, "--data", *few.data, "--seq-len", few.seq_len,
        "--config", tiny_yaml, "--steps", 1, "--output",
    ]  # fmt: skip


def test_overwriting_a_run_replaces_a_store_of_online_beside_it_only_if_that_is_another(
    from_text, succeed, refuse, tmp_path
):
    command = [*from_text, tmp_path / "run"]
    assert succeed(*command)["step"] == 1
    begun = (tmp_path / "run-features/artifact.json").stat().st_mtime_ns
    assert succeed(*command, "--overwrite")["step"] == 1
    assert (tmp_path / "run-features/artifact.json").stat().st_mtime_ns == begun
    other = [*command, "--stats-tokens", 64]
    assert "stats_tokens" in refuse(*other)
    assert succeed(*other, "--overwrite")["step"] == 1
    assert (tmp_path / "run-features/artifact.json").stat().st_mtime_ns > begun


def test_the_store_of_a_training_is_its_own_in_each_task_of_an_array(from_text, succeed, tmp_path, monkeypatch):
    """The tasks train runs of their own, and an array's number gives no part of another's store."""
    shares = []
    monkeypatch.setattr(extraction, "in_turn", lambda items, share, **_: shares.append(share) or items)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "16")
    command = [*from_text, tmp_path / "run"]
    assert succeed(*command)["step"] == 1
    assert succeed(*command, "--overwrite", "--stats-tokens", 64)["step"] == 1
    assert {share for share in shares if share is not None and share.of > 1} == set()
    assert shares


def test_a_job_is_refused_for_a_wrong_number_of_processes_before_text_is_read(from_text, refuse, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert refuse(*from_text, tmp_path / "run").startswith("WORLD_SIZE is 'two'")
    assert list(tmp_path.iterdir()) == []


def test_overwriting_leaves_the_store_for_settings_that_can_not_be_trained_with(from_text, succeed, ldlm, tmp_path):
    command = [*from_text, tmp_path / "run"]
    succeed(*command)
    before = content(tmp_path / "run-features")
    idle = ("--set", "diffusion.self_conditioning=0", "--set", "diffusion.self_conditioning_noise=0.5")
    for bad in (("--accumulate", 3), ("--fit", "1KB"), ("--set", "model.space=embedding"), idle):
        assert ldlm(*command, "--stats-tokens", 64, "--overwrite", *bad).exit_code == 1
        assert content(tmp_path / "run-features") == before, bad


@pytest.mark.parametrize("there", ["a store of states", "notes"])
def test_overwriting_a_run_leaves_what_else_is_beside_it(from_text, refuse, stored, tmp_path, there):
    beside = tmp_path / "run-features"
    if there == "notes":
        beside.mkdir()
        (beside / "notes.txt").write_text("years of work")
    else:
        shutil.copytree(stored, beside)
    before = {path: path.stat().st_mtime_ns for path in beside.rglob("*")}
    for more in ([], ["--overwrite"]):
        line = refuse(*from_text, tmp_path / "run", *more)
        assert line.startswith(f"{beside} is for the tokens and statistics of this run, and holds something else")
        assert line.endswith("choose another --output")
    assert {path: path.stat().st_mtime_ns for path in beside.rglob("*")} == before


def test_a_store_that_fits_stays_if_there_is_no_room(from_text, succeed, refuse, tmp_path, monkeypatch):
    """Only other settings are a reason to make it anew."""
    command = [*from_text, tmp_path / "run"]
    succeed(*command)
    (tmp_path / "run-features/manifest.json").unlink()

    def full(*arguments):
        raise InputError("make room")

    monkeypatch.setattr(extract_features.Extraction, "check_space", full)
    begun = (tmp_path / "run-features/artifact.json").stat().st_mtime_ns
    assert refuse(*command, "--overwrite") == "make room"
    assert (tmp_path / "run-features/artifact.json").stat().st_mtime_ns == begun


def test_a_run_in_the_working_directory_has_its_store_beside_that(from_text, succeed, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert succeed(*from_text, ".")["output"] == "."
    assert (tmp_path / "here-features/manifest.json").is_file()


def test_a_dry_run_takes_its_sizes_from_the_encoder(succeed, few, tiny_yaml):
    command = ("train", "--config", tiny_yaml, "--dry-run", "--features", "online", "--encoder", few.encoder)
    counts = [succeed(*command, "--seq-len", length)["parameters"]["latent_encoder"] for length in (8, 16)]
    assert counts[1] - counts[0] == 8 * 16 * 2  # positions of the inputs, and latents


def test_text_is_needed_and_is_for_online_alone(refuse, store, tiny_yaml, tmp_path):
    out = ("--config", tiny_yaml, "--output", tmp_path / "run")
    assert "needs the text: --data FILE" in refuse("train", "--features", "online", *out)
    assert "--seq-len is for --features online" in refuse("train", "--features", store, "--seq-len", 8, *out)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_has_changed_since_is_refused(online, other_gpt2):
    made = split(online)
    made.encode.record = {**made.encode.record, "name": str(other_gpt2)}
    with pytest.raises(InputError, match="is not the encoder that the features were prepared with"):
        made.states({}, torch.zeros(1, 16, dtype=torch.int64))
