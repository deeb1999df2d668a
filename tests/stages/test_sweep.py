"""`ldlm sweep`: what it measures is what `sample` and `evaluate` give one by one; its choice; its interruption."""

import json
import shutil
from dataclasses import replace

import pytest

from ldlm import files
from ldlm.config import EvaluateConfig, SampleConfig, SweepConfig
from ldlm.errors import InputError
from ldlm.evaluation import frontier, metrics, samples
from ldlm.evaluation.frontier import Variant
from ldlm.sampling import trajectories
from ldlm.stages import evaluate, sample, sweep

SMALL = {"budgets": (2, 5), "solvers": ("euler-maruyama", "heun"), "grids": ("time",), "guidances": (1.0, 2.0)}


def settings(gpt2, **changes) -> SweepConfig:
    counts = {"screen_texts": 4, "texts": 6, "batch_size": 3, "scorer": str(gpt2), "device": "cpu"}
    return SweepConfig(**{**SMALL, **counts, **changes})


@pytest.fixture(scope="module")
def swept(trained, gpt2, corpus, tmp_path_factory):
    """A small sweep with real text and somebody else's."""
    folder = tmp_path_factory.mktemp("sweep")
    real = folder / "real.txt"
    real.write_text("".join(corpus.read_text().splitlines(keepends=True)[:20]))
    other = frontier.External("other", real, nfe=64, seconds=0.5)
    made = sweep.run(settings(gpt2), trained, folder / "out", reference=real, externals=[other])
    return made.manifest, folder / "out"


def test_every_combination_is_screened_that_its_budget_pays_for(swept):
    found, _ = swept
    counted = {(row["solver"], row["guidance"], row["budget"], row["steps"]) for row in found["screened"]}
    assert counted == {
        ("euler-maruyama", 1.0, 2, 2), ("euler-maruyama", 1.0, 5, 5),
        ("euler-maruyama", 2.0, 2, 1), ("euler-maruyama", 2.0, 5, 2),
        ("heun", 1.0, 2, 1), ("heun", 1.0, 5, 2),
        ("heun", 2.0, 5, 1),  # four evaluations a step
    }  # fmt: skip
    variants = {(row["final"], row["temperature"]) for row in found["screened"]}
    assert variants == {("mean", 0.0), ("mean", 1.0), ("x0", 0.0), ("x0", 1.0)}
    assert len(found["screened"]) == 7 * 4


@pytest.mark.parametrize(("final", "temperature"), [("mean", 0.0), ("x0", 1.0)])
@pytest.mark.parametrize("solver", ["euler-maruyama", "heun"])
def test_a_row_is_what_sample_and_evaluate_say(swept, trained, gpt2, tmp_path, solver, final, temperature):
    found, _ = swept
    (row,) = (
        row
        for row in found["screened"]
        if (row["solver"], row["guidance"], row["budget"]) == (solver, 1.0, 5)
        and (row["final"], row["temperature"]) == (final, temperature)
    )
    sampler = replace(trajectories.Trajectory.of(Variant.from_json(row)).sampler, final=final, temperature=temperature)
    assert sampler.t_min == {"euler-maruyama": 0.05, "heun": 0.005}[solver]  # the paper's sampler ends there
    out = tmp_path / "s.jsonl"
    sample.run(SampleConfig(num_samples=10, sampler=sampler, device="cpu"), trained, out)
    out.write_text("".join(out.read_text().splitlines(keepends=True)[6:]))  # the finalists have the first six
    (scored,) = evaluate.run(EvaluateConfig(scorer=str(gpt2), device="cpu"), [out])
    assert found["screen_seeds"] == scored.scores.seeds == [6, 9]
    for key in ("gen_ppl", "entropy", "diversity"):
        assert row[key] == pytest.approx(getattr(scored.scores, key), rel=1e-5)


ONE = {"budgets": (2,), "solvers": ("euler-maruyama",), "guidances": (1.0,), "finals": ("mean",)}


