"""Texts drawn by two commands at once, and texts that are printed and not kept."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
from folders import content, lines
from patience import patience

from ldlm import config as configs
from ldlm import locks
from ldlm.cli import show
from ldlm.config import ExportConfig, SampleConfig, SamplerConfig, TrainConfig
from ldlm.errors import InputError
from ldlm.stages import export, sample, train

FEW = ("--num-samples", 2, "--steps", 2, "--device", "cpu")
DRAW = ("--num-samples", 3, "--steps", 3, "--temperature", 1, "--seed", 2, "--device", "cpu")


def test_a_second_command_for_the_same_texts_is_refused_and_writes_nothing(start, refuse, trained, tmp_path):
    """The first is stopped while it draws."""
    out = tmp_path / "samples.jsonl"
    draw = ["sample", "--run", str(trained), "--num-samples", "40", "--steps", "4"]
    draw += ["--batch-size", "1", "--device", "cpu"]
    ends, partial = time.monotonic() + patience(), tmp_path / "samples.jsonl.partial"
    first = start(draw, out)
    while not (partial.exists() and partial.stat().st_size):
        assert first.poll() is None and time.monotonic() < ends
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        before = partial.read_bytes()
        for more in ((), ("--overwrite",)):
            said = refuse(*draw, "--output", out, *more)
            assert said == f"another process draws texts for {out}; wait for it, or choose another --output"
        assert partial.read_bytes() == before
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait(timeout=patience()) == 0
    seeds = [json.loads(line)["seed"] for line in out.read_text().splitlines()]
    assert len(seeds) == len(set(seeds)) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.jsonl", "samples.jsonl.meta.json"]


# ----------------------------------------------------------------------------------------------------------------------
# Several at once where locks hold nothing


@pytest.fixture
def draw(trained, monkeypatch):
    """`draw(out, 6)`: so many texts, two at a time, without a lock. `meanwhile` happens after the `after`-th batch."""
    monkeypatch.setattr(locks, "to_itself", lambda path, refusal: nullcontext())
    drawn = sample._drawn

    def call(out, count, after=0, meanwhile=lambda: None):
        def batches(*arguments):
            for number, batch in enumerate(drawn(*arguments), 1):
                yield batch
                if number == after:
                    meanwhile()

        config = SampleConfig(num_samples=count, batch_size=2, sampler=SamplerConfig(steps=2), device="cpu")
        with monkeypatch.context() as patched:
            patched.setattr(sample, "_drawn", batches)
            return sample.run(config, trained, out)

    return call


def test_texts_that_another_process_finishes_meanwhile_are_not_added_to(draw, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "s.jsonl"
    draw(whole, 6)
    with pytest.raises(InputError, match=r"another process draws texts for .*s\.jsonl; wait for it, or choose another"):
        draw(out, 6, after=1, meanwhile=lambda: draw(out, 6))
    assert out.read_bytes() == whole.read_bytes()


def test_texts_that_two_processes_drew_are_not_put_in_place(draw, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "s.jsonl"
    draw(whole, 6)
    with pytest.raises(KeyboardInterrupt):
        draw(out, 6, after=1, meanwhile=lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
    partial = tmp_path / "s.jsonl.partial"
    partial.write_bytes(2 * partial.read_bytes())
    with pytest.raises(InputError, match=r"line 3 of .*s\.jsonl\.partial has the text of seed 0, and not of 2: .*--o"):
        draw(out, 6)
    assert not out.exists()


def test_texts_that_were_added_at_the_end_are_no_success(draw, tmp_path):
    out, partial = tmp_path / "s.jsonl", tmp_path / "s.jsonl.partial"
    with pytest.raises(InputError, match=r"s\.jsonl\.partial has 4 texts of 2: .*--overwrite"):
        draw(out, 2, after=1, meanwhile=lambda: partial.write_bytes(2 * partial.read_bytes()))
    assert not out.exists()


# ----------------------------------------------------------------------------------------------------------------------
# Printed


def state(folder):
    """Names and times of all that is in a folder."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def shown(row):
    """The text of a line as it is printed, but for the breaks between lines: control characters as pictures."""
    text = row["text"].replace("\t", " ")
    pictures = re.sub(r"[\x00-\x09\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text).replace("\x7f", "␡")
    return " ".join(re.sub(r"[\x80-\x9f]", "�", pictures).split())


def printed(stdout):
    """The texts that a command has printed by their heading, the breaks between lines as spaces."""
    parts = re.split(r"^(seed [\d,]+)$", stdout, flags=re.MULTILINE)
    return {head: " ".join(text.split()) for head, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_without_an_output_texts_are_printed_and_nothing_is_written(trained, ldlm, succeed, elsewhere):
    before = state(trained)
    done = ldlm("sample", "--run", trained, *DRAW)
    assert done.exit_code == 0, done.stderr
    assert state(trained) == before and list(elsewhere.iterdir()) == []
    assert done.stdout.startswith("3 texts, 3 steps each, decoder joint\n\nseed 2,000,000\n  ")
    assert "3/3 texts" in done.stderr and "3/3" not in done.stdout

    succeed("sample", "--run", trained, *DRAW, "--output", elsewhere / "a.jsonl")
    expected = {f"seed {row['seed']:,}": shown(row) for row in lines(elsewhere / "a.jsonl")}
    assert printed(done.stdout) == expected


def test_json_without_an_output_is_one_object_with_the_lines_and_the_record_of_a_file(trained, succeed, elsewhere):
    made = succeed("sample", "--run", trained, *DRAW)
    assert list(elsewhere.iterdir()) == []
    kept = succeed("sample", "--run", trained, *DRAW, "--output", elsewhere / "a.jsonl")
    assert made.pop("texts") == lines(elsewhere / "a.jsonl")
    assert made.pop("seconds") >= 0
    assert made == {key: value for key, value in kept.items() if key not in ("output", "seconds")}


def test_a_single_step_is_singular(trained, token_runs, ldlm):
    for run, said in ((trained, "1 step each, decoder"), (token_runs("mdlm"), "mdlm, 1 step each")):
        done = ldlm("sample", "--run", run, "--num-samples", 2, "--steps", 1, "--device", "cpu")
        assert done.exit_code == 0, done.stderr
        assert said in done.stdout.splitlines()[0]


def test_a_token_level_run_prints_its_texts_too(token_runs, ldlm, succeed, elsewhere):
    draw = ("sample", "--run", token_runs("mdlm"), "--num-samples", 2, "--steps", 3, "--device", "cpu")
    done = ldlm(*draw)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("2 texts, sampler ancestral of mdlm, 3 steps each")
    assert list(elsewhere.iterdir()) == []
    succeed(*draw, "--output", elsewhere / "a.jsonl")
    assert [*printed(done.stdout).values()] == [*map(shown, lines(elsewhere / "a.jsonl"))]


def test_continued_texts_are_printed_with_their_prompt(train_config, store, ldlm, succeed, elsewhere, tmp_path):
    settings = configs.merge(configs.to_dict(train_config), {"steps": 2, "model": {"condition": "prefix"}})
    run = train.run(configs.from_dict(TrainConfig, settings), store, tmp_path / "run").path
    done = ldlm("sample", "--run", run, "--prompt", "Rain lost", *DRAW)
    assert done.exit_code == 0, done.stderr
    assert list(elsewhere.iterdir()) == []
    assert [text.startswith("Rain lost") for text in printed(done.stdout).values()] == [True] * 3
    found = succeed("sample", "--run", run, "--prompt", "Rain lost", *DRAW)["texts"]
    assert [row["prompt"] for row in found] == ["Rain lost"] * 3


def test_there_is_nothing_to_overwrite_without_an_output(trained, refuse, elsewhere):
    line = refuse("sample", "--run", trained, *DRAW, "--overwrite")
    assert line == "--overwrite replaces a file of texts, and without --output none is written; leave it out"


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "tokenizer/tokenizer.json"])
def test_the_files_of_a_run_are_not_overwritten_by_its_texts(run_copy, refuse, tmp_path, name):
    before, out = content(run_copy), run_copy / name
    link = tmp_path / "link.jsonl"
    link.symlink_to(out)
    for output in (out, link):
        line = refuse("sample", "--run", run_copy, *FEW, "--output", output, "--overwrite")
        assert f"--overwrite would delete {output}, a file of {run_copy}, which is to be read" in line
    assert content(run_copy) == before


