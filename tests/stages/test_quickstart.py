"""`ldlm quickstart`: its sources, what it says of the samples, earlier folders, and all of it at toy size, killed."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from folders import content

from ldlm import artifact, files
from ldlm.config import QuickstartConfig
from ldlm.errors import InputError
from ldlm.evaluation import samples
from ldlm.evaluation.boundaries import Boundaries
from ldlm.hub import load_tokenizer
from ldlm.stages import quickstart, source_text
from ldlm.stages.source_stories import Stories
from ldlm.stages.source_text import RealText
from ldlm.stages.sources import Judged, Sizes
from ldlm.stories import process, tokens
from tests.cli.test_keys import Seen, manifest

TOY = Sizes(
    texts=8,
    encoder_steps=2,
    decoder_steps=2,
    decoder="layers-2",
    temperature=0.0,
    preset={
        "steps": 4,
        "batch_size": 4,
        "eval_rows": 8,
        "save_every": 2,
        "log_every": 1,
        "eval_every": 2,
        "timesteps": {"bins": 4, "refresh_steps": 2},
        "recipe": {"warmup_steps": 2},
        "optimizer": {"lr_warmup_steps": 1},
    },
)
HELD_OUT = {"l_diff": 0.1, "l_diff_mean": 0.2, "token_accuracy": 0.5, "token_accuracy_clean": 0.6, "latent_std": 1.0}


@pytest.fixture
def judged(tmp_path):
    """A quickstart's samples: 40 real stories in 10 rows, the last of each cut; and what a source needs of it."""
    found = Judged(tmp_path, 10, "none", seed=0, device="cpu")
    told, rows = [*process.stories(5, 0, 60)], []
    for row in range(10):
        end, last = tokens.ENDS, told[6 * row + 5]
        text = (
            "".join(f"{end} {story}" for story in told[6 * row : 6 * row + 5]) + f"{end} {last[: len(last) // 2]}{end}"
        )
        rows.append({"text": text.replace(f"{end} ", end, 1), "tokens": [0], "seed": row})
    files.write_atomic(found.samples, files.dump_jsonl(rows))
    boundaries = Boundaries((tokens.ENDS,)).to_json()
    samples.write_record(found.samples, "texts", {"boundaries": boundaries, "clean_up": False})
    return found


def summary(judged, progress):
    """A manifest of a quickstart with these samples."""
    decoder = {"name": "layers-2", "parameters": 3, "replaces": 4, "held_out": HELD_OUT}
    drawn_by = {"solver": "ddim", "steps": 7, "temperature": 0.25}
    found = Stories().judge(judged, progress)
    return {"source": "stories", "held_out": HELD_OUT, "decoder": decoder, "drawn_by": drawn_by, **found}


def test_the_stories_of_a_seed_are_held_out_and_trained_on_apart(notes):
    parts = Stories(documents=30, held_out=10).parts(QuickstartConfig(seed=3), notes)
    assert parts == {"held-out": [*process.stories(3, 0, 10)], "train": [*process.stories(3, 10, 40)]}
    assert "ours and synthetic" in notes.lines[0]


