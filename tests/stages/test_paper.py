"""`ldlm paper`: a table at the smallest size from text to page, killed and taken up again; and what it refuses."""

import importlib.util
import json
import signal
import subprocess
import sys
import time

import pytest

from ldlm import files
from ldlm.config import PaperConfig
from ldlm.stages import paper
from tests.conftest import sentences

ROWS = ("joint", "layers-1")


@pytest.fixture
def text(tmp_path):
    """A text of 250,000 characters, no document twice."""
    one = iter(sentences(12_000))
    found = zip(one, one, one, strict=False)
    documents = dict.fromkeys(" ".join(three) for three in found)
    path = tmp_path / "text.txt"
    path.write_text("\n".join(documents))
    return path


@pytest.mark.slow
def test_a_table_is_made_from_text_killed_and_taken_up_again(text, tmp_path, succeed):
    out = tmp_path / "out"
    sizes = ("--steps", 10, "--texts", 4, "--seeds", 1, "--mauve", "off", "--device", "cpu")
    words = [str(word) for word in ("paper", "table-5", "--row", *ROWS, "--text", text, "--output", out, *sizes)]
    process = subprocess.Popen([sys.executable, "-m", "ldlm.cli", *words], stdout=subprocess.DEVNULL)
    log = out / "commands.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 4:  # encoder, features, real texts, training
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()

    record = succeed(*words)
    called = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["status"] for line in called} == {0}
    commands = [tuple(line["ldlm"]) for line in called]
    assert len(set(commands)) == len(commands)  # and the one that was at work when its parent was killed is not logged
    kinds = [line["ldlm"][0] for line in called]
    assert [kinds.count(kind) for kind in ("train", "finetune-decoder", "sample", "evaluate")] == [1, 1, 4, 2]
    for row in record["rows"]:
        cells = {one["quantity"]: one for one in row["figures"]}
        assert set(cells) == {"gen_ppl", "entropy", "diversity"}
        assert [len(seed) for seed in cells["entropy"]["by_seed"]] == [2]
    (statement,) = record["statements"]
    assert statement["words"].endswith("Reference jointly trained decoder < 1 layer")
    assert files.read_json(out / "table-5-tiny.json") == {key: record[key] for key in record if key != "output"}
    assert (out / "table-5-tiny.md").read_text(encoding="utf-8").startswith("# Table 5: Effect of the number")

    assert succeed(*words)["rows"] == record["rows"]
    assert len(log.read_text().splitlines()) == len(called)


def test_what_does_not_go_together_is_refused_in_one_line(refuse, tmp_path):
    out = ("--output", tmp_path / "out")
    assert refuse("paper", "table-10", *out).startswith("there is no 'table-10'; choose list, or one of table-1")
    assert refuse("paper", "table-9", *out).startswith("table-9 needs a GPU")
    assert refuse("paper", "table-9", "--dry-run").startswith("table-9 needs a GPU")
    alone = ("figure-1", "--row", "table-9/ldlm")
    assert refuse("paper", *alone, *out).startswith(f"{' '.join(alone)} needs a GPU")
    assert refuse("paper", "table-7", "--row", "mlp", *out).startswith("Table 7 has no row 'mlp'; it has resampler")
    assert refuse("paper", "table-7").startswith("--output is missing")
    assert refuse("paper", "table-10").startswith("there is no 'table-10'; choose list, or one of table-1")
    assert refuse("paper", "table-3").startswith("table-3 needs a GPU")
    assert refuse("paper", "table-7", "--mauve", "on", "--texts", 19, *out).startswith("MAUVE needs at least 20 texts")
    assert refuse("paper", "table-7", "--report", *out).endswith("there is nothing to report; run it first")
    assert refuse("paper", "table-7", "--scale", "paper", "--steps", 50).startswith("--text and --steps are for")
    assert refuse("paper", "table-7", "table-5", "--scale", "paper").startswith("a script makes one table")
    script = ("--script", tmp_path / "s.sh", *out)
    assert refuse("paper", "table-7", *script).startswith("--script is for")
    assert refuse("paper", "table-7", "--scale", "paper", "--report", *script).endswith("--report writes none")
    assert not (tmp_path / "out").exists()


def test_mauve_that_is_not_installed_is_missed_before_anything_is_trained(tmp_path, refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    out = tmp_path / "out"
    assert refuse("paper", "table-7", "--mauve", "on", "--output", out).startswith("MAUVE needs the package mauve-text")
    assert not out.exists()


@pytest.mark.parametrize(("texts", "computed"), [(19, False), (20, True), (None, True)])
def test_mauve_is_left_out_below_the_fewest_texts_that_it_takes(texts, computed, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    plan = paper._plan(PaperConfig(texts=texts), "table-7")
    assert plan.size.mauve == computed


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("scored", [False, True])
def test_a_report_finds_the_scores_whether_or_not_mauve_is_installed_here(scored, there, monkeypatch, tmp_path):
    made = paper._plan(PaperConfig(mauve="on" if scored else "off"), "table-7")
    for job in made.jobs:
        files.write_atomic(tmp_path / job.mark, b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if there else None)
    assert paper._reported(PaperConfig(), "table-7", tmp_path).size.mauve == scored
    assert paper._reported(PaperConfig(mauve="off"), "table-7", tmp_path).size.mauve is False


def test_several_are_written_by_one_command(succeed, refuse, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    made = succeed("paper", "figure-5", "table-7", "--report", "--output", out)
    assert [one["exhibit"] for one in made["tables"]] == ["figure-5", "table-7"]
    assert {"figure-5-tiny.json", "figure-5-tiny.png", "table-7-tiny.md"} <= {path.name for path in out.iterdir()}
    assert refuse("paper", "figure-5", "table-9", "--output", tmp_path / "new").startswith("table-9 needs a GPU")
    assert not (tmp_path / "new").exists()  # found out before the first is made


def test_the_list_names_every_table_and_figure_with_the_state_of_its_evidence(succeed, ldlm):
    found = {one["name"]: one for one in succeed("paper", "list")}
    assert len(found) == 14
    assert found["table-9"]["state"] in ("needs a GPU", "reproduced", "partly reproduced", "contradicted", "undecided")
    assert "Ablation study on OWT-128" in ldlm("paper", "list").stdout


def test_a_script_is_written_whole_to_its_file(succeed, tmp_path):
    path = tmp_path / "table-7.sh"
    assert succeed("paper", "table-7", "--scale", "paper", "--script", path, "--output", "/data/t") == {
        "output": str(path)
    }
    assert "mkdir -p -- /data/t && cd -- /data/t" in path.read_text()
    printed = succeed("paper", "table-7", "--scale", "paper", "--output", "/data/t")
    assert printed["script"] == path.read_text()
