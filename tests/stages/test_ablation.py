"""`benchmarks.ablation`: each arm is trained, drawn and scored once, and no more is claimed than was found."""

import json

import pytest

from benchmarks import ablation
from ldlm import artifact, files
from ldlm.config import QuickstartConfig


@pytest.fixture
def quickstart(gpt2, store, corpus, tmp_path):
    """What the ablation takes of a finished quickstart."""
    out = tmp_path / "quickstart"
    made = artifact.begin(out, "quickstart", QuickstartConfig(text="python"), {})
    (out / "features").symlink_to(store)
    (out / "scorer").symlink_to(gpt2)
    for name in ("real", "unigram"):
        lines = corpus.read_text(encoding="utf-8").splitlines()[:8]
        (out / f"{name}.jsonl").write_text(files.dump_jsonl({"text": line} for line in lines), encoding="utf-8")
    made.finish()
    return out


@pytest.mark.slow
def test_arms_are_trained_drawn_and_scored_once(quickstart, tmp_path, capsys):
    call = [
        "--quickstart", quickstart, "--work", tmp_path / "work", "--output", tmp_path / "results", "--steps", 5,
        "--texts", 4, "--arms", "LDLM", "σ_dec = 0.1",
    ]  # fmt: skip
    ablation.main([str(one) for one in call])
    (table,) = (tmp_path / "results").glob("ablation-*.txt")
    assert capsys.readouterr().out.strip() == table.read_text().strip()
    (record,) = (tmp_path / "results").glob("ablation-*.json")
    arms = json.loads(record.read_text())["figures"]["arms"]
    assert {name: len(runs) for name, runs in arms.items()} == {"LDLM": 2, "σ_dec = 0.1": 2}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}
    ablation.main([str(one) for one in call])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")} == before


def runs(*pairs):
    return [dict(zip(("gen_ppl", "entropy"), pair, strict=True)) for pair in pairs]


def test_a_difference_within_the_seeds_is_none_and_a_collapse_is_no_success():
    arms = {
        "LDLM": runs((100, 4.0), (120, 4.1)),
        "CE": runs((119, 4.0), (150, 4.2)),  # overlaps with the base
        "σ_dec = 0.1": runs((50, 3.0), (60, 3.1)),
    }
    first, second = ablation._verdicts(arms)
    assert first.strip() == (
        "CE: perplexity not told apart, entropy not told apart than LDLM (paper: perplexity higher, entropy lower)"
    )
    assert "σ_dec = 0.1: perplexity lower, entropy lower than LDLM (paper: perplexity higher, entropy lower)" in second


def test_a_quickstart_on_stories_has_no_scorer_to_compare_with(tmp_path):
    artifact.begin(tmp_path / "q", "quickstart", QuickstartConfig(), {}).finish(source="stories")
    with pytest.raises(SystemExit, match="ldlm quickstart --text python"):
        ablation.main(["--quickstart", str(tmp_path / "q"), "--work", str(tmp_path / "work")])
    assert not (tmp_path / "work").exists()
