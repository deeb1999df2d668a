"""Extraction against an independent pass of transformers, and an interrupted one against an uninterrupted one."""

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import zarr
from patience import patience
from tokenizers import normalizers
from torch import nn

from ldlm import files
from ldlm.errors import InputError
from ldlm.features import corpus, shared_work, states, text, textfiles
from ldlm.features.begin import prepare
from ldlm.features.extraction import Extraction
from ldlm.features.shards import SPLITS
from ldlm.features.store import FeatureStore
from ldlm.hub import load_tokenizer
from ldlm.progress import SILENT, Progress, Task
from ldlm.stages import extract_features, features

LENGTH = 16


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    """The uninterrupted extraction of `few`."""
    return extract_features.run(few, tmp_path_factory.mktemp("whole") / "features").path


def payload(store):
    """Every byte of the arrays and the ledger."""
    paths = [p for name in ("features.zarr", "ledger") for p in (store / name).rglob("*") if p.is_file()]
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(paths)}


def record(store):
    """The manifest without its timing."""
    return {k: v for k, v in json.loads((store / "manifest.json").read_text()).items() if k != "seconds"}


def reference(folder, tokens, layer):
    """hidden_states[layer] of the whole model, as transformers computes them."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        output = model(input_ids=torch.from_numpy(np.asarray(tokens)).long(), output_hidden_states=True)
    return output.hidden_states[layer].numpy()


@contextmanager
def encoded_rows(vocabulary):
    """The token rows that pass a table of that many embeddings, as they are looked up, but for those of the check."""
    seen, made = [], states.plain_tokens
    checks = set()

    def check(*arguments):
        tokens_BL = made(*arguments)
        checks.update(map(tuple, tokens_BL.tolist()))
        return tokens_BL

    def note(module, args):
        if isinstance(module, nn.Embedding) and module.num_embeddings == vocabulary:
            seen.extend(row for row in map(tuple, args[0].tolist()) if row not in checks)

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        with mock.patch.object(states, "plain_tokens", check):
            yield seen
    finally:
        hook.remove()


def stored_rows(store):
    """The token rows of both splits."""
    opened = FeatureStore(store)
    return [tuple(row) for split in ("train", "validation") for row in opened.split(split).tokens[:].tolist()]


# ----------------------------------------------------------------------------------------------------------------------
# What is stored


@pytest.mark.parametrize("codec", ["fp16", "fp32"])
@pytest.mark.parametrize(("arch", "layer"), [("gpt2", -3), ("gpt2", -1), ("bert", -3), ("bert", -1)])
def test_stored_states_undone_are_transformers_own_to_the_precision_of_the_storage(
    few, tmp_path, request, arch, layer, codec
):
    folder = str(request.getfixturevalue(arch))
    config = replace(few, encoder=folder, layer=layer, codec=codec)
    group = zarr.open_group(extract_features.run(config, tmp_path / "f").path / "features.zarr", mode="r")
    mean, std = group["mean"][:], group["std"][:]
    for split in (group, group["validation"]):
        stored = split["hidden"][:].astype(np.float32)
        expected = reference(folder, split["tokens"][:], layer)
        # Half a unit in the last place of the stored number, and float32 rounding of what went into it.
        precision = {"fp16": 2.0**-11, "fp32": 0.0}[codec] * np.abs(stored) + 4e-6 * (1 + np.abs(mean / std))
        assert (np.abs(stored * std + mean - expected) <= std * precision).all()
    assert np.abs(expected).max() > 100 * (std * precision).max()  # the tolerance is far below the values


def test_other_codecs_carry_their_recipe_and_undo_to_their_precision(few, tmp_path, gpt2):
    """The recipes of the arrays' attributes, followed in numpy alone."""
    opened = {}
    for codec in ("bf16", "int8-token", "fp32"):
        made = extract_features.run(replace(few, codec=codec), tmp_path / codec).path
        opened[codec] = zarr.open_group(made / "features.zarr", mode="r")
    for split in ("", "validation/"):
        exact = opened["fp32"][f"{split}hidden"][:]

        bits = opened["bf16"][f"{split}hidden"]
        assert "<< 16" in bits.attrs["decode"]
        values = (bits[:].astype(np.uint32) << 16).view(np.float32)
        assert (np.abs(values - exact) <= 2.0**-8 * np.abs(exact)).all()  # 8 bits of significand, to nearest

        whole, scale = opened["int8-token"][f"{split}hidden"], opened["int8-token"][f"{split}scale"][:]
        assert whole.attrs["decode"] == "h = hidden * scale[..., None]"
        assert whole.dtype == np.int8
        np.testing.assert_allclose(scale, np.abs(exact).max(axis=-1) / 127, rtol=1e-6)
        error = np.abs(whole[:] * scale[..., None] - exact)
        assert (error <= scale[..., None] * (0.5 + 1e-4)).all()  # half a step, and the rounding of the quotient


