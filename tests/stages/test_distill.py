"""Distilled runs: what is taught, any interruption against none, and a run like any other for every later stage."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from folders import content, metrics
from forked import Forks
from patience import patience

from ldlm import LDLM, files, noise
from ldlm import config as configs
from ldlm.config import (
    DistillConfig,
    ExportConfig,
    FinetuneConfig,
    LikelihoodConfig,
    PromptConfig,
    SampleConfig,
    SamplerConfig,
    SweepConfig,
)
from ldlm.errors import InputError, Stopped
from ldlm.features.batch import Batch
from ldlm.features.store import FeatureStore
from ldlm.runtime import ALONE
from ldlm.sampling import solvers
from ldlm.sampling.trained_run import TrainedRun
from ldlm.sampling.trajectories import LoadedRun, Offer
from ldlm.stages import distill, export, finetune_decoder, likelihood, sample, trace, train
from ldlm.training import checkpoint
from ldlm.training.distillation import distill_step, start_distillation

CPU = torch.device("cpu")
DISTILL = DistillConfig(
    evaluations=2, start=8, steps=6, lr=1e-3, log_every=1, eval_every=5, save_every=4, eval_rows=10, plots=False,
    device="cpu",
)  # two rounds of 6 steps, to 4 evaluations and then to 2  # fmt: skip


def made_of(run):
    """Newest checkpoint, metrics and manifest, without what tells the time."""
    newest = checkpoint.all_in(run / "checkpoints")[-1].path
    manifest = json.loads((run / "manifest.json").read_text())
    return (
        {path.name: path.read_bytes() for path in newest.iterdir()},
        metrics(run),
        {k: v for k, v in manifest.items() if k not in ("seconds", "digest")},
    )


@pytest.fixture(scope="module")
def whole(trained, store, tmp_path_factory):
    """The distilled run whose training nobody stopped, with its pictures; read only."""
    out = tmp_path_factory.mktemp("distilled") / "run-2"
    made = distill.run(replace(DISTILL, plots=True), trained, store, out).path
    assert (made / "plots" / "training.png").is_file()
    return made


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of `whole` for stages that leave something in it."""
    return shutil.copytree(whole, tmp_path / "run-2")


# ----------------------------------------------------------------------------------------------------------------------
# What is taught


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def begun(trained, config=DISTILL):
    """The distillation at step 0."""
    run = TrainedRun(trained, CPU)
    return distill._start(distill.settings(config, run), run, CPU, ALONE)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_first_lesson_ends_at_what_the_sampler_of_the_run_decodes(trained, guidance):
    """From the noise of a text, by two steps of ddim on its own grid, with guidance where that is asked for."""
    config = replace(DISTILL, start=2, evaluations=1, guidance=guidance)
    state, seeds = begun(trained, config), torch.arange(5)
    z_1 = noise.normal(seeds, "z_1", 0, torch.zeros_like(seeds), state.model.latent_shape)
    taught = state.lesson(state.rounds[0], None, z_1, z_1, torch.zeros_like(seeds), None)
    (grid,) = (one.grid for one in state.rounds)
    assert grid[-1] == 0
    sampler, found = SamplerConfig(steps=2, solver="ddim", guidance=guidance), taught.x_tilde
    expected = TrainedRun(trained, CPU).generator().ends(sampler, seeds).x0
    assert (found - expected).abs().max() < 1e-4 * expected.std()
    plain = TrainedRun(trained, CPU).generator().ends(replace(sampler, guidance=1.0), seeds).x0
    assert ((found - plain).abs().max() < 1e-4 * plain.std()) == (guidance == 1)


def test_what_an_earlier_version_began_goes_on_as_it_was(trained, store, tmp_path, stopped_at, monkeypatch):
    """It taught the state at t_min, which was not recorded."""
    old, reference = tmp_path / "old", tmp_path / "reference"
    with monkeypatch.context() as earlier:
        earlier.setattr(distill, "_final", lambda begun: "state")
        distill.run(DISTILL, trained, store, reference)
        with pytest.raises(Stopped):
            distill.run(DISTILL, trained, store, old, progress=stopped_at(3))
    settings = files.read_yaml(old / "config.yaml")
    assert settings.pop("final") == "state"
    files.write_atomic(old / "config.yaml", files.dump_yaml(settings))
    assert distill.run(DISTILL, trained, store, old).complete
    assert made_of(old)[:2] == made_of(reference)[:2]
    assert distill.run(DISTILL, trained, store, old).complete  # and there is nothing left to do

    run = TrainedRun(trained, CPU)
    kept, new = (distill.settings(DISTILL, run, begun=begun) for begun in (old, tmp_path / "new"))
    assert (kept.final, new.final) == ("state", "x0")
    assert [distill._grid(one, run)[-1].item() for one in (kept, new)] == [DISTILL.sampler.t_min, 0]