def test_finalists_are_not_chosen_by_their_own_texts(trained, gpt2, tmp_path):
    """Though as many are drawn."""
    config = settings(gpt2, screen_texts=6, **ONE)
    made = sweep.run(config, trained, tmp_path / "out")
    found = made.manifest
    figures = [{row["temperature"]: row["entropy"] for row in found[name]} for name in ("screened", "drawn")]
    assert figures[0].keys() == figures[1].keys()
    assert all(figures[0][temperature] != figures[1][temperature] for temperature in figures[0])
    assert (found["screen_seeds"], made.inputs["screen_seeds"]) == ([6, 11], [6, 11])
    names = {path.name for path in (tmp_path / "out" / "trajectories").iterdir()}
    assert names == {"euler-maruyama_time_w1_2-6.json", "screen_euler-maruyama_time_w1_2-6.json"}
    for path in (tmp_path / "out" / "texts").glob("*.jsonl"):
        assert [row["seed"] for row in files.read_jsonl(path)] == list(range(6))
    assert "6 of their own to screen" in (tmp_path / "out" / "table.md").read_text()


def test_a_sweep_that_was_begun_before_goes_on_with_its_seeds(trained, gpt2, interrupted, tmp_path):
    config, out = settings(gpt2, screen_texts=6, **ONE), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        sweep.run(config, trained, out, progress=interrupted(at=1))
    record = files.read_json(out / "artifact.json")
    del record["inputs"]["screen_seeds"]
    files.write_json(out / "artifact.json", record)
    shutil.rmtree(out / "trajectories", ignore_errors=True)
    found = sweep.run(config, trained, out).manifest
    assert found["screened"] == found["drawn"]  # from the same file
    assert [path.name for path in (out / "trajectories").iterdir()] == ["euler-maruyama_time_w1_2-6.json"]
    assert "screen_seeds" not in found
    assert "6 to screen" in (out / "table.md").read_text()
    assert sweep.run(config, trained, out).complete


def test_finalists_are_drawn_again_with_more_texts_which_are_kept(swept):
    found, out = swept
    assert {row["num_texts"] for row in found["finalists"]} == {6}
    assert {row["budget"] for row in found["finalists"]} == {2, 5}
    for row in found["finalists"]:
        name = f"{row['solver']}_time_w{row['guidance']:g}_{row['budget']}_joint_{row['final']}_{row['temperature']:g}"
        assert len(list(files.read_jsonl(out / "texts" / f"{name}.jsonl"))) == 6
    assert found["real"]["num_texts"] == 6  # as many as are drawn, for diversity's sake
    (other,) = found["externals"]
    assert (other["num_texts"], other["diversity_texts"]) == (20, 6)
    assert other["diversity"] == found["real"]["diversity"]  # the first six of both are the same
    text = (out / "table.md").read_text()
    assert "other" in text
    assert "Real text" in text
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_finalists_and_real_text_have_intervals(swept):
    found, out = swept
    table = (out / "table.md").read_text()
    for row in [*found["finalists"], *found["drawn"], found["real"], *found["externals"]]:
        for name in ("gen_ppl", "entropy"):
            low, high = row["intervals"][name]
            assert low <= row[name] <= high
    for row in [*found["finalists"], found["real"]]:
        (low, high), (less, more) = (row["intervals"][name] for name in ("gen_ppl", "entropy"))
        assert f"{row['gen_ppl']:.1f} [{low:.1f}, {high:.1f}]" in table
        assert f"{row['entropy']:.3f} [{less:.3f}, {more:.3f}]" in table
    real = found["real"]["intervals"]["gen_ppl"]
    assert f"perplexity {found['real']['gen_ppl']:.1f} [{real[0]:.1f}, {real[1]:.1f}]" in table
    assert "[" not in table.split("## Screened")[1]  # hundreds of rows


def test_what_is_not_offered_is_left_out(gpt2):
    everything = trajectories.trajectories(SweepConfig(budgets=(8,)))
    ways = {(one.solver, one.grid, final) for one in everything for final in one.finals(SweepConfig().finals)}
    assert len({one.name for one in everything}) == len(everything)
    left = {("euler-maruyama", "learned"), ("ddim", "time")}
    assert not left & {way[:2] for way in ways}
    assert {way for way in ways if way[0] == "dpm++2m-sde"} == {
        ("dpm++2m-sde", "time", "x0"), ("dpm++2m-sde", "learned", "x0"),
        ("dpm++2m-sde", "log-snr", "mean"), ("dpm++2m-sde", "log-snr", "x0"),
    }  # fmt: skip
    assert sweep.plan(SweepConfig(budgets=(8,), temperatures=(0.0,), guidances=(1.0,)))["variants"] == len(ways)
    with pytest.raises(InputError, match="solver ddim on grid time with final mean is not offered"):
        trajectories.trajectories(SweepConfig(solvers=("ddim",), grids=("time",)))


