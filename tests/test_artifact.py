"""The rule for a stage's output (SPEC 12.1): go on, do nothing, or refuse; and what a later stage may open."""

import errno
import gzip
import json
import os
import re
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from folders import content

from ldlm import artifact, kinds
from ldlm.artifact import begin, open_artifact
from ldlm.config import ExtractConfig, PaperConfig, SweepConfig, TokenSweepConfig, TrainConfig
from ldlm.errors import InputError, Unreadable
from ldlm.features.detection import as_input_error
from ldlm.stages import paper

CONFIG = TrainConfig(steps=5)


def test_an_output_is_new_then_partial_then_complete(tmp_path):
    out = tmp_path / "deep" / "run"
    assert begin(out, "run", CONFIG, {}).state == "new"
    again = begin(out, "run", CONFIG, {})
    assert (again.state, again.complete) == ("partial", False)
    again.finish(answer=42)
    done = begin(out, "run", CONFIG, {})
    assert (done.state, done.complete) == ("complete", True)
    assert done.manifest["answer"] == 42
    assert done.manifest["kind"] == "run"


def test_a_manifest_names_the_versions_that_decide_results(tmp_path):
    import torch

    versions = begin(tmp_path / "run", "run", CONFIG, {}).finish().manifest["versions"]
    assert versions["torch"] == torch.__version__
    assert {"ldlm", "python", "transformers", "tokenizers", "numpy", "zarr", "commit"} <= set(versions)


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    assert begin(tmp_path, "run", CONFIG, {}).state == "new"


def test_a_changed_setting_is_refused_and_named_and_nothing_is_touched(tmp_path):
    out = tmp_path / "run"
    begin(out, "run", CONFIG, {}).finish()
    before = content(out)
    with pytest.raises(InputError, match=r"\(seed: 0 -> 1\); .*or add --overwrite") as error:
        begin(out, "run", TrainConfig(steps=5, seed=1), {})
    assert "batch_size" not in str(error.value)
    assert content(out) == before


def test_settings_of_another_kind_of_run_are_refused_in_one_line(tmp_path):
    """LDLM's sweep and a rival's are of one kind of artefact, and have settings of their own."""
    for mine, theirs, names in [(SweepConfig, TokenSweepConfig, "solvers"), (TokenSweepConfig, SweepConfig, "top_ps")]:
        out = tmp_path / mine.__name__
        begin(out, "sweep", mine(), {})
        before = content(out)
        with pytest.raises(InputError) as error:
            begin(out, "sweep", theirs(), {})
        assert re.fullmatch(
            rf"{out} was made with settings of another kind of run \(.*\b{names}\b.*\); choose another --output, or "
            r"add --overwrite",
            str(error.value),
        )
        assert content(out) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("there", ["nothing", "a file", "photos", "another kind", "the same", "a seed", "what is read"])
def test_what_begin_would_refuse_is_refused_by_a_check_which_changes_nothing(tmp_path, there, overwrite):
    out, reads = tmp_path / "run", []
    if there == "a file":
        out.write_text("text")
    elif there == "photos":
        out.mkdir()
        (out / "photo.jpg").write_bytes(b"irreplaceable")
    elif there == "another kind":
        begin(out, "features", ExtractConfig(), {})
    elif there != "nothing":
        begin(out, "run", replace(CONFIG, seed=int(there == "a seed")), {})
        reads = [out / "scorer"] * (there == "what is read")

    def said(by):
        try:
            by()
        except InputError as error:
            return str(error)

    before = content(tmp_path)
    if overwrite:
        checked = said(lambda: artifact.check_overwrite(out, "run", reads))
    else:
        checked = said(lambda: artifact.check(out, "run", CONFIG, {}, reads=reads))
    assert content(tmp_path) == before
    assert checked == said(lambda: begin(out, "run", CONFIG, {}, overwrite=overwrite, reads=reads))
    accepted = ["nothing", "the same", *(["a seed"] if overwrite else ["what is read"])]
    assert (checked is None) == (there in accepted)


def test_a_changed_input_is_refused_and_named(tmp_path):
    begin(tmp_path / "run", "run", CONFIG, {"features": "aaa"})
    with pytest.raises(InputError, match=r"inputs.features: aaa -> bbb"):
        begin(tmp_path / "run", "run", CONFIG, {"features": "bbb"})