def test_guidance_is_the_first_rounds_alone(trained):
    """Later teachers have learned to draw with guidance in one evaluation."""
    z, i_B = normal(4, 16, 16), torch.tensor([1, 1, 0, 1])

    def targets(guidance):
        state = begun(trained, replace(DISTILL, guidance=guidance))
        return [state.lesson(one, None, z, z, i_B, None).x_tilde for one in state.rounds]

    (first, second), (first_plain, second_plain) = targets(3.0), targets(1.0)
    assert (first - first_plain).abs().max() > 1e-3 * first_plain.std()
    assert second.equal(second_plain)


def test_the_grids_of_the_rounds_are_those_that_are_sampled_on(trained):
    state, run = begun(trained), TrainedRun(trained, CPU)
    assert [one.evaluations for one in state.rounds] == [4, 2]
    assert [one.grid[-1].item() for one in state.rounds] == [0, 0]  # no estimate is made there
    for one in state.rounds:
        own = replace(DISTILL.sampler, steps=one.evaluations)
        assert solvers.grid_of(own, run.schedule, run.timesteps)[:-1].tolist() == one.grid[::2][:-1].tolist()


def test_the_frozen_parts_stay_as_they_are_and_the_denoiser_learns(trained, whole):
    before, after = (TrainedRun(path, CPU).model.state_dict() for path in (trained, whole))
    changed = {name.partition(".")[0] for name, tensor in after.items() if not tensor.equal(before[name])}
    assert changed == {"denoiser"}
    saved = checkpoint.latest(whole / "checkpoints")
    assert {name.partition(".")[0].partition("/")[2] for name in saved.tensors("optimizer")} == {"denoiser"}


def test_a_round_begins_with_the_averaged_student_as_teacher_and_a_new_optimiser(trained, store):
    state = begun(trained)
    split = FeatureStore(store).split("train")
    batch = batch_of(split)
    for _ in range(6):
        distill_step(state, batch)
    of_average = {k.removeprefix("denoiser."): v.clone() for k, v in state.ema.weights.items() if "denoiser." in k}
    assert any(not tensor.equal(state.teacher.state_dict()[name]) for name, tensor in of_average.items())
    distill_step(state, batch)
    assert all(tensor.equal(state.teacher.state_dict()[name]) for name, tensor in of_average.items())
    assert {state["step"].item() for state in state.optimizer.state.values()} == {1.0}
    assert state.round.evaluations == 2


def batch_of(split, rows=8):
    parts, tokens = split.read(0, rows)
    tokens_BL = torch.from_numpy(tokens).long()
    return Batch(split.states(parts, tokens_BL), tokens_BL, torch.arange(rows), 0)


@pytest.mark.slow
def test_a_student_comes_nearer_to_two_steps_than_its_teacher_is(store, trained, tmp_path):
    config = replace(DISTILL, start=2, evaluations=1, steps=150, lr=3e-3, eval_every=150, save_every=150, eval_rows=64)
    made = distill.run(config, trained, store, tmp_path / "run-1")
    held_out = made.manifest["held_out"]
    assert held_out["l_distill"] < 0.5 * held_out["l_distill_teacher"]
    assert held_out["l_distill_by_step"] == [pytest.approx(held_out["l_distill"])]


# ----------------------------------------------------------------------------------------------------------------------
# Interruption


# At and around the end of the first round of 6 steps, and at both ends.
@pytest.mark.parametrize("at", [6, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 5, 7, 12))])
def test_a_stopped_distillation_ends_bit_for_bit_like_one_that_was_not(trained, store, whole, tmp_path, stopped_at, at):
    out = tmp_path / "run-2"
    with pytest.raises(Stopped, match=f"run-2: stopped by SIGTERM at step {at}, and saved"):
        distill.run(DISTILL, trained, store, out, progress=stopped_at(at))
    assert json.loads((out / "status.json").read_text())["state"] == "stopped"
    assert not (out / "manifest.json").exists()
    assert made_of(distill.run(DISTILL, trained, store, out).path) == made_of(whole)