@pytest.mark.parametrize(("codec", "tolerance"), [("fp32", 1e-5), ("fp16", 2e-4)])
def test_the_stored_training_states_have_mean_0_and_standard_deviation_1(few, tmp_path, codec, tolerance):
    opened = FeatureStore(extract_features.run(replace(few, codec=codec), tmp_path / "f").path)
    hidden = opened.split("train").hidden[:].astype(np.float64).reshape(-1, 16)
    np.testing.assert_allclose(hidden.mean(axis=0), 0, atol=tolerance)
    np.testing.assert_allclose(hidden.std(axis=0), 1, atol=tolerance)


def test_the_statistics_are_numpys_over_all_training_positions_and_are_reported_with_and_without_position_0(
    whole, few, gpt2
):
    opened = FeatureStore(whole)
    raw = reference(str(gpt2), opened.split("train").tokens[:], few.layer).astype(np.float64)
    mean, std = opened.statistics()
    # they are stored as float32
    np.testing.assert_allclose(mean, raw.reshape(-1, 16).mean(axis=0), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(std, raw.reshape(-1, 16).std(axis=0), rtol=1e-5)
    for name, h in (("all", raw), ("without_position_0", raw[:, 1:])):
        flat = h.reshape(-1, 16)
        assert opened.manifest["statistics"][name] == {
            "positions": len(flat),
            "largest_std": pytest.approx(flat.std(axis=0).max(), rel=1e-5),
            "median_std": pytest.approx(np.median(flat.std(axis=0)), rel=1e-5),
            "largest_abs_mean": pytest.approx(np.abs(flat.mean(axis=0)).max(), rel=1e-5),
        }
    assert opened.manifest["statistics"]["all"] != opened.manifest["statistics"]["without_position_0"]


def test_the_tokens_are_the_packed_documents_with_the_last_ones_held_out(whole, few_lines, gpt2):
    documents, tokenizer = few_lines.read_text(encoding="utf-8").splitlines(), load_tokenizer(str(gpt2))
    opened = FeatureStore(whole)
    for split, part in (("train", documents[:-8]), ("validation", documents[-8:])):
        expected = np.concatenate(list(text.pack(part, tokenizer, LENGTH)))
        assert np.array_equal(opened.split(split).tokens[:], expected)
        assert opened.manifest["rows"][split] == len(expected) == opened.split(split).rows


def test_held_out_files_are_the_same_as_held_out_documents(whole, few, few_lines, tmp_path):
    lines = few_lines.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "train.txt").write_text("".join(lines[:-8]), encoding="utf-8")
    (tmp_path / "held-out.txt").write_text("".join(lines[-8:]), encoding="utf-8")
    files = {"data": (str(tmp_path / "train.txt"),), "validation_data": (str(tmp_path / "held-out.txt"),)}
    other = extract_features.run(replace(few, validation_docs=0, **files), tmp_path / "f").path
    assert payload(other) == payload(whole)


def test_a_dataset_with_a_held_out_split_is_the_same_as_its_documents_in_files(whole, few, few_lines, tmp_path):
    lines = few_lines.read_text(encoding="utf-8").splitlines()
    (tmp_path / "corpus").mkdir()
    for split, part in (("train", lines[:-8]), ("test", lines[-8:])):
        rows = "".join(json.dumps({"text": line}) + "\n" for line in part)
        (tmp_path / "corpus" / f"{split}.jsonl").write_text(rows)
    dataset = {"data": (), "dataset": str(tmp_path / "corpus"), "validation_split": "test", "validation_docs": 0}
    assert payload(extract_features.run(replace(few, **dataset), tmp_path / "f").path) == payload(whole)


def test_a_dataset_is_read_at_the_commit_that_is_recorded_and_a_branch_that_moved_is_refused(
    few, whole, few_lines, tmp_path, monkeypatch
):
    import datasets

    lines = few_lines.read_text(encoding="utf-8").splitlines()
    head, asked = "a" * 40, []

    def build(name, configuration, revision):
        commit = head if revision in (None, "main") else revision
        files = {"train": [f"hf://datasets/{name}@{commit}/train.jsonl"]}
        return SimpleNamespace(hash=commit, config=SimpleNamespace(data_files=files), info=SimpleNamespace(splits=None))

    def load(name, configuration, **options):
        asked.append((name, configuration, options))
        rows = datasets.Dataset.from_list([{"text": line} for line in lines])
        return rows.to_iterable_dataset(num_shards=3)

    monkeypatch.setattr(datasets, "load_dataset_builder", build)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")  # no helpers, which would ask the hub itself
    config = replace(few, data=(), dataset="some/corpus", dataset_config="en")
    made = extract_features.run(config, tmp_path / "f")
    assert payload(made.path) == payload(whole)
    assert asked
    options = {"split": "train", "revision": head, "streaming": True, "trust_remote_code": False}
    assert all(call == ("some/corpus", "en", options) for call in asked)
    assert (made.config["revision"], made.config["dataset_config"]) == (head, "en")
    assert made.inputs["text"] == {"some/corpus": head}

    old, head = head, "b" * 40
    (made.path / "manifest.json").unlink()
    message = f"was begun with some/corpus at revision {old}, and this is revision {head}; go on with --revision {old}"
    for same in (config, replace(config, revision="main")):
        with pytest.raises(InputError, match=message):
            extract_features.run(same, made.path)
    assert extract_features.run(replace(config, revision=old), made.path).complete
    assert extract_features.run(config, made.path, overwrite=True).config["revision"] == head


