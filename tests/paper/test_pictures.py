"""Figures and their pictures, from a finished run and from files as the stages leave them."""

import shutil

import pytest

from ldlm import files
from ldlm.paper import exhibits, findings, pictures, results
from ldlm.paper.plan import Plan, Size

PNG = b"\x89PNG"


def planned(name, *rows, seeds=1):
    exhibit = exhibits.load(name)
    return Plan(exhibit, Size(scale="tiny", seeds=seeds), tuple(exhibit.chosen(rows)))


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
    profile = findings.profile(folder, plan.rows[0])  # the run has adaptive times
    assert profile == held_out["l_diff_by_u"]
    found = results.collect(plan, folder)
    assert found.cells["table-1/adaptive", "bend", None].values == [findings.bend(profile)]
    assert drawn(plan, folder) == PNG


def test_figure_4_has_the_figures_of_the_runs_and_of_the_means_of_two_latents(with_runs, trained):
    plan = planned("figure-4")
    folder = with_runs(plan)
    for measured in plan.rows:
        record = {"points": [{"a": a, "gen_ppl": 9.0} for a in (0, 0.5, 1)], "mean": {"gen_ppl": 7.0}}
        files.write_json(folder / measured.paths / "interpolation.json", record)
    held_out = files.read_json(trained / "manifest.json")["held_out"]
    cells = results.collect(plan, folder).cells
    row = "table-1/sigma-1.0"
    for quantity in ("l_diff", "latent_std", "l_h", "token_accuracy"):
        assert cells[row, quantity, None].values == [held_out[quantity]]
    assert cells[row, "mean_ppl", None].values == [7.0]
    assert drawn(plan, folder) == PNG


def test_figure_3_has_paths_of_some_rows_and_the_course_of_others(with_runs, trained):
    plan = planned("figure-3", "mse", "ce", "warmup-0")
    folder = with_runs(plan)
    for measured in plan.rows:
        if measured.paths is not None:
            points = [{"a": a, "gen_ppl": ppl} for a, ppl in ((0, 5.0), (0.5, 9.0), (1, 5.0))]
            files.write_json(folder / measured.paths / "interpolation.json", {"points": points, "mean": points[1]})
    cells = results.collect(plan, folder).cells
    assert cells["table-1/mse", "middle_ppl", None].values == [9.0]
    assert ("table-1/warmup-0", "middle_ppl", None) not in cells
    assert ("table-1/warmup-0", "l_w", None) in cells
    assert drawn(plan, folder) == PNG


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
    ((chart,), _) = pictures.PICTURES["frontier"](results.collect(plan, tmp_path), tmp_path)
    marks = {mark.name: mark for mark in chart.marks}
    assert marks["LDLM (Ours)"].y == [108.0, 132.0, 164.0, 228.0]
    assert marks["LDLM (Ours)"].labels == ["8", "32", "64", "128"]
    assert marks["Real texts"].shape == "star"
    assert drawn(plan, tmp_path) == PNG


def test_figure_5_is_the_schedule_and_needs_no_run(tmp_path):
    plan = planned("figure-5")
    found = results.collect(plan, tmp_path)
    assert found.statements[0].verdict == "held"
    assert found.cells["figure-5/schedule", "gamma_end", None].values == [1.0]
    assert drawn(plan, tmp_path) == PNG


def test_what_was_not_run_has_no_picture(tmp_path):
    for name in ("figure-1", "figure-3", "figure-4", "figure-6", "table-7"):
        assert drawn(planned(name), tmp_path) is None
