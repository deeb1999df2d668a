"""Checkpoints: what is saved comes back, damage is noticed and skipped, and a resumed run is the same to the bit."""

from __future__ import annotations

import errno
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldlm import files
from ldlm.config import (
    AutoencoderConfig,
    DenoiserConfig,
    ModelConfig,
    OptimizerConfig,
    RecipeConfig,
    Shapes,
    TimestepConfig,
    TokenDecoderConfig,
    TrainConfig,
)
from ldlm.features.batch import Batch
from ldlm.training import checkpoint
from ldlm.training.joint import TrainState, start, train_step


def test_whoever_the_umask_lets_may_read_a_checkpoint(tmp_path):
    mask = os.umask(0)
    os.umask(mask)
    made = checkpoint.save(tmp_path, 3, {"model": {"a": torch.zeros(1)}}, {})
    assert {path.stat().st_mode & 0o777 for path in made.path.iterdir()} == {0o666 & ~mask}


def save(folder: Path, step: int) -> checkpoint.Checkpoint:
    tensors = {
        "model": {"w": torch.full((4, 3), float(step)), "n": torch.tensor(step)},
        "ema": {"w": torch.zeros(2).half()},
    }
    return checkpoint.save(folder, step, tensors, {"rows_seen": 8 * step, "third": 1 / 3})


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


# Round trip


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    saved = save(tmp_path, 7)
    assert saved.path == tmp_path / "step-00000007"
    found = checkpoint.latest(tmp_path)
    assert found == saved
    assert found.step == 7
    assert found.state == {"step": 7, "rows_seen": 56, "third": 1 / 3}
    model, ema = found.tensors("model"), found.tensors("ema")
    assert model["w"].tolist() == [[7.0] * 3] * 4
    assert (model["n"].item(), model["n"].dtype, ema["w"].dtype) == (7, torch.int64, torch.float16)


def test_a_checkpoint_holds_safetensors_and_json_only(tmp_path):
    saved = save(tmp_path, 1)
    names = {path.name for path in saved.path.iterdir()}
    assert names == {"model.safetensors", "ema.safetensors", "state.json", "manifest.json"}
    for path in saved.path.iterdir():
        data = path.read_bytes()
        assert not data.startswith((b"\x80", b"PK"))  # a pickle; a zip, which is what torch.save makes
        if path.suffix == ".json":
            json.loads(data)
        else:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            assert "w" in header


def test_views_and_shared_or_strided_tensors_are_saved_as_their_values(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    saved = checkpoint.save(tmp_path, 1, {"model": {"t": base.T, "row": base[1]}}, {})
    assert saved.tensors("model")["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert saved.tensors("model")["row"].tolist() == [3, 4, 5]


def test_the_digest_stands_for_the_contents(tmp_path):
    a, b, c = save(tmp_path / "a", 1), save(tmp_path / "b", 1), save(tmp_path / "c", 2)
    assert a.digest == b.digest
    assert a.digest != c.digest


def test_saving_a_step_again_replaces_it(tmp_path):
    first = save(tmp_path, 3)
    flip_a_byte(first.path / "model.safetensors")
    assert checkpoint.latest(tmp_path) is None
    save(tmp_path, 3)
    assert checkpoint.latest(tmp_path).step == 3


# Damage


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, caplog, name, damage):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    damage(newest.path / name)
    if (damage, name) == (cut_short, "manifest.json"):
        cut_short(newest.path / name)  # its last byte is a newline, which JSON can miss
    if (damage, name) == (flip_a_byte, "manifest.json"):
        (newest.path / name).write_text((newest.path / name).read_text().replace('"model', '"modem'))
    with caplog.at_level(logging.WARNING):
        assert checkpoint.latest(tmp_path).step == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(newest.path) in record.getMessage()


def test_a_sound_checkpoint_gives_no_warning(tmp_path, caplog):
    save(tmp_path, 1)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.latest(tmp_path).fault() is None
    assert not caplog.records


def test_there_is_no_latest_without_a_sound_checkpoint(tmp_path, caplog):
    assert checkpoint.latest(tmp_path / "nowhere") is None
    assert checkpoint.latest(tmp_path) is None
    flip_a_byte(save(tmp_path, 1).path / "model.safetensors")
    assert checkpoint.latest(tmp_path) is None


def test_what_a_kill_left_while_saving_is_no_checkpoint_and_is_in_nobodys_way(tmp_path):
    save(tmp_path, 1)
    half = tmp_path / ".step-00000002.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    for name in ("unrelated", "step-3", "step-00000003.old"):
        (tmp_path / name).mkdir()
    assert [found.step for found in checkpoint.all_in(tmp_path)] == [1]
    assert checkpoint.latest(tmp_path).step == 1
    save(tmp_path, 2)
    assert checkpoint.latest(tmp_path).step == 2
    assert not half.exists()


# Pruning


def test_pruning_keeps_the_newest(tmp_path):
    for step in (1, 2, 10, 9):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, 2, {})
    assert [saved.step for saved in checkpoint.all_in(tmp_path)] == [9, 10]
    checkpoint.prune(tmp_path, 5, {})
    assert [saved.step for saved in checkpoint.all_in(tmp_path)] == [9, 10]


