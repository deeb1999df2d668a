"""What the benchmark of prompts says of continuations, worked out by hand from a scorer of known probabilities."""

import json
import math

import pytest
import torch

from benchmarks import prompts, recipe
from benchmarks.prompts import Pair
from ldlm.evaluation.scorer import Scorer


def test_figures_are_those_of_the_continuations_alone(bigrams):
    """Under bigrams a prompt tells of the first token after it, and of no other."""
    pairs = [Pair("a", "b a", [2, 1]), Pair("b b", "a b a a b", [1, 2, 1, 1, 2])]
    found = prompts.judged(pairs, Scorer(str(bigrams), torch.device("cpu")))
    rest = [1 / 8, (1 / 2) * (1 / 8) * (1 / 4) * (1 / 2)]  # of the tokens after the first
    given = [1 / 2 * rest[0], 1 / 8 * rest[1]]
    alone = [3 / 8 * rest[0], 1 / 2 * rest[1]]
    assert found["gen_ppl"] == pytest.approx(math.exp(-sum(map(math.log, given)) / 7), rel=1e-4)
    gain = sum(math.log(a / b) for a, b in zip(given, alone, strict=True)) / 2
    assert found["gain"] == pytest.approx(gain, rel=1e-4)
    of_five = -(3 / 5) * math.log(3 / 5) - (2 / 5) * math.log(2 / 5)
    assert found["entropy"] == pytest.approx((math.log(2) + of_five) / 2)
    assert found["repeated"] == pytest.approx((0 + 1 / 4) / 2)  # of `a b a a b`: ab, ba, aa, ab
    assert found["diversity"] == pytest.approx(3 / 5)  # all of 3 and 4 tokens are unique


def test_the_table_names_shares_of_the_real_gain():
    figures = dict.fromkeys(prompts.COLUMNS, 1.0)
    sets = {"real": [{**figures, "gain": 8.0}], "guidance 1": [{**figures, "gain": 2.0}, {**figures, "gain": 4.0}]}
    loss = {"l_diff": 0.5, "l_diff_prefix": 0.4, "l_diff_mean": 0.9}
    text = prompts.report(
        {
            "source": "stories",
            "steps": 10,
            "seed": 0,
            "prompts": 5,
            "prompt_tokens": 4,
            "held_out": loss,
            "figures": sets,
            "first": {"prompt": "A", "continuations": [" b"]},
        }
    )
    (row,) = (line for line in text.splitlines() if line.strip().startswith("guidance 1"))
    assert "0.375 ± 0.125" in row  # of 2 and 4 nats, beside 8


@pytest.mark.slow
def test_it_prepares_trains_continues_and_writes_down_what_it_found(tmp_path, monkeypatch):
    """With the encoder of stories that the command trains; each number is as small as it can be."""
    for name, value in {"DOCUMENTS": 300, "HELD_OUT": 40, "ENCODER_STEPS": 2}.items():
        monkeypatch.setattr(recipe, name, value)
    sizes = ("--steps", "2", "--texts", "2", "--seeds", "0", "--prompt-tokens", "4")
    prompts.main(["--work", str(tmp_path / "work"), *sizes, "--output", str(tmp_path / "out")])
    (path,) = (tmp_path / "out").glob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert (record["init"], record["prompts"], len(record["first"]["continuations"])) == ("width", 2, prompts.SHOWN)
    assert json.loads((tmp_path / "work" / "stories" / "encoder" / "artifact.json").read_text())
    assert f"- {record['first']['continuations'][0]!r}" in path.with_suffix(".txt").read_text(encoding="utf-8")
