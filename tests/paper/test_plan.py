"""The plan: what rows share, how commands of both scales look, the script, and what it costs."""

import os
import subprocess
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import yaml

from ldlm import config as configs
from ldlm.baselines.registry import training_method
from ldlm.paper import costs, exhibits, script, settings
from ldlm.paper import plan as plans
from ldlm.paper.plan import Plan, Size
from ldlm.training.cost import flops_per_token, latent_encoder_flops


def planned(name, scale="tiny", rows=(), **size):
    exhibit = exhibits.load(name)
    return Plan(exhibit, Size(scale=scale, **size), tuple(exhibit.chosen(rows)))


@cache
def whole(name, scale):
    """All of a table or figure, with one training and two sampling seeds of each row."""
    return planned(name, scale, seeds=1, sampling_seeds=2).jobs


def test_trainings_keep_the_names_under_which_tables_were_begun():
    """Else the same command would train them again."""
    runs = {job.output for job in of_kind(planned("table-7"), "train")}
    assert runs == {"runs/ldlm-88314470", "runs/ldlm-15b343e1"}


def decoding_jobs(scale="tiny", row="table-5/layers-2"):
    """The jobs of a row from its decoder on, by kind."""
    jobs = planned("table-5" if "table-5" in row else "table-3", scale, rows=[row], seeds=1, sampling_seeds=1).jobs
    return {job.kind: job for job in jobs if job.kind in ("decoder", "sample", "evaluate")}


def test_decoders_keep_the_names_under_which_tables_were_begun():
    for scale, row, layers in (
        ("tiny", "table-5/layers-2", 2),
        ("paper", "table-5/layers-2", 2),
        ("paper", "table-3/ldlm", 3),
    ):
        decoder = decoding_jobs(scale, row)["decoder"]
        assert decoder.output.endswith(f"/decoders/layers-{layers}") and "--name" not in decoder.words


@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_decoders_of_other_settings_are_other_ones_and_so_are_their_texts_and_scores(scale, monkeypatch):
    """Else what was made with the old settings would be taken up in silence."""
    before = decoding_jobs(scale)
    if scale == "tiny":
        monkeypatch.setattr(settings, "DECODER_SHARE", 0.1)
    else:
        whole = settings.decoder
        monkeypatch.setattr(settings, "decoder", lambda *args, **kwargs: replace(whole(*args, **kwargs), sigma_dec=2.0))
    after = decoding_jobs(scale)
    assert [kind for kind, job in after.items() if job.mark == before[kind].mark] == []
    name = after["decoder"].output.split("/")[-1]
    assert name.startswith("layers-2-") and f"--name {name}" in words(after["decoder"])
    assert f"--decoder {name}" in words(after["sample"])


def test_a_row_that_draws_with_another_solver_says_so_in_its_commands(monkeypatch):
    """At the moment no row of LDLM does."""
    load = exhibits.load

    def with_solver(name):
        exhibit, given = load(name), {"sampler": {"solver": "heun"}}
        groups = [replace(one, rows=tuple(replace(row, stages=given) for row in one.rows)) for one in exhibit.groups]
        return replace(exhibit, groups=tuple(groups))

    before = of_kind(planned("table-7", rows=["resampler"]), "sample")[0]
    monkeypatch.setattr(exhibits, "load", with_solver)
    after = of_kind(planned("table-7", rows=["resampler"]), "sample")[0]
    assert "--solver heun" in words(after) and after.mark != before.mark


def of_kind(plan, kind):
    return [job for job in plan.jobs if job.kind == kind]


def words(job):
    return " ".join(job.words)


@pytest.mark.parametrize("scale", ["tiny", "paper"])
@pytest.mark.parametrize("name", exhibits.NAMES)
def test_every_job_comes_once_and_after_what_it_needs(name, scale):
    seen = set()
    for job in whole(name, scale):
        assert job.mark not in seen
        assert set(job.needs) <= seen, words(job)
        read = {word for word in job.words if word in seen and word != job.output}
        assert read <= set(job.needs), words(job)
        seen |= {job.mark, job.output}