def test_a_part_of_the_tokenizer_that_a_kill_left_is_replaced(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{")
    Stories().write_tokenizer(tmp_path)
    assert len(load_tokenizer(str(tmp_path))) == len(process.STORIES.vocabulary) + 2


def test_samples_of_stories_are_judged_beside_as_many_real_ones_and_the_first_are_shown(judged, notes):
    found = summary(judged, notes)
    assert found["judged"]["sentences_valid"] == found["judged"]["stories_valid"] == 1
    assert found["judged"]["num_texts"] == found["judged"]["real"]["num_texts"] == 10
    first = [*process.stories(5, 1, 5), *process.stories(5, 7, 8)]  # of each row the first part has no beginning
    assert found["first_stories"] == [{"text": story, "violations": []} for story in first]
    text = quickstart.summary_text(found)
    for name in ("valid sentences", "valid stories"):  # an interval tells even where all of a few are valid
        assert re.search(name + r" +100\.0% \[\d\d\.\d, 100\.0\] +100\.0% \[\d\d\.\d, 100\.0\]\n", text)
    assert "yes  at least 60 % of the sentences are valid: 100.0%" in text
    assert "ddim, 7 steps; decoder layers-2, temperature 0.25" in text
    assert "ours and synthetic" in text
    assert first[0][:40] in text
    assert "ppl" not in text
    assert "8-grams" not in text
    assert (judged.out / "comparison.png").stat().st_size > 10_000


def test_what_is_wrong_with_a_story_stands_beside_it_and_a_claim_that_fails_says_no(judged, notes):
    rows = files.read_jsonl(judged.samples)
    wrong = "Anna had a red kite. He lost it by the lake."
    broken = [{**row, "text": f"{tokens.ENDS}to Ben.{tokens.ENDS} {wrong}{tokens.ENDS} Ben had"} for row in rows]
    files.write_atomic(judged.samples, files.dump_jsonl(broken))
    found = summary(judged, notes)
    assert found["first_stories"][0]["violations"] == ["pronoun", "ending"]
    text = quickstart.summary_text(found)
    assert f"  wrong: pronoun, ending\n    {wrong}\n" in text
    assert "NO   at least 60 % of the sentences are valid: 50.0%" in text
    assert "NO   at least 20 % of the stories are valid: 0.0%" in text


def test_samples_without_a_whole_story_say_so(judged, notes):
    files.write_atomic(judged.samples, files.dump_jsonl([{"text": "kite kite", "tokens": [0], "seed": 0}]))
    text = quickstart.summary_text(summary(judged, notes))
    assert "None of the samples has a whole story" in text
    assert "NO   at least 20 % of the stories are valid: none is whole" in text


def test_a_plan_names_the_text_and_the_models_that_are_trained(succeed, tmp_path, gpt2):
    def plan(*arguments):
        return succeed("quickstart", "--dry-run", "--output", tmp_path / "q", *arguments)

    assert "ours and synthetic" in plan()["text"]
    assert plan() == plan("--text", "stories")
    assert "docstrings" in plan("--text", "python")["text"]
    assert plan()["scorer"] == "the encoder"
    assert plan("--encoder", gpt2)["scorer"].startswith("GPT-2, ")
    assert plan("--scorer", gpt2)["scorer"] == str(gpt2)
    assert plan("--text", "novels.txt")["text"] == "novels.txt"
    assert plan("--text", "novels.txt")["scorer"].startswith("GPT-2, ")


def test_a_folder_of_an_earlier_version_without_a_text_is_one_of_pythons_documentation(tmp_path, notes, succeed):
    out = tmp_path / "old"
    made = artifact.begin(out, "quickstart", QuickstartConfig(text="python"), {})
    config = (out / "config.yaml").read_text().replace("text: python", "text: null")
    assert "text: null" in config
    (out / "config.yaml").write_text(config)
    made.finish(texts=[])
    again = quickstart.run(QuickstartConfig(text="python"), out, progress=notes)
    assert again.complete
    assert "docstrings" in succeed("quickstart", "--dry-run", "--output", out)["text"]  # the same command goes on
    assert "synthetic" in succeed("quickstart", "--dry-run", "--output", out, "--overwrite")["text"]
    with pytest.raises(InputError, match="text: python -> stories"):
        quickstart.run(QuickstartConfig(text="stories"), out)


@pytest.mark.parametrize("bad", ["encoder", "scorer", "text"])
def test_overwriting_deletes_nothing_for_a_model_that_is_not_there_or_too_little_text(tmp_path, refuse, bad):
    out, short = tmp_path / "q", tmp_path / "short.txt"
    artifact.begin(out, "quickstart", QuickstartConfig(text="stories"), {}).finish(texts=[])
    short.write_text("A line.\n")
    before = content(out)
    given = {"text": short}.get(bad, tmp_path / "absent")
    assert str(given) in refuse("quickstart", "--output", out, "--overwrite", f"--{bad}", given)
    assert content(out) == before


def toy(monkeypatch, path=None):
    """Make all sources small; `path` is a file that stands for Python's documentation."""
    few = {"fewest_characters": 100, "sizes": TOY}
    small = {"stories": Stories(documents=300, held_out=60, sizes=TOY), "python": RealText(str(path), **few)}
    monkeypatch.setattr(quickstart, "named", small.__getitem__)


def test_it_goes_on_however_its_folder_is_named_and_says_where_it_was_begun_if_it_has_moved(monkeypatch, tmp_path):
    """Here it goes on until the model is to be trained."""
    toy(monkeypatch)
    config = QuickstartConfig(text="stories", device="cpu")
    monkeypatch.chdir(tmp_path)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart.train, "run", stop)
    for out in (Path("q"), tmp_path / "q", Path("..", tmp_path.name, "q")):
        with pytest.raises(KeyboardInterrupt):
            quickstart.run(config, out)
    Path("q").rename("moved")
    with pytest.raises(InputError, match=r"^moved was begun as q, .*; move it back, or .* was begun"):
        quickstart.run(config, Path("moved"))
    Path("q").symlink_to("moved")
    with pytest.raises(KeyboardInterrupt):
        quickstart.run(config, Path("moved"))


@pytest.mark.slow
@pytest.mark.parametrize("text", ["stories", "python"])
def test_all_of_it_is_killed_at_every_stage_and_goes_on(text, monkeypatch, tmp_path, interrupted, unseen):
    lines = [f"{line} {more}" for line in unseen for more in unseen[:3]]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n")
    toy(monkeypatch, tmp_path / "text.txt")
    monkeypatch.setattr(quickstart, "VOCABULARY", 320)
    config, out = QuickstartConfig(text=text, device="cpu"), tmp_path / "out"
    kills = 0
    for at in (0, 2, 4, 8, 12, 16):  # reports of progress after which it is killed, of all that are still to come
        with suppress(KeyboardInterrupt):
            quickstart.run(config, out, progress=interrupted(at=at))
            break
        kills += 1
        assert not (out / "manifest.json").exists()
    assert kills >= 4
    made = quickstart.run(config, out)
    assert made.manifest["source"] == quickstart.named(text).name
    shown = quickstart.summary_text({"output": "quickstart", **made.manifest})
    assert "quickstart/run/report.html" in shown
    for name in (
        "comparison.png",
        "run/plots/training.png",
        "run/interpolation/interpolation.png",
        "run/trace/trace.gif",
    ):
        assert (out / name).stat().st_size > 1_000, name
    assert shown.split("\n\nA demonstration")[0] in (out / "SUMMARY.md").read_text(encoding="utf-8")
    key = {"stories": "judged", "text": "texts"}[made.manifest["source"]]
    assert json.loads((out / "evaluation.json").read_text()) == made.manifest[key]
    keys = Seen()
    keys.look(made.manifest, *manifest("quickstart"))
    assert keys.undocumented == []
    assert (out / "scorer").exists() == (text == "python")
    assert (out / "run" / "report.html").stat().st_size > 100_000
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert quickstart.run(config, out).complete
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("path", [None, "novels.txt"])
def test_a_text_that_is_too_short_is_named_with_what_to_give(path, monkeypatch, notes):
    monkeypatch.setattr(source_text.textfiles, "remarks", lambda paths, column: [])
    monkeypatch.setattr(source_text.splitting, "shuffled", lambda *args, **kwargs: ["a", "b", "c"])
    with pytest.raises(InputError) as refused:
        RealText(path).parts(QuickstartConfig(), notes)
    whose, remedy = (path, "a longer text") if path else ("Python's documentation and the docstrings of", "--text FILE")
    assert str(refused.value).startswith(f"3 characters in 3 documents are too few, of {whose}")
    assert str(refused.value).endswith(f"give {remedy}")