@pytest.fixture
def hashed(monkeypatch):
    """The weights that are read to be hashed, as (step, file)."""
    found, real = [], files.sha256_file

    def sha256_file(path):
        if path.suffix == ".safetensors":
            found.append((path.parent.name.strip(".tmp").removeprefix("step-"), path.name))
        return real(path)

    monkeypatch.setattr(files, "sha256_file", sha256_file)
    return found


def test_what_a_training_has_written_is_not_read_again_at_each_save(tmp_path, hashed):
    state = fresh()
    state.config = replace(CONFIG, keep=2)
    for step in (1, 2, 3, 4):
        state.step = step
        state.save(tmp_path)
    assert [found.step for found in checkpoint.all_in(tmp_path)] == [3, 4]
    assert len(hashed) == len(set(hashed)) == 4 * 3  # each once, as it is written
    resumed = fresh()
    resumed.config = replace(CONFIG, keep=3)
    for step in (5, 6, 7):
        resumed.step = step
        resumed.save(tmp_path)
    assert [found.step for found in checkpoint.all_in(tmp_path)] == [5, 6, 7]
    # Those of another process are read once, when something is to be deleted.
    assert len(hashed) == 7 * 3 + 3
    assert [hashed.count((f"0000000{step}", "ema.safetensors")) for step in (3, 4, 5)] == [1, 2, 1]


def test_nothing_is_read_while_nothing_is_to_be_deleted(tmp_path, hashed):
    for step in (1, 2):
        save(tmp_path, step)
    hashed.clear()
    checkpoint.prune(tmp_path, 2, {})
    assert hashed == []


def test_a_damaged_checkpoint_takes_no_whole_ones_place(tmp_path):
    for step in (1, 2, 3):
        saved = save(tmp_path, step)
    flip_a_byte(tmp_path / "step-00000002" / "model.safetensors")
    checkpoint.prune(tmp_path, 2, {saved.path: saved.digest})
    assert [found.step for found in checkpoint.all_in(tmp_path)] == [1, 3]


def test_a_checkpoint_that_another_has_written_in_its_place_is_read(tmp_path):
    """Another process may have gone on with the run: what is known of a path holds for the manifest that it had."""
    for step in (1, 2, 3):
        saved = save(tmp_path, step)
    verified = {saved.path: saved.digest}
    other = checkpoint.save(tmp_path, 3, {"model": {"w": torch.ones(2)}}, {})
    flip_a_byte(other.path / "model.safetensors")
    checkpoint.prune(tmp_path, 1, verified)
    assert [found.step for found in checkpoint.all_in(tmp_path)] == [1, 2, 3]


@pytest.fixture
def read_elsewhere(monkeypatch):
    """A reader on another machine has a file of each checkpoint open: NFS keeps the folders until it has ended."""

    def rmdir(path, **how):
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    with monkeypatch.context() as reader:
        reader.setattr(os, "rmdir", rmdir)
        yield reader