def test_rows_share_features_scorer_reference_and_equal_trainings():
    plan = planned("table-1", seeds=2)
    assert [len(of_kind(plan, kind)) for kind in ("encoder", "scorer", "reference")] == [1, 1, 1]
    assert len(of_kind(plan, "features")) == 3  # states, token embeddings, tokens
    runs = {measured.row.short: measured.run for measured in plan.rows if measured.seed == 0}
    assert runs["mse"] == runs["adaptive"] and runs["ce"] == runs["encoder-hidden"]
    assert len(set(runs.values())) == len(runs) - 3 + 1  # with the None of real text, which is no run
    assert of_kind(plan, "train")[0].output != of_kind(plan, "train")[-1].output


@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_real_texts_are_written_before_anything_trains_on_their_store(scale):
    jobs = planned("table-1", scale, rows=["mse", "ce"]).jobs
    kinds = [job.kind for job in jobs]
    assert kinds.index("reference") < kinds.index("train")
    (real,) = (job for job in jobs if job.kind == "reference")
    assert all(real.output in job.needs for job in jobs if job.kind == "train")


def test_the_held_out_rows_that_jobs_read_are_counted():
    assert plans.held_out_rows(planned("table-1", rows=["mse"]).jobs) == 250
    assert plans.held_out_rows(planned("figure-3").jobs) == 2 * 128
    assert plans.held_out_rows(planned("figure-3", texts=20).jobs) == 2 * 20
    assert plans.held_out_rows(planned("table-3", "paper").jobs) == 0


def test_at_the_papers_scale_the_rows_that_the_paper_has_twice_are_one_run():
    runs = {m.row.short: m.run for m in planned("table-1", "paper").rows}
    assert runs["mse"] == runs["adaptive"] == runs["sigma-1.0"]
    assert runs["uniform"] == runs["warmup-10000"]
    main = {m.run for name in ("table-2", "table-5", "table-6", "table-7") for m in planned(name, "paper").rows[-1:]}
    (ldlm,) = [m.run for m in planned("table-2", "paper", rows=["ldlm"]).rows]
    assert ldlm in main and ldlm == runs["sigma-3.0"]


def test_rows_of_one_order_are_trained_for_equally_many_steps():
    for name in exhibits.NAMES:
        exhibit = exhibits.load(name)
        for statement in exhibit.statements if exhibit.tiny else ():
            steps = {exhibit.rows[key].tiny.steps for key, _ in statement.places}
            assert len(steps) == 1, (name, statement)


def test_another_seed_text_size_or_setting_is_another_folder():
    (one,), (other,) = (of_kind(planned("table-7", rows=["resampler"], steps=n), "train") for n in (100, 200))
    assert one.output != other.output
    first, second = of_kind(planned("table-7", rows=["resampler"], seeds=2), "train")
    assert first.output != second.output and "--set seed=1" in words(second)
    few, many = (of_kind(planned("table-7", rows=["resampler"], texts=n), "sample")[0] for n in (10, 20))
    assert few.output != many.output


def test_at_the_tiny_scale_what_counts_steps_keeps_its_share_of_them():
    (job,) = of_kind(planned("table-1", rows=["warmup-25000"]), "train")
    config = job.settings
    assert (config.steps, config.recipe.warmup_steps, config.timesteps.refresh_steps) == (1_200, 240, 120)
    (job,) = of_kind(planned("table-2", rows=["cosmos"], steps=500), "train")
    assert (job.settings.steps, job.settings.cosmos.steps) == (500, 200)


