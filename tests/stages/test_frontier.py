"""`ldlm sweep` of several runs: what each is drawn by, what it costs, its interruption, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ldlm import artifact, files
from ldlm import config as configs
from ldlm.baselines import methods
from ldlm.baselines.ways import ways
from ldlm.config import EvaluateConfig, FrontierConfig, Shapes, TokenSampleConfig, TokenSweepConfig
from ldlm.errors import InputError
from ldlm.evaluation.frontier import External
from ldlm.evaluation.fronts import Point, cells, lines, written
from ldlm.pages import fronts as pictures
from ldlm.pages.report import page
from ldlm.stages import evaluate, report, sample, sweep

SMALL = {
    "budgets": (2, 5), "solvers": ("euler-maruyama", "dpm++2m"), "grids": ("time",), "guidances": (1.0,),
    "finals": ("mean",), "temperatures": (0.0,), "screen_texts": 3, "texts": 6, "batch_size": 3, "device": "cpu",
}  # fmt: skip
OF_MDLM = {"ancestral", "ancestral, p = 0.9", "remdm, p = 0.9"}


@pytest.fixture(scope="module")
def config(gpt2):
    """The settings of `swept`."""
    return FrontierConfig(**SMALL, scorer=str(gpt2))


@pytest.fixture(scope="module")
def beside(corpus, tmp_path_factory):
    """Real text, and somebody else's."""
    real = tmp_path_factory.mktemp("beside") / "real.txt"
    real.write_text("".join(corpus.read_text().splitlines(keepends=True)[:20]))
    return {"reference": real, "externals": [External("other", real, nfe=64, seconds=0.5)]}


@pytest.fixture(scope="module")
def runs(trained, rival):
    """A run of LDLM and one of MDLM."""
    return [trained, rival("mdlm")]


@pytest.fixture(scope="module")
def swept(config, runs, beside, tmp_path_factory):
    """Both on one frontier; read only."""
    return sweep.run(config, runs, tmp_path_factory.mktemp("frontier") / "out", **beside)