def test_one_flag_sweeps_the_papers_sampler_alone(succeed):
    planned = succeed("sweep", "--sampler", "paper", "--budgets", 8, 16, "--dry-run")
    assert planned["trajectories"] == 2
    planned = succeed("sweep", "--sampler", "paper", "--budgets", 8, 16, "--guidances", 1, 2, "--dry-run")
    assert planned["trajectories"] == 4


def test_diversity_is_that_of_as_many_texts_as_the_smallest_set_has(trained, gpt2, corpus, tmp_path, notes):
    real = tmp_path / "real.txt"
    real.write_text("".join(corpus.read_text().splitlines(keepends=True)[:3]))
    config = settings(gpt2, budgets=(2,), solvers=("dpm++2m",), guidances=(1.0,))
    found = sweep.run(config, trained, tmp_path / "out", reference=real, progress=notes).manifest
    assert "diversity is that of 3 texts of each set, as many as the smallest has" in notes.lines
    assert {row["diversity_texts"] for row in [*found["drawn"], found["real"]]} == {3}
    assert {row["num_texts"] for row in found["drawn"]} == {6}
    (row, *_) = found["drawn"]
    name = f"dpm++2m_time_w1_2_joint_{row['final']}_{row['temperature']:g}"
    kept = samples.read(tmp_path / "out" / "texts" / f"{name}.jsonl")
    assert row["diversity"] == metrics.diversity(kept.tokens[:3])
    assert "diversity of 3 texts of each" in (tmp_path / "out" / "table.md").read_text()


def test_a_scorer_of_fewer_positions_than_a_row_has_tokens_cuts_the_texts(trained, bigrams, tmp_path, notes):
    one = {"solvers": ("dpm++2m",), "guidances": (1.0,), "finals": ("mean",)}
    config = settings(bigrams, budgets=(2,), boundaries="drop", **one)
    found = sweep.run(config, trained, tmp_path / "out", progress=notes).manifest
    assert (found["max_tokens"], found["boundaries"], found["boundary_tokens"]) == (8, "drop", ["<|endoftext|>"])
    (line,) = (line for line in notes.lines if line.startswith("texts are cut"))
    assert line == f"texts are cut after 8 tokens, the most that the scorer {bigrams} takes, instead of after 16"


def test_others_samples_are_scored_alike_whatever_tokenizer_wrote_them(trained, gpt2, unseen, tmp_path, notes):
    """Somebody's BERT, whose boundaries are named, beside somebody's GPT-2."""
    others = []
    for name, begin, end in (("bert", "[CLS] ", " [SEP]"), ("gpt2", "<|endoftext|>", "<|endoftext|>")):
        path = tmp_path / f"{name}.txt"
        path.write_text("\n".join(f"{begin}{line}{end}" for line in unseen[:6]) + "\n")
        others.append(frontier.External(name, path, nfe=8, seconds=0.1))
    config = settings(gpt2, budgets=(2,), solvers=("dpm++2m",), guidances=(1.0,), finals=("mean",), temperatures=(1.0,))
    named = replace(config, boundary_tokens=("[CLS]", "[SEP]"))
    for settled, alike in ((named, True), (replace(named, boundaries="text"), False)):
        out = tmp_path / settled.boundaries
        beside = {"reference": others[1].path, "externals": others}
        bert, gpt = sweep.run(settled, trained, out, **beside, progress=notes).manifest["externals"]
        counted = [line for line in notes.lines if "its entropy and diversity count the scorer's" in line]
        assert [line.partition(":")[0] for line in counted] == [str(others[i].path) for i in (1, 0)]
        notes.lines.clear()
        assert (bert["gen_ppl"] == pytest.approx(gpt["gen_ppl"], rel=1e-6)) == alike


def test_others_samples_are_read_by_their_own_column(trained, gpt2, unseen, tmp_path, notes):
    """Somebody's samples in a field of their own, whose boundaries nobody has named, beside real text in `text`."""
    theirs, real = tmp_path / "theirs.jsonl", tmp_path / "real.jsonl"
    theirs.write_text(files.dump_jsonl([{"generated_text": f"[CLS] {line} [SEP]"} for line in unseen[:6]]))
    real.write_text(files.dump_jsonl([{"text": line} for line in unseen[6:12]]))
    config = settings(gpt2, budgets=(2,), solvers=("dpm++2m",), guidances=(1.0,), finals=("mean",), temperatures=(1.0,))
    config = replace(config, text_column="generated_text")
    other = frontier.External("other", theirs, nfe=8, seconds=0.1)
    found = sweep.run(config, trained, tmp_path / "out", reference=real, externals=[other], progress=notes).manifest
    assert found["externals"][0]["gen_ppl"] != found["real"]["gen_ppl"]
    assert f"{real} has no 'generated_text', and its 'text' is read" in notes.lines
    said = (
        f"{theirs}: [CLS] and [SEP] occur in 6 of 6 texts and are read letter by letter; name them: --boundary-tokens"
    )
    assert f'{said} "[CLS]" "[SEP]"' in notes.lines


