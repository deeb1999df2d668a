"""The benchmark of distilled runs: its verdict on figures, and a small one that distils, draws and writes results."""

import json

import pytest

from benchmarks import distill


def row(way, evaluations, *figures):
    """Perplexities by seed, with an entropy and a diversity of a tenth and a hundredth of them."""
    return {
        "way": way,
        "evaluations": evaluations,
        "figures": [{"gen_ppl": ppl, "entropy": ppl / 10, "diversity": ppl / 100} for ppl in figures],
    }


@pytest.mark.parametrize(("student", "said"), [(108.0, "within"), (112.0, "outside")])
def test_the_aim_is_judged_by_the_spread_of_the_teachers_seeds(student, said):
    rows = [
        row(distill.TEACHER, 32, 95.0, 105.0),
        row("student", 2, 500.0),
        row("student", 4, student - 1, student + 1),
    ]
    line = distill.verdict(rows)
    assert line.startswith("student of 4 evaluations, and the teacher: gen. ppl")
    assert f"gen. ppl +{student - 100:.3g}, {said} the 10 that the teacher's seeds differ" in line
    assert f"diversity +{(student - 100) / 100:.3g}, {said} the 0.1" in line


def test_one_seed_of_the_teacher_is_one_measurement():
    line = distill.verdict([row(distill.TEACHER, 32, 100.0), row("student", 4, 99.0, 101.0)])
    assert "gen. ppl +0, one measurement; entropy" in line and line.endswith("diversity +0, one measurement")


def test_the_cost_of_a_student_has_that_of_those_before_it():
    held_out = {"l_distill": 0.1, "l_distill_teacher": 0.2}
    found = {
        "texts": 5, "seeds": [0, 1], "run_steps": 1000, "real": None,
        "students": {"8": {"steps": 200, **held_out}, "4": {"steps": 100, **held_out}},
        "rows": [row(distill.TEACHER, 32, 95.0, 105.0), row("student", 4, 99.0, 101.0)],
    }  # fmt: skip
    text = distill.report(found)
    assert "to 8 evaluations: 200 steps in all, 20% of the run's 1,000" in text
    assert "to 4 evaluations: 300 steps in all, 30% of the run's 1,000" in text
    (teacher,) = (line for line in text.splitlines() if line.startswith(distill.TEACHER))
    assert teacher.split()[2:6] == ["32", "100", "±", "7.071"]


@pytest.mark.slow
def test_it_distils_draws_and_writes_down_what_it_found(trained, store, gpt2, corpus, tmp_path):
    places = ("--work", tmp_path / "work", "--run", trained, "--features", store, "--scorer", gpt2)
    sizes = ("--steps", 2, "--texts", 2, "--seeds", 0, 1, "--reference", corpus, "--output", tmp_path / "out")
    distill.main([str(part) for part in (*places, *sizes)])
    (path,) = (tmp_path / "out").glob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert [(one["way"], one["evaluations"]) for one in record["rows"]][:4] == [
        (distill.TEACHER, 32), ("ddim", 32), ("dpm++2m-sde, w = 1.5", 8), ("student", 8),
    ]  # fmt: skip
    assert {count: one["steps"] for count, one in record["students"].items()} == {"8": 4, "4": 2, "2": 2, "1": 2}
    assert "real text" in path.with_suffix(".txt").read_text(encoding="utf-8")
