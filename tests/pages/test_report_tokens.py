"""`ldlm report` and `ldlm plot` of runs of the rivals, and the pictures that their trainings leave."""

import json
import math
import re
import shutil
from dataclasses import replace

import browser
import pytest
from PIL import Image
from report_reader import LOOK, read

from ldlm import config as configs
from ldlm import files
from ldlm.config import SampleConfig, TokenSweepConfig
from ldlm.pages import kinds, plots, token_curves
from ldlm.pages.chart import number
from ldlm.pages.curves import Course
from ldlm.sampling.frames import visible
from ldlm.stages import report, sample, sweep

EVERYTHING = ["losses", "optimisation", "samples", "frontier", "speed", "provenance"]
ALWAYS = [name for name in EVERYTHING if name not in ("samples", "frontier")]
NO_RIVALS = ("latent", "L_diff", "decoder", "finetune", "interpolate", "trace", "γ(s)")  # words of LDLM's report
END = 20  # of the curriculum: half of 40 steps


@pytest.fixture(scope="module")
def full(rival, gpt2, tmp_path_factory):
    """A run of Duo with texts and a sweep; read only."""
    run = shutil.copytree(rival("duo"), tmp_path_factory.mktemp("full") / "run-duo")
    chosen = {"sampler": {"name": "psi", "steps": 3, "eta": 0.25}, "num_samples": 3, "device": "cpu"}
    sample.run(configs.drawing_config(SampleConfig, "duo", chosen), run, run / "samples.jsonl")
    settings = TokenSweepConfig(
        budgets=(2, 4), texts=3, token_samplers=("ancestral",), top_ps=(1.0,), batch_size=3, scorer=str(gpt2),
        device="cpu",
    )  # fmt: skip
    sweep.run(settings, run, run / "sweep")
    return run