def test_what_is_no_part_of_the_identity_may_change_and_is_written_down(tmp_path):
    out = tmp_path / "run"
    begin(out, "run", CONFIG, {})
    found = begin(out, "run", TrainConfig(steps=9, device="cpu"), {})
    assert found.state == "partial"
    assert (found.config["steps"], found.config["device"]) == (9, "cpu")


def test_overwrite_replaces_everything(tmp_path):
    out = tmp_path / "run"
    begin(out, "run", CONFIG, {}).finish()
    (out / "old.txt").write_text("old")
    found = begin(out, "run", TrainConfig(seed=1), {}, overwrite=True)
    assert found.state == "new"
    assert set(content(out)) == {"artifact.json", "config.yaml"}


def test_what_can_not_be_recorded_deletes_nothing(tmp_path):
    begin(tmp_path / "run", "run", CONFIG, {}).finish()
    before = content(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        begin(tmp_path / "run", "run", CONFIG, {"seconds": float("nan")}, overwrite=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["photo.jpg", "manifest.json", "store.json", "config.yaml"])
def test_foreign_content_is_refused_and_overwrite_is_no_remedy(tmp_path, name, overwrite):
    out = tmp_path / "holiday"
    out.mkdir()
    (out / name).write_bytes(b"{}")
    for kind, option in (("run", "--output"), ("features", "--output"), ("decoder", "--name")):
        with pytest.raises(InputError) as error:
            begin(out, kind, CONFIG, {}, overwrite=overwrite)
        line = f"{out} is not empty and not made by ldlm; choose another {option}, or empty it yourself"
        assert str(error.value) == line
        assert content(out) == {name: b"{}"}


def test_an_output_that_lacks_only_its_record_is_known_and_can_be_overwritten(tmp_path):
    out = tmp_path / "run"
    begin(out, "run", CONFIG, {}).finish()
    (out / "artifact.json").unlink()
    with pytest.raises(InputError) as error:
        begin(out, "run", CONFIG, {})
    line = f"{out} is a training run without its artifact.json; restore that from a copy, choose another --output, or"
    assert str(error.value) == f"{line} add --overwrite"
    with pytest.raises(InputError, match="not empty and not made by ldlm"):
        begin(out, "features", CONFIG, {}, overwrite=True)
    assert begin(out, "run", CONFIG, {}, overwrite=True).state == "new"


def test_another_kind_is_refused_by_name(tmp_path):
    begin(tmp_path / "x", "features", ExtractConfig(), {})
    with pytest.raises(InputError, match="holds a feature store; choose another --output"):
        begin(tmp_path / "x", "run", CONFIG, {})


def test_a_file_can_not_be_an_output_folder(tmp_path):
    (tmp_path / "x").write_text("text")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is a file and the output is a folder"):
            begin(tmp_path / "x", "run", CONFIG, {}, overwrite=overwrite)
    assert (tmp_path / "x").read_text() == "text"


def test_standard_output_can_not_be_an_output_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^- names no folder, .* for example --output run$"):
        begin(Path("-"), "run", CONFIG, {})
    with pytest.raises(InputError, match=r"^- names no folder"):
        paper.run(PaperConfig(), ["figure-5"], Path("-"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["here", "parent"])
def test_overwrite_never_deletes_the_working_directory_or_what_holds_it(tmp_path, monkeypatch, where):
    here = tmp_path / "work" / "here"
    here.mkdir(parents=True)
    (here / "thesis.tex").write_text("years of work")
    monkeypatch.chdir(here)
    with pytest.raises(InputError, match="--overwrite would delete"):
        begin(Path("." if where == "here" else ".."), "run", CONFIG, {}, overwrite=True)
    assert (here / "thesis.tex").read_text() == "years of work"


def test_overwrite_never_deletes_what_the_stage_is_about_to_read(tmp_path):
    out = tmp_path / "out"
    begin(out, "run", CONFIG, {})
    (out / "corpus.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"--overwrite would delete .*corpus.txt, which is to be read"):
        begin(out, "run", CONFIG, {}, overwrite=True, reads=[tmp_path / "other.txt", out / "corpus.txt"])
    assert (out / "corpus.txt").read_text() == "years of work"
    assert begin(out, "run", CONFIG, {}, overwrite=True, reads=[tmp_path / "other.txt"]).state == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # what was deleted left no litter


def test_overwrite_does_not_replace_another_kind(tmp_path):
    begin(tmp_path / "x", "features", ExtractConfig(), {}).finish()
    before = content(tmp_path)
    with pytest.raises(InputError, match="holds a feature store, which --overwrite doesn't replace with a training"):
        begin(tmp_path / "x", "run", CONFIG, {}, overwrite=True)
    assert content(tmp_path) == before


def test_a_manifest_that_was_changed_is_noticed(tmp_path):
    out = tmp_path / "run"
    begin(out, "run", CONFIG, {}).finish(step=10)
    written = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(written.replace('"step": 10', '"step": 90'))
    with pytest.raises(InputError, match=r"manifest.json is damaged"):
        _ = open_artifact(out, "run").manifest
    (out / "manifest.json").write_text(written)
    assert open_artifact(out, "run").manifest["step"] == 10


def test_a_complete_output_keeps_the_configuration_that_it_was_made_with(tmp_path):
    begin(tmp_path / "run", "run", CONFIG, {}).finish()
    before = content(tmp_path / "run")
    assert begin(tmp_path / "run", "run", TrainConfig(steps=3, device="cpu"), {}).complete
    assert content(tmp_path / "run") == before


def test_what_a_kill_in_the_first_write_leaves_is_nobodys_content(tmp_path):
    (tmp_path / ".artifact.json.123.tmp").write_text('{"ki')
    assert begin(tmp_path, "run", CONFIG, {}).state == "new"


def test_an_output_killed_between_its_first_two_files_can_be_taken_up(tmp_path):
    out = tmp_path / "run"
    begin(out, "run", CONFIG, {"features": "aaa"})
    (out / "config.yaml").unlink()
    found = begin(out, "run", CONFIG, {"features": "bbb"})
    assert found.state == "new"
    assert (found.inputs, found.config["steps"]) == ({"features": "bbb"}, 5)


def test_a_finished_output_whose_configuration_is_gone_is_not_taken_for_a_new_one(tmp_path):
    out = tmp_path / "run"
    begin(out, "run", CONFIG, {}).finish()
    (out / "config.yaml").unlink()
    with pytest.raises(InputError, match="choose another --output, or add --overwrite"):
        begin(out, "run", CONFIG, {})


def test_bad_input_found_later_removes_what_was_just_made_but_not_what_was_taken_up(tmp_path):
    out = tmp_path / "run"
    for state in ("new", "partial"):
        found = begin(out, "run", CONFIG, {})
        assert found.state == state
        with pytest.raises(InputError), found.or_nothing():
            raise InputError("the file is empty")
        assert out.exists() == (state == "partial")
        begin(out, "run", CONFIG, {})


def test_bad_input_leaves_the_folder_to_the_processes_that_are_still_at_work(tmp_path):
    """The last one that fails removes it; one that can read its input finishes it, and one that is killed leaves it."""
    out, settings = tmp_path / "features", ExtractConfig(data=("a.txt",))

    def fails(begun, held):
        with pytest.raises(InputError, match="no text"), replace(begun, state="new").or_nothing(held=held):
            raise InputError("no text")

    for killed in (False, True):
        with ExitStack() as first, ExitStack() as second:
            one, two = (begin(out, "features", settings, {}, shared=True, held=held) for held in (first, second))
            (out / "work").write_text("of the other")
            fails(one, first)
            assert (out / "work").exists()
            if not killed:
                fails(two, second)
                assert not out.exists()
    assert begin(out, "features", settings, {}, shared=True).state == "partial"
    assert (out / "work").exists()
    with ExitStack() as first, ExitStack() as second:
        one, two = (begin(out, "features", settings, {}, shared=True, held=held) for held in (first, second))
        fails(one, first)
        two.finish()
    assert open_artifact(out, "features").state == "complete"


def test_input_that_could_not_be_read_leaves_what_was_made(tmp_path):
    """On another machine it may be readable, and what is there may be the work of others."""
    found = begin(tmp_path / "run", "run", CONFIG, {})
    with (
        pytest.raises(Unreadable, match=r"a.txt can't be read: Input/output error"),
        found.or_nothing(),
        as_input_error(lambda: "a.txt"),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert begin(tmp_path / "run", "run", CONFIG, {}).state == "partial"
    with pytest.raises(InputError) as bad, as_input_error(lambda: "a.gz"):
        raise gzip.BadGzipFile("Not a gzipped file")
    assert not isinstance(bad.value, Unreadable)


def test_of_two_machines_that_begin_an_output_the_first_decides_what_it_is(tmp_path, monkeypatch):
    """The other looked when nothing was there."""
    out, settings = tmp_path / "features", ExtractConfig(data=("a.txt",))
    begin(out, "features", settings, {}, shared=True)
    found, looks = artifact._found, [None]
    monkeypatch.setattr(artifact, "_found", lambda path: looks.pop() if looks else found(path))
    assert begin(out, "features", settings, {}, shared=True).state == "new"
    looks.append(None)
    with pytest.raises(InputError, match=r"was made with other settings \(.*seq_len"):
        begin(out, "features", replace(settings, seq_len=8), {}, shared=True)
    looks.append(None)
    with pytest.raises(InputError, match="was made with other settings"):
        begin(out, "features", settings, {"text": "other"}, shared=True)
    assert begin(out, "features", settings, {}, shared=True).state == "partial"


def test_a_crash_keeps_what_was_made(tmp_path):
    found = begin(tmp_path / "run", "run", CONFIG, {})
    with pytest.raises(KeyboardInterrupt), found.or_nothing():
        raise KeyboardInterrupt
    assert begin(tmp_path / "run", "run", CONFIG, {}).state == "partial"


def test_opening_names_what_was_found_what_was_needed_and_the_command_that_makes_it(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*; `ldlm extract-features` makes a feature store"):
        open_artifact(tmp_path / "absent", "features")

    run = tmp_path / "run"
    begin(run, "run", CONFIG, {}).finish()
    with pytest.raises(InputError, match=r"holds a training run, and a feature store is needed; `ldlm extract-feat"):
        open_artifact(run, "features")

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "a.txt").write_text("a")
    with pytest.raises(InputError, match=r"holds something that ldlm did not make, and a training run is needed"):
        open_artifact(foreign, "run")


@pytest.mark.parametrize("kind", ["run", "decoder", "features"])
def test_an_artefact_of_any_kind_that_lost_its_record_is_told_from_anything_else(tmp_path, kind):
    begin(tmp_path / "made", kind, CONFIG, {}).finish()
    (tmp_path / "made" / "artifact.json").unlink()
    with pytest.raises(InputError, match=r"is an? .* without its artifact.json, which says .*; restore that from a"):
        open_artifact(tmp_path / "made", kind)
    with pytest.raises(InputError, match=r"holds something that ldlm did not make, and an encoder is needed"):
        open_artifact(tmp_path / "made", "encoder")


def test_an_unfinished_artefact_opens_only_where_that_is_allowed(tmp_path):
    begin(tmp_path / "run", "run", CONFIG, {})
    with pytest.raises(InputError, match=r"is not finished; run the same `ldlm train` command again"):
        open_artifact(tmp_path / "run", "run")
    assert open_artifact(tmp_path / "run", "run", complete=False).state == "partial"


def test_a_damaged_record_is_named(tmp_path):
    begin(tmp_path / "run", "run", CONFIG, {})
    (tmp_path / "run" / "artifact.json").write_text('{"kind": "ru')
    with pytest.raises(InputError, match=r"artifact.json is damaged"):
        open_artifact(tmp_path / "run", "run")


def test_every_kind_has_the_command_that_makes_it():
    from ldlm.cli import main

    assert {command.split()[1] for command in kinds.MADE_BY.values()} <= set(main.commands)


def test_an_artefact_may_be_moved(tmp_path):
    begin(tmp_path / "a", "run", CONFIG, {}).finish()
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert begin(tmp_path / "b", "run", CONFIG, {}).complete
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["kind"] == "run"
