"""Small files are written whole or not at all, and read strictly."""

import hashlib
import json

import pytest

from ldlm import files
from ldlm.errors import InputError
from ldlm.metricsfile import MetricsFile


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
def test_bad_yaml_is_one_line_that_names_the_file(tmp_path, content, message):
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