def test_rivals_are_drawn_from_with_as_many_evaluations_as_the_budget():
    plan = planned("table-8", "paper", rows=["remdm", "ldlm", "flm"], sampling_seeds=1)
    lines = [words(job) for job in of_kind(plan, "sample")]
    assert len(lines) == 3 * 6
    assert (
        "--sampler remdm --steps 31 --schedule rescale --eta 0.015 --top-p 0.9 --num-samples 1000 --seed 0" in lines[0]
    )
    assert "--sampler euler --steps 32 " in lines[6]
    assert "--sampler paper --decoder joint --steps 32 --final x0 --temperature 1.0" in lines[12]
    assert len(of_kind(plan, "features")) == 1
    (reference,) = of_kind(plan, "reference")
    assert f"--reference {reference.output} --scorer gpt2-large --boundaries eos" in words(of_kind(plan, "evaluate")[0])


def test_berts_samples_are_scored_against_the_text_that_gpt2s_are():
    plan = planned("table-6", mauve=True)
    evaluations = [words(job) for job in of_kind(plan, "evaluate")]
    (reference,) = of_kind(plan, "reference")
    assert all(f"--reference {reference.output} --mauve" in line and "--boundaries eos" in line for line in evaluations)
    assert [words(job).split("--arch ")[1].split()[0] for job in of_kind(plan, "encoder")] == ["gpt2", "bert"]


# ----------------------------------------------------------------------------------------------------------------------
# The script, run by a shell with an `ldlm` that writes down what it is called with


@pytest.fixture
def calls(tmp_path):
    """Runs a script's part with a stand-in for `ldlm`; returns its words, call by call."""
    stand_in = tmp_path / "bin" / "ldlm"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\necho "$*" >> "$CALLS"\necho "{}"\n')
    stand_in.chmod(0o755)

    def run(text, *part):
        path, called = tmp_path / "x.sh", tmp_path / "calls"
        path.write_text(text)
        env = {**os.environ, "PATH": f"{stand_in.parent}:{os.environ['PATH']}", "CALLS": str(called)}
        done = subprocess.run(["sh", path, *part], env=env, capture_output=True, text=True)
        lines = called.read_text().splitlines() if called.exists() else []
        called.unlink(missing_ok=True)
        return done, lines

    return run


def test_the_script_calls_every_job_and_rows_leave_out_what_is_shared(calls, tmp_path):
    plan = planned("table-5", "paper", rows=["joint", "layers-1"], sampling_seeds=2)
    text = script.text(plan, str(tmp_path / "with space"), "t.sh")
    done, shared = calls(text, "shared")
    assert (done.returncode, [line.split()[0] for line in shared]) == (0, ["extract-features", "features", "train"])
    assert shared[2].endswith("--fit 80GB")
    done, row = calls(text, "layers-1")
    assert [line.split()[0] for line in row] == ["finetune-decoder", "sample", "sample", "evaluate"]
    assert row[-1].endswith("--json")
    (kept,) = (tmp_path / "with space" / "scores").iterdir()
    assert kept.read_text() == "{}\n"
    assert calls(text, "layers-1")[1] == row[:1]  # what is kept is not made again, and a training goes on by itself
    assert len(calls(text)[1]) == 3 + 3 + 1
    done, none = calls(text, "layers-9")
    assert (done.returncode, none) == (2, []) and "no part layers-9" in done.stderr


def test_a_row_that_is_named_twice_is_one_row():
    for name, given in (("table-1", ["ce", "CE", "ce"]), ("figure-4", ["sigma-1.0", "table-1/sigma-1.0"])):
        once, twice = (planned(name, "paper", rows=rows) for rows in (given[:1], given))
        assert twice == once
        assert script.text(twice, "out", "t.sh") == script.text(once, "out", "t.sh")


def test_several_devices_train_by_torchrun():
    plan = planned("table-7", "paper", rows=["resampler"])
    text = script.text(plan, "out", "t.sh", card=costs.card("H200"), devices=8)
    (line,) = (line for line in text.splitlines() if "--preset" in line)
    assert line.strip().startswith("torchrun --nproc-per-node=8 -m -- ldlm.cli train --preset owt-128-main")
    assert line.endswith("--fit 141GB")
    assert "\nexport PYTHONSAFEPATH=1" in text  # torchrun -m would import modules from the output