def test_texts_in_a_run_are_overwritten(run_copy, succeed):
    drawn = ("sample", "--run", run_copy, *FEW, "--output", run_copy / "samples" / "few.jsonl", "--seed")
    assert succeed(*drawn, 0)["config"]["seed"] == 0
    assert succeed(*drawn, 1, "--overwrite")["config"]["seed"] == 1


def test_a_sampler_that_is_not_offered_is_refused_before_anything_is_drawn(trained, refuse):
    asked = ("--solver", "euler-maruyama", "--grid", "learned")
    assert "it diverges" in refuse("sample", "--run", trained, *DRAW, *asked)


def test_a_text_is_wrapped_with_its_paragraphs_kept_and_nothing_in_it_steers_the_terminal():
    assert show.wrapped("aa bb cc\n\n  dd\n", columns=7) == "  aa bb\n  cc\n\n    dd"
    assert show.wrapped("a\x1b[2Jb\u202ec\td", columns=80) == "  a␛[2Jb�c d"
    assert show.wrapped("", columns=80) == ""
    marked = show.wrapped("<s>aa <s> bb", special=["<s>"], columns=80)
    assert marked == "  \x1b[2m<s>\x1b[0maa \x1b[2m<s>\x1b[0m bb"


IMPORTS = "import torch; from transformers import AutoTokenizer"
MOST = 4.0  # it imports a little more than these, and draws


def processor_seconds(*arguments):
    """Processor time of a Python process with one thread, whatever else the machine does."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *map(str, arguments)], stdout=subprocess.DEVNULL, env=env)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_five_texts_of_an_exported_model_take_less_than_four_times_the_imports_of_what_draws_them(trained, tmp_path):
    model = export.run(ExportConfig(), trained, tmp_path / "model").path
    draw = ("-m", "ldlm.cli", "sample", "--run", model, "--num-samples", 5)
    assert any(processor_seconds(*draw) < MOST * processor_seconds("-c", IMPORTS) for _ in range(3))
