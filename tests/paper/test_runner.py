"""The runner: each job once, in order, resumed, shared between processes; a failure leaves the rest going."""

import datetime
import json
import threading
import time
from dataclasses import replace

import pytest
from patience import patience

from ldlm import runtime
from ldlm.errors import InputError
from ldlm.locks import passed_on
from ldlm.paper import origin
from ldlm.paper import runner as runners
from ldlm.paper.jobs import Job
from ldlm.paper.plan import TEXT
from ldlm.paper.runner import Runner
from ldlm.progress import SILENT


def job(name, *needs, words=("stories", "--documents", "1", "--dry-run")):
    """A job whose command takes no time: it says how large a story is, and what it says is kept."""
    return Job("sample", (*words, "--output", name), name, needs, keeps=f"kept/{name}.json")


def called(folder):
    path = folder / "commands.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def outputs(folder):
    return [line["ldlm"][-1] for line in called(folder)]


@pytest.fixture
def runner(tmp_path, notes):
    return Runner(tmp_path / "out", None, notes)


def test_jobs_run_once_in_the_order_of_their_needs_and_what_is_gone_is_made_again(runner):
    jobs = [job("second", "first"), job("first")]
    runner.run(jobs)
    assert outputs(runner.folder) == ["first", "second"]
    assert json.loads((runner.folder / "kept/first.json").read_text())["documents"] == 1
    runner.run(jobs)
    assert len(called(runner.folder)) == 2
    (runner.folder / "kept/second.json").unlink()
    runner.run(jobs)
    assert outputs(runner.folder)[2:] == ["second"]


def test_a_command_that_was_listed_in_part_does_not_cost_the_next_one(runner):
    runner.folder.mkdir()
    log = runner.folder / "commands.jsonl"
    log.write_text('{"ldlm": ["sa')
    runner.run([job("one"), job("two")])
    assert [line["makes"] for line in origin.read(log)] == ["kept/one.json", "kept/two.json"]
    assert len(log.read_text().splitlines()) == 3


def test_a_log_is_read_without_lines_that_are_no_records(tmp_path):
    log, whole = tmp_path / "commands.jsonl", {"ldlm": ["sample", "--prompt", "a\u2028b"]}
    assert list(origin.read(log)) == []
    origin.append(log, whole)
    with open(log, "ab") as file:
        file.write(b'3\n\n{"ldlm": ["\xe2\x80')
    origin.append(log, whole)
    assert list(origin.read(log)) == [whole, whole]


def test_every_command_is_listed_with_what_it_makes_where_and_when(runner, monkeypatch):
    monkeypatch.setattr(runtime, "hardware", lambda: "A100")
    runner.run([job("one")])
    (line,) = called(runner.folder)
    assert (line["makes"], line["hardware"]) == ("kept/one.json", "A100")
    assert line["date"] == datetime.date.today().isoformat()


def test_a_job_that_fails_leaves_out_what_needs_it_and_is_tried_again(runner, notes):
    bad = job("bad", words=("paper", "table-0"))  # which there is not
    jobs = [bad, job("after", "bad"), job("other")]
    runner.run(jobs)
    assert [(line["ldlm"][-1], line["status"]) for line in called(runner.folder)] == [("bad", 1), ("other", 0)]
    assert any("failed: sample bad" in note for note in notes.lines)
    with pytest.raises(InputError, match=r"2 jobs failed or need one that did, the first `ldlm paper table-0"):
        runner.check()
    again = Runner(runner.folder, None, SILENT)
    again.run(jobs)
    assert outputs(runner.folder)[2:] == ["bad"]


def test_a_module_in_the_output_is_not_imported(runner):
    runner.folder.mkdir()
    (runner.folder / "random.py").write_text("raise SystemExit('not the standard library')")
    runner.run([job("one")])
    assert [line["status"] for line in called(runner.folder)] == [0]