def test_a_killed_distillation_ends_like_one_that_was_not(trained, store, whole, tmp_path, interrupted):
    """At steps that leave no checkpoint: before the first, within a round, and beyond the begin of the second."""
    for at in (2, 5, 2):
        with pytest.raises(KeyboardInterrupt):
            distill.run(DISTILL, trained, store, tmp_path / "run-2", progress=interrupted(at=at))
    assert made_of(distill.run(DISTILL, trained, store, tmp_path / "run-2").path) == made_of(whole)


@pytest.mark.slow
def test_two_processes_distil_as_one_does(start, trained, store, whole, tmp_path):
    """Their losses differ by sums of another order alone."""
    process = start(command(DISTILL, trained, store), tmp_path / "run-2", forks=Forks("job", 2), stderr=subprocess.PIPE)
    error = process.communicate(timeout=patience())[1].decode()
    assert process.returncode == 0, error
    for one, two in zip(metrics(tmp_path / "run-2"), metrics(whole), strict=True):
        assert (one["step"], one["kind"]) == (two["step"], two["kind"])
        assert one["l_distill"] == pytest.approx(two["l_distill"], rel=1e-4)


def command(config, run, store):
    """The command line of a configuration, without the output."""
    flags = {k: v for k, v in configs.to_dict(config).items() if k != "compute" and v is not None}
    given = [text for name, value in flags.items() for text in ("--" + name.replace("_", "-"), str(value))]
    return ["distill", "--run", str(run), "--features", str(store), *given]


@pytest.mark.slow
def test_a_process_killed_at_any_time_is_taken_up(start, trained, store, tmp_path):
    """Killed at moments that no step decides, and then left to end."""
    config, out = replace(DISTILL, steps=150, save_every=9, eval_every=10**6), tmp_path / "run-2"
    kills = 0
    for attempt in range(4):
        process = start(command(config, trained, store), out, stderr=subprocess.PIPE)
        ends, before = time.monotonic() + patience(), _count(out)
        while _count(out) < before + 3 + 11 * attempt and process.poll() is None:
            assert time.monotonic() < ends
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate(timeout=patience())
    assert kills > 1
    found = [made_of(distill.run(config, trained, store, path).path) for path in (out, tmp_path / "alone")]
    assert found[0] == found[1]


def _count(out):
    """Lines of metrics so far."""
    return (out / "metrics.jsonl").read_text().count("\n") if (out / "metrics.jsonl").exists() else 0


def test_one_with_other_settings_is_refused_by_name(trained, store, copy):
    with pytest.raises(InputError, match=r"distillation\.guidance: 1\.0 -> 2\.0"):
        distill.run(replace(DISTILL, guidance=2.0), trained, store, copy)
    before = content(copy)
    distill.run(DISTILL, trained, store, copy)
    assert content(copy) == before


@pytest.mark.slow
def test_the_settings_of_a_run_make_it_again(trained, store, whole, succeed, tmp_path):
    made = ("distill", "--run", trained, "--features", store, "--config", whole / "config.yaml")
    assert succeed(*made, "--output", tmp_path / "run-2")["step"] == 12
    assert made_of(tmp_path / "run-2") == made_of(whole)


# ----------------------------------------------------------------------------------------------------------------------
# A run like any other


def drawn(run, out, *flags):
    return lambda ldlm: ldlm("sample", "--run", run, "--num-samples", 3, "--output", out, "--device", "cpu", *flags)


def test_its_texts_are_drawn_as_it_was_distilled_unless_told_otherwise(whole, ldlm, tmp_path):
    by_default = drawn(whole, tmp_path / "a.jsonl")(ldlm)
    assert "2 steps each" in by_default.stdout
    assert "is distilled" not in by_default.stderr
    named = ("--solver", "ddim", "--steps", 2, "--grid", "learned", "--t-min", 0.005)
    drawn(whole, tmp_path / "b.jsonl", *named)(ldlm)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    other = drawn(whole, tmp_path / "c.jsonl", "--steps", 8)(ldlm)
    assert "is distilled to 2 evaluations, and has learned to draw with --solver ddim --grid learned" in other.stderr
    papers = drawn(whole, tmp_path / "d.jsonl", "--sampler", "paper")(ldlm)
    assert "128 steps each" in papers.stdout and "is distilled" in papers.stderr


def test_a_trace_notes_steps_that_a_student_has_not_learned(whole, notes, tmp_path):
    def noted(steps):
        config = SampleConfig(sampler=replace(DISTILL.sampler, steps=steps), trace_frames=2, device="cpu")
        trace.run(config, whole, tmp_path / f"trace-{steps}", progress=notes)
        return [line for line in notes.lines if "is distilled to 2 evaluations" in line]

    assert noted(2) == []
    assert len(noted(8)) == 1