@pytest.fixture(scope="module")
def page(full, tmp_path_factory):
    """Its report."""
    return report.run(full, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def mdlm(rival, tmp_path):
    """A copy of a run of MDLM to break."""
    return shutil.copytree(rival("mdlm"), tmp_path / "run-mdlm")


def metrics_of(run):
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def course_of(run):
    """What was measured over a run."""
    return Course(configs.stored_training(files.read_yaml(run / "config.yaml")), metrics_of(run))


def charts_of(found):
    """Titles of the charts of a page."""
    return [attributes["aria-label"].split(".")[0] for tag, attributes in found.tags if tag == "svg"]


# ----------------------------------------------------------------------------------------------------------------------
# The page


def test_everything_that_a_rivals_run_has_is_shown(page, full):
    found = read(page)
    assert found.sections == EVERYTHING
    assert charts_of(found)[:4] == ["Loss", "Loss against time", "Gradient", "Learning rate"]
    assert charts_of(found)[-2:] == ["Tokens per second", "Use of the machine"]
    assert "Perplexity and evaluations" in charts_of(found)
    assert not [word for word in NO_RIVALS if word in found.text]
    assert "class=hint" not in page.read_text(encoding="utf-8")
    texts = [json.loads(line)["text"] for line in (full / "samples.jsonl").read_text().splitlines()]
    assert found.texts == [visible(text) for text in texts]
    assert "3 texts from the model at step 40: psi, 3 steps, top_p 0.9, eta 0.25." in found.by_section["samples"]


def test_the_figures_are_those_of_the_files(page, full):
    found = read(page)
    manifest, features = (files.read_json(full / f"{name}.json") for name in ("manifest", "features"))
    nelbo = manifest["held_out"]["nelbo"]
    assert f"Duo, a uniform-state diffusion, with {sum(manifest['parameters'].values()):,} parameters" in found.text
    assert f"{features['rows']['train']:,} rows of 16 tokens" in found.text
    error = f"standard error {manifest['held_out']['loss_se']:.2g}"
    assert f"{number(nelbo)} nats per token, {error}" in found.text
    perplexity, bits = f"≲ {math.exp(nelbo):.4g}", f"{number(nelbo / math.log(2))} bits per token"
    assert f"{perplexity} estimate of a bound: {bits}" in found.text
    origin = found.by_section["provenance"]
    for value in (
        features["text"], features["store"], features["encoder"]["tokenizer"], manifest["checkpoint"],
        f"embedding{manifest['parameters']['embedding']:,}", f"condition{manifest['parameters']['condition']:,}",
        "batch_size: 512 → 16", "model.denoiser.width: 768 → 16",
    ):  # fmt: skip
        assert value in origin
    # As by default, or of states that the run has not seen.
    for absent in ("curriculum", "beta2", "method", features["encoder"]["statistics"]):
        assert absent not in origin


def test_a_loss_that_bounds_no_likelihood_says_so(rival, tmp_path):
    found = read(report.run(rival("candi"), tmp_path / "report.html"))
    assert "no bound" in found.text
    assert "bounds no likelihood" in found.by_section["losses"]
    assert "perplexity" not in found.text
    assert "curriculum" not in found.text
    bounded = read(report.run(rival("mdlm"), tmp_path / "mdlm.html"))
    assert "bounds the negative log-likelihood" in bounded.by_section["losses"]
    assert "curriculum" not in bounded.text


def test_of_a_complete_run_missing_parts_are_named_with_the_command_that_makes_them(mdlm, ldlm):
    page = report.run(mdlm)
    assert read(page).sections == EVERYTHING
    hints = re.findall(r'class="hint">.*?<code>ldlm (.*?)</code>', page.read_text(encoding="utf-8"))
    assert [hint.split()[0] for hint in hints] == ["sample", "sweep"]
    for hint in hints:
        known = ldlm(hint.split()[0], "--help").stdout
        assert "run-mdlm" in hint.split()
        assert all(f"  {flag} " in known for flag in hint.split() if flag.startswith("--"))


@pytest.mark.parametrize(("state", "charts"), [("begun", 0), ("steps", 5), ("evaluated", 6)])
def test_a_run_that_is_not_complete_has_a_report_of_what_there_is(mdlm, state, charts):
    (mdlm / "manifest.json").unlink()
    kept = {"begun": 0, "steps": 5, "evaluated": 30}[state]
    lines = [line for line in metrics_of(mdlm) if line["step"] <= kept]
    (mdlm / "metrics.jsonl").write_text(files.dump_jsonl(lines))
    files.write_json(mdlm / "status.json", {"state": "running", "step": kept, "steps": 40, "saved": 0})
    if state == "begun":
        for name in ("metrics.jsonl", "features.json", "status.json"):
            (mdlm / name).unlink()
    found = read(report.run(mdlm))
    assert found.sections == ALWAYS
    assert len(charts_of(found)) == charts
    assert "ldlm sample" not in found.text
    assert ("perplexity" in found.text) == (state == "evaluated")
    assert f"{kept / 40:.0%} of 40" in found.text


def test_figures_that_are_not_finite_are_gaps(mdlm):
    lines = metrics_of(mdlm)
    for line in lines[2:]:
        line.update({key: None for key, value in line.items() if isinstance(value, float)})
        if "loss_by_t" in line:
            line["loss_by_t"] = [None] * len(line["loss_by_t"])
    (mdlm / "metrics.jsonl").write_text(files.dump_jsonl(lines))
    found = read(report.run(mdlm))
    assert found.sections == EVERYTHING
    assert "perplexity" not in found.text
    drawn = [str(value) for tag, attributes in found.tags if tag in ("path", "svg") for value in attributes.values()]
    assert not any("nan" in value for value in drawn)


def test_a_phone_shows_all_of_it(page):
    found = browser.evaluate(page, LOOK, 390)
    assert found["sections"] == EVERYTHING
    assert min(found["heights"]) > 100
    assert found["sizes"] == [390, 390]
    assert found["outside"] == []
    assert found["letters"] >= 12  # pixels, of a line


# ----------------------------------------------------------------------------------------------------------------------
# The curriculum


def test_the_end_of_the_curriculum_is_marked_and_explained(rival, page):
    found = read(page)
    assert f"Up to step {END} a curriculum" in found.by_section["losses"]
    (described,) = (a["aria-label"] for tag, a in found.tags if a.get("aria-label", "").startswith("Loss. "))
    assert described.endswith(f"; end of the curriculum at {END}.")
    loss, _ = token_curves.losses(course_of(rival("duo")))
    assert loss.keys[-1] == ("dash", "grey", "end of the curriculum")
    assert [rule.x for rule in loss.rules] == [END]
    assert page.read_text(encoding="utf-8").count("stroke-dasharray") == 1


def test_a_curriculum_that_has_not_ended_has_no_mark_yet(rival):
    course = course_of(rival("duo"))
    early = [line for line in course.metrics if line["step"] <= END]
    assert not token_curves.losses(replace(course, metrics=early))[0].rules
    without = configs.from_dict(configs.DuoTrainConfig, {"steps": 40, "curriculum": {"kind": "none"}})
    assert not token_curves.losses(replace(course, config=without))[0].rules
    assert without.curriculum_steps == 0


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


@pytest.mark.parametrize("method", [name for name in configs.METHODS if name != configs.LDLM])
def test_a_training_leaves_pictures(rival, method):
    found = {path.name for path in (rival(method) / "plots").iterdir()}
    assert found == {"training.png", "dynamics.png", "timesteps.png"}
    for path in (rival(method) / "plots").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors()) > 30  # something is drawn


