"""`ldlm sample --trace`: the frames are what the decoder reads, and the last one is the text of `ldlm sample`."""

import json
import shutil

import numpy as np
import pytest
import torch

from ldlm.config import SamplerConfig
from ldlm.hub import load_tokenizer
from ldlm.sampling import trace
from ldlm.sampling.frames import Frame, cells, visible
from ldlm.sampling.generation import text_seeds
from ldlm.sampling.trained_run import TrainedRun

SETTINGS = ("--steps", 8, "--seed", 1, "--device", "cpu")  # those of `traced`


# ----------------------------------------------------------------------------------------------------------------------
# Frames


@pytest.mark.parametrize("more", [(), ("--temperature", 1), ("--solver", "heun", "--final", "x0")], ids=str)
def test_the_last_frame_is_the_text_that_sample_writes(trained, succeed, tmp_path, more):
    texts, folder = tmp_path / "samples.jsonl", tmp_path / "trace"
    succeed("sample", "--run", trained, *SETTINGS, *more, "--num-samples", 5, "--output", texts)
    succeed("sample", "--run", trained, *SETTINGS, *more, "--trace-text", 3, "--trace", folder)
    wanted = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()][3]
    found = json.loads((folder / "trace.json").read_text(encoding="utf-8"))
    assert found["text"] == found["frames"][-1]["text"] == wanted["text"]
    assert found["frames"][-1]["tokens"] == wanted["tokens"]
    assert found["text_seed"] == wanted["seed"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_exported_model_is_traced_as_its_run_is(trained, traced, succeed, refuse, tmp_path, precision):
    run_folder, _ = traced
    model, folder = tmp_path / "model", tmp_path / "trace"
    succeed("export", "--run", trained, "--precision", precision, "--output", model)
    command = ("sample", "--run", model, *SETTINGS, "--trace-text", 2, "--trace-frames", 5)
    succeed(*command, "--trace", folder)
    found = json.loads((folder / "trace.json").read_text(encoding="utf-8"))
    drawn = succeed("sample", "--run", model, *SETTINGS, "--num-samples", 3)["texts"][2]
    assert (found["text"], found["frames"][-1]["tokens"]) == (drawn["text"], drawn["tokens"])
    assert found["run"] == "model"
    assert succeed(*command, "--trace", folder, "--dry-run")["denoiser_evaluations"] == 8
    if precision == "bf16":  # its rounded weights draw other texts
        shutil.copytree(run_folder, tmp_path / "of-run")
        assert "--overwrite" in refuse(*command, "--trace", tmp_path / "of-run")


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_confidence_is_the_softmax_at_the_tokens_that_are_shown(trained, temperature):
    run = TrainedRun(trained, torch.device("cpu"))
    generator, sampler = run.generator(), SamplerConfig(steps=6, temperature=temperature)
    seed = int(text_seeds(3, 1, 2))
    seen = []
    end = generator.watched_ends(sampler, torch.tensor([seed]), lambda t, z: seen.append((t.item(), z)))
    z_0 = getattr(end, sampler.final)
    frames = trace.record(generator, run.tokenizer, sampler, seed, frames=99, times=())

    assert [f.t for f in frames] == [t for t, _ in seen] + [sampler.t_min]
    for found, z in zip(frames, [*(z for _, z in seen), z_0], strict=True):
        logits = generator.decoder.logits(z)[0].numpy().astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        assert found.probabilities == pytest.approx(p[np.arange(len(p)), found.tokens], rel=1e-9)
        assert found.confidence == pytest.approx(np.mean(found.probabilities))
        assert (found.tokens == p.argmax(-1)).all() == (temperature == 0)
        alpha, sigma = run.schedule.alpha_sigma(torch.tensor(found.t, dtype=torch.float64))
        assert found.snr == pytest.approx((alpha**2 / sigma**2).item(), rel=1e-9)


def test_what_is_written_is_what_was_recorded(trained, traced):
    _, written = traced
    run = TrainedRun(trained, torch.device("cpu"))
    frames = trace.record(run.generator(), run.tokenizer, SamplerConfig(steps=8), written["text_seed"], 5, ())
    assert len(frames) == len(written["frames"]) == 5
    for a, b in zip(frames, written["frames"], strict=True):
        assert (a.t, a.tokens, a.text) == (b["t"], b["tokens"], b["text"])
        assert b["probabilities"] == pytest.approx(a.probabilities, abs=1e-6)


def test_times_are_chosen_on_the_grid():
    grid = torch.linspace(1, 0.2, 9, dtype=torch.float64)  # steps of 0.1
    assert sorted(trace.evaluations(grid, 5, ())) == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert len(trace.evaluations(grid, 99, ())) == 8
    assert sorted(trace.evaluations(grid, 2, [0.0, 0.52, 0.58, 0.91])) == pytest.approx([0.3, 0.5, 0.6, 0.9])


def test_chosen_times_are_shown(trained, succeed, tmp_path):
    times = ("--sampler", "paper", "--trace-times", 0.9, 0.33, 0.32)
    assert succeed("sample", "--run", trained, *SETTINGS, *times, "--trace", tmp_path / "trace")["frames"] == 3
    frames = json.loads((tmp_path / "trace" / "trace.json").read_text(encoding="utf-8"))["frames"]
    assert [f["t"] for f in frames] == pytest.approx([1 - 0.95 / 8, 1 - 6 * 0.95 / 8, 0.05])


# ----------------------------------------------------------------------------------------------------------------------
# Cells


@pytest.mark.parametrize("arch", ["gpt2", "bert"])
def test_cells_cover_the_tokens_and_join_to_the_text(arch, request):
    tokenizer = load_tokenizer(str(request.getfixturevalue(arch)))
    draw = np.random.default_rng(0)
    for _ in range(20):
        tokens = draw.integers(0, len(tokenizer), 40).tolist()
        found = cells(tokenizer, tokens)
        assert "".join(cell.text for cell in found) == tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        assert [cell.start for cell in found] == [0, *(cell.stop for cell in found[:-1])]
        assert found[-1].stop == len(tokens)


def test_a_character_of_several_tokens_is_one_cell(gpt2):
    tokenizer = load_tokenizer(str(gpt2))
    text = "日本 😀, naïve\n"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = cells(tokenizer, tokens)
    assert "�" not in "".join(cell.text for cell in found)
    (sun,) = (cell for cell in found if "日" in cell.text)
    assert (sun.text, sun.stop - sun.start) == ("日", 3)
    p = np.linspace(0.9, 0.1, len(tokens)).tolist()
    shown = Frame(0.5, 0.1, tokens, p, text, found)
    assert shown.probability(sun) == p[sun.stop - 1]
    # Cut off in the middle, it is a sign of its own, and what follows is whole.
    torn = [*tokens[: sun.stop - 1], *tokenizer(", a", add_special_tokens=False)["input_ids"]]
    assert [cell.text for cell in cells(tokenizer, torn)] == ["�", ",", " a"]


def test_special_tokens_are_told_apart(gpt2):
    tokenizer = load_tokenizer(str(gpt2))
    tokens = [tokenizer.eos_token_id, *tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert [(cell.text, cell.special) for cell in cells(tokenizer, tokens)] == [
        ("<|endoftext|>", True),
        ("a", False),
        ("<|endoftext|>", True),
    ]


def test_what_does_not_show_gets_a_sign():
    assert visible("a\tb\nc\x00\x7f\r é") == "a⇥b↵\nc␀␡␍ é"
    assert visible("\u202eabc\u2066\u2028\x85") == "�abc���"


# ----------------------------------------------------------------------------------------------------------------------
# The command


def test_the_same_command_again_does_nothing_and_another_is_refused(trained, traced, succeed, ldlm, refuse):
    folder, _ = traced
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    command = ("sample", "--run", trained, *SETTINGS, "--trace", folder, "--trace-text", 2)
    # How many texts there would be beside it, and how many at a time, is nothing to it.
    again = ldlm(*command, "--trace-frames", 5, "--num-samples", 7, "--batch-size", 3)
    assert "is complete; nothing to do" in again.stderr
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert "trace_frames: 5 -> 6" in refuse(*command, "--trace-frames", 6)
    assert "temperature: 0.0 -> 1.0" in refuse(*command, "--trace-frames", 5, "--temperature", 1)


def test_an_interrupted_one_is_made_whole(trained, succeed, tmp_path):
    command = ("sample", "--run", trained, *SETTINGS, "--trace", tmp_path / "trace")
    succeed(*command)
    files = {name: (tmp_path / "trace" / name).read_bytes() for name in ("trace.html", "trace.gif", "trace.json")}
    for name in ("manifest.json", "trace.gif", "trace.html"):
        (tmp_path / "trace" / name).unlink()
    succeed(*command)
    assert {name: (tmp_path / "trace" / name).read_bytes() for name in files} == files
    assert (tmp_path / "trace" / "manifest.json").exists()


def test_what_can_not_be_traced_is_said(trained, refuse, succeed, tmp_path):
    command = ("sample", "--run", trained, "--trace", tmp_path / "trace")
    assert "give them in two commands" in refuse(*command, "--output", tmp_path / "samples.jsonl")
    assert "trace_frames must be at least 2, not 1" in refuse(*command, "--trace-frames", 1)
    assert "trace_times must be at most 1, not 1.5" in refuse(*command, "--trace-times", 0.5, 1.5)
    assert "--run is missing" in refuse("sample", "--trace", tmp_path / "trace")
    assert succeed(*command, "--dry-run", "--steps", 8)["denoiser_evaluations"] == 8
    assert not (tmp_path / "trace").exists()
    (tmp_path / "trace").mkdir()
    (tmp_path / "trace" / "mine.txt").write_text("mine")
    assert "not made by ldlm" in refuse(*command)
