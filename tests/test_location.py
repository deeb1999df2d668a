"""Names of folders, by which commands know runs."""

from pathlib import Path

import pytest

from ldlm.errors import InputError
from ldlm.location import folder_name, folder_names


def test_a_folder_has_a_name_however_it_is_given(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "best").symlink_to("run")
    monkeypatch.chdir(tmp_path / "run")
    assert [folder_name(Path(path)) for path in (".", "../run", "../best", "../run/")] == ["run", "run", "best", "run"]


def test_names_are_the_shortest_ends_that_differ_and_none_is_a_path(tmp_path):
    assert folder_names([Path("/a/one"), Path("/a/two")]) == ["one", "two"]
    assert folder_names([Path("/a/run"), Path("/b/run")]) == ["a-run", "b-run"]
    assert folder_names([Path("/data/run"), Path("/mnt/data/run")]) == ["data-run", "mnt-data-run"]
    (tmp_path / "run").mkdir()
    (tmp_path / "best").symlink_to("run")
    assert folder_names([tmp_path / "best", tmp_path / "other"]) == ["best", "other"]
    with pytest.raises(InputError, match="give each once"):
        folder_names([tmp_path / "best", tmp_path / "run"])
    with pytest.raises(InputError, match="give each once"):
        folder_names([Path("/data/run"), Path("/data/../data/run")])
