"""Figures and their pictures, from a finished run and from files as the stages leave them."""

import shutil

import pytest
import yaml

from ldlm import files
from ldlm.paper import exhibits, findings, pictures, results
from ldlm.paper.plan import Plan, Size

PNG = b"\x89PNG"


def planned(name, *rows, seeds=1):
    exhibit = exhibits.load(name)
    return Plan(exhibit, Size(scale="tiny", seeds=seeds), tuple(exhibit.chosen(rows)))


def marks(plan, folder):
    """The marks of each chart by title and name."""
    charts, _ = pictures.PICTURES[plan.exhibit.picture](results.collect(plan, folder), folder)
    return {chart.title: {mark.name: mark for mark in chart.marks} for chart in charts}


def drawn(plan, folder):
    """The picture of what is in the folder, drawn."""
    pictures.draw(results.collect(plan, folder), folder)
    path = folder / f"{plan.exhibit.name}-tiny.png"
    return path.read_bytes()[:4] if path.exists() else None


@pytest.fixture
def with_runs(trained, tmp_path):
    """Gives every training of a plan a copy of a finished run."""

    def make(plan):
        for run in {measured.run for measured in plan.rows}:
            shutil.copytree(trained, tmp_path / run)
        return tmp_path

    return make


def test_figure_6_is_the_held_out_loss_over_the_time_that_a_run_trains_with(with_runs, trained):
    plan = planned("figure-6")
    folder = with_runs(plan)
    held_out = files.read_json(trained / "manifest.json")["held_out"]
    profile = held_out["l_diff_by_u"]  # the run has adaptive times
    assert findings.profile(folder, plan.rows[0]) == profile
    found = results.collect(plan, folder)
    assert found.cells["table-1/adaptive", "bend", None].values == [findings.bend(profile)]
    at = [(index + 0.5) / len(profile) for index in range(len(profile))]
    for title, shown in marks(plan, folder).items():
        assert (shown[title].x, shown[title].y) == (at, profile)
        straight = shown["a straight line"]
        assert (straight.x, straight.y) == ([at[0], at[-1]], [profile[0], profile[-1]])
    assert drawn(plan, folder) == PNG


def test_figure_6_names_the_time_that_each_run_has_trained_in(with_runs, trained):
    """Whatever its row is called; both are copies of a run with adaptive times."""
    plan = planned("figure-6")
    folder = with_runs(plan)
    uniform = next(one for one in plan.rows if one.row.short == "adaptive")
    config = folder / uniform.run / "config.yaml"
    configured = yaml.safe_load(config.read_text())
    configured["timesteps"]["kind"] = "uniform"
    config.write_text(yaml.safe_dump(configured))
    charts, _ = pictures.PICTURES["times"](results.collect(plan, folder), folder)
    assert {chart.title: chart.x.label for chart in charts} == {"Uniform": "adapted time F(t)", "Adaptive": "time t"}
    held_out = files.read_json(trained / "manifest.json")["held_out"]
    assert marks(plan, folder)["Adaptive"]["Adaptive"].y == held_out["l_diff_by_t"]


def test_figure_4_has_the_figures_of_the_runs_and_of_the_means_of_two_latents(with_runs, trained):
    plan = planned("figure-4")
    folder = with_runs(plan)
    for measured in plan.rows:
        record = {"points": [{"a": a, "gen_ppl": 9.0} for a in (0, 0.5, 1)], "mean": {"gen_ppl": 7.0, "entropy": 3.5}}
        files.write_json(folder / measured.paths / "interpolation.json", record)
    held_out = files.read_json(trained / "manifest.json")["held_out"]
    cells = results.collect(plan, folder).cells
    row = "table-1/sigma-1.0"
    for quantity in ("l_diff", "latent_std", "l_h", "token_accuracy"):
        assert cells[row, quantity, None].values == [held_out[quantity]]
    assert cells[row, "mean_ppl", None].values == [7.0]
    assert cells[row, "mean_entropy", None].values == [3.5]
    charts = {
        "Diffusion loss": held_out["l_diff"],
        "Spread of the latents": held_out["latent_std"],
        "Decoder loss": held_out["l_h"],
        "Tokens rebuilt": held_out["token_accuracy"],
        "Mean of two latents": 7.0,
    }
    shown = marks(plan, folder)
    assert list(shown) == list(charts)
    for title, value in charts.items():
        (line,) = shown[title].values()
        assert (line.x, line.y) == ([0.1, 0.5, 1.0, 2.0, 3.0, 4.0], [value] * 6)
    assert drawn(plan, folder) == PNG