def measured(rows):
    """Rows without the time that they took."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# ----------------------------------------------------------------------------------------------------------------------
# What is drawn


def test_the_samplers_of_each_method_are_those_of_the_papers_rows():
    published = TokenSweepConfig(budgets=(64,))
    found = {
        method: {way.words: configs.to_dict(way.sampler) for way in ways(published, method, "run")}
        for method in configs.TOKEN_SAMPLERS
    }
    assert {method: set(drawn) for method, drawn in found.items()} == {
        "mdlm": OF_MDLM,
        "duo": {"ancestral", "ancestral, p = 0.9", "psi, p = 0.9"},
        "candi": {"cached"},
        "flm": {"euler"},
    }
    assert found["mdlm"]["remdm, p = 0.9"]["eta"] == 0.015
    assert found["duo"]["psi, p = 0.9"]["mode"] == "rescale-duo"
    assert {drawn["nucleus_rule"] for drawn in found["duo"].values()} == {"inclusive"}
    few = replace(published, token_samplers=("ancestral",), top_ps=(0.5,))
    assert [way.words for way in ways(few, "mdlm", "run")] == ["ancestral, p = 0.5"]
    close = ways(replace(few, top_ps=(0.9, 0.90000001)), "mdlm", "run")
    assert [way.name for way in close] == ["ancestral_p0.9_64", "ancestral_p0.90000001_64"]


def test_other_settings_than_the_published_are_named_by_what_differs():
    asked = (
        "remdm", "remdm:eta=0.015", "remdm:schedule=cap", "remdm:schedule=conf,top_p=1", "ancestral:end=draw",
        "psi:mode=rescale,eta=0.1",
    )  # fmt: skip
    config = TokenSweepConfig(budgets=(64,), token_samplers=asked, top_ps=(0.5,))
    of_mdlm = {way.words: way for way in ways(config, "mdlm", "run")}
    assert list(of_mdlm) == [
        "ancestral, p = 0.5, end draw",
        "remdm, p = 0.9",  # once, though it is asked for in two ways
        "remdm, p = 0.9, schedule cap, eta 0.008",  # the published one of that schedule
        "remdm, schedule conf",
    ]
    assert of_mdlm["remdm, p = 0.9, schedule cap, eta 0.008"].name == "remdm_p0.9_schedule-cap_eta-0.008_64"
    (psi,) = (way for way in ways(config, "duo", "run") if way.sampler.name == "psi")
    assert psi.words == "psi, p = 0.9, mode rescale, eta 0.1"
    assert (psi.sampler.mode, psi.sampler.eta, psi.sampler.steps) == ("rescale", 0.1, 63)


@pytest.mark.parametrize("method", list(configs.TOKEN_SAMPLERS))
def test_no_way_takes_more_evaluations_than_its_budget(method):
    trained_with = configs.training_class(method)()
    for way in ways(TokenSweepConfig(budgets=(2, 3, 128)), method, "run"):
        assert methods.sampler(trained_with, way.sampler, Shapes(8, 8, 16)).rows == way.budget


def test_all_runs_stand_on_it_at_every_budget(swept):
    points = swept.manifest["points"]
    found = {key: [row["budget"] for row in rows] for key, rows in lines(points).items()}
    assert found.pop(("run", "the paper's sampler")) == [2, 5]
    assert found.pop(("run", "best at each budget")) == [2, 5]
    assert found == {("run-mdlm", way): [2, 5] for way in OF_MDLM}
    assert {row["num_texts"] for row in points} == {row["diversity_texts"] for row in points} == {6}
    assert all(row["rows"] == row["budget"] >= row["evaluations"] > 0 < row["seconds"] for row in points)
    of_mdlm = [row for row in points if row["method"] == "mdlm"]
    assert {row["batch_size"] for row in of_mdlm} == {3}
    assert min(row["evaluations"] for row in of_mdlm) < 5  # the last row has nothing left to do
    about = {"method", "checkpoint", "precision", "weights_precision", "step", "device", "seed"}
    assert swept.manifest["runs"]["run-mdlm"].keys() == about


def test_a_rivals_row_is_what_sample_and_evaluate_say(swept, rival, gpt2, tmp_path):
    (row,) = (r for r in swept.manifest["points"] if (r["way"], r["budget"]) == ("remdm, p = 0.9", 5))
    sampler = configs.token_sampler("mdlm", {"name": "remdm", "steps": 4})
    assert row["sampler"] == configs.used(sampler)
    out = tmp_path / "s.jsonl"
    drawn = sample.run(
        TokenSampleConfig(num_samples=6, sampler=sampler, batch_size=3, device="cpu"), rival("mdlm"), out
    )
    assert (drawn["rows"], drawn["evaluations_per_text"]) == (row["rows"], row["evaluations"])
    (scored,) = evaluate.run(EvaluateConfig(scorer=str(gpt2), device="cpu"), [out])
    for key in ("gen_ppl", "entropy", "diversity"):
        assert row[key] == pytest.approx(getattr(scored.scores, key), rel=1e-5)
    kept = swept.path / "run-mdlm" / "texts" / "remdm_p0.9_5.jsonl"
    assert kept.read_bytes() == out.read_bytes()


def test_a_run_in_it_is_swept_as_it_is_alone(swept, config, trained, beside, tmp_path):
    alone = sweep.run(configs.sweep_of("ldlm", config), trained, tmp_path / "alone", **beside)
    inside = swept.path / "run"
    for name in ("finalists", "drawn", "screened"):
        assert measured(files.read_json(inside / "sweep.json")[name]) == measured(alone.manifest[name])
    assert (inside / "config.yaml").read_bytes() == (alone.path / "config.yaml").read_bytes()
    assert files.read_json(inside / "artifact.json") == files.read_json(alone.path / "artifact.json")
    assert swept.manifest["real"] == alone.manifest["real"]
    assert swept.manifest["externals"] == alone.manifest["externals"]


def test_exported_models_stand_on_it_as_their_runs_do(swept, runs, beside, gpt2, succeed, refuse, tmp_path):
    models = [tmp_path / "model", tmp_path / "model-mdlm"]
    for run, model in zip(runs, models, strict=True):
        succeed("export", "--run", run, "--output", model)
    settings = {**SMALL, "token_samplers": ("ancestral", "remdm", "remdm:schedule=cap,eta=0.02")}
    config = FrontierConfig(**settings, scorer=str(gpt2))
    found = sweep.run(config, [*models, runs[1]], tmp_path / "out", **beside)
    drawn = {name: [row for row in found.manifest["points"] if row["run"] == name] for name in found.manifest["runs"]}
    of_runs = {name: [row for row in swept.manifest["points"] if row["run"] == name] for name in ("run", "run-mdlm")}

    def figures(rows):
        return [{key: value for key, value in row.items() if key not in ("run", "seconds")} for row in rows]

    assert figures(drawn["model"]) == figures(of_runs["run"])
    assert figures(drawn["model-mdlm"]) == figures(drawn["run-mdlm"])
    cap = "remdm, p = 0.9, schedule cap, eta 0.02"
    assert figures(row for row in drawn["model-mdlm"] if row["way"] != cap) == figures(of_runs["run-mdlm"])
    assert [(row["sampler"]["schedule"], row["sampler"]["eta"]) for row in drawn["run-mdlm"] if row["way"] == cap] == [
        ("cap", 0.02), ("cap", 0.02)
    ]  # fmt: skip
    assert found.manifest["runs"]["model-mdlm"] == found.manifest["runs"]["run-mdlm"]
    assert f"model-mdlm, {cap}: " in (found.path / "table.md").read_text()

    few = ("--budgets", 2, "--texts", 2, "--scorer", gpt2, "--device", "cpu", "--token-samplers", "remdm")
    alone = succeed("sweep", "--run", models[1], *few)
    assert alone["output"] == str(tmp_path / "sweep")  # and not in what is handed on
    line = refuse("sweep", "--run", *models, *few, "--checkpoint", "step-4", "--output", tmp_path / "named")
    assert line.startswith(f"{models[0]} is an exported model, and has no checkpoints to choose from")


# ----------------------------------------------------------------------------------------------------------------------
# Table and picture


def test_the_picture_shows_what_the_table_says(swept):
    assert (swept.path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    summary = files.read_json(swept.path / "frontier.json")
    table = (swept.path / "table.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:2] == "| "]
    head, *rows = rows
    assert head == cells(summary)[0]
    by_name = {}
    for row in rows:
        one = {name: cell.split(" [")[0] for name, cell in zip(head, row, strict=True)}
        way = one["drawn by"].split(":")[0]
        by_name.setdefault(f"{one['run']}: {way}" if way else one["run"], []).append(one)
    columns = {"gen_ppl": ("gen. ppl", ".1f"), "entropy": ("entropy", ".3f"), "seconds": ("s/text", ".4f"),
               "evaluations": ("evaluations", ".6g"), "diversity": ("diversity", ".3f")}  # fmt: skip
    axes = [("evaluations", "gen_ppl"), ("seconds", "gen_ppl"), ("entropy", "gen_ppl"), ("evaluations", "entropy"),
            ("seconds", "entropy"), ("evaluations", "diversity")]  # fmt: skip
    for chart, ends in zip(pictures.charts(summary), axes, strict=True):
        marks = {mark.name: mark for mark in chart.marks}
        assert marks.keys() == by_name.keys()
        for name, shown in by_name.items():
            for key, values in zip(ends, (marks[name].x, marks[name].y), strict=True):
                column, digits = columns[key]
                if name != "real text" or column in ("gen. ppl", "entropy", "diversity"):
                    assert {format(value, digits) for value in values} == {one[column] for one in shown}


def test_figures_have_intervals(swept):
    summary, table = swept.manifest, (swept.path / "table.md").read_text()
    for row in [*summary["points"], *summary["externals"], summary["real"]]:
        for name, digits in (("gen_ppl", 1), ("entropy", 3)):
            low, high = row["intervals"][name]
            assert low < row[name] < high
            assert f"| {row[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] |" in table
    for row in summary["points"]:
        del row["intervals"]  # as in a sweep of an earlier version
        assert Point.from_json(row).to_json() == {name: row[name] for name in Point.from_json(row).to_json()}
    assert not any(" [" in cell for row in written({**summary, "externals": [], "real": None})[1] for cell in row)


def test_real_text_is_marked_by_its_entropy_too(swept):
    summary = swept.manifest
    head, rows = cells(summary)
    entropy, to_real = head.index("entropy"), head.index("to real")
    assert [row[to_real] for row in rows] == [row[entropy] - summary["real"]["entropy"] for row in rows]
    assert rows[-1][to_real] == 0
    plane = next(chart for chart in pictures.charts(summary) if chart.title == "Perplexity and entropy")
    (star,) = (mark for mark in plane.marks if mark.shape == "star")
    assert (star.x, star.y) == ([summary["real"]["entropy"]], [summary["real"]["gen_ppl"]])


def test_a_report_shows_the_sweep_of_a_rival(swept, trained):
    found = files.read_json(swept.path / "run-mdlm" / "sweep.json")
    shown = page(replace(report.read(trained), sweep=found, verdict=""))
    section = shown[shown.index('id="frontier"') :]
    for row in cells(found)[1]:
        assert f"{row[5]:.1f}" in section
    assert "remdm, p = 0.9" in section
    assert "Perplexity and seconds" in section


# ----------------------------------------------------------------------------------------------------------------------
# Interruption


def test_an_interrupted_one_is_taken_up_and_gives_the_same(swept, config, runs, beside, interrupted, notes, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        sweep.run(config, runs, out, **beside, progress=interrupted(at=9))  # 4 ways of LDLM twice over, then MDLM's
    done = sorted(out.rglob("trajectories/*.json"))
    assert {path.parent.parent.name for path in done} == {"run", "run-mdlm"}
    before = {path: path.stat().st_mtime_ns for path in [*done, out / "run" / "manifest.json"]}
    again = sweep.run(config, runs, out, **beside).manifest
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert measured(again["points"]) == measured(swept.manifest["points"])
    for path in swept.path.rglob("texts/*.jsonl"):
        assert path.read_bytes() == (out / path.relative_to(swept.path)).read_bytes()
    sweep.run(config, runs, out, **beside, progress=notes)
    counted, done = notes.lines
    assert "real.txt: no tokens, so its entropy" in counted
    assert done == f"{out} is complete; nothing to do"
    other = shutil.copytree(runs[1], tmp_path / "run-other")
    with pytest.raises(InputError, match=r"made with other settings \(inputs.runs.run-mdlm: "):
        sweep.run(config, [runs[0], other], out, **beside)


# ----------------------------------------------------------------------------------------------------------------------
# What is refused, before anything is drawn


def test_what_is_where_a_later_run_goes_is_found_before_the_first_is_drawn(config, runs, interrupted, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        sweep.run(config, runs, out, progress=interrupted(at=0))
    shutil.rmtree(out / "run")
    artifact.begin(out / "run-mdlm", "sweep", configs.sweep_of("mdlm", replace(config, seed=1)), {})
    with pytest.raises(InputError, match=r"out/run-mdlm was made with other settings \(.*seed: 1 -> 0"):
        sweep.run(config, runs, out)
    assert not (out / "run").exists()


def changed(run, to, **encoder_and_shapes):
    """A copy of a run whose record says something else of its features."""
    shutil.copytree(run, to)
    record = files.read_json(to / "features.json")
    for section, values in encoder_and_shapes.items():
        record[section].update(values)
    files.write_json(to / "features.json", record)
    return to


def test_runs_in_folders_of_one_name_are_told_apart_by_their_paths(rival, succeed, gpt2, tmp_path):
    runs = [shutil.copytree(rival("mdlm"), tmp_path / name / "run") for name in "ab"]
    plan = succeed("sweep", "--run", *runs, "--budgets", 2, "--scorer", gpt2, "--dry-run")
    assert plan["runs"].keys() == {"a-run", "b-run"}


def test_what_does_not_fit_together_is_refused_in_one_line(runs, rival, gpt2, refuse, tmp_path):
    mdlm, out = runs[1], tmp_path / "out"

    def refused(*paths, budgets=(2, 5), scorer=gpt2, more=()):
        line = refuse(
            "sweep",
            "--run",
            *paths,
            "--budgets",
            *budgets,
            "--scorer",
            scorer,
            "--output",
            out,
            "--device",
            "cpu",
            *more,
        )
        assert not out.exists()
        return line

    assert refused(mdlm, mdlm) == f"{mdlm}, {mdlm} name a folder twice; give each once"
    link = tmp_path / "again"
    link.symlink_to(mdlm)
    assert refused(mdlm, link) == f"{mdlm}, {link} name a folder twice; give each once"
    with pytest.raises(InputError, match="name a folder twice"):
        sweep.run(FrontierConfig(**SMALL), [mdlm, mdlm], out)
    words = changed(mdlm, tmp_path / "words", encoder={"tokenizer": "0" * 64})
    assert refused(*runs, words).startswith(f"{runs[0]} and {words} have different tokenizers")
    assert "different tokenizers" in refused(*runs, words, more=("--dry-run",))
    long = changed(mdlm, tmp_path / "long", shapes={"seq_len": 32})
    assert refused(*runs, long).startswith(f"{runs[0]} draws texts of 16 tokens and {long} of 32")
    line = refused(*runs, budgets=(1, 8))
    assert line.startswith(
        f"{mdlm} has no sampler for --budgets 1: a chain of N steps (ancestral or remdm) takes N + 1"
    )
    line = refused(*runs, more=("--token-samplers", "psi"))
    assert line.startswith(f"{mdlm} is of method mdlm and draws with ancestral or remdm, not with psi")
    assert "token_samplers is one of ancestral, remdm, psi, cached, euler" in refused(
        *runs, more=("--token-samplers", "x")
    )
    for asked, said in {
        "remdm:eta=2": "sampler.eta must be at most 1, not 2.0",
        "remdm:mode=rescale": "sampler.mode is a setting of psi of duo, and not of remdm of mdlm, which has steps",
        "remdm:schedule=conf,eta=0.1": "sampler.eta changes nothing with sampler.schedule=conf",
        "remdm:schedule=loop,t_on=0.01": "t_on",
        "remdm:steps=4": "sets its steps, which the budgets give; leave steps= out",
        "remdm:cap": "token_samplers takes NAME or NAME:KEY=VALUE,..., like remdm:schedule=cap,eta=0.02, and not",
        "remdm:": "token_samplers takes NAME or NAME:KEY=VALUE,...",
    }.items():
        assert said in refused(*runs, more=("--token-samplers", asked)), asked
    assert "top_ps must be more than 0" in refused(*runs, more=("--top-ps", 0))
    line = refused(mdlm, more=("--solvers", "heun"))
    assert line == "solvers is not a setting of a sweep of mdlm; leave it out"
    line = refused(mdlm, more=("--sampler", "paper"))
    assert line.startswith("--sampler paper is a sampler of LDLM, and runs of mdlm do not have it")
    line = refused(runs[0], more=("--top-ps", 0.5))
    assert line == "top_ps is not a setting of a sweep of ldlm; leave it out"
    assert str(tmp_path / "none") in refused(*runs, scorer=tmp_path / "none")
    begun = changed(mdlm, tmp_path / "begun")
    (begun / "features.json").unlink()
    shutil.rmtree(begun / "checkpoints")
    assert refused(begun).startswith(f"{begun} has no checkpoint yet")
    later = changed(mdlm, tmp_path / "later")
    (later / "config.yaml").write_text("method: later\n")
    assert refused(later) == f"{later} is of the method 'later', which this ldlm does not know; use the newer ldlm"
    assert "no checkpoint 'step-1'" in refused(*runs, more=("--checkpoint", "step-1"))
    assert refused(runs[0], tmp_path / "nowhere").startswith(f"there is no folder {tmp_path / 'nowhere'}")


# ----------------------------------------------------------------------------------------------------------------------
# The command


def test_from_the_command_line(rival, gpt2, ldlm, succeed, tmp_path, monkeypatch):
    run = Path(shutil.copytree(rival("mdlm"), tmp_path / "run-mdlm"))
    monkeypatch.chdir(tmp_path)
    few = ("--budgets", 2, "--texts", 2, "--scorer", gpt2, "--device", "cpu")
    assert succeed("sweep", "--run", run, *few, "--dry-run") == {
        "ways": 3, "evaluations_at_most": 12, "texts_to_draw": 6,
    }  # fmt: skip
    found = succeed("sweep", "--run", run, *few)  # of one run, in it
    assert found["output"] == str(run / "sweep")
    assert [point["way"] for point in found["points"]] == ["ancestral", "ancestral, p = 0.9", "remdm, p = 0.9"]
    other = Path(shutil.copytree(run, "run-other", ignore=shutil.ignore_patterns("sweep")))
    both = ("sweep", "--run", run, other, *few, "--token-samplers", "ancestral", "--top-ps", 1)
    assert succeed(*both, "--dry-run")["runs"].keys() == {"run-mdlm", "run-other"}
    shown = ldlm(*both)  # of several, beside the first
    assert shown.exit_code == 0, shown.stderr
    assert {path.name for path in Path("sweep").iterdir() if path.is_dir()} == {"run-mdlm", "run-other"}
    assert "2 texts each" in shown.stdout
    for name in ("run-mdlm", "run-other"):
        assert name in shown.stdout
    assert json.loads(Path("sweep/manifest.json").read_text())["kind"] == "frontier"