def test_a_sweep_notes_samplers_that_a_student_has_not_learned(whole, notes):
    """Whether decoders are named or not; and once, however many there are."""

    def noted(**changes):
        learned = {"budgets": (2,), "solvers": ("ddim",), "grids": ("learned",), "guidances": (1.0,)}
        asked, before = SweepConfig(**{**learned, **changes}), len(notes.lines)
        LoadedRun(asked, Offer(), TrainedRun(whole, CPU), {}).remark(notes)
        return [line for line in notes.lines[before:] if "is distilled to 2 evaluations" in line]

    for decoders in ((), ("joint",)):
        assert noted(decoders=decoders) == []
        for change in (
            {"budgets": (2, 8)},
            {"solvers": ("ddim", "heun")},
            {"guidances": (1.0, 1.5), "budgets": (2, 4)},
        ):
            assert len(noted(decoders=decoders, **change)) == 1


def test_an_export_draws_the_same_texts(whole, ldlm, succeed, tmp_path):
    drawn(whole, tmp_path / "a.jsonl")(ldlm)
    succeed("export", "--run", whole, "--output", tmp_path / "model")
    model = LDLM.from_pretrained(tmp_path / "model")
    texts = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert model.sample(3) == texts
    learned = replace(DISTILL.sampler, grid="learned")
    assert (model.config.sampler, model.config.student) == (learned, learned)
    assert drawn(tmp_path / "model", tmp_path / "b.jsonl")(ldlm).exit_code == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert "is distilled" in drawn(tmp_path / "model", tmp_path / "c.jsonl", "--steps", 8)(ldlm).stderr
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "distilled to draw in 2 evaluations with ddim" in card


@pytest.mark.slow
def test_later_stages_take_it_as_a_run(copy, store, gpt2, succeed, ldlm, tmp_path):
    score = ("--scorer", gpt2, "--device", "cpu")
    sweep = ("sweep", "--run", copy, *score, "--budgets", 2, "--screen-texts", 2, "--texts", 2, "--temperatures", 0)
    found = succeed(*sweep, "--solvers", "ddim", "--grids", "learned", "--guidances", 1)
    assert {one["solver"] for one in found["finalists"]} == {"ddim"}
    assert succeed("interpolate", "--run", copy, "--features", store, "--pairs", 2, "--points", 3, *score)["pairs"] == 2
    drawn(copy, copy / "samples.jsonl")(ldlm)
    assert succeed("evaluate", copy / "samples.jsonl", *score, "--max-tokens", 16)
    page = Path(succeed("report", copy)["output"]).read_text(encoding="utf-8")
    assert "distilled from 8 evaluations a text to 2" in re.sub(r"\s+", " ", page)
    assert any(Path(path).name == "training.png" for path in succeed("plot", copy)["drawn"])
    assert ldlm("sample", "--run", copy, "--trace", tmp_path / "trace").exit_code == 0


def test_it_has_no_likelihood_and_says_so(copy, store, ldlm):
    with pytest.raises(InputError, match="run-2 has no likelihood, because it is distilled"):
        likelihood.run(LikelihoodConfig(device="cpu"), copy, store)
    assert not (copy / "likelihood").exists()
    found = ldlm("likelihood", "--run", copy, "--features", store, "--device", "cpu")
    assert found.exit_code == 0
    assert found.stdout.startswith("run-2: no likelihood, because it is distilled")


def test_a_decoder_of_a_student_is_trained_as_one_of_its_run_would_be(trained, store, copy, tmp_path):
    """With the rate, the decay, the batch and the steps of the run that was distilled, and of none of its students."""
    once = replace(DISTILL, evaluations=1, start=2, batch_size=4)
    smaller = distill.run(once, trained, store, tmp_path / "a")
    again = distill.run(replace(once, steps=None, lr=None), copy, store, tmp_path / "b")
    of_run = finetune_decoder._training(FinetuneConfig(), TrainedRun(trained, CPU))
    for student in (copy, smaller.path, again.path):
        found = finetune_decoder._training(FinetuneConfig(), TrainedRun(student, CPU))
        for name in ("optimizer", "steps", "batch_size", "accumulate", "recompute"):
            assert getattr(found, name) == getattr(of_run, name), (student, name)


