"""Verdicts on orderings, the bend of a loss, tables with the paper's figures beside ours, and the state of evidence."""

import datetime
import json
import math

import pytest

from ldlm import files, runtime
from ldlm.paper import evidence, exhibits, findings, orderings, results
from ldlm.paper.comparing import Figures
from ldlm.paper.plan import Plan, Size
from ldlm.versions import library_versions

TABLE = exhibits.load("table-7")
A, B = TABLE.rows


def test_a_chain_is_as_good_as_its_worst_pair_and_reversed_where_its_ends_are():
    exhibit = exhibits.load("table-1")
    chain = exhibit.statements[0]
    assert chain.rising == ("table-1/mse", "table-1/ce-mse", "table-1/ce")

    def judged(*rows):
        values = {(key, "gen_ppl", None): [[v] for v in row] for key, row in zip(chain.rising, rows, strict=True)}
        return orderings.judge(exhibit, chain, Figures(values))

    assert judged([100, 101], [200, 202], [300, 303]).verdict == "held"
    found = judged([100, 101], [200, 202], [201, 203])
    assert (found.verdict, found.pairs, found.ends) == ("within seed spread", ("held", "within seed spread"), "held")
    assert found.paper is True
    assert orderings.verdict(found) == "within seed spread, its ends held"
    assert judged([100, 101], [300, 303], [200, 202]).verdict == "not held"
    drifting = judged([102.7, 104.1], [101.0, 102.4], [99.3, 100.7])  # neighbours are not apart, and the ends are
    assert (drifting.pairs, drifting.ends) == (("within seed spread",) * 2, "not held")
    assert drifting.verdict == "not held"
    assert orderings.words(exhibit, chain) == "Gen. PPL: MSE < CE + MSE < CE"


def test_the_bend_of_a_line_is_nought_and_that_of_a_curve_is_what_the_line_leaves():
    assert findings.bend([1, None, 3, 4]) == pytest.approx(0, abs=1e-12)
    assert findings.bend([1.0, 1.0]) is None
    # x² at 0, 1, 2: the best line leaves 1/18 of 2/3·… : residuals 1/3, −2/3, 1/3 of values 0, 1, 4
    assert findings.bend([0, 1, 4]) == pytest.approx((6 / 9) / (26 / 3))
    saturating = [1 - math.exp(-x / 3) for x in range(20)]
    assert findings.bend(saturating) > 0.3


@pytest.fixture
def measured(tmp_path):
    """A folder with the scores of a table, as the jobs would have left them: two seeds of two sampling seeds."""
    plan = Plan(TABLE, Size(scale="tiny", seeds=2), (A, B))
    values = {(A, 0): (100, 110), (A, 1): (120, 130), (B, 0): (140, 150), (B, 1): (160, None)}
    for one in plan.rows:
        texts = [
            {"gen_ppl": ppl, "entropy": 4.0, "diversity": 0.5, "mauve": 0.25} for ppl in values[one.row.key, one.seed]
        ]
        files.write_json(tmp_path / one.scores[None], {"files": texts})
    return plan, tmp_path


def test_the_table_has_mean_and_deviation_over_trainings_beside_the_papers_figures(measured):
    plan, folder = measured
    found = results.collect(plan, folder)
    head, rows = found.table()
    assert head == ["", "Gen. PPL", "paper", "Mauve", "paper", "Div", "paper", "Ent.", "paper"]
    assert rows[0][:5] == ["Perceiver Resampler", "115.0 ± 14.1", "66.3 ± 0.8", "25.0 ± 0.0", "89.1 ± 3.1"]
    assert rows[1][1] == "152.5 ± 10.6"  # (140 + 150)/2 and 160: a set without a perplexity is left out
    assert found.verdicts() == [
        "Gen. PPL: Perceiver Resampler < Self-attention: within seed spread",  # two trainings each: t is 4.3
        "Div: Self-attention < Perceiver Resampler: within seed spread",
    ]
    record = results.write(found, folder, "ldlm paper table-7")
    assert record == files.read_json(folder / "table-7-tiny.json")
    cell = next(one for one in record["rows"][1]["figures"] if one["quantity"] == "gen_ppl")
    assert cell["by_seed"] == [[140, 150], [160, None]] and cell["paper"] == "94.7 ± 1.4"
    page = (folder / "table-7-tiny.md").read_text(encoding="utf-8")
    assert "| Self-attention | 152.5 ± 10.6 | 94.7 ± 1.4 |" in page
    assert "- Gen. PPL: Perceiver Resampler < Self-attention: within seed spread" in page
    said = "Scale tiny, 3,000 training steps; 2 training seeds, 2 sampling seeds each; mean ± standard deviation over"
    assert f"{said} training seeds." in page


def test_of_two_trainings_of_which_one_is_missing_there_is_one_measurement(measured):
    plan, folder = measured
    (folder / next(one for one in plan.rows if (one.row.key, one.seed) == (A, 1)).scores[None]).unlink()
    found = results.collect(plan, folder)
    assert found.cells[A, "gen_ppl", None].values == [105]
    assert {one.verdict for one in found.statements} == {"one measurement"}