def test_the_sizes_of_shards_change_the_files_and_no_value(whole, few, tmp_path):
    other = FeatureStore(extract_features.run(replace(few, shard_rows=64), tmp_path / "f").path)
    mine = FeatureStore(whole)
    for split in ("train", "validation"):
        assert np.array_equal(mine.split(split).hidden[:], other.split(split).hidden[:])
    assert mine.encoder["statistics"] == other.encoder["statistics"]


def test_statistics_of_a_sample_are_over_blocks_spread_over_the_corpus(few, request, tmp_path):
    config = replace(
        few, data=(str(request.getfixturevalue("corpus")),), codec="fp32", stats_tokens=4 * 8 * LENGTH, shard_rows=128
    )
    made = extract_features.run(config, tmp_path / "a").path
    opened = FeatureStore(made)
    train = opened.split("train")
    extraction = Extraction(config, made, made, None, None, {}, SILENT)
    extraction.rows = {"train": train.rows}
    blocks = extraction.sample()
    quarters = [-(-train.rows // 8) * i // 4 for i in range(5)]
    assert len(blocks) == 4
    assert all(quarters[i] <= block < quarters[i + 1] for i, block in enumerate(blocks))  # one from each quarter
    picked = np.concatenate([np.arange(8 * b, min(8 * b + 8, train.rows)) for b in blocks])
    raw = reference(config.encoder, train.tokens[:][picked], config.layer).reshape(-1, 16).astype(np.float64)
    mean, std = opened.statistics()
    np.testing.assert_allclose(mean, raw.mean(axis=0), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(std, raw.std(axis=0), rtol=1e-5)
    assert opened.manifest["statistics"]["all"]["positions"] == len(raw)

    again = extract_features.run(config, tmp_path / "b").path
    assert payload(again) == payload(made)
    seeds = []
    for seed in range(5):
        extraction.config = replace(config, seed=seed)
        seeds.append(extraction.sample())
    assert len(set(map(tuple, seeds))) > 1


def test_kind_embedding_stores_the_token_table(few, gpt2, tmp_path):
    from transformers import AutoModel

    opened = FeatureStore(extract_features.run(replace(few, kind="embedding", codec="fp32"), tmp_path / "f").path)
    split, (mean, std) = opened.split("train"), opened.statistics()
    table = AutoModel.from_pretrained(gpt2).get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(split.hidden[:] * std + mean, table[split.tokens[:]], atol=1e-6)
    assert opened.encoder["kind"] == "embedding"


def test_kind_scratch_stores_tokens_only_and_never_runs_the_encoder(few, whole, tmp_path):
    with encoded_rows(320) as seen:
        made = extract_features.run(replace(few, kind="scratch"), tmp_path / "f").path
    assert seen == []
    opened = FeatureStore(made)
    assert opened.split("train").hidden is None
    assert set(zarr.open_group(made / "features.zarr", mode="r")) == {"tokens", "mean", "std", "validation"}
    assert np.array_equal(opened.split("train").tokens[:], FeatureStore(whole).split("train").tokens[:])
    assert opened.shapes == FeatureStore(whole).shapes
    mean, std = opened.statistics()
    assert (mean == 0).all()
    assert (std == 1).all()


@pytest.mark.parametrize(
    ("letter", "value", "message"),
    [("Ω", 1e3, "don't fit in fp16; use --overwrite --codec bf16, or fp32"), ("e", float("nan"), "not finite")],
)
def test_states_that_half_precision_can_not_hold_are_refused_and_nothing_is_sealed(
    few, gpt2, tmp_path, letter, value, message
):
    """A dimension that is constant in the training text, where the variance has its floor, and far off elsewhere."""
    from safetensors.torch import load_file, save_file

    held_out = tmp_path / "held-out.txt"
    held_out.write_text("Ω" * 40, encoding="utf-8")  # occurs nowhere else
    token = load_tokenizer(str(gpt2))(letter)["input_ids"][0]
    folder = shutil.copytree(gpt2, tmp_path / "encoder")
    tensors = load_file(folder / "model.safetensors")
    (table,) = (tensor for name, tensor in tensors.items() if name.endswith("wte.weight"))
    table[:, 0] = 0
    table[token, 0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text_files = {"validation_docs": 0, "validation_data": (str(held_out),)}
    config = replace(few, encoder=str(folder), kind="embedding", **text_files)
    with pytest.raises(InputError, match=message):
        extract_features.run(config, tmp_path / "f")
    assert not (tmp_path / "f" / "manifest.json").exists()
    # A refusal after finished shards keeps them; before, it leaves nothing.
    assert (tmp_path / "f").exists() == any(tmp_path.glob("f/ledger/*"))


def test_text_that_is_trained_on_can_not_be_held_out(few, corpus, tmp_path):
    shutil.copyfile(corpus, tmp_path / "copy.txt")
    for held_out in (corpus, tmp_path / "copy.txt"):
        config = replace(few, data=(str(corpus),), validation_docs=0, validation_data=(str(held_out),))
        with pytest.raises(InputError, match=f"{held_out} is text to train on, so it can't be held out; give another"):
            extract_features.run(config, tmp_path / "f")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "test.jsonl").write_text(json.dumps({"text": "A letter."}) + "\n")
    dataset = {"data": (), "dataset": str(tmp_path / "corpus"), "split": "test", "validation_split": "test"}
    with pytest.raises(InputError, match="--validation-split test is the split to train on; name another one"):
        extract_features.run(replace(few, validation_docs=0, **dataset), tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_held_out_text_that_fills_no_row_is_noted_and_its_rows_are_said_to_be_of_training(few, tmp_path, notes):
    (tmp_path / "held-out.txt").write_text("A letter.\n", encoding="utf-8")
    config = replace(few, validation_docs=0, validation_data=(str(tmp_path / "held-out.txt"),))
    made = extract_features.run(config, tmp_path / "f", progress=notes)
    (line,) = [line for line in notes.lines if "held-out" in line]
    assert line.startswith(f"the held-out text is shorter than one row of {few.seq_len} tokens, so the store has no")
    notes.lines.clear()
    features.texts(made.path, 2, tmp_path / "real.jsonl", progress=notes)
    assert notes.lines == [f"{made.path} has no held-out rows, so these are training rows"]


# ----------------------------------------------------------------------------------------------------------------------
# Interruptions


def test_the_encoder_runs_once_per_row(few, tmp_path):
    with encoded_rows(320) as seen:
        made = extract_features.run(few, tmp_path / "f").path
    assert Counter(seen) == Counter(stored_rows(made))
    # also where the statistics are over a sample, and other blocks are first met when they are stored
    with encoded_rows(320) as seen:
        made = extract_features.run(replace(few, stats_tokens=1), tmp_path / "g").path
    assert Counter(seen) == Counter(stored_rows(made))


def test_a_shard_is_written_while_the_next_is_encoded(few, whole, tmp_path, monkeypatch):
    """The record of the first waits until rows of the second pass the encoder, which would never be in series."""
    config = replace(few, stats_tokens=1)  # one block is spooled, and the others are encoded when they are stored
    expected = extract_features.run(config, tmp_path / "expected").path
    second, met = set(map(tuple, FeatureStore(whole).split("train").tokens[16:32].tolist())), threading.Event()
    real = os.replace

    def rename(source, target):
        if Path(target).name == "train-00000.json":
            assert met.wait(timeout=patience())
        real(source, target)

    def note(module, args):
        if isinstance(module, nn.Embedding) and module.num_embeddings == 320:
            second.isdisjoint(map(tuple, args[0].tolist())) or met.set()

    monkeypatch.setattr(os, "replace", rename)
    extraction, result = prepare(config, tmp_path / "f")
    extraction.pack()
    extraction.encode_sample()
    extraction.describe()
    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        extraction.write_shards()
    finally:
        hook.remove()
    extraction.seal(result)
    assert payload(tmp_path / "f") == payload(expected)


def test_progress_is_in_tokens_and_counts_what_was_done_before_and_by_others(few, whole, tmp_path, monkeypatch):
    told = {}

    class Told(Progress):
        def task(self, name, total, unit, done=0):
            told[name] = [(total, unit, done)]
            made = Task()
            made.advance = lambda count, **figures: told[name].append((count, figures))
            return made

    whole_rows = {name: FeatureStore(whole).split(name).rows for name in SPLITS}
    total, train = sum(whole_rows.values()) * LENGTH, whole_rows["train"] * LENGTH
    extract_features.run(few, tmp_path / "f", progress=Told())
    assert told["encode for statistics"][0] == (train, "token", 0)
    assert told["encode"][0] == (total, "token", 0)
    for name, amount in (("encode for statistics", train), ("encode", total)):
        counts = [count for count, _ in told[name][1:]]
        assert sum(counts) == amount
        assert max(counts) == few.batch_size * LENGTH  # a report after every batch
        assert re.fullmatch(r"\d+\.\d MB/s", told[name][-1][1]["written"])

    # Another has done the first shard before; the second and the last are done by another meanwhile.
    out = shutil.copytree(tmp_path / "f", tmp_path / "g")
    (out / "manifest.json").unlink()
    hidden = {name: (out / "ledger" / name).rename(tmp_path / name).name for name in os.listdir(out / "ledger")}
    shutil.copy(tmp_path / hidden["train-00000.json"], out / "ledger")
    real = Extraction._shard_parts

    def meanwhile(self, split, shard, *rest):
        for name in ("train-00001.json", "validation-00001.json"):
            shutil.copy(tmp_path / name, out / "ledger")
        return real(self, split, shard, *rest)

    monkeypatch.setattr(Extraction, "_shard_parts", meanwhile)
    monkeypatch.setattr(Extraction, "_in_turn", lambda self, items: [items[0], *items[2:], items[1]])
    monkeypatch.setattr(shared_work, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(shared_work, "LOOK_SHARE", float("inf"))
    extract_features.run(few, out, progress=Told())
    assert told["encode"][0] == (total, "token", 16 * LENGTH)
    counts = [count for count, _ in told["encode"][1:]]
    assert counts[0] == (8 + 16 + whole_rows["validation"] - 16) * LENGTH  # the others' with one's own first batch
    assert sum(counts) == total - 16 * LENGTH
    assert payload(out) == payload(whole)


def test_only_the_first_process_of_a_job_says_what_it_does(few, tmp_path, monkeypatch, notes):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        extract_features.run(few, tmp_path / rank, progress=notes)
        assert bool(notes.begun) == (rank == "0")


def test_what_is_done_is_not_read_again(few, whole, tmp_path, monkeypatch):
    """Rows are counted by arithmetic, and the spool of tokens is no part of the process's memory."""
    out = shutil.copytree(whole, tmp_path / "f")
    (out / "manifest.json").unlink()
    (out / "ledger" / "train-00002.json").unlink()
    asked, real = [], os.pread

    def pread(descriptor, length, offset):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".tokens"):
            asked.append(offset // (4 * (LENGTH - 2)))
        assert ".tokens" not in Path("/proc/self/maps").read_text()
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    extract_features.run(few, out)
    assert asked and set(asked) <= set(range(32, 48))
    assert payload(out) == payload(whole)


def test_an_extraction_interrupted_at_every_point_ends_with_the_bytes_of_an_uninterrupted_one(
    few, whole, tmp_path, interrupted
):
    """One folder, taken up again and again, and stopped one report later each time."""
    out = tmp_path / "features"
    with encoded_rows(320) as seen:
        for at in range(100):
            try:
                extract_features.run(few, out, progress=interrupted(at=at))
                break
            except KeyboardInterrupt:
                with pytest.raises(InputError, match=r"no shard yet|not sealed"):
                    FeatureStore(out)
    assert at >= 5  # it was stopped while packing, encoding and writing
    assert payload(out) == payload(whole)
    assert record(out) == record(whole)
    assert not (out / "spool").exists()
    # Over all attempts every training row was encoded once. Held-out rows have no spool: their shard was begun anew
    # when one of its reports was the last.
    train, validation = (Counter(map(tuple, FeatureStore(whole).split(name).tokens[:].tolist())) for name in SPLITS)
    times = Counter(seen)
    assert (train + validation) <= times <= train + validation + validation + validation


@pytest.mark.parametrize("at", [0, 4, 9])
def test_one_interruption_and_one_resumption_give_the_same_bytes(few, whole, tmp_path, interrupted, at):
    with pytest.raises(KeyboardInterrupt):
        extract_features.run(few, tmp_path / "f", progress=interrupted(at=at))
    extract_features.run(few, tmp_path / "f")
    assert payload(tmp_path / "f") == payload(whole)


def test_what_a_power_cut_leaves_half_written_is_written_again(few, whole, tmp_path, interrupted):
    out, counted = tmp_path / "features", interrupted()
    extract_features.run(few, tmp_path / "counted", progress=counted)
    with pytest.raises(KeyboardInterrupt):
        extract_features.run(few, out, progress=interrupted(at=counted.reports - 1))
    # a shard whose record was not yet written, cut short; litter of a write that did not finish
    records = sorted((out / "ledger").glob("train-*.json"))
    (name,) = (n for n in json.loads(records[-1].read_text())["files"] if "/hidden/" in n)
    records[-1].unlink()
    shard = out / name
    shard.write_bytes(shard.read_bytes()[:100])
    (next((out / "spool").iterdir()) / ".123.states-0000000").write_bytes(b"half")
    extract_features.run(few, out)
    assert payload(out) == payload(whole)


@pytest.mark.parametrize("damage", [b"", b"\0" * 4, b"\0" * 1000, None])
def test_raw_states_that_a_power_cut_tore_are_made_again(few, whole, tmp_path, interrupted, damage):
    """They are not fsynced, so after a power cut there may be zeros, or nothing, in a file of the right name."""
    out, counted = tmp_path / "features", interrupted()
    extract_features.run(few, tmp_path / "counted", progress=counted)
    with pytest.raises(KeyboardInterrupt):
        extract_features.run(few, out, progress=interrupted(at=counted.reports - 4))
    spooled = sorted((out / "spool").rglob("states-*"))
    assert len(spooled) > 2
    for path in spooled:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data) if damage is None else damage)
    extract_features.run(few, out)
    assert payload(out) == payload(whole)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_damaged_shard_is_mended_as_its_error_says(few, whole, tmp_path, split):
    out = shutil.copytree(whole, tmp_path / "features")
    prefix = "features.zarr/" if split == "train" else "features.zarr/validation/"
    (out / prefix / "hidden/c/0/0/0").write_bytes(b"")
    with pytest.raises(InputError, match=r"00000: .* has 0 bytes instead of .*; run `ldlm features repair"):
        FeatureStore(out)
    (out / "ledger" / f"{split}-00000.json").unlink()
    (out / "manifest.json").unlink()
    extract_features.run(few, out)
    assert payload(out) == payload(whole)
    assert record(out) == record(whole)


def test_a_complete_store_is_left_alone(few, whole, notes):
    before = {path: path.stat().st_mtime_ns for path in (whole / "features.zarr").rglob("*")}
    with encoded_rows(320) as seen:
        again = extract_features.run(few, whole, progress=notes)
    assert again.complete
    assert seen == []
    assert notes.lines == [f"{whole} is complete; nothing to do"]
    assert {path: path.stat().st_mtime_ns for path in (whole / "features.zarr").rglob("*")} == before


def test_another_setting_another_text_or_another_encoder_is_refused_by_name(few, whole, other_gpt2, tmp_path):
    out = shutil.copytree(whole, tmp_path / "features")
    before = payload(out)
    with pytest.raises(InputError, match=r"layer: -3 -> -2"):
        extract_features.run(replace(few, layer=-2), out)
    with pytest.raises(InputError, match=r"inputs\.encoder"):
        extract_features.run(replace(few, encoder=str(other_gpt2)), out)
    changed = str(shutil.copy(few.data[0], tmp_path / "changed.txt"))
    config = replace(few, data=(changed,))
    extract_features.run(config, tmp_path / "g")
    with open(changed, "a") as file:
        file.write("One line more.\n")
    with pytest.raises(InputError, match=r"inputs\.text"):
        extract_features.run(config, tmp_path / "g")
    assert payload(out) == before


@pytest.mark.parametrize("changed", ["encoder", "tokenizer", "text", "layer", "codec"])
def test_an_interrupted_store_goes_on_with_nothing_else_than_it_began_with(
    few, other_gpt2, interrupted, tmp_path, changed
):
    """Weights, tokenizer and text are changed in place, so that only what is in the files tells."""
    encoder, text_file = (
        shutil.copytree(few.encoder, tmp_path / "encoder"),
        shutil.copy(few.data[0], tmp_path / "t.txt"),
    )
    config = replace(few, encoder=str(encoder), data=(str(text_file),))
    out = tmp_path / "features"
    with pytest.raises(KeyboardInterrupt):
        extract_features.run(config, out, progress=interrupted(at=5))
    recorded, before = json.loads((out / "artifact.json").read_text())["inputs"], payload(out)
    if changed == "encoder":
        shutil.copy(other_gpt2 / "model.safetensors", encoder)
    elif changed == "tokenizer":
        tokenizer = load_tokenizer(str(encoder))
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.save_pretrained(encoder)
    elif changed == "text":
        with open(text_file, "a") as file:
            file.write("One line more.\n")
    other = replace(config, **{"layer": {"layer": -2}, "codec": {"codec": "bf16"}}.get(changed, {}))
    with pytest.raises(InputError) as refused:
        extract_features.run(other, out)
    if changed == "text":
        old, new = recorded["text"][str(text_file)], files.sha256_file(tmp_path / "t.txt")
    elif changed in recorded:
        fresh = extract_features.run(replace(other, validation_docs=0), tmp_path / "fresh").inputs
        old, new = recorded[changed], fresh[changed]
    else:
        old, new = {"layer": (-3, -2), "codec": ("fp16", "bf16")}[changed]
    assert f"{changed}" in str(refused.value)
    assert f"{old} -> {new}" in str(refused.value)
    assert payload(out) == before


def test_a_tokenizer_with_more_tokens_than_the_encoder_has_embeddings_is_refused(few, tmp_path):
    encoder = shutil.copytree(few.encoder, tmp_path / "encoder")
    tokenizer = load_tokenizer(str(encoder))
    tokenizer.add_tokens(["captain"])
    tokenizer.save_pretrained(encoder)
    with pytest.raises(InputError, match="its tokenizer has 321 tokens and its embeddings are 320"):
        extract_features.run(replace(few, encoder=str(encoder)), tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_overwrite_extracts_anew(few, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "features")
    made = extract_features.run(replace(few, layer=-2), out, overwrite=True)
    assert made.config["layer"] == -2
    assert FeatureStore(out).encoder["fingerprint"] != FeatureStore(whole).encoder["fingerprint"]


def test_a_dry_run_over_a_large_text_estimates_from_its_first_part(few, tmp_path, few_lines):
    tokenizer = load_tokenizer(few.encoder)
    large = tmp_path / "large.txt"
    large.write_text(few_lines.read_text(encoding="utf-8") * 100, encoding="utf-8")
    config = replace(few, data=(str(large),))
    exact = corpus.count_rows(config, tokenizer, "train")
    assert exact.packed == exact.rows
    assert exact.exact
    guess = corpus.count_rows(config, tokenizer, "train", seconds=0)
    assert guess.packed < 0.7 * exact.rows
    assert guess.rows == pytest.approx(exact.rows, rel=0.2)
    assert not guess.exact


def test_the_time_to_pack_is_that_of_the_rows_that_were_packed(few, tmp_path, few_lines, monkeypatch):
    """Documents that are only counted, for the estimate and to hold out the last ones, take none of it."""
    large = tmp_path / "large.txt"
    large.write_text(few_lines.read_text(encoding="utf-8") * 200, encoding="utf-8")
    read = textfiles.file_documents

    def slowly(paths, column):
        for number, document in enumerate(read(paths, column)):
            time.sleep(0.001 * (number >= 1200))  # beyond those that are packed
            yield document

    monkeypatch.setattr(textfiles, "file_documents", slowly)
    started = time.perf_counter()
    guess = corpus.count_rows(replace(few, data=(str(large),)), load_tokenizer(few.encoder), "train", seconds=0)
    # 4,800 documents are counted twice, of which 3,600 take a millisecond each.
    assert 0 < guess.seconds < time.perf_counter() - started - 6
    assert guess.packed < guess.rows


def test_a_hub_that_tells_its_size_is_asked_for_no_more_than_is_packed(few, monkeypatch):
    import datasets

    taken = 0

    def endless(*names, **options):
        nonlocal taken
        while True:
            taken += 1
            assert taken < 5000
            yield {"text": "The old captain found a letter before dawn."}

    splits = {"train": SimpleNamespace(num_examples=1_000_000), "test": SimpleNamespace(num_examples=500)}
    builder = SimpleNamespace(info=SimpleNamespace(splits=splits))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *names, **options: builder)
    monkeypatch.setattr(datasets, "load_dataset", endless)
    tokenizer = load_tokenizer(few.encoder)
    config = replace(few, data=(), dataset="some/corpus", validation_docs=1000)
    counts = [corpus.count_rows(config, tokenizer, split, seconds=0) for split in ("train", "validation")]
    assert counts[0].rows / counts[1].rows == pytest.approx(999, rel=0.02)
    assert not any(count.exact for count in counts)
    other = replace(config, validation_docs=0, validation_split="test")
    assert corpus.count_rows(other, tokenizer, "validation").rows == pytest.approx(counts[1].rows / 2, abs=1)
    with pytest.raises(InputError, match="leaves nothing to train on: there are 1000000 documents"):
        corpus.count_rows(replace(config, validation_docs=1_000_000), tokenizer, "train")


@pytest.mark.parametrize("slow", ["encoder", "hash", None])
def test_the_rate_of_a_dry_run_is_that_of_the_slower_of_encoding_and_making_shards(few, tmp_path, monkeypatch, slow):
    """Each of them held up by ten times what a block takes undisturbed."""
    tokens, real = few.batch_size * LENGTH, hashlib.sha256
    pause = 10 * tokens / extract_features.plan(few)["tokens_per_second"]

    def sha256(*data):
        time.sleep(pause / 2)  # for each of two files
        return real(*data)

    def forward(module, args):
        if isinstance(module, nn.Embedding) and module.num_embeddings == 320:
            time.sleep(pause)

    if slow == "hash":
        monkeypatch.setattr(hashlib, "sha256", sha256)
    hook = nn.modules.module.register_module_forward_pre_hook(forward) if slow == "encoder" else None
    try:
        rate = extract_features.plan(few)["tokens_per_second"]
    finally:
        if hook is not None:
            hook.remove()
    assert (rate < tokens / pause) == (slow is not None)


def test_a_dry_run_for_online_encodes_only_the_sample(few):
    plans = [extract_features.plan(replace(few, codec="online", stats_tokens=n)) for n in (1, None)]
    assert [plan["tokens"] for plan in plans] == [plans[0]["tokens"]] * 2
    assert plans[0]["hours"] < plans[1]["hours"]


def test_a_dry_run_tells_rows_and_bytes_and_writes_nothing(few, whole, tmp_path):
    started = time.perf_counter()
    plan = extract_features.plan(few, tmp_path / "absent" / "features")
    took = time.perf_counter() - started
    rows = json.loads((whole / "manifest.json").read_text())["rows"]
    tokens = sum(rows.values()) * LENGTH
    assert (plan["rows"], plan["tokens"]) == (rows, tokens)
    per_token = {"fp16": 2 * 16, "bf16": 2 * 16, "int8-token": 16 * (1 + 4 / 768), "fp32": 4 * 16, "online": 0}
    assert plan["bytes"] == {codec: round(tokens * (states + 4)) for codec, states in per_token.items()}
    encoding = tokens / plan["tokens_per_second"]
    assert encoding < 3600 * plan["hours"] < encoding + took  # tokenising included
    assert not plan["estimated"]
    assert 0 < plan["saved_share_of_step"] < 0.1  # this encoder is far smaller than the model
    assert plan["shards"] == len(list((whole / "ledger").iterdir()))
    assert plan["bytes_free"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "make room or choose --codec int8-token"),
        ({"codec": "int8-token"}, "make room or choose --codec online, which stores no states"),
        ({"codec": "online"}, "make room"),
        ({"kind": "scratch"}, "make room"),
        ({"suffix": ".parquet"}, "make room or choose --codec int8-token"),
    ],
)
def test_a_write_that_can_not_fit_is_refused_before_anything_is_written(
    few, whole, few_lines, tmp_path, monkeypatch, notes, changes, advice
):
    """Whatever is known of the size of the text beforehand; and what just fits is written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    changes = dict(changes)
    if changes.pop("suffix", None):
        pq.write_table(pa.table({"text": few_lines.read_text().splitlines()}), tmp_path / "few.parquet")
        changes["data"] = (str(tmp_path / "few.parquet"),)
    config, real = replace(few, **changes), shutil.disk_usage(tmp_path)
    tokens = sum(json.loads((whole / "manifest.json").read_text())["rows"].values()) * LENGTH
    blocks = -(-FeatureStore(whole).split("train").rows // 8)
    needed = 2 * 4 * tokens  # of the store, and spooled
    if config.kind != "scratch" and config.codec != "online":
        needed += tokens * 16 * {"fp16": 2, "int8-token": 1 + 4 / 768}[config.codec] + blocks * 8 * LENGTH * 16 * 4

    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=round(needed) - 10))
    message = rf"need about (.* KiB) more and .* has \1 free, (9|10|11) B too little; {advice}$"
    with pytest.raises(InputError, match=message):
        extract_features.run(config, tmp_path / "features", progress=notes)
    assert notes.begun == []  # not even tokenised
    assert not (tmp_path / "features").exists()

    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=round(needed) + 10))
    assert extract_features.run(config, tmp_path / "features").complete


@pytest.mark.parametrize("at", [5, 24])
def test_what_an_interrupted_extraction_has_written_needs_no_room_again(
    few, whole, tmp_path, monkeypatch, interrupted, at
):
    """Within the sample, and among the shards, whose zstd makes them smaller than the room that was asked for."""
    real = shutil.disk_usage(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        extract_features.run(few, tmp_path / "f", progress=interrupted(at=at))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=0))
    with pytest.raises(InputError, match=r"has 0 B free, .*KiB too little"):
        extract_features.run(few, tmp_path / "g")
    with pytest.raises(InputError, match=r"has 0 B free, .*KiB too little"):
        extract_features.run(few, tmp_path / "f")
    blocks = len(list((tmp_path / "f" / "spool").rglob("states-*")))
    records = [json.loads(path.read_text()) for path in (tmp_path / "f" / "ledger").glob("*.json")]
    assert (blocks == 3 and not records) if at == 5 else records
    rows = sum(json.loads((whole / "manifest.json").read_text())["rows"].values())
    left = (rows - sum(record["rows"] for record in records)) * LENGTH * (16 * 2 + 4)
    if not records:  # states of the sample are yet to be spooled
        spooled = sum(path.stat().st_size for path in (tmp_path / "f" / "spool").rglob("states-*"))
        left += -(-FeatureStore(whole).split("train").rows // 8) * 8 * LENGTH * 16 * 4 - spooled
    for free in (left - 1, left):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: real._replace(free=free))
        if free < left:
            with pytest.raises(InputError, match=" 1 B too little"):
                extract_features.run(few, tmp_path / "f")
        else:
            extract_features.run(few, tmp_path / "f")
    assert payload(tmp_path / "f") == payload(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "give the text either as --data FILE… or as --dataset NAME"),
        ({"dataset": "x"}, "give the text either as --data FILE… or as --dataset NAME"),
        ({"validation_data": ("x.txt",)}, "hold out rows with one of --validation-docs, --validation-data and"),
        ({"validation_split": "test"}, "hold out rows with one of --validation-docs, --validation-data and"),
        ({"validation_split": "test", "validation_docs": 0}, "--dataset"),
        ({"dataset_config": "en"}, "--dataset-config names a configuration of --dataset NAME; files have none"),
        ({"batch_size": 10}, "chunk of 16 rows, so that neither crosses shards; use --shard-rows 80"),
        ({"shard_rows": 8}, "chunk of 16 rows, so that neither crosses shards; use --shard-rows 16"),
        ({"validation_docs": 24}, "--validation-docs 24 leaves nothing to train on: there are 24 documents"),
        ({"seq_len": 17}, "--seq-len 17 is longer than the 16 positions"),
        ({"layer": -6}, "--layer -6 is out of range"),
        ({"seq_len": 4000, "kind": "embedding"}, "leaves to train on is shorter than one row of 4000 tokens"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_and_leave_nothing(few, tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        extract_features.run(replace(few, **changes), tmp_path / "f")
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------------------
# Precision


def test_an_encoder_in_bf16_gives_nearly_the_same_states_and_the_store_says_so(few, whole, tmp_path):
    made = extract_features.run(replace(few, precision="bf16", codec="fp32"), tmp_path / "rounded").path
    exact = extract_features.run(replace(few, codec="fp32"), tmp_path / "exact").path
    states = []
    for path in (made, exact):
        opened = FeatureStore(path)
        mean, std = opened.statistics()
        parts, tokens = opened.split("train").read(0, 32)
        states.append(opened.split("train").states(parts, torch.from_numpy(tokens)).numpy() * std + mean)
    error = np.linalg.norm(states[0] - states[1]) / np.linalg.norm(states[1])
    assert 1e-5 < error < 0.02
    assert FeatureStore(made).encoder["precision"] == "bf16"
    assert FeatureStore(exact).encoder["precision"] == "fp32"


def test_a_store_that_was_begun_goes_on_in_its_precision_wherever_that_is(few, tmp_path, interrupted):
    """`auto` means something else on a machine with a GPU."""
    out = tmp_path / "features"
    with pytest.raises(KeyboardInterrupt):
        extract_features.run(replace(few, precision="bf16"), out, progress=interrupted(at=3))
    extract_features.run(few, out)
    assert FeatureStore(out).encoder["precision"] == "bf16"
    assert payload(out) == payload(extract_features.run(replace(few, precision="bf16"), tmp_path / "whole").path)
    with pytest.raises(InputError, match="precision: bf16 -> fp32"):
        extract_features.run(replace(few, precision="fp32"), out)
