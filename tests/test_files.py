"""Small files are written whole or not at all, and read strictly."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ldlm import files
from ldlm.errors import InputError
from ldlm.training.log import MetricsFile


def test_a_file_that_can_not_be_written_leaves_the_old_one_and_no_litter(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(ValueError):
        files.write_json(path, {"x": float("nan")})
    with pytest.raises(TypeError):
        files.write_atomic(path, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert files.read_json(path) == {"x": 1}


def test_replacing_leaves_the_old_file_when_its_block_fails(tmp_path):
    path = tmp_path / "deep" / "a.bin"
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_who_may_read_a_file_is_the_umask_s_to_say(tmp_path):
    """And not the library's that writes it: safetensors keeps its files to their owner."""
    mask = os.umask(0)
    os.umask(mask)
    with files.replacing(tmp_path / "weights") as temporary:
        save_file({"a": torch.zeros(1)}, temporary)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_temporary_file_keeps_the_suffix_that_libraries_look_at(tmp_path):
    with files.replacing(tmp_path / "plot.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"")


def test_json_that_is_absent_or_damaged_is_named(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(InputError, match=f"there is no file {path}"):
        files.read_json(path)
    path.write_text('{"x": ')
    with pytest.raises(InputError, match=f"{path} is damaged"):
        files.read_json(path)
    path.write_bytes(b'{"x": "\xff"}')
    with pytest.raises(InputError, match=f"{path} is damaged"):
        files.read_json(path)


def test_yaml_round_trips_and_keeps_the_order(tmp_path):
    value = {"z": {"b": 1e-8, "a": None}, "list": ["x", "y"], "text": "naïve: yes", "flag": True, "empty": []}
    path = tmp_path / "a.yaml"
    path.write_text(files.dump_yaml(value), encoding="utf-8")
    assert files.read_yaml(path) == value
    assert list(files.read_yaml(path)) == list(value)


def test_an_empty_yaml_file_sets_nothing(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("# nothing\n")
    assert files.read_yaml(path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: 2\na: 3\n", "line 3: a is set twice"),
        (b"m:\n  x: 1\n  y: 2\n  x: 3\n", "line 4: x is set twice"),
        (b"- 1\n- 2\n", "must hold a mapping"),
        (b"just text", "must hold a mapping"),
        (b"a: [1, 2\n", "is not valid YAML"),
        (b"a: \xff\n", "is not valid YAML"),
        (b"? [1, 2]\n: 3\n", "is not valid YAML"),
        (b"!!python/object/apply:os.system ['true']\n", "is not valid YAML"),
    ],
)
@pytest.mark.parametrize("fast", [True, False])
def test_bad_yaml_is_one_line_that_names_the_file(tmp_path, monkeypatch, content, message, fast):
    if not fast:  # PyYAML was built without libyaml
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        files.read_yaml(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_yaml_file(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        files.read_yaml(tmp_path)


def test_json_lines_round_trip_whatever_the_text_holds(tmp_path):
    rows = [{"text": "line\r\none\u2028two\x85 “naïve” 漢字\ttab"}, {"text": ""}, {"tokens": [1, 2]}]
    path = tmp_path / "a.jsonl"
    path.write_text(files.dump_jsonl(rows), encoding="utf-8")
    assert list(files.read_jsonl(path)) == rows


@pytest.mark.parametrize("line", ["{", "3", '["text"]', "not json"])
def test_a_bad_json_line_is_named_by_its_number(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(InputError, match=f"{path}, line 3"):
        list(files.read_jsonl(path))


def test_hashes_are_of_the_content(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 300_000)
    assert files.sha256_file(path) == hashlib.sha256(b"x" * 300_000).hexdigest()
    assert files.sha256_json({"a": 1, "b": [2]}) == files.sha256_json({"b": [2], "a": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": 2})


def test_metrics_drop_what_was_cut_off_and_what_lies_beyond_the_checkpoint(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    assert metrics.read() == []
    assert metrics.last("eval") == {}
    for step in (1, 2, 3):
        metrics.write(step, "train", {"loss": step / 10}, seconds=1.0)
        metrics.write(step, "eval", {"l_diff": step / 100})
    with open(metrics.path, "a") as file:
        file.write('{"step": 4, "kind": "tra')  # killed while writing
    assert [line["step"] for line in metrics.read()] == [1, 1, 2, 2, 3, 3]

    metrics.truncate(2)
    metrics.write(3, "eval", {"l_diff": 7.0})
    assert [(line["step"], line["kind"]) for line in metrics.read()] == [
        (1, "train"),
        (1, "eval"),
        (2, "train"),
        (2, "eval"),
        (3, "eval"),
    ]
    assert metrics.last("eval") == {"l_diff": 7.0}
    assert metrics.last("train") == {"loss": 0.2}
    assert all(json.loads(line) for line in metrics.path.read_text().splitlines())


def test_files_and_folders_that_others_remove_meanwhile_are_passed_over(tmp_path, monkeypatch):
    root = tmp_path / "root"
    for name in ("a", "b.tmp", "gone/c", "kept/d"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"xy")
    scandir, is_file = os.scandir, Path.is_file

    def scan(folder):
        if Path(folder).name == "gone":  # known from its parent, and away when it is looked into
            os.rename(folder, tmp_path / "elsewhere")
        return scandir(folder)

    def look(path):
        there = is_file(path)
        if path.name == "b.tmp":
            path.unlink(missing_ok=True)
        return there

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(Path, "is_file", look)
    assert files.sizes(root) == {"a": 2, "kept/d": 2}


def test_files_that_others_remove_meanwhile_need_no_fsync(tmp_path, monkeypatch):
    for name in ("a/x", "a/y", "b/x", "b/y"):
        files.write_atomic(tmp_path / name, b"")
    fsync, durable = os.fsync, []

    def meddle(descriptor):
        """While the first file of a folder is made durable, the other goes; of the next folder, the folder itself."""
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_file() and not durable:
            (path.parent / {"x": "y", "y": "x"}[path.name]).unlink()
        elif path.is_file():
            path.parent.rename(tmp_path.parent / f"gone-{tmp_path.name}")
        if path != tmp_path:
            durable.append(path)

    monkeypatch.setattr(os, "fsync", meddle)
    files.fsync_tree(tmp_path)
    first, its_folder, second = durable
    assert first.parent == its_folder != second.parent


def test_processes_of_the_same_number_on_two_machines_write_to_different_temporary_files(tmp_path, monkeypatch):
    replace, used = os.replace, set()

    def note(temporary, path):
        used.add(Path(temporary).name)
        replace(temporary, path)

    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "replace", note)
    for _ in range(2):
        files.write_atomic(tmp_path / "a", b"")
        with files.replacing(tmp_path / "a") as temporary:
            temporary.write_bytes(b"")
    assert len(used) == 4


@pytest.mark.parametrize(
    "change", [(b"1.5", b"1.6"), (b"\n", b"\t"), (b'"digest"', b'"digesu"'), (b"{", b"["), (b"x", b"\xf8")]
)
def test_json_with_a_digest_is_none_when_a_bit_of_it_has_changed(change):
    written = files.dump_digested({"x": 1.5, "y": ["é", None]}).encode()
    assert files.load_digested(written) == {"x": 1.5, "y": ["é", None]}
    assert files.load_digested(written.replace(*change, 1)) is None
    # the same number in other digits
    number = files.dump_digested({"x": 0.1 + 0.2}).encode()
    assert files.load_digested(number.replace(b"0.30000000000000004", b"0.30000000000000005")) is None