def test_with_one_training_the_deviation_is_over_sampling_seeds(tmp_path):
    plan = Plan(TABLE, Size(scale="tiny", seeds=1), (A,))
    texts = [{"gen_ppl": ppl, "entropy": 4.0, "diversity": 0.5} for ppl in (100, 110)]
    files.write_json(tmp_path / plan.rows[0].scores[None], {"files": texts})
    found = results.collect(plan, tmp_path)
    assert found.cells[A, "gen_ppl", None].values == [100, 110]
    assert (A, "mauve", None) not in found.cells
    assert found.statements == []  # the other row is not asked for
    both = Plan(TABLE, Size(scale="tiny", seeds=1), (A, B))
    for one in both.rows:
        files.write_json(tmp_path / one.scores[None], {"files": [{**text, "mauve": 0.5} for text in texts]})
    assert {one.verdict for one in results.collect(both, tmp_path).statements} == {"one measurement"}


@pytest.mark.parametrize(
    ("name", "rows", "scale", "seeds", "sets"),
    [
        ("table-5", ["joint"], "tiny", 2, 3),
        ("table-8", ["real", "mdlm"], "tiny", 2, 3),
        ("table-3", ["ldlm"], "paper", 2, 1),
        ("figure-4", ["sigma-1.0"], "tiny", 2, 0),
        ("figure-6", [], "tiny", 2, 0),
        ("table-8", ["real"], "tiny", 0, 0),
        ("figure-5", [], "tiny", 0, 0),
    ],
)
def test_sampling_seeds_are_the_sets_of_texts_that_are_drawn(tmp_path, name, rows, scale, seeds, sets):
    exhibit = exhibits.load(name)
    plan = Plan(exhibit, Size(scale=scale, seeds=2, sampling_seeds=3), tuple(exhibit.chosen(rows)))
    record = results.write(results.collect(plan, tmp_path), tmp_path, "ldlm paper")
    assert (record["seeds"], record["sampling_seeds"]) == (seeds, sets)


@pytest.mark.parametrize(
    ("seeds", "sets", "said"),
    [
        (2, 2, "; 2 training seeds, 2 sampling seeds each; mean ± standard deviation over training seeds."),
        (2, 0, "; 2 training seeds; mean ± standard deviation over training seeds."),
        (1, 5, "; 1 training seed, 5 sampling seeds; mean ± standard deviation over sampling seeds."),
        (2, 1, "; 2 training seeds, 1 sampling seed each; mean ± standard deviation over training seeds."),
        (1, 1, "; 1 training seed, 1 sampling seed."),
        (1, 0, "; 1 training seed."),
    ],
)
def test_a_caption_says_over_what_there_is_a_deviation_and_nothing_of_texts_where_none_are_drawn(seeds, sets, said):
    rows = [{"steps": 1_200}, {"steps": 3_000}]
    record = {"scale": "tiny", "seeds": seeds, "sampling_seeds": sets, "rows": rows, "hardware": "A100", "date": "then"}
    assert results.caption(record) == f"Scale tiny, 1,200 and 3,000 training steps{said} A100, then."
    plain = {**record, "rows": [{"steps": None}], "scale": "paper"}
    assert results.caption(plain) == f"Scale paper{said} A100, then."


def test_what_was_not_run_is_an_empty_cell_and_no_verdict(tmp_path):
    found = results.collect(Plan(TABLE, Size(scale="tiny"), (A, B)), tmp_path)
    assert found.table()[1][0][1:3] == ["–", "66.3 ± 0.8"]
    assert {one.verdict for one in found.statements} == {"not run"}


# ----------------------------------------------------------------------------------------------------------------------
# Where and when


LOGIN = "login node, 2 cores"


@pytest.fixture
def elsewhere(monkeypatch):
    """This process is on a machine that has measured nothing."""
    monkeypatch.setattr(runtime, "hardware", lambda: LOGIN)


def remember(path, **more):
    files.write_json(path, {**files.read_json(path), **more})


def test_a_report_has_date_hardware_and_versions_of_the_measurements_and_not_its_own(measured, elsewhere):
    plan, folder = measured
    first, *others = (folder / one.scores[None] for one in plan.rows)
    remember(first, date="2026-01-03", hardware="A100", versions={"ldlm": "0.1.9"})
    remember(others[0], date="2026-01-02", hardware="H100")
    record = results.write(results.collect(plan, folder), folder, "ldlm paper table-7", report=True)
    assert (record["date"], record["hardware"]) == ("2026-01-03", "A100; H100")
    assert record["versions"] == {"ldlm": "0.1.9"}
    assert "A100; H100, 2026-01-03." in (folder / "table-7-tiny.md").read_text(encoding="utf-8")