def test_the_series_are_those_of_the_metrics(rival):
    course = course_of(rival("mdlm"))
    train, evaluations = ([line for line in course.metrics if line["kind"] == kind] for kind in ("train", "eval"))
    loss, over_time, gradient, rate = kinds.of(course.config).training(course)
    assert [(line.name, list(line.x), list(line.y)) for line in loss.marks] == [
        ("training", [line["step"] for line in train], [line["loss"] for line in train]),
        ("held out, NELBO", [20, 40], [line["nelbo"] for line in evaluations]),
    ]
    assert [(line.faint, list(line.y)) for line in over_time.marks] == [
        (True, evaluations[0]["loss_by_t"]), (False, evaluations[1]["loss_by_t"]),
    ]  # fmt: skip
    assert over_time.marks[0].x == [(index + 0.5) / 20 for index in range(20)]
    assert gradient.marks[0].y == [line["gradient_norm"] for line in train]
    assert rate.marks[0].y == [line["lr"] for line in train]


def test_flows_have_their_own_direction_of_time(rival):
    axes = {method: token_curves.losses(course_of(rival(method)))[1].x.label for method in ("mdlm", "flm")}
    assert axes == {"mdlm": "time t, 0 without noise", "flm": "warped time τ, 1 without noise"}


def test_runs_of_all_kinds_go_into_one_picture(trained, rival, succeed, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots.drawing, "png", lambda path, charts: drawn.append((path, charts)))
    runs = [trained, rival("mdlm"), rival("candi"), rival("duo")]
    assert succeed("plot", *runs, "--output", tmp_path)["drawn"][-1] == str(tmp_path / "dynamics.png")
    (path, charts) = drawn[-1]
    assert path == tmp_path / "dynamics.png"
    assert {chart.title: [line.name for line in chart.marks] for chart in charts} == {
        "Diffusion loss (Fig. 3, middle)": ["run"], "Decoder loss (Fig. 3, right)": ["run"],
        "Warm-up (Fig. 5)": ["run"], "Latents": ["run"],
        "Training loss": ["run-mdlm", "run-candi", "run-duo"], "Held-out NELBO": ["run-mdlm", "run-duo"],
        "Held-out loss, no bound": ["run-candi"],
    }  # fmt: skip
    # A run has one colour, and a chart without a legend says whose it is.
    colors = {line.name: line.color for chart in charts for line in chart.marks}
    assert len(set(colors.values())) == 4
    assert all(line.color == colors[line.name] for chart in charts for line in chart.marks)
    assert {chart.note for chart in charts} == {"", "Of run alone.", "Of run-candi alone."}