def test_pruning_goes_on_while_a_checkpoint_is_read(tmp_path, read_elsewhere):
    for step in (1, 2, 3):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, 2, {})
    assert [found.step for found in checkpoint.all_in(tmp_path)] == [2, 3]
    assert [path for path in tmp_path.rglob("*.safetensors") if "step-00000001" in str(path)] == []
    read_elsewhere.undo()
    save(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-0000000{step}" for step in (2, 3, 4)]


def test_a_damaged_checkpoint_is_replaced_while_it_is_read(tmp_path, read_elsewhere):
    flip_a_byte(save(tmp_path, 1).path / "model.safetensors")
    assert save(tmp_path, 1).fault() is None
    assert checkpoint.latest(tmp_path).step == 1


def test_a_checkpoint_that_can_not_be_deleted_ends_no_training(tmp_path, caplog, monkeypatch):
    def rename(path, target):
        raise OSError(errno.EACCES, "Permission denied", str(path))

    for step in (1, 2, 3):
        save(tmp_path, step)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        checkpoint.prune(tmp_path, 1, {})
    assert [found.step for found in checkpoint.all_in(tmp_path)] == [1, 2, 3]
    assert f"{tmp_path / 'step-00000001'} could not be deleted: [Errno 13] Permission denied" in caplog.text
    checkpoint.prune(tmp_path, 1, {})
    assert [found.step for found in checkpoint.all_in(tmp_path)] == [3]


def test_pruning_deletes_nothing_while_the_newest_is_damaged(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    flip_a_byte(tmp_path / "step-00000002" / "model.safetensors")
    checkpoint.prune(tmp_path, 1, {})
    assert [saved.step for saved in checkpoint.all_in(tmp_path)] == [1, 2]
    checkpoint.prune(tmp_path / "nowhere", 1, {})


# A run

SHAPES = Shapes(seq_len=4, hidden_dim=8, vocab_size=11)
CONFIG = TrainConfig(
    steps=100,
    batch_size=6,
    keep=1,
    model=ModelConfig(
        autoencoder=AutoencoderConfig(layers=1, width=8, heads=2),
        denoiser=DenoiserConfig(layers=1, width=8, heads=2, time_dim=8),
        token_decoder=TokenDecoderConfig(layers=1, heads=2),
    ),
    recipe=RecipeConfig(warmup_steps=20),
    timesteps=TimestepConfig(bins=5, refresh_steps=2),
    optimizer=OptimizerConfig(lr=1e-2, lr_warmup_steps=3),
)


def fresh(seed: int = 0) -> TrainState:
    state = start(CONFIG, SHAPES, scratch=False, device=torch.device("cpu"))
    if seed:  # somebody else's weights, which loading must overwrite
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter.fill_(0.1 * seed)
    return state


def train(state: TrainState, until: int) -> list[float]:
    """Losses of the steps up to `until`; the batch is a function of the step."""
    losses = []
    while state.step < until:
        generator = torch.Generator().manual_seed(state.step)
        tokens = torch.randint(11, (6, 4), generator=generator)
        batch = Batch(torch.randn(6, 4, 8, generator=generator), tokens, torch.arange(6), state.position)
        step = train_step(state, batch)
        assert state.read_step(step)
        losses.append(step.losses[0].loss.item())
    return losses


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path):
    whole = fresh()
    train(whole, 5)
    expected = train(whole, 9)

    first = fresh()
    train(first, 3)
    first.save(tmp_path)
    train(first, 5)
    first.save(tmp_path)
    assert [saved.step for saved in checkpoint.all_in(tmp_path)] == [5]  # keep=1

    resumed = fresh(seed=1)
    resumed.load(checkpoint.latest(tmp_path))
    assert (resumed.step, resumed.position) == (5, 30)
    assert train(resumed, 9) == expected
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
        assert torch.equal(whole.ema.weights[name], resumed.ema.weights[name]), name
        assert not torch.equal(value, whole.ema.weights[name]), name
    assert resumed.timesteps.state_dict() == whole.timesteps.state_dict()
    assert resumed.timesteps.p.tolist() != [0.2] * 5


@pytest.mark.parametrize("forgotten", ["optimizer", "ema", "timesteps"])
def test_every_part_of_the_state_matters(tmp_path, forgotten):
    """Otherwise the test above would not notice that it is missing."""
    whole = fresh()
    train(whole, 5)
    saved = whole.save(tmp_path)
    train(whole, 9)

    resumed, blank = fresh(), fresh()
    resumed.load(saved)
    if forgotten == "optimizer":
        resumed.optimizer.state.clear()
    elif forgotten == "ema":
        resumed.ema.weights.update(blank.ema.weights)
    else:
        resumed.timesteps.load_state_dict(blank.timesteps.state_dict())
    train(resumed, 9)
    name = "denoiser.project_out.weight"
    same_weights = torch.equal(whole.model.state_dict()[name], resumed.model.state_dict()[name])
    same_average = torch.equal(whole.ema.weights[name], resumed.ema.weights[name])
    assert (same_weights, same_average) == (forgotten == "ema", False)


# By name


def test_a_checkpoint_is_chosen_by_name_and_must_be_whole(tmp_path, trained, run_copy, succeed, refuse):
    out = tmp_path / "s.jsonl"
    command = ("sample", "--run", run_copy, "--num-samples", 2, "--steps", 2, "--output", out, "--decoder", "joint")
    older = run_copy / "checkpoints" / "step-00000006"
    assert succeed(*command, "--checkpoint", older.name)["step"] == 6
    out.unlink(), out.with_name("s.jsonl.meta.json").unlink()
    line = refuse(*command, "--checkpoint", "step-00000007")
    assert "there is no checkpoint 'step-00000007'" in line
    assert "step-00000006, step-00000008" in line
    flip_a_byte(older / "ema.safetensors")
    assert "ema.safetensors is damaged; choose another" in refuse(*command, "--checkpoint", older.name)
    assert not out.exists()
