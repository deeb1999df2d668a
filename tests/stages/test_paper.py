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
from ldlm.paper import text as split
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


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        (("figure-5", "--seeds", 7, "--texts", 30), "--seeds and --texts change"),
        (("figure-5", "--steps", 10, "--sampling-seeds", 4), "--steps and --sampling-seeds change"),
        (("figure-5", "--mauve", "off", "--device", "cpu"), "--mauve and --device change"),
        (("figure-5", "--text", "nofile"), "--text changes"),
        (("figure-4", "--sampling-seeds", 9, "--mauve", "off"), "--sampling-seeds and --mauve change"),
        (("figure-6", "--texts", 30), "--texts changes"),
        (("figure-3", "--row", "warmup-0", "--texts", 30), "--texts changes"),
        (("table-8", "--row", "real", "--seeds", 3, "--mauve", "off"), "--seeds and --mauve change"),
        (("table-3", "--scale", "paper", "--texts", 50), "--texts changes"),
        (("table-3", "--scale", "paper", "--sampling-seeds", 9), "--sampling-seeds changes"),
    ],
)
@pytest.mark.parametrize("how", ["run", "dry", "report"])
def test_settings_that_change_nothing_of_what_is_measured_are_refused(words, idle, how, refuse, tmp_path):
    out = tmp_path / "out"
    more = {"run": ("--output", out), "dry": ("--dry-run",), "report": ("--report", "--output", out)}[how]
    line = refuse("paper", *words, *more)
    assert line.startswith(f"{idle} nothing in {words[0]}") and line.endswith(" out")
    assert not out.exists()


def test_what_one_of_several_tables_uses_is_taken_and_changes_and_is_told_by_that_one_alone(succeed, tmp_path):
    config = PaperConfig(scale="paper", texts=50, sampling_seeds=9)
    timed, scored = (paper._plan(config, name) for name in ("table-3", "table-7"))
    assert [job.settings.num_samples for job in timed.jobs if job.kind == "sample"] == [16] * len(timed.rows)
    assert {job.settings.num_samples for job in scored.jobs if job.kind == "sample"} == {50}
    tmp_path.joinpath("out").mkdir()
    words = ("--seeds", 3, "--texts", 30, "--report", "--output", tmp_path / "out")
    made = succeed("paper", "figure-5", "table-7", *words)
    told = [one["command"] for one in made["tables"]]
    assert told == [
        "ldlm paper figure-5 --scale tiny --output DIR",
        "ldlm paper table-7 --scale tiny --seeds 3 --texts 30 --output DIR",
    ]


def test_a_table_of_times_on_one_card_takes_no_other_number_of_devices(refuse, succeed):
    words = ("paper", "table-3", "--scale", "paper", "--row", "ldlm")
    for more in ((), ("--dry-run",)):
        assert refuse(*words, "--devices", 8, *more) == "table-3 has the times of one card; leave --devices 8 out"
    assert "torchrun" not in succeed(*words, "--devices", 1)["script"]


def test_a_report_takes_no_other_text_than_that_of_its_output(text, refuse, succeed, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other.txt"
    other.write_text(text.read_text() + "One more.\n")
    split.write(out, text, 0)
    words = ("paper", "table-7", "--output", out)
    for how in ("--report", "--dry-run"):
        assert refuse(*words, how, "--text", other).startswith(f"{out} holds tables of another text, text.txt")
        assert refuse(*words, how, "--text", tmp_path / "nofile").startswith(f"there is no file {tmp_path / 'nofile'}")
        succeed(*words, how, "--text", text)
        succeed(*words, how)


def test_a_dry_run_without_an_output_looks_at_no_folder(text, succeed, tmp_path, monkeypatch):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text() + "One more.\n")
    split.write(tmp_path, text, 0)
    monkeypatch.chdir(tmp_path)
    succeed("paper", "table-7", "--dry-run", "--text", other)


def test_a_dry_run_of_a_text_that_is_not_there_is_refused(refuse, tmp_path):
    line = refuse("paper", "table-1", "--dry-run", "--text", tmp_path / "nofile")
    assert line.startswith(f"there is no file {tmp_path / 'nofile'}")


@pytest.mark.parametrize("content", ["[]", "{}", '{"file": "a.txt"}', "3"])
@pytest.mark.parametrize("report", [False, True])
def test_a_record_that_is_none_of_a_text_is_named(content, report, text, refuse, tmp_path):
    record = tmp_path / "out" / "text" / "text.json"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    words = ("paper", "table-7", "--mauve", "off", "--text", text, "--output", tmp_path / "out")
    assert (
        refuse(*words, *(["--report"] if report else []))
        == f"{record} is no record of a text; restore it, or choose another --output"
    )


def test_a_figure_that_takes_no_training_has_no_script(refuse, tmp_path):
    words = ("paper", "figure-5", "--scale", "paper", "--script", tmp_path / "figure-5.sh")
    line = "figure-5 is computed and takes no commands, so it has no script; ldlm paper figure-5 --output DIR makes it"
    assert refuse(*words) == line
    assert not (tmp_path / "figure-5.sh").exists()


def test_a_table_that_is_named_twice_is_made_once(succeed, tmp_path):
    once, twice = (succeed("paper", *["table-7"] * times, "--dry-run") for times in (1, 2))
    assert once == twice
    assert succeed("paper", "figure-5", "figure-5", "--output", tmp_path / "out")["exhibit"] == "figure-5"
    assert succeed("paper", "table-7", "table-7", "--scale", "paper")["script"]


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
    for config, mauve in ((PaperConfig(), scored), (PaperConfig(mauve="off"), False)):
        assert paper._reported(config, paper._plan(config, "table-7"), tmp_path).size.mauve is mauve


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
