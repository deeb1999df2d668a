"""The files of a shard are those of the maker whose record counts."""

from pathlib import Path

from ldlm.features import decided


def test_a_maker_that_comes_after_the_record_puts_nothing_of_its_own(tmp_path, monkeypatch):
    """A recorded file is gone by then, and the decision goes between the look at its name and the reading."""
    record, real = tmp_path / "ledger" / "0.json", Path.read_bytes
    decided.put(tmp_path, {"states/0": b"of the first", "scales/0": b"too"}, record, {"by": "first"})
    decision, recorded = decided.decision(record), record.read_bytes()
    decision.write_bytes(recorded)  # its maker stands between the record and the removal of this
    (tmp_path / "states" / "0").unlink()

    def read(path):
        if path == decision:
            path.unlink()
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    decided.put(tmp_path, {"states/0": b"of the second", "scales/0": b"as well"}, record, {"by": "second"})
    there = {path.relative_to(tmp_path).as_posix(): real(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert there == {"scales/0": b"too", "ledger/0.json": recorded}
