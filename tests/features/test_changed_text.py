"""A text that changes while it is packed is refused, and what was packed of it before stays."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ldlm import files
from ldlm.config import FrontierConfig, QuickstartConfig
from ldlm.errors import InputError
from ldlm.evaluation import beside, samples
from ldlm.features import pieces, splitting, text
from ldlm.features.begin import prepare
from ldlm.features.helpers import Helpers
from ldlm.features.packing import Packing
from ldlm.location import Location
from ldlm.paper import text as paper_text
from ldlm.progress import SILENT
from ldlm.stages import extract_features, quickstart

SIZE = 500  # bytes of a piece
CHANGED = r"c.txt has changed since it was hashed; put its old content back and run the same command again, or begin "


@pytest.fixture
def content(few_lines):
    return few_lines.read_bytes()


@pytest.fixture
def config(few, content, tmp_path, monkeypatch):
    """Text of several pieces, which this process makes alone."""
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    real = Packing.plan
    monkeypatch.setattr(Packing, "plan", lambda self: real(self, SIZE))
    (tmp_path / "c.txt").write_bytes(content)
    return replace(few, data=(str(tmp_path / "c.txt"),))


def changing(monkeypatch, number: int, change) -> list[pieces.Piece]:
    """Call `change` when the `number`-th piece is read, from 0 on; returns the list of those that are read."""
    seen, real = [], pieces.documents

    def documents(config, piece):
        if len(seen) == number:
            change()
        seen.append(piece)
        return real(config, piece)

    monkeypatch.setattr(pieces, "documents", documents)
    return seen


def packed(out: Location) -> list[str]:
    """The names of the pieces that are kept."""
    return sorted(path.name for path in (out / "packed").rglob("*.tokens"))


def rows(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in (out / "features.zarr").rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("how", ["cut", "written", "gone", "damaged"])
def test_the_command_ends_with_one_line_and_goes_on_with_the_old_text(config, content, tmp_path, monkeypatch, how):
    path, out = tmp_path / "c.txt", tmp_path / "f"
    changes = {
        "cut": lambda: os.truncate(path, len(content) // 2),
        "written": lambda: path.write_bytes(content.upper()),  # as many bytes
        "gone": path.unlink,
        "damaged": lambda: path.write_bytes(b"b\xffd\n" * (len(content) // 4)),
    }
    with monkeypatch.context() as patched:
        seen = changing(patched, 2, changes[how])
        expected = r"c.txt can't be read: No such file" if how == "gone" else CHANGED
        with pytest.raises(InputError, match=expected):
            extract_features.run(config, out)
    assert len(seen) == 3
    assert packed(out) == ["000000.tokens", "000001.tokens"]
    if how != "gone":
        with pytest.raises(InputError, match=r"made with other settings \(.*text.*; choose another --output, or"):
            extract_features.run(config, out)

    path.write_bytes(content)
    seen = changing(monkeypatch, -1, None)
    made = extract_features.run(config, out)
    assert len(seen) == len(pieces.plan(config, SIZE)) - 2
    assert made.inputs["text"] == {str(path): files.sha256(content)}
    assert rows(out) == rows(extract_features.run(config, tmp_path / "whole").path)


def test_a_file_that_was_only_touched_is_as_it_was(config, tmp_path, monkeypatch):
    changing(monkeypatch, 1, lambda: (tmp_path / "c.txt").chmod(0o600))
    assert extract_features.run(config, tmp_path / "f").complete


def test_parquet_that_has_fewer_row_groups_than_it_had_is_refused_in_the_same_line(few, tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, table = tmp_path / "c.parquet", pa.table({"text": [f"Rain fell on day {day}." for day in range(600)]})
    pq.write_table(table, path, row_group_size=20)
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    real = Packing.plan
    monkeypatch.setattr(Packing, "plan", lambda self: real(self, SIZE))
    changing(monkeypatch, 2, lambda: pq.write_table(table, path))
    with pytest.raises(InputError, match=r"c.parquet has changed since it was hashed"):
        extract_features.run(replace(few, data=(str(path),)), tmp_path / "f")


def test_pieces_are_not_planned_of_another_text_than_was_hashed(config, content, tmp_path, monkeypatch):
    path, out, real = tmp_path / "c.txt", tmp_path / "f", pieces.plan

    def plan(*arguments):
        path.write_bytes(content[:1000])
        planned = real(*arguments)
        path.write_bytes(content)
        return planned

    with monkeypatch.context() as patched:
        patched.setattr(pieces, "plan", plan)
        with pytest.raises(InputError, match=CHANGED):
            extract_features.run(config, out)
    assert not list(out.rglob("plan.json"))
    assert rows(extract_features.run(config, out).path) == rows(extract_features.run(config, tmp_path / "w").path)


def test_a_quickstart_does_not_read_another_text_than_it_records(tmp_path, monkeypatch):
    path, out, real = tmp_path / "c.txt", tmp_path / "q", splitting.shuffled
    old = "".join(f"Day {day} was the {day}th day of rain in all the valleys of the north.\n" for day in range(9000))
    path.write_text(old)

    def shuffled(*arguments, **options):
        path.write_text(old.upper())
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(splitting, "shuffled", shuffled)
        patched.setattr(quickstart.pretrain_encoder, "run", lambda *arguments, **options: pytest.fail("it went on"))
        for overwrite in (False, True):
            with pytest.raises(InputError, match=CHANGED):
                quickstart.run(QuickstartConfig(text=str(path), device="cpu"), out, overwrite=overwrite)
            assert not (out / "text").exists()
            path.write_text(old)


def test_a_table_of_the_paper_does_not_read_another_text_than_it_records(tmp_path, monkeypatch):
    path, out, real = tmp_path / "c.txt", tmp_path / "out", splitting.shuffled
    old = "".join(f"Day {day} was the {day}th day of rain in all the valleys of the north.\n" for day in range(9000))
    path.write_text(old)

    def shuffled(*arguments, **options):
        found = real(*arguments, **options)
        path.write_text(old.upper())
        return found

    with monkeypatch.context() as patched:
        patched.setattr(splitting, "shuffled", shuffled)
        with pytest.raises(InputError, match=r"c.txt has changed since it was hashed; run the same command again$"):
            paper_text.write(out, path, rows=4)
    assert not out.exists()
    paper_text.write(out, path, rows=4)
    assert paper_text.record(out)["source_sha256"] == files.sha256(old.upper().encode())


def test_texts_beside_a_sweep_are_not_others_than_it_records(tmp_path, monkeypatch):
    path, real = tmp_path / "c.txt", samples.read
    path.write_text("Rain.\nSnow.\n")

    def read(*arguments):
        path.write_text("Snow.\nRain.\n")
        return real(*arguments)

    monkeypatch.setattr(samples, "read", read)
    with pytest.raises(InputError, match=CHANGED):
        beside.Beside.read(FrontierConfig(), path, [], SILENT)


def test_a_file_of_a_dataset_that_changes_is_refused_too(few, content, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    path = tmp_path / "data" / "train.txt"
    path.parent.mkdir()
    path.write_bytes(content)
    changing(monkeypatch, 0, lambda: os.utime(path))
    with pytest.raises(InputError, match=r"train.txt has changed since it was hashed"):
        extract_features.run(replace(few, data=(), dataset=str(path.parent)), tmp_path / "f")


def test_a_helper_refuses_it_as_well(config, tmp_path, content):
    packing = prepare(config, tmp_path / "f")[0].packing
    packing.plan()
    (tmp_path / "c.txt").write_bytes(content[:-100])
    with Helpers(1, packing.task(), SILENT) as helping:
        helping._running[0][0].wait()
        with pytest.raises(InputError, match=CHANGED):
            helping.check()
    assert not packed(tmp_path / "f")


def test_text_that_changed_while_an_encoder_was_prepared_is_refused(content, tmp_path, monkeypatch):
    from ldlm.config import PretrainConfig
    from ldlm.stages import pretrain_encoder

    path, real = tmp_path / "c.txt", text.pack
    path.write_bytes(content)

    def pack(*arguments):
        path.write_bytes(content[:-100])
        return real(*arguments)

    monkeypatch.setattr(text, "pack", pack)
    config = PretrainConfig(
        data=(str(path),), vocab_size=300, layers=1, width=8, heads=2, positions=16, steps=1, batch_size=2, device="cpu"
    )
    with pytest.raises(InputError, match=CHANGED):
        pretrain_encoder.run(config, tmp_path / "encoder")
