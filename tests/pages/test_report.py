"""`ldlm report`: a page of what a run's files say, of nothing else, in whatever state the run is."""

import json
import re
import shutil
from dataclasses import replace

import browser
import pytest
from report_reader import LOOK, Page, read

from ldlm import artifact, files
from ldlm.config import PAPERS_SAMPLER, FinetuneConfig, InterpolateConfig, SampleConfig, SamplerConfig, SweepConfig
from ldlm.evaluation import frontier
from ldlm.pages import report as report_page
from ldlm.pages import results
from ldlm.pages.chart import number, percent
from ldlm.pages.report_results import TEXTS
from ldlm.sampling.frames import visible
from ldlm.stages import finetune_decoder, interpolate, report, sample, sweep, trace

ALWAYS = ["losses", "timesteps", "latents", "speed", "provenance"]
OPTIONAL = ["decoders", "samples", "trace", "frontier", "interpolation"]
EVERYTHING = ["losses", "timesteps", "latents", *OPTIONAL, "speed", "provenance"]
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> &amp; \"q\" 'r' $end"


@pytest.fixture(scope="module")
def full(trained, store, gpt2, corpus, tmp_path_factory):
    """A run with everything that may be in it; read only."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("full") / "my run")
    real = run.parent / "real.txt"
    real.write_text("".join(corpus.read_text().splitlines(keepends=True)[:20]))
    finetune_decoder.run(FinetuneConfig(layers=1, steps=2, device="cpu"), run, store)
    papers = SamplerConfig(steps=3, **PAPERS_SAMPLER)
    settings = SampleConfig(num_samples=TEXTS + 3, sampler=papers, decoder="layers-1", device="cpu")
    sample.run(settings, run, run / "samples.jsonl")
    few = replace(settings, num_samples=2, seed=7, decoder="joint")
    sample.run(few, run, run / "samples" / "joint.jsonl")
    trace.run(settings, run, run / "trace")
    interpolate.run(InterpolateConfig(pairs=3, points=5, scorer=str(gpt2), device="cpu"), run, store)
    sweep.run(
        SweepConfig(
            budgets=(2, 4, 8), solvers=("euler-maruyama", "dpm++2m"), grids=("time",), guidances=(1.0,), screen_texts=3,
            texts=4, scorer=str(gpt2), device="cpu",
        ),
        run,
        run / "sweep",
        reference=real,
        externals=[frontier.External("theirs", real, 64, 0.5)],
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def page(full, tmp_path_factory):
    """Its report."""
    return report.run(full, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def full_copy(full, tmp_path):
    """A copy of it to break."""
    return shutil.copytree(full, tmp_path / "my run")


# ----------------------------------------------------------------------------------------------------------------------
# What it says


def test_everything_that_is_there_is_shown(page):
    found = read(page)
    assert found.sections == EVERYTHING
    links = [attributes["href"] for tag, attributes in found.tags if tag == "a"]
    assert links == [f"#{name}" for name in EVERYTHING]
    assert "class=hint" not in page.read_text(encoding="utf-8")
    assert [a["aria-label"].split(".")[0] for tag, a in found.tags if tag == "svg"] == [
        "Denoising, L_diff", "Hidden states, L_h", "Tokens, L_w", "Tokens rebuilt", "Loss against time",
        "Times that are drawn", "Spread of the latents", "Warm-up", "Perplexity and entropy",
        "Perplexity and evaluations", "Perplexity along the way", "Entropy along the way", "Diversity along the way",
        "Edits from point to point", "Tokens per second", "Use of the machine",
    ]  # fmt: skip


def test_what_the_run_does_not_have_there_itself_is_left_out(run_copy):
    """A frontier of several runs or a comparison, put where a run has its own sweep or interpolation."""
    before = report.run(run_copy).read_bytes()
    kinds = {"sweep": "frontier", "interpolation": "comparison", "trace": "sweep", "decoders/other": "model"}
    for name, kind in kinds.items():
        artifact.begin(run_copy / name, kind, SweepConfig(), {}).finish()
    (run_copy / "likelihood").mkdir()
    (run_copy / "likelihood" / "notes.txt").write_text("my own")
    assert report.run(run_copy).read_bytes() == before


def test_the_figures_are_those_of_the_files(page, full):
    found = read(page)
    manifest, features = (files.read_json(full / f"{name}.json") for name in ("manifest", "features"))
    held_out = manifest["held_out"]
    assert f"with {sum(manifest['parameters'].values()):,} parameters" in found.text
    assert f"{features['rows']['train']:,} rows of 16 tokens" in found.text
    for value in (held_out["l_diff"], held_out["l_diff_mean"], held_out["latent_std"]):
        assert number(value) in found.text
    origin = found.by_section["provenance"]
    encoder = features["encoder"]
    for value in (
        features["text"], features["store"], encoder["fingerprint"], encoder["tokenizer"], encoder["statistics"],
        manifest["checkpoint"], manifest["versions"]["torch"], f"{manifest['parameters']['denoiser']:,}",
        "batch_size: 512 → 8", "model.denoiser.width: 768 → 16", "recipe.sigma_dec: 3.0 → 1.0",
    ):  # fmt: skip
        assert value in origin
    assert "weight_decay" not in origin  # as by default
    described = [a["aria-label"] for tag, a in found.tags if tag == "svg"]
    lines = [json.loads(line) for line in (full / "metrics.jsonl").read_text().splitlines()]
    first, last = ([line for line in lines if line["kind"] == "train"][i] for i in (0, -1))
    for label, key, shown in zip(
        described, ("l_diff", "l_h", "l_w", "token_accuracy"), (number, number, number, percent), strict=False
    ):
        assert f"training: from {shown(first[key])} to {shown(last[key])};" in label
    assert f"{8 * 8 * 16:,} tokens" in found.by_section["speed"]


def test_decoders_frontier_and_interpolation_are_the_stages_own_figures(page, full):
    found = read(page)
    decoder = files.read_json(full / "decoders" / "layers-1" / "manifest.json")
    for value in (
        f"{decoder['parameters']:,}",
        number(decoder["held_out"]["l_w"]),
        number(decoder["joint"]["l_w_clean"]),
    ):
        assert value in found.by_section["decoders"]

    swept = files.read_json(full / "sweep" / "sweep.json")
    rows = re.findall(
        r"<tr>.*?</tr>", page.read_text(encoding="utf-8").split('aria-label="The paper')[1].split("</table>")[0]
    )
    assert len(rows) == 1 + len(swept["finalists"]) + 2
    for row, shown in zip([*swept["finalists"], *swept["externals"], swept["real"]], rows[1:], strict=True):
        for key, digits in (("gen_ppl", ".1f"), ("entropy", ".3f"), ("diversity", ".3f")):
            assert f"<td>{row[key]:{digits}}</td>" in shown
    assert frontier.verdict(frontier.read_finalists(swept)) in found.by_section["frontier"]

    circles = [float(a["r"]) for tag, a in found.tags if a.get("class") == "spot"]
    lines = results.frontier_lines(swept["finalists"])
    seconds = [row["seconds"] for rows in lines.values() for row in rows]  # the paper's may be the best, and on both
    slowest = max(*seconds, 0.5)  # theirs
    for radius, spent in zip(circles[: len(seconds)], seconds, strict=True):
        assert radius == pytest.approx(max(2.5, 9 * (spent / slowest) ** 0.5), abs=0.06)

    walked = files.read_json(full / "interpolation" / "interpolation.json")
    for figures in (walked["mean"], walked["real"]):
        low, high = map(number, figures["intervals"]["gen_ppl"])
        assert f"{number(figures['gen_ppl'])} ({low} – {high})" in found.by_section["interpolation"]


def test_what_an_earlier_version_has_found_is_shown_with_its_numbers_of_texts(full):
    """It did not say of how many texts a diversity is, and took it of all texts of each set."""
    found = report.read(full)
    swept, walked = (json.loads(json.dumps(record)) for record in (found.sweep, found.interpolation))
    for record in (swept, walked):
        for key in ("diversity_texts", "boundaries", "boundary_tokens", "clean_up", "max_tokens"):
            record.pop(key, None)
    for figures in (
        *(swept[name] for name in ("finalists", "drawn", "screened", "externals")),
        [swept["real"], walked["mean"], walked["real"]],
        walked["points"],
    ):
        for row in figures:
            del row["diversity_texts"]
    old = Page(report_page.page(replace(found, sweep=swept, interpolation=walked)))
    assert old.by_section["frontier"].count("(of 20 texts)") == 1  # theirs; real text is cut at the finalists' number
    assert old.by_section["interpolation"].count("(of 6 texts)") == 1
    new = Page(report_page.page(found))
    assert "(of " not in new.by_section["frontier"] + new.by_section["interpolation"]
    assert "diversity is of 4 texts of each" in new.by_section["frontier"]


def test_every_chart_has_its_numbers_in_a_table(page, full):
    text = page.read_text(encoding="utf-8")
    assert len(re.findall("<figure", text)) == len(
        re.findall("<details class=.numbers.*?<tbody>\\s*<tr>", text, re.DOTALL)
    )
    lines = [json.loads(line) for line in (full / "metrics.jsonl").read_text().splitlines()]
    (table,) = re.findall(r'aria-label="Numbers of Denoising, L_diff".*?</table>', text, re.DOTALL)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    assert rows[0] == ["step", "training", "held out", "predicting the mean"]
    train, held_out = ({line["step"]: line for line in lines if line["kind"] == kind} for kind in ("train", "eval"))
    keys = ((train, "l_diff"), (held_out, "l_diff"), (held_out, "l_diff_mean"))
    for step, *cells in rows[1:]:
        wanted = [f"{found[int(step)][key]:.6g}" if int(step) in found else "" for found, key in keys]
        assert cells == wanted
    assert len(rows) == 1 + len(set(train) | set(held_out))


def test_texts_are_the_first_by_seed_and_unedited(page, full, full_copy):
    rows = [json.loads(line) for line in (full / "samples.jsonl").read_text().splitlines()]
    frames = files.read_json(full / "trace" / "trace.json")["frames"]
    way = [json.loads(line) for line in (full / "interpolation" / "texts.jsonl").read_text().splitlines()]
    other = [json.loads(line) for line in (full / "samples" / "joint.jsonl").read_text().splitlines()]
    texts = [visible(row["text"]) for row in [*rows[:TEXTS], *other]]
    found = read(page)
    assert found.texts[: len(texts)] == texts
    assert visible(frames[0]["text"]) == found.texts[len(texts)]
    assert [visible(row["text"]) for row in way if row["pair"] == 0] == found.texts[-5:]
    # Whatever their order in the file.
    (full_copy / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    assert read(report.run(full_copy)).texts == found.texts
    rows[0]["text"] = "<|endoftext|>one"
    (full_copy / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = report.run(full_copy, full_copy / "again.html").read_text(encoding="utf-8")
    assert '<i class="s">&lt;|endoftext|&gt;</i>one' in shown


def test_what_was_made_of_an_older_state_says_so(full_copy):
    before = read(report.run(full_copy)).text
    assert "it is now at" not in before
    path = full_copy / "samples.jsonl.meta.json"
    files.write_json(path, {**files.read_json(path), "step": 6})
    assert "9 texts from the model at step 6 (it is now at 8)" in read(report.run(full_copy)).text


def test_no_name_of_a_folder_outside_is_told(page, full, gpt2):
    assert f"states of {gpt2.name}, layer -3" in read(page).text
    for path in (gpt2.parent, full.parent):
        assert str(path) not in page.read_text(encoding="utf-8")


# ----------------------------------------------------------------------------------------------------------------------
# Runs that have only begun, and runs of which something is missing


def test_of_a_complete_run_missing_parts_are_named_with_the_command_that_makes_them(trained, ldlm, tmp_path):
    page = report.run(trained, tmp_path / "report.html").read_text(encoding="utf-8")
    assert Page(page).sections == EVERYTHING
    hints = re.findall(r'class="hint">.*?<code>ldlm (.*?)</code>', page)
    assert [hint.split()[0] for hint in hints] == ["finetune-decoder", "sample", "sample", "sweep", "interpolate"]
    for hint in hints:
        command, *arguments = hint.split()
        known = ldlm(command, "--help").stdout
        assert "run" in arguments  # the run's own name
        assert all(f"  {flag} " in known for flag in arguments if flag.startswith("--"))


@pytest.mark.parametrize("state", ["begun", "features", "steps", "evaluated", "failed"])
def test_a_run_that_is_not_complete_has_a_report_of_what_there_is(run_copy, state):
    for name in ("manifest.json", "report.html"):
        (run_copy / name).unlink(missing_ok=True)
    metrics = [json.loads(line) for line in (run_copy / "metrics.jsonl").read_text().splitlines()]
    for line in metrics[:3]:
        line["token_accuracy"] = 0.1  # an untrained decoder may name no token, and a curve of zeros is not drawn
    kept = {"steps": [line for line in metrics[:3]], "evaluated": metrics[:6], "failed": metrics}.get(state, [])
    (run_copy / "metrics.jsonl").write_text(files.dump_jsonl(kept))
    status = {"state": "running", "step": 3, "steps": 8, "saved": 3, "time": "2026-01-01T00:00:00+0000"}
    files.write_json(
        run_copy / "status.json", {**status, **({"state": "failed", "reason": EVIL} if state == "failed" else {})}
    )
    if state == "begun":
        for name in ("metrics.jsonl", "features.json", "status.json", "statistics.safetensors"):
            (run_copy / name).unlink()
        for name in ("tokenizer", "checkpoints", "plots"):
            shutil.rmtree(run_copy / name)
    found = read(report.run(run_copy))
    assert found.sections == ALWAYS
    assert "ldlm sample" not in found.text
    charts = sum(tag == "svg" for tag, _ in found.tags)
    assert charts == {"begun": 0, "features": 0, "steps": 8, "evaluated": 10, "failed": 10}[state]
    assert (EVIL in found.text) == (state == "failed")
    assert ("0% of 8" if state == "begun" else "38% of 8") in found.text or state in ("evaluated", "failed")


def test_the_attention_kernel_is_that_of_the_manifest_or_of_the_status_while_there_is_none(run_copy):
    def kernels():
        return re.findall(r"attention(sdpa|xformers)", read(report.run(run_copy)).text)

    assert kernels() == ["sdpa"]
    (run_copy / "manifest.json").unlink()
    status = files.read_json(run_copy / "status.json")
    files.write_json(run_copy / "status.json", {**status, "attention": "xformers"})
    assert kernels() == ["xformers"]
    del status["attention"]  # runs of earlier versions don't say
    files.write_json(run_copy / "status.json", status)
    assert kernels() == []


def test_an_unfinished_part_is_a_missing_one_and_a_damaged_one_is_said(full_copy, refuse):
    (full_copy / "sweep" / "manifest.json").unlink()
    (full_copy / "samples.jsonl").rename(full_copy / "samples.jsonl.partial")
    found = read(report.run(full_copy))
    assert "ldlm sweep --run my run" in found.by_section["frontier"]
    assert "samples/joint.jsonl" in found.by_section["samples"]
    assert "9 texts" not in found.by_section["samples"]
    path = full_copy / "interpolation" / "manifest.json"
    path.write_text(path.read_text().replace('"pairs": 3', '"pairs": 4'))
    assert "is damaged" in refuse("report", full_copy)


def test_figures_that_are_not_finite_are_gaps(run_copy):
    lines = [json.loads(line) for line in (run_copy / "metrics.jsonl").read_text().splitlines()]
    for line in lines[2:]:
        line.update({key: None for key, value in line.items() if isinstance(value, float)})
        for key in ("l_diff_by_t", "l_diff_by_u"):
            if key in line:
                line[key] = [None] * len(line[key])
    (run_copy / "metrics.jsonl").write_text(files.dump_jsonl(lines))
    found = read(report.run(run_copy))
    assert found.sections == EVERYTHING
    drawn = [str(value) for tag, attributes in found.tags if tag in ("path", "svg") for value in attributes.values()]
    assert not any("nan" in value for value in drawn)


def test_a_long_run_makes_a_small_page(run_copy):
    lines = [json.loads(line) for line in (run_copy / "metrics.jsonl").read_text().splitlines()]
    (train, *_), (evaluation, *_) = ([line for line in lines if line["kind"] == kind] for kind in ("train", "eval"))
    timing = {"rows_per_second": 500, "tokens_per_second": 8000, "data_wait": 0.01, "flops_utilisation": 0.4}
    long = [{**train, "step": 50 * i, "l_diff": 1 + i % 7, "timing": timing} for i in range(1, 20_001)]
    long += [{**evaluation, "step": 5_000 * i} for i in range(1, 201)]
    (run_copy / "metrics.jsonl").write_text(files.dump_jsonl(long))
    assert report.run(run_copy).stat().st_size < 350_000


# ----------------------------------------------------------------------------------------------------------------------
# The page as a file


def test_the_same_files_give_the_same_bytes_wherever_they_lie(full, full_copy, page):
    assert report.run(full_copy).read_bytes() == page.read_bytes()
    assert report.run(full_copy).read_bytes() == page.read_bytes()  # nor is its own report one of its files


def test_the_page_needs_nothing_from_outside(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<style[^>]*>\*", text)
    for tag, attributes in Page(text).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "script", "img", "form")
        assert not {"src", "srcset", "action", "xlink:href"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "default-src 'none'" in text
    assert page.stat().st_size < 300_000


@pytest.fixture
def hostile(full_copy):
    """The report of a run whose texts and names would like to be markup."""
    texts = full_copy / "samples.jsonl"
    rows = [json.loads(line) for line in texts.read_text().splitlines()]
    rows = [{**row, "text": EVIL + "<|endoftext|>" + "w" * 300} for row in rows]
    texts.write_text(files.dump_jsonl(rows))
    manifest = artifact.open_artifact(full_copy / "sweep", "sweep").manifest
    manifest["externals"][0]["name"] = manifest["scorer"] = EVIL
    files.write_atomic(full_copy / "sweep" / "manifest.json", files.dump_digested(manifest))
    meta = files.read_json(full_copy / "samples.jsonl.meta.json")
    meta["config"]["sampler"]["solver"] = EVIL
    files.write_json(full_copy / "samples.jsonl.meta.json", meta)
    features = files.read_json(full_copy / "features.json")
    features["encoder"]["name"] = EVIL
    files.write_json(full_copy / "features.json", features)
    # A name of a folder holds anything but a slash.
    named = full_copy.with_name(EVIL.replace("/", ""))
    full_copy.rename(named)
    return report.run(named)


def test_text_is_never_markup(hostile, page):
    found = read(hostile)
    assert found.texts[0] == EVIL + "<|endoftext|>" + "w" * 300
    assert EVIL in found.by_section["samples"]
    assert EVIL in found.by_section["frontier"]
    assert EVIL in found.by_section["provenance"]
    assert EVIL.replace("/", "") in found.text
    kinds = {tag for tag, _ in read(page).tags}
    assert {tag for tag, _ in found.tags} == kinds
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)


# ----------------------------------------------------------------------------------------------------------------------
# The page in a browser


@pytest.mark.parametrize(("width", "columns"), [(1200, 2), (390, 1)], ids=["desk", "phone"])
def test_all_of_it_is_seen_at_a_desk_and_on_a_phone(page, width, columns):
    found = browser.evaluate(page, LOOK, width)
    assert found["sections"] == EVERYTHING
    assert min(found["heights"]) > 100
    assert found["sizes"] == [width, width]
    assert found["outside"] == []
    assert found["letters"] >= 12  # pixels, of a line
    for across, up in found["charts"]:
        assert across > 0.8 * min(width, 1024) / columns - 60
        assert up / across == pytest.approx(236 / 400, abs=0.01)


def test_markup_in_texts_harms_nothing_and_long_words_stay_within_the_phone(hostile):
    found = browser.evaluate(hostile, LOOK, 390)
    assert found["hacked"] == "safe"
    assert found["sizes"] == [390, 390]
    assert found["sections"] == EVERYTHING


def test_light_and_dark_differ_and_no_complaint_is_heard(page):
    light, dark = (browser.evaluate(page, LOOK, dark=dark)["colors"] for dark in (False, True))
    assert light == ["rgb(244, 243, 240)", "rgb(28, 126, 214)"]
    assert dark == ["rgb(10, 10, 16)", "rgb(108, 197, 255)"]
    assert browser.console(page) == []


def test_the_browser_hears_complaints(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<!doctype html><script>missing()</script>")
    assert "missing is not defined" in "".join(browser.console(path))


# ----------------------------------------------------------------------------------------------------------------------
# The command


def test_from_the_command_line(run_copy, store, succeed, ldlm, refuse, tmp_path):
    assert succeed("report", run_copy) == {"output": str(run_copy / "report.html")}
    elsewhere = tmp_path / "pages" / "a.html"
    assert ldlm("report", run_copy, "--output", elsewhere).stdout == f"{elsewhere}\n"
    assert elsewhere.read_bytes() == (run_copy / "report.html").read_bytes()
    assert "a training run is needed" in refuse("report", store)
    assert "there is no folder" in refuse("report", tmp_path / "nothing")
    assert "is a folder" in refuse("report", run_copy, "--output", tmp_path)
    assert "does not end in .html" in refuse("report", run_copy, "--output", run_copy / "config.yaml")
    assert "Examples" in ldlm("report", "--help").stdout


def test_a_report_is_written_whole_or_not_at_all(run_copy, monkeypatch):
    report.run(run_copy)
    before = (run_copy / "report.html").read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    (run_copy / "status.json").unlink()
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        report.run(run_copy)
    assert (run_copy / "report.html").read_bytes() == before
    assert not list(run_copy.glob(".report*"))
