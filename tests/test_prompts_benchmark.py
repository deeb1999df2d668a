"""What the benchmark of prompts says of continuations, worked out by hand from a scorer of known probabilities."""

import json
import math

import pytest
import torch

from benchmarks import prompts
from benchmarks.prompts import Pair
from ldlm import config as configs
from ldlm.config import TrainConfig
from ldlm.evaluation.scorer import Scorer
from ldlm.stages import train


def test_figures_are_those_of_the_continuations_alone(bigrams):
    """Under bigrams a prompt tells of the first token after it, and of no other."""
    pairs = [Pair("a", "b a", [2, 1]), Pair("b", "a b a a b", [1, 2, 1, 1, 2])]
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


def test_the_last_position_of_the_scorer_is_not_used(gpt2, monkeypatch):
    """There a model that `pretrain-encoder` made expects the end of a row, whatever goes before."""
    scorer, lengths = Scorer(str(gpt2), torch.device("cpu")), []
    inner = scorer.token_nll
    monkeypatch.setattr(scorer, "token_nll", lambda rows, size: lengths.extend(map(len, rows)) or inner(rows, size))
    prompts.judged([Pair("the cat", " sat on the mat" * 100, [1, 2, 3])], scorer)
    assert scorer.positions is not None and max(lengths) == scorer.positions - 1


def found(**gains):
    """Figures of one run whose gains are given by kind of continuation; all others are 1."""
    figures = dict.fromkeys(prompts.COLUMNS, 1.0)
    sets = {name.replace("_", " "): [{**figures, "gain": gain} for gain in of] for name, of in gains.items()}
    return {
        "runs": [{"steps": 10, "l_diff": 0.5, "l_diff_prefix": 0.4, "l_diff_mean": 0.9}],
        "seeds": [0, 1],
        "prompts": 5,
        "prompt_tokens": 4,
        "figures": sets,
        "first": {"prompt": "A", "continuations": [" b"]},
    }


def test_the_table_names_shares_of_the_real_gain():
    text = prompts.report(found(real=[8.0], glued=[0.0, 0.5], guidance_1=[2.0, 4.0]))
    (row,) = (line for line in text.splitlines() if line.strip().startswith("guidance 1 "))
    assert "0.375 ± 0.177" in row  # of 2 and 4 nats, beside 8


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([2.0, 4.0], "+2.75 nats above glued texts, more than the 2 "),
        ([0.0, 4.0], "+1.75 nats above glued texts, not more than the 4 "),
        ([9.0], "+8.75 nats above glued texts, one measurement; an entropy"),
    ],
)
def test_the_claim_is_met_only_beyond_the_spread_of_seeds(ours, said):
    assert said in prompts.verdict(found(real=[8.0], glued=[0.0, 0.5], guidance_1=ours)["figures"])


def test_runs_of_one_name_are_refused(tmp_path):
    """Their texts would be kept in one folder."""
    runs = [str(tmp_path / name / "run") for name in "ab"]
    with pytest.raises(SystemExit, match="need names of their own"):
        prompts.main(["--work", "w", "--run", *runs, "--features", "f", "--encoder", "e", "--scorer", "s"])


def test_it_continues_and_writes_down_what_it_found(train_config, store, gpt2, tmp_path):
    """By two runs, which differ in their seed."""
    settings = configs.merge(configs.to_dict(train_config), {"steps": 2, "model": {"condition": "prefix"}})
    of = [configs.from_dict(TrainConfig, configs.merge(settings, {"seed": seed})) for seed in (0, 1)]
    runs = [str(train.run(one, store, tmp_path / f"run-{one.seed}").path) for one in of]
    places = ("--features", str(store), "--encoder", str(gpt2), "--scorer", str(gpt2))
    sizes = ("--texts", "2", "--seeds", "0", "--prompt-tokens", "2", "--output", str(tmp_path / "out"))
    prompts.main(["--work", str(tmp_path / "work"), "--run", *runs, *places, *sizes])
    (path,) = (tmp_path / "out").glob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert (record["prompts"], len(record["first"]["continuations"])) == (2, prompts.SHOWN)
    assert [len(record["figures"][name]) for name in ("real", "glued", "guidance 2")] == [1, 2, 2]
    assert f"- {record['first']['continuations'][0]!r}" in path.with_suffix(".txt").read_text(encoding="utf-8")
