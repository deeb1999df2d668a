"""The benchmark of ways to train: its verdict on figures, and a small one that draws and writes results."""

import json

import pytest

from benchmarks import trainings


@pytest.mark.parametrize(
    ("ours", "entropy", "said"),
    [((90, 94), 4.0, "it wins"), ((90, 99), 4.0, "does not win"), ((90, 94), 3.9, "does not win")],
)
def test_a_win_is_beyond_the_trainings_and_no_collapse(ours, entropy, said):
    def row(way, perplexities, nats, evaluations=8):
        figures = [{"gen_ppl": one, "entropy": nats} for one in perplexities]
        return {"way": way, "evaluations": evaluations, "figures": figures}

    rows = [row("plain", (98, 100), 4.0), row("noisy", ours, entropy), row("noisy", (200, 201), 4.0, evaluations=4)]
    line = trainings.verdict(rows, 8)
    assert line.startswith(f"8 evaluations: noisy has a perplexity {sum(ours) / 2 - 99:+.1f} beside plain")
    assert line.endswith(said)


def test_it_draws_from_all_runs_and_writes_down_what_it_found(trained, gpt2, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "BUDGETS", (1, 2))
    places = ("--work", tmp_path / "work", "--scorer", gpt2, "--output", tmp_path / "out")
    ways = ("--way", "plain", trained, "--way", "twice", trained, trained)
    sizes = ("--texts", 2, "--seeds", 0, 1, "--reference", corpus, "--max-tokens", 8)
    words = [str(part) for part in (*places, *ways, *sizes)]
    trainings.main(words)
    (path,) = (tmp_path / "out").glob("trainings-*.json")
    found = json.loads(path.read_text())
    assert [(row["way"], row["evaluations"], len(row["figures"])) for row in found["rows"]] == [
        ("plain", 1, 1), ("twice", 1, 2), ("plain", 2, 1), ("twice", 2, 2),
    ]  # fmt: skip
    plain, twice = (row["figures"] for row in found["rows"][:2])
    assert twice == [*plain, *plain]  # of the same run
    assert found["real"] is not None
    texts = {file.name: file.read_text() for file in (tmp_path / "work").glob("*.jsonl")}
    assert len(texts) == 2 * 2 and len(set(texts.values())) == 4
    trainings.main(words)
    assert {file.name: file.read_text() for file in (tmp_path / "work").glob("*.jsonl")} == texts


def test_what_is_no_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^Error: "):
        trainings.main(["--work", str(tmp_path), "--scorer", "s", "--way", "a", str(tmp_path), "--way", "b", "run"])


@pytest.mark.parametrize("way", [("--way", "noisy"), ("--way", "b", "run", "--way", "plain", "other"), ()])
def test_ways_need_runs_and_names_of_their_own(capsys, way):
    with pytest.raises(SystemExit):
        trainings.main(["--work", "w", "--scorer", "s", "--way", "plain", "run", *way])
    assert "--way takes a name and at least one run" in capsys.readouterr().err
