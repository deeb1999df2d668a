"""The trials of the tiny preset: how changes add up, what a trial shares with others, the table, and the harness."""

import json

import pytest
import torch

from benchmarks import recipe
from benchmarks.recipe import BASE, CHANGES, Bench, Trial
from ldlm import config as configs
from ldlm.config import ExtractConfig, SamplerConfig, TrainConfig
from ldlm.errors import InputError


def test_changes_add_up_from_left_to_right_and_counts_of_steps_are_shares_of_the_runs():
    trial = Trial("sincos, lr 1e-3, σ_dec 0.8, σ_dec 1.2, warm-up 0.1", steps=500, seed=3)
    expected = configs.merge(
        recipe.BEFORE,
        {"model": {"denoiser": {"positions": "sincos"}}, "recipe": {"sigma_dec": 1.2, "warmup_steps": 50}},
        {"optimizer": {"lr": 1e-3, "lr_warmup_steps": 25}, "timesteps": {"refresh_steps": 50}},
        {"steps": 500, "seed": 3},
    )
    assert trial.train == configs.from_dict(TrainConfig, expected)
    assert (trial.layer, trial.sampler) == (ExtractConfig().layer, SamplerConfig())


def test_every_change_is_one():
    base = Trial(BASE, 100, 0)
    for name in CHANGES:
        changed = Trial(name, 100, 0)
        assert (changed.train, changed.sampler, changed.layer) != (base.train, base.sampler, base.layer), name


def test_a_change_that_nobody_knows_is_refused_with_those_that_there_are():
    with pytest.raises(InputError, match=r"there is no change 'sincoss'; combine, with commas: sincos; "):
        _ = Trial("sincoss", 100, 0).train


def test_trials_that_differ_in_sampling_alone_share_a_run_and_no_others_do():
    names = [BASE, "sincos", "sincos, lr 1e-3", "layer -4"]
    assert len({Trial(name, 100, 0).run for name in names}) == len(names)
    assert Trial("sincos, 128 sampling steps", 100, 0).run == Trial("sincos", 100, 0).run
    assert Trial("128 sampling steps", 100, 0).run == Trial(BASE, 100, 0).run
    assert len({Trial(BASE, steps, seed).run for steps in (100, 200) for seed in (0, 1)}) == 4


def test_every_run_has_a_record_of_its_own_of_what_it_computed(tmp_path):
    trials = [Trial(name, 100, 0) for name in ("σ_dec 0.5", "σ_dec 0.8")]
    assert len({Bench(tmp_path, None).spent(trial) for trial in trials}) == 2


def found(trial, seed, *, steps=100, source="stories", **figures):
    return {"source": source, "trial": trial, "steps": steps, "seed": seed, "figures": figures}


def test_the_table_has_means_over_seeds_and_a_part_for_each_source_and_number_of_steps():
    text = recipe.report(
        [
            found("a", 0, gen_ppl=10.0, sentences_valid=0.5),
            found("a", 1, gen_ppl=14.0, sentences_valid=None),
            found("b", 0, gen_ppl=20.0, sentences_valid=0.25),
            found("a", 0, source="novels", gen_ppl=300.0),
        ]
    )
    stories, novels = text.split("novels, 100 steps")
    assert [line.split() for line in stories.splitlines()[4:6]] == [
        ["a", "2", "12", "±", "2", "0.5"],
        ["b", "1", "20", "0.25"],
    ]
    assert "sentences" not in novels
    assert novels.splitlines()[-1].split() == ["a", "1", "300"]


def test_states_tell_tokens_apart_when_each_is_nearest_to_the_mean_state_of_its_token():
    tokens = torch.arange(10).repeat(10, 5)  # ten rows
    noise = 0.01 * torch.randn(10, 50, 10, generator=torch.Generator().manual_seed(0))
    own = torch.nn.functional.one_hot(tokens, 10) + noise
    pairs = torch.nn.functional.one_hot(tokens // 2, 10)[..., :5].repeat(1, 1, 2) + noise  # two tokens alike
    assert recipe._told_apart(own, tokens, 12) == 1.0
    assert recipe._told_apart(pairs, tokens, 12) == pytest.approx(0.5, abs=0.15)


@pytest.mark.slow
def test_trials_run_are_read_when_asked_for_again_and_are_written_down(tmp_path, monkeypatch, capsys):
    for name, size in (("DOCUMENTS", 300), ("HELD_OUT", 40), ("ENCODER_STEPS", 2), ("TEXTS", 4)):
        monkeypatch.setattr(recipe, name, size)
    work = ("--work", str(tmp_path / "work"))
    recipe.main(["prepare", *work])
    asked = ("run", *work, "--steps", "2", "--trials", "sincos", "sincos, 128 sampling steps")
    recipe.main([*asked])
    runs = sorted((tmp_path / "work" / "stories" / "runs").glob("*/manifest.json"))
    assert len(runs) == 1  # for both
    before = runs[0].stat().st_mtime_ns
    trial = Trial("sincos", 2, 0)
    first = Bench(tmp_path / "work", None).measure(trial)
    assert runs[0].stat().st_mtime_ns == before
    assert first["figures"]["cpu_seconds"] > 0
    record = tmp_path / "work" / "stories" / "trials" / "sincos; 2 steps; seed 0.json"
    older = json.loads(record.read_text())
    del older["settings"]["train"]["optimizer"]["kind"]  # a setting that came later
    record.write_text(json.dumps(older))
    drawn = record.with_suffix(".jsonl").stat().st_mtime_ns
    assert Bench(tmp_path / "work", None).measure(trial)["figures"] == first["figures"]
    assert record.with_suffix(".jsonl").stat().st_mtime_ns == drawn
    record.write_text(json.dumps(first))
    recipe.main(["report", *work, "--output", str(tmp_path / "results")])
    (written,) = (tmp_path / "results").glob("*.json")
    assert first in json.loads(written.read_text())["trials"]
    assert "sincos, 128 sampling steps" in capsys.readouterr().out