def test_a_command_names_the_machine_of_what_it_has_made_itself_if_it_succeeded(measured, elsewhere):
    plan, folder = measured
    done = next(job for job in plan.jobs if job.mark == plan.rows[0].scores[None])
    missing = next(job for job in plan.jobs if job.kind == "train")
    lines = [
        {"ldlm": [*done.words], "status": 0, "seconds": 1.0, "cpu_seconds": 1.0},  # of an earlier version
        {"makes": done.mark, "status": 0, "date": "2026-01-02", "hardware": "A100"},
        {"makes": done.mark, "status": 1, "date": "2026-01-04", "hardware": "H100"},
        {"makes": missing.mark, "status": 0, "date": "2026-01-05", "hardware": "L40"},  # and was removed again
    ]
    (folder / "commands.jsonl").write_text(files.dump_jsonl(lines) + '{"ldlm": ["tr')
    for report in (False, True):
        record = results.write(results.collect(plan, folder), folder, "ldlm paper table-7", report=report)
        assert (record["date"], record["hardware"]) == ("2026-01-02", "A100")


def test_a_folder_of_before_claims_no_hardware_in_a_report_and_todays_in_the_command_itself(measured, elsewhere):
    plan, folder = measured
    today = datetime.date.today().isoformat()
    record = results.write(results.collect(plan, folder), folder, "ldlm paper table-7", report=True)
    assert (record["date"], record["hardware"], record["versions"]) == (today, None, None)
    assert results.caption(record).endswith(f"over training seeds. Reported on {today}.")
    record = results.write(results.collect(plan, folder), folder, "ldlm paper table-7")
    assert (record["date"], record["hardware"], record["versions"]) == (today, LOGIN, library_versions())


def test_what_takes_no_job_is_computed_by_the_report(tmp_path, elsewhere):
    exhibit = exhibits.load("figure-5")
    plan = Plan(exhibit, Size(scale="tiny"), tuple(exhibit.rows))
    record = results.write(results.collect(plan, tmp_path), tmp_path, "ldlm paper figure-5", report=True)
    assert (record["hardware"], record["versions"]) == (LOGIN, library_versions())


# ----------------------------------------------------------------------------------------------------------------------
# Evidence


def committed(folder, name, *verdicts):
    record = {"scale": "tiny", "date": "2026-11-28", "statements": [{"verdict": verdict} for verdict in verdicts]}
    (folder / f"{name}-tiny.json").write_text(json.dumps(record))


def test_the_state_of_evidence_is_that_of_the_committed_results(tmp_path):
    committed(tmp_path, "table-1", *["held"] * 5, *["within seed spread"] * 2)
    committed(tmp_path, "table-2", "held", "not held")
    committed(tmp_path, "table-7", "held", "held")
    committed(tmp_path, "table-8", *["held"] * 5, "not comparable, for entropy")
    committed(tmp_path, "table-5", *["within seed spread"] * 2)
    committed(tmp_path, "figure-3", "held", "one measurement", "not comparable, for entropy")
    committed(tmp_path, "figure-4", "held")  # of some of its rows
    found = {one.exhibit.name: one for one in evidence.of_all(tmp_path)}
    assert list(found) == list(exhibits.NAMES)
    assert found["table-7"].state == "reproduced"  # every ordering is held
    assert found["table-1"].state == "partly reproduced"
    assert found["table-1"].verdicts == "5 held, 2 within seed spread"
    assert found["table-8"].state == "partly reproduced"
    assert found["table-2"].state == "contradicted"
    assert {found[name].state for name in ("table-5", "figure-3", "figure-4")} == {"undecided"}
    assert (found["table-4"].state, found["table-4"].scale) == ("not run", None)
    assert {name for name, one in found.items() if one.state == "needs a GPU"} == {"table-3", "table-9"}


def test_committed_results_are_of_known_tables_and_have_the_statements_of_today():
    for path in evidence.FOLDER.glob("*.json"):
        record = files.read_json(path)
        exhibit = exhibits.load(record["exhibit"])
        assert path.stem == f"{exhibit.name}-{record['scale']}"
        stated = [orderings.words(exhibit, one) for one in exhibit.statements]
        assert [one["words"] for one in record["statements"]] == stated
        assert {row["row"] for row in record["rows"]} <= set(exhibit.rows)
        assert record["versions"].keys() == library_versions().keys()
        drawn = max(len(seed) for row in record["rows"] for one in row["figures"] for seed in one["by_seed"])
        texts = {one["quantity"] for row in record["rows"] for one in row["figures"]} & {"gen_ppl", "entropy"}
        assert record["sampling_seeds"] == (drawn if texts else 0)


def test_committed_verdicts_follow_from_the_committed_figures():
    for path in evidence.FOLDER.glob("*.json"):
        record = files.read_json(path)
        exhibit = exhibits.load(record["exhibit"])
        size = Size(scale=record["scale"], seeds=max(1, record["seeds"]))
        runs = results._runs(Plan(exhibit, size, tuple(row["row"] for row in record["rows"])))
        figures = {
            (row["row"], one["quantity"], one["evaluations"]): one["by_seed"]
            for row in record["rows"]
            for one in row["figures"]
        }
        found = [orderings.judge(exhibit, one, Figures(figures, runs)) for one in exhibit.statements]
        assert [one.verdict for one in found] == [one["verdict"] for one in record["statements"]], path.name
        assert [[*one.pairs] for one in found] == [one["pairs"] for one in record["statements"]], path.name