# ----------------------------------------------------------------------------------------------------------------------
# Costs


def test_a_training_costs_its_steps_times_the_flops_of_one():
    plan = planned("table-7", rows=["resampler"], seeds=1)
    (job,) = of_kind(plan, "train")
    found = costs.of_job(job, "tiny")
    assert found.tokens == 3_000 * 32 * 64
    assert found.flops == found.tokens * flops_per_token(job.settings, job.run.shapes)
    one = costs.of_jobs(plan.jobs, "tiny", "cpu", 2)
    card = costs.card("cpu")
    assert one["hours"] * 3600 * 2 == pytest.approx(one["total"]["flops"] / card.flops + 8 * card.start, rel=1e-6)
    assert one["total"]["count"] == 8  # the text is cut by this process
    assert [stage["stage"] for stage in one["stages"]] == [
        "encoder", "scorer", "features", "reference", "train", "sample", "evaluate"
    ]  # fmt: skip


def test_mauve_costs_a_pass_over_every_set_and_one_over_the_reference():
    found = {}
    for mauve in (False, True):
        (job,) = of_kind(planned("table-7", rows=["resampler"], seeds=1, sampling_seeds=2, mauve=mauve), "evaluate")
        found[mauve] = costs.of_job(job, "tiny")
    assert found[True].flops / found[False].flops == pytest.approx((2 + 2 + 1) / 2)
    assert found[True].tokens == found[False].tokens + 3 * 250 * 64


def test_encoder_and_scorer_cost_the_vocabulary_that_their_words_ask_for():
    """Of a scorer they ask for the tokenizer of the encoder."""
    plan = planned("table-7", rows=["resampler"], seeds=1)
    (encoder,), (scorer,) = of_kind(plan, "encoder"), of_kind(plan, "scorer")
    assert "--vocab-size 2048" in words(encoder) and f"--tokenizer {encoder.output}" in words(scorer)
    for job, width in ((encoder, 128), (scorer, 192)):
        found, parameters = costs.of_job(job, "tiny"), 12 * 4 * width**2 + 2_048 * width
        assert (found.flops / found.tokens, found.bytes) == (6 * parameters, 4 * parameters)


@pytest.mark.parametrize(("sampler", "times"), [({"solver": "heun"}, 2), ({"guidance": 2.0}, 2)])
def test_a_sample_costs_its_evaluations_of_the_denoiser(sampler, times):
    plan = planned("table-7", rows=["resampler"], seeds=1)
    job = of_kind(plan, "sample")[0]
    changed = replace(job.settings, sampler=replace(job.settings.sampler, **sampler))
    assert costs.of_job(replace(job, settings=changed), "tiny").flops == times * costs.of_job(job, "tiny").flops


@pytest.mark.parametrize("scale", ["tiny", "paper"])
@pytest.mark.parametrize("row", ["mdlm", "duo", "candi", "flm"])
def test_a_rivals_sample_costs_its_evaluations(row, scale):
    """An evaluation of the network is a third of a training step; a chain's budget counts its last step."""
    plan = planned("table-8", scale, rows=[row], seeds=1)
    job, method = of_kind(plan, "sample")[0], of_kind(plan, "train")[0].settings
    found, budget = costs.of_job(job, scale), plan.exhibit.budgets_at(scale)[0]
    phases = training_method(method).phase_steps()
    per_step = {one: training_method(method).flops_per_token(job.run.shapes, one, "scratch") for one in phases}
    mean = sum(per_step[one] * steps for one, steps in phases.items()) / sum(phases.values())
    assert found.flops == pytest.approx(budget * found.tokens * mean / 3)