def test_budgets_that_pay_for_no_step_are_refused_before_anything_is_begun(trained, gpt2, refuse, tmp_path):
    command = ("sweep", "--run", trained, "--scorer", gpt2, "--output", tmp_path / "out", "--device", "cpu")
    line = refuse(*command, "--solvers", "heun", "--guidances", 1.5, "--budgets", 1, 3)
    assert "none of the solvers takes a step in 3 evaluations; give larger --budgets" in line
    assert not (tmp_path / "out").exists()


def test_an_interrupted_sweep_is_taken_up_and_gives_the_same(swept, trained, gpt2, interrupted, tmp_path):
    whole, _ = swept
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        sweep.run(settings(gpt2), trained, out, progress=interrupted(at=3))
    before = {path: path.stat().st_mtime_ns for path in (out / "trajectories").iterdir()}
    assert len(before) == 4
    again = sweep.run(settings(gpt2), trained, out).manifest
    assert {path: path.stat().st_mtime_ns for path in before} == before

    def figures(rows):
        return [{key: value for key, value in one.items() if key != "seconds"} for one in rows]

    assert figures(again["screened"]) == figures(whole["screened"])
    assert figures(again["finalists"]) == figures(whole["finalists"])


def test_decoders_are_compared_on_the_same_latents(run_copy, store, gpt2, tmp_path):
    from ldlm.config import FinetuneConfig
    from ldlm.stages import finetune_decoder

    for layers in (0, 1):
        finetune_decoder.run(FinetuneConfig(layers=layers, steps=2, device="cpu"), run_copy, store)
    config = settings(gpt2, budgets=(4,), solvers=("euler-maruyama",), decoders=("joint", "layers-0", "layers-1"))
    found = sweep.run(config, run_copy, tmp_path / "out").manifest
    assert {one["decoder"] for one in found["drawn"]} == {"joint", "layers-0", "layers-1"}
    table = (tmp_path / "out" / "table.md").read_text()
    section = table.split("## Decoding the paper's sampler at 4 evaluations")[1].split("##")[0]
    assert section.count("| layers-0 |") == section.count("| joint |") == 4


def test_from_the_command_line(trained, gpt2, succeed, refuse, tmp_path):
    out = tmp_path / "out"
    common = ("sweep", "--run", trained, "--scorer", gpt2, "--output", out, "--device", "cpu", "--texts", 3)
    small = ("--solvers", "ddim", "--grids", "log-snr", "learned", "--guidances", 1, "--screen-texts", 2)
    found = succeed(*common, *small, "--budgets", 2, 3)
    assert {one["grid"] for one in found["screened"]} == {"log-snr", "learned"}
    assert "budgets" in refuse(*common, *small, "--budgets", 4)
    assert "solvers is one of" in refuse(*common, "--solvers", "euler")
    assert "NAME=FILE,NFE,SECONDS" in refuse(*common, *small, "--budgets", 2, 3, "--external", "mdlm.jsonl")
    plan = succeed("sweep", "--budgets", 2, 4, "--solvers", "heun", "--grids", "time", "--guidances", 1, "--dry-run")
    assert plan["trajectories"] == 2
    assert plan["denoiser_evaluations_to_screen"] == 600
    assert json.loads((out / "manifest.json").read_text())["kind"] == "sweep"


def test_a_run_that_has_no_checkpoint_yet_is_planned_and_not_swept(trained, gpt2, succeed, refuse, tmp_path):
    begun = tmp_path / "begun"
    shutil.copytree(trained, begun, ignore=lambda _, names: {"checkpoints", "manifest.json"} & {*names})
    small = ("sweep", "--run", begun, "--solvers", "ddim", "--grids", "learned", "--guidances", 1, "--budgets", 2)
    assert succeed(*small, "--dry-run")["trajectories"] == 1
    line = refuse(*small, "--scorer", gpt2, "--output", tmp_path / "out", "--device", "cpu")
    assert line.startswith(f"{begun} has no checkpoint yet")