def test_figure_3_has_paths_of_some_rows_and_the_course_of_others(with_runs, trained):
    plan = planned("figure-3", "mse", "ce", "warmup-0")
    folder = with_runs(plan)
    for measured in plan.rows:
        if measured.paths is not None:
            points = [{"a": a, "gen_ppl": ppl, "entropy": ppl / 2} for a, ppl in ((0, 5.0), (0.5, 9.0), (1, 5.0))]
            files.write_json(folder / measured.paths / "interpolation.json", {"points": points, "mean": points[1]})
    cells = results.collect(plan, folder).cells
    assert cells["table-1/mse", "middle_ppl", None].values == [9.0]
    assert cells["table-1/mse", "middle_entropy", None].values == [4.5]
    assert ("table-1/warmup-0", "middle_ppl", None) not in cells
    assert ("table-1/warmup-0", "l_w", None) in cells
    paths, *losses = marks(plan, folder).values()
    assert list(paths) == ["CE", "MSE"]
    for line in paths.values():
        assert (line.x, line.y) == ([0, 0.5, 1], [5.0, 9.0, 5.0])
    trainings = [line for line in files.read_jsonl(trained / "metrics.jsonl") if line["kind"] == "train"]
    for key, shown in zip(("l_diff", "l_w"), losses, strict=True):
        (line,) = shown.values()
        assert line.name == plan.exhibit.rows["table-1/warmup-0"].name
        assert line.x == [one["step"] for one in trainings if key in one]
        assert line.y == [one[key] for one in trainings if key in one]
        assert line.x
    assert drawn(plan, folder) == PNG


def test_figure_3_has_the_mean_over_the_trainings_of_a_row_at_each_point(tmp_path):
    plan = planned("figure-3", "mse", seeds=2)
    for ppl, measured in zip((4.0, 8.0), plan.rows, strict=True):
        points = [{"a": 0, "gen_ppl": ppl}, {"a": 1, "gen_ppl": None if measured.seed else ppl}]
        files.write_json(tmp_path / measured.paths / "interpolation.json", {"points": points, "mean": points[0]})
    assert marks(plan, tmp_path)["Paths between latents"]["MSE"].y == [6.0, 4.0]


def test_figure_1_places_each_budget_and_real_text(tmp_path):
    plan = planned("figure-1", "table-8/real", "table-8/ldlm", "table-8/mdlm")
    for number, measured in enumerate(plan.rows):
        for budget, place in measured.scores.items():
            figures = {"entropy": 4.0 + 0.1 * number, "diversity": 0.5}
            files.write_json(tmp_path / place, {"files": [{"gen_ppl": 100.0 + (budget or 0), **figures}] * 2})
        for budget, place in measured.drawn.items():
            record = {"config": {"num_samples": 250}, "texts_made": 250 if budget != 8 else 9, "seconds": 2.5}
            files.write_json(tmp_path / place, record)
    seconds = findings.seconds_per_text(tmp_path, plan.rows[-1])
    assert seconds == {32: 0.01, 64: 0.01, 128: 0.01}  # the texts of the first were drawn in two attempts
    (shown,) = marks(plan, tmp_path).values()
    assert shown["LDLM (Ours)"].y == [108.0, 132.0, 164.0, 228.0]
    assert shown["LDLM (Ours)"].labels == ["8", "32", "64", "128"]
    assert shown["Real texts"].shape == "star"
    places = {measured.row.name: 4.0 + 0.1 * number for number, measured in enumerate(plan.rows)}
    for name, entropy in places.items():
        assert shown[name].x == pytest.approx([entropy] * len(shown[name].y))
    assert drawn(plan, tmp_path) == PNG


def test_figure_5_is_the_schedule_and_needs_no_run(tmp_path):
    plan = planned("figure-5")
    found = results.collect(plan, tmp_path)
    assert found.statements[0].verdict == "held"
    assert found.cells["figure-5/schedule", "gamma_end", None].values == [1.0]
    (shown,) = marks(plan, tmp_path).values()
    gamma = dict(zip(shown["γ(s)"].x, shown["γ(s)"].y, strict=True))
    assert (min(gamma), max(gamma), gamma[0.0], gamma[1.2]) == (0.0, 1.2, 0.0, 1.0)
    for quantity, share in (("gamma_half", 0.5), ("gamma_end", 1.0)):
        place = min(gamma, key=lambda s, share=share: abs(s - share))
        assert gamma[place] == pytest.approx(found.cells["figure-5/schedule", quantity, None].mean, abs=0.02)
    assert drawn(plan, tmp_path) == PNG


def test_what_was_not_run_has_no_picture(tmp_path):
    for name in ("figure-1", "figure-3", "figure-4", "figure-6", "table-7"):
        assert drawn(planned(name), tmp_path) is None