def test_the_encoder_costs_the_blocks_that_run():
    """GPT-2's ten blocks below layer −3: 24 D² of matrices and 4 L D of attention per token and block."""
    one = 10 * (24 * 768**2 + 4 * 128 * 768)
    plan = planned("table-1", "paper", rows=["mse", "encoder-embedding", "encoder-scratch"])
    stored, inside = {}, {}
    for measured in plan.rows:
        jobs = {job.kind: job for job in measured.jobs}
        cost = costs.of_job(jobs["features"], "paper")
        stored[measured.row.short] = cost.flops / cost.tokens
        inside[measured.row.short] = costs._online(jobs["train"], "paper")
    assert stored == inside == {"mse": pytest.approx(one), "encoder-embedding": 0, "encoder-scratch": 0}


def test_a_decoder_costs_what_makes_its_latents_too():
    found = {}
    for scale in ("tiny", "paper"):
        job = of_kind(planned("table-5", scale, rows=["layers-1"]), "decoder")[0]
        model, shapes = settings.training(job.run.row, scale).config.model, job.run.shapes
        own = 6 * (16 * shapes.hidden_dim**2 + shapes.vocab_size * shapes.hidden_dim)
        cost, latents = costs.of_job(job, scale), latent_encoder_flops(model, shapes) / shapes.seq_len
        found[scale] = cost.flops / cost.tokens - own - latents
        assert latents > shapes.hidden_dim**2
    assert found == {"tiny": pytest.approx(0), "paper": pytest.approx(10 * (24 * 768**2 + 4 * 128 * 768))}


@pytest.mark.parametrize("name", ["table-7", "figure-3"])
def test_the_device_changes_no_name(name):
    """A report finds what was made with another `--device`, on a GPU or without one."""
    auto, cpu = ([job.mark for job in planned(name, device=device).jobs] for device in ("auto", "cpu"))
    assert auto == cpu


def test_a_card_that_is_not_known_is_refused(refuse):
    assert refuse("paper", "table-7", "--dry-run", "--device-name", "B300").startswith(
        "there is no card 'B300'; choose"
    )


# ----------------------------------------------------------------------------------------------------------------------
# The commands are ones that ldlm takes


def distinct(kind):
    """Jobs of a kind of all tables at both scales, those that differ in more than paths and seeds."""
    found = {}
    for scale, name in product(("tiny", "paper"), exhibits.NAMES):
        for job in whole(name, scale):
            if job.kind == kind:
                words = tuple(word for word in job.words if "/" not in word and not word.isdigit())
                found.setdefault((scale, *words), job)
    return list(found.values())


def test_a_training_has_the_settings_that_its_words_ask_for(ldlm):
    jobs = distinct("train")
    assert len(jobs) > 40
    for job in jobs:
        shown = yaml.safe_load(ldlm(*job.words, "--dump-config").stdout)
        assert shown == configs.to_dict(job.settings), words(job)


@pytest.mark.parametrize("kind", ["encoder", "scorer", "features", "decoder", "evaluate", "interpolate"])
def test_every_other_command_is_taken(kind, ldlm):
    for job in distinct(kind):
        done = ldlm(*job.words, "--dump-config")
        assert done.exit_code == 0, (words(job), done.stderr)


@pytest.mark.slow
def test_texts_are_drawn_with_the_settings_of_the_row(ldlm, trained, rival):
    runs = {"ldlm": trained, **{method: rival(method) for method in ("mdlm", "duo", "candi", "flm")}}
    jobs = distinct("sample")
    assert len(jobs) > 15
    for job in jobs:
        asked: list = [*job.words]
        asked[asked.index("--run") + 1] = runs[job.run.row.method]
        shown = yaml.safe_load(ldlm(*asked, "--dump-config").stdout)
        sampler = configs.to_dict(job.settings)["sampler"]
        assert shown["sampler"] == sampler, words(job)
        assert (shown["num_samples"], shown["seed"]) == (job.settings.num_samples, 0)