def test_a_decoder_of_a_student_of_an_earlier_version_is_trained_as_before(store, copy, notes):
    """Its run's settings are not on record."""
    settings = files.read_yaml(copy / "config.yaml")
    assert settings.pop("undistilled")["optimizer"]["lr_decay"] == "constant"
    files.write_atomic(copy / "config.yaml", files.dump_yaml(settings))
    distilled = TrainedRun(copy, CPU)
    training = finetune_decoder._training(FinetuneConfig(), distilled)
    assert (training.optimizer, training.steps) == (distilled.config.optimizer, 5)
    config = FinetuneConfig(layers=0, steps=2, eval_rows=4, batch_size=8, device="cpu")
    for given, rate in (({}, "learning rate 0.001, "), ({"lr": 2e-3}, "")):
        finetune_decoder.run(replace(config, name=f"d{len(given)}", **given), copy, store, progress=notes)
        said = [line for line in notes.lines if "does not record" in line]
        notes.lines.clear()
        assert said == [
            f"{copy} does not record the optimiser of the run that it was distilled from; the decoder is trained with "
            f"the distillation's: {rate}lr_decay=cosine"
        ]


def test_decoders_of_the_run_come_along(run_copy, store, tmp_path):
    """Finished decoders of the same latents are copied, and more can be trained afterwards."""
    finetune = FinetuneConfig(layers=1, steps=2, eval_rows=4, batch_size=8, device="cpu")
    finetune_decoder.run(finetune, run_copy, store)
    shutil.copytree(run_copy / "decoders/layers-1", run_copy / "decoders/unfinished")
    (run_copy / "decoders/unfinished/manifest.json").unlink()
    made = distill.run(replace(DISTILL, steps=1), run_copy, store, tmp_path / "run-2").path
    assert [path.name for path in (made / "decoders").iterdir()] == ["layers-1"]
    assert content(made / "decoders") == {
        path: data
        for path, data in content(run_copy / "decoders").items()
        if re.fullmatch(r"layers-1/[^./][^/]*", path)
    }
    z = normal(2, 16, 16)
    same = [TrainedRun(path, CPU).decoder("layers-1").logits(z) for path in (run_copy, made)]
    assert same[0].equal(same[1])
    finetune_decoder.run(replace(finetune, layers=0), made, store)
    assert {record.name: record.usable for record in TrainedRun(made, CPU).decoders()} == {
        "joint": True, "layers-1": True, "layers-0": True,
    }  # fmt: skip


