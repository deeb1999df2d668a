"""Runs whose F(t) is t: the default grid is log-snr, and `learned` is judged as `time`, which it is there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from ldlm import LDLM
from ldlm.config import DistillConfig, ExportConfig, SamplerConfig, SweepConfig, TimestepConfig
from ldlm.errors import InputError
from ldlm.runtime import Stopped
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import distill, export, sweep, train

CPU = torch.device("cpu")
DEFAULT = "timesteps are uniform here (F(t) is t), so the default grid is log-snr; --grid takes another"
DISTILL = DistillConfig(
    evaluations=2, start=4, steps=2, batch_size=8, save_every=1, eval_every=2, eval_rows=8, plots=False, device="cpu"
)


@pytest.fixture(scope="module")
def uniform(train_config, store, tmp_path_factory):
    """A run with uniform timesteps; read only."""
    out = tmp_path_factory.mktemp("uniform") / "run"
    return train.run(replace(train_config, timesteps=TimestepConfig(kind="uniform"), steps=2), store, out).path


@pytest.fixture
def draw(succeed, uniform):
    def call(*flags, run=uniform):
        return succeed("sample", "--run", run, "--num-samples", 2, "--steps", 4, "--device", "cpu", *flags)

    return call


def texts(found):
    return [row["tokens"] for row in found["texts"]]


def test_f_is_flat_with_uniform_timesteps_and_before_the_first_refresh(trained, uniform):
    learned = TrainedRun(trained, CPU).timesteps
    assert not learned.flat
    assert type(learned)(TimestepConfig(), 1e-5).flat
    assert TrainedRun(uniform, CPU).timesteps.flat


def test_the_default_grid_is_log_snr_and_is_recorded(draw, ldlm, uniform, trained):
    found = draw()
    assert found["config"]["sampler"]["grid"] == "log-snr"
    assert texts(found) == texts(draw("--grid", "log-snr")) != texts(draw("--grid", "time"))
    assert texts(draw("--grid", "learned")) == texts(draw("--grid", "time"))
    assert draw(run=trained)["config"]["sampler"]["grid"] == "learned"
    command = ("sample", "--num-samples", 1, "--steps", 2, "--device", "cpu", "--run")
    assert DEFAULT in ldlm(*command, uniform).stderr
    assert DEFAULT not in ldlm(*command, uniform, "--grid", "log-snr").stderr + ldlm(*command, trained).stderr


def test_a_grid_that_is_asked_for_is_judged_by_the_times_that_it_has(draw, refuse, uniform, tmp_path):
    draw("--solver", "ddim")
    draw("--solver", "euler-maruyama", "--grid", "learned")
    message = refuse("sample", "--run", uniform, "--solver", "ddim", "--grid", "learned", "--device", "cpu")
    assert message == (
        "solver ddim on grid learned, which is time in this model, whose F(t) is t, with final x0 is not offered: so "
        "few of its steps are near t = 0 that the data come out too narrow; take --grid log-snr"
    )


def test_a_sweep_takes_what_sample_takes(succeed, refuse, ldlm, uniform, gpt2, tmp_path):
    """`learned` beside `time` would be drawn twice; a grid that is asked for alone is judged by its times."""
    sweep = ("sweep", "--run", uniform, "--guidances", 1, "--budgets", 4, "--finals", "x0", "--device", "cpu")
    asked = (*sweep, "--solvers", "ddim", "--grids")
    assert "solver ddim on grid learned, which is time in this model" in refuse(*asked, "learned", "--dry-run")
    assert succeed(*asked, "learned", "log-snr", "--dry-run")["trajectories"] == 1
    few = ("--temperatures", 0, "--screen-texts", 2, "--texts", 2, "--scorer", gpt2, "--output", tmp_path / "s")
    done = ldlm(*sweep, *few, "--solvers", "dpm++2m", "--grids", "learned", "time")
    assert (
        "timesteps are uniform here (F(t) is t), so the grid learned has the times of time, and is left out"
        in done.stderr
    )
    screened = json.loads((tmp_path / "s" / "sweep.json").read_text())["screened"]
    assert [(row["solver"], row["grid"]) for row in screened] == [("dpm++2m", "time")]


def test_a_file_of_texts_that_was_begun_on_learned_goes_on_if_that_is_asked_for(draw, refuse, uniform, tmp_path):
    """Earlier versions took `learned` where nothing was asked for."""
    out = tmp_path / "texts.jsonl"
    draw("--grid", "learned", "--output", out)
    more = ("sample", "--run", uniform, "--num-samples", 3, "--steps", 4, "--device", "cpu", "--output", out)
    assert "was made differently (config.sampler.grid: learned -> log-snr)" in refuse(*more)
    draw("--grid", "learned", "--output", out, "--num-samples", 3)
    assert len(out.read_text().splitlines()) == 3


def test_an_export_and_a_trace_have_the_grid_that_the_run_draws_with(draw, succeed, uniform, tmp_path):
    model = export.run(ExportConfig(sampler=SamplerConfig(steps=4)), uniform, tmp_path / "model").path
    assert json.loads((model / "config.json").read_text())["sampler"]["grid"] == "log-snr"
    found = draw()
    assert LDLM.from_pretrained(model).sample(2) == [row["text"] for row in found["texts"]]
    assert texts(draw(run=model)) == texts(found)
    made = succeed(
        "sample", "--run", uniform, "--trace", tmp_path / "trace", "--steps", 4, "--trace-frames", 2, "--device", "cpu"
    )
    assert (made["grid"], made["text"]) == ("log-snr", found["texts"][0]["text"])


def test_it_is_distilled_on_log_snr_unless_a_distillation_was_begun_otherwise(
    uniform, store, tmp_path, stopped_at, monkeypatch
):
    run = TrainedRun(uniform, CPU)
    assert distill.settings(DISTILL, run).distillation.grid == "log-snr"
    learned, out = replace(DISTILL, grid="learned"), tmp_path / "student"
    with pytest.raises(InputError, match="solver ddim on grid learned, which is time in this model"):
        distill.run(learned, uniform, store, out)

    with monkeypatch.context() as earlier, pytest.raises(Stopped):
        earlier.setattr(TrainedRun, "check", lambda run, sampler: None)
        distill.run(learned, uniform, store, out, progress=stopped_at(1))
    with pytest.raises(InputError, match=r"distillation\.grid: learned -> log-snr"):
        distill.run(DISTILL, uniform, store, out)
    distill.run(learned, uniform, store, out)
    student = TrainedRun(out, CPU)
    assert student.student.grid == "learned"
    student.check(student.student)
    model = export.run(ExportConfig(sampler=student.student), out, tmp_path / "model").path
    one = SweepConfig(budgets=(2,), solvers=("ddim",), grids=("learned",), guidances=(1.0,), finals=("x0",))
    assert [sweep.plan(one, [path])["trajectories"] for path in (out, model)] == [1, 1]