def test_a_job_that_another_process_has_is_left_to_it_and_waited_for(runner):
    held, free = job("held"), job("free")
    lock = runner.folder / "locks" / "kept-held.json"

    ends = time.monotonic() + patience()

    def other():
        with passed_on(lock) as descriptor:
            assert descriptor is not None
            started.set()
            while not (runner.folder / "kept/free.json").exists() and time.monotonic() < ends:
                time.sleep(0.05)
            (runner.folder / "kept/held.json").write_text("{}")

    started = threading.Event()
    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    assert started.wait(patience())
    runner.run([held, free])
    thread.join(patience())
    assert not thread.is_alive()
    assert outputs(runner.folder) == ["free"]


def test_a_text_too_small_for_what_is_asked_is_refused_before_anything_is_written(tmp_path):
    from ldlm.paper import text

    def of(name, documents, length):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(
            "".join(f"{json.dumps({'text': f'{i} ' + 'word ' * (length // 5)})}\n" for i in range(documents))
        )
        return path

    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"ten\.jsonl has 10 documents.* none would be held out; .* give 17 or more"):
        text.write(out, of("ten", 10, 30_000), rows=4)
    with pytest.raises(InputError, match=r"of which [\d,]+ are held out, about \d+ rows; .* needs 250.*--texts"):
        text.write(out, of("small", 300, 1_000), rows=250)
    assert not out.exists()
    text.write(out, of("enough", 300, 1_000), rows=50)
    assert text.record(out)["documents"]["held-out"] == 18


def documents(path, count, length=1_000):
    """A file of text with so many documents."""
    texts = ({"text": f"{path.stem} {number} " + "word " * (length // 5)} for number in range(count))
    path.write_text("".join(f"{json.dumps(text)}\n" for text in texts))
    return path


def test_a_text_too_small_for_what_is_asked_later_is_refused_before_anything_is_done(tmp_path):
    from ldlm.config import InterpolateConfig

    text = documents(tmp_path / "novel.jsonl", 300)
    source, first, later = Job("text", (), TEXT), job("first", TEXT), job("later", TEXT)
    paths = replace(job("paths", TEXT), kind="interpolate", settings=InterpolateConfig(pairs=128))
    runner = Runner(tmp_path / "out", text, SILENT)
    runner.run([source, first])
    message = r"the text of .*out has .* held out, about \d+ rows; what is asked for needs 256: .*--texts, .*--output"
    with pytest.raises(InputError, match=message):
        runner.run([source, later, paths])
    assert outputs(runner.folder) == ["first"]
    (runner.folder / "kept/paths.json").write_text("{}")
    runner.run([source, later, paths])  # what is done reads no row any more
    assert outputs(runner.folder) == ["first", "later"]


def test_another_text_that_another_process_writes_first_is_refused_too(tmp_path, monkeypatch):
    """Both have found a folder without a text."""
    mine, theirs = documents(tmp_path / "mine.jsonl", 300), documents(tmp_path / "theirs.jsonl", 300)
    source, free, other = Job("text", (), TEXT), job("free"), job("other", TEXT)
    runner = Runner(tmp_path / "out", mine, SILENT)
    passed = runners.passed_on

    def first(lock):
        if not (runner.folder / TEXT).exists():
            runners.text.write(runner.folder, theirs, 0)
        return passed(lock)

    monkeypatch.setattr(runners, "passed_on", first)
    with pytest.raises(InputError, match=r"holds tables of another text, theirs\.jsonl; choose another --output"):
        runner.run([source, other, free])
    assert outputs(runner.folder) == []


def test_an_output_of_another_text_is_refused(runner, corpus, few_lines, tmp_path):
    from ldlm.paper import text

    (runner.folder / "text").mkdir(parents=True)
    described = {"file": "other.txt", "source_sha256": "0"}
    assert (runner.text_name, Runner(runner.folder, corpus, SILENT).text_name) == (None, corpus.name)
    (runner.folder / "text/text.json").write_text(json.dumps(described))
    assert runner.text_name == "other.txt"  # which a report does not ask for
    with pytest.raises(InputError, match=r"holds tables of another text, other\.txt; choose another --output"):
        text.check(runner.folder, corpus)
    with pytest.raises(InputError, match=r"holds tables of another text"):
        runner.run([])
    with pytest.raises(InputError, match=r"characters of text; a table needs 200,000"):
        text.write(tmp_path / "small", few_lines, rows=1)
    assert not (tmp_path / "small").exists()