def test_a_distilled_run_is_distilled_further(whole, store, tmp_path):
    further = DistillConfig(evaluations=1, steps=2, eval_rows=8, plots=False, device="cpu")
    made = distill.run(further, whole, store, tmp_path / "run-1")
    run = TrainedRun(made.path, CPU)
    assert (run.config.distillation.start, run.student.steps, run.latents) == (2, 1, TrainedRun(whole, CPU).latents)
    assert made.manifest["distilled_from"]["run"] == "run-2"
    for given, named in (
        ({"start": 8}, "draws in 2 evaluations and not in 8"),
        ({"guidance": 2.0}, "can't take --guidance 2 any more"),
        ({"grid": "log-snr"}, "is distilled to grid=learned, not log-snr; leave --grid out"),
        ({"t_min": 0.01}, "is distilled to t_min=0.005, not 0.01; leave --t-min out"),
    ):
        with pytest.raises(InputError, match=named):
            distill.run(replace(further, **given), whole, store, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_what_equals_a_default_is_refused_like_any_other_if_a_student_has_not_learned_it(trained):
    run = TrainedRun(trained, CPU)
    config = distill.settings(replace(DISTILL, grid="log-snr", t_min=0.01), run)
    learned = replace(config.distillation.sampler, steps=2)
    student = SimpleNamespace(config=config, student=learned, path="run-2", checkpoint=run.checkpoint)
    student.timesteps, student.check = run.timesteps, lambda sampler: None
    further = DistillConfig(evaluations=1)
    found = distill.settings(further, student).distillation
    assert (found.grid, found.t_min) == ("log-snr", 0.01)
    assert distill.settings(replace(further, grid="log-snr", t_min=0.01), student).distillation == found
    with pytest.raises(InputError, match="is distilled to grid=log-snr, not learned; leave --grid out"):
        distill.settings(replace(further, grid="learned"), student)
    with pytest.raises(InputError, match=r"is distilled to t_min=0\.01, not 0\.005; leave --t-min out"):
        distill.settings(replace(further, t_min=0.005), student)


def test_an_unfinished_one_draws_as_far_as_it_has_come(trained, store, tmp_path, stopped_at, notes, succeed):
    def steps(path, *more):
        """The steps that `ldlm sample` takes unless it is told otherwise."""
        found = succeed("sample", "--run", path, "--num-samples", 1, "--device", "cpu", *more)
        return found["config"]["sampler"]["steps"]

    config, made, model = replace(DISTILL, keep=9), tmp_path / "run", tmp_path / "model"
    with pytest.raises(Stopped):
        distill.run(config, trained, store, made, progress=stopped_at(6))
    run = TrainedRun(made, CPU)
    assert run.student.steps == 4
    run.remark(SampleConfig(sampler=DISTILL.sampler), notes)
    assert any("is distilled to 4 evaluations" in line for line in notes.lines)
    succeed("export", "--run", made, "--output", model)
    assert steps(made) == steps(model) == 4

    distill.run(config, trained, store, made)
    assert (steps(made), steps(made, "--checkpoint", "step-00000004")) == (2, 4)


@pytest.mark.slow
def test_one_that_continues_texts_still_does(train_config, store, notes, tmp_path):
    prefix = replace(train_config, model=replace(train_config.model, condition="prefix"))
    run = train.run(prefix, store, tmp_path / "run").path
    made = distill.run(DISTILL, run, store, tmp_path / "run-2").path
    before, after = (TrainedRun(path, CPU).model.denoiser.state_dict() for path in (run, made))
    assert not any(after[name].equal(before[name]) for name in after if name.startswith("prefix.keys_values"))
    settings = SampleConfig(num_samples=2, prompting=PromptConfig(prompt="Rain lost"), sampler=DISTILL.sampler)
    sample.run(replace(settings, device="cpu"), made, tmp_path / "s.jsonl", progress=notes)
    assert not any("prompt guidance" in line for line in notes.lines)
    stronger = replace(settings, prompting=replace(settings.prompting, prompt_guidance=2.0), device="cpu")
    sample.run(stronger, made, tmp_path / "g.jsonl", progress=notes)
    assert "this model is distilled to 2 evaluations without prompt guidance, which takes twice as many" in notes.lines
    texts = [json.loads(line)["text"] for line in (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(text.startswith("Rain lost") for text in texts)
    export.run(ExportConfig(sampler=DISTILL.sampler), made, tmp_path / "model")


# ----------------------------------------------------------------------------------------------------------------------
# What is refused


def test_bad_input_is_refused_in_one_line(trained, store, whole, token_runs, refuse, tmp_path):
    def said(*flags, run=trained):
        return refuse("distill", "--run", run, "--features", store, "--output", tmp_path / "out", *flags)

    assert said("--evaluations", 3) == (
        "--evaluations 3 can't be reached from 32 by halving, which leads to 16, 8, 4, 2, 1; choose one of these, or "
        "another --start"
    )
    assert "by halving, which leads to no whole number" in said("--start", 7, "--evaluations", 4)
    assert "can't be reached from 4 by halving" in said("--start", 4)
    assert "grid is one of learned, log-snr, not 'time'" in said("--grid", "time")
    itself = refuse("distill", "--run", trained, "--features", store, "--output", trained, "--overwrite")
    assert itself == f"{trained} is the run to be distilled; choose another --output for its student"
    assert "is a token-level run, of method mdlm" in said(run=token_runs("mdlm"))
    assert "and a training run is needed" in said(run=store)
    assert not (tmp_path / "out").exists()
    assert "--output is missing" in refuse("distill", "--run", trained, "--features", store)
    assert "is a distilled run, which `ldlm distill` continues" in refuse(
        "train", "--features", store, "--output", whole
    )


def test_a_dry_run_counts_rounds_steps_and_tokens(trained, succeed):
    found = succeed("distill", "--run", trained, "--evaluations", 8, "--dry-run")
    assert found == {
        "rounds": 2, "evaluations": [16, 8], "steps_of_round": 2, "steps": 4, "batch_size": 8, "tokens": 4 * 8 * 16,
    }  # fmt: skip


def test_start_distillation_takes_the_grid_as_it_is_given(trained):
    run = TrainedRun(trained, CPU)
    settings = distill.settings(replace(DISTILL, start=4), run)
    grid = torch.linspace(1, 0.1, 5, dtype=torch.float64)
    state = start_distillation(settings, run.model, grid, {}, guide=lambda denoise: denoise, device=CPU)
    assert [one.grid.tolist() for one in state.rounds] == [grid.tolist()]
