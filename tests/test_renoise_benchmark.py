"""The benchmark of fresh noise in an interval of t: its steps, its verdict, and a small one that writes results."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import drawn, renoise
from ldlm.config import SamplerConfig
from ldlm.hub import load_tokenizer
from ldlm.model.diffusion import Schedule
from ldlm.sampling import solvers

TIMES = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.01], dtype=torch.float64)


@pytest.fixture(scope="module")
def schedule():
    return Schedule()


def test_steps_that_begin_in_the_interval_draw_the_noise_of_their_end(schedule):
    plain = solvers.ddim(schedule, TIMES)
    found = renoise.renoised(plain, schedule, TIMES, 0.5, 0.8)
    alpha, sigma = schedule.alpha_sigma(TIMES[1:])
    for step, fresh in enumerate([False, True, True, False]):
        row = (0.0, alpha[step], 0.0, sigma[step]) if fresh else plain.coefficients[step]
        assert found.coefficients[step].tolist() == list(map(float, row))


def test_the_last_step_ends_at_the_mean(schedule):
    plain = solvers.ddim(schedule, TIMES)
    found = renoise.renoised(plain, schedule, TIMES, 0.0, 1.0)
    assert found.coefficients[:3, 0].tolist() == [0, 0, 0]
    assert found.coefficients[3].tolist() == plain.coefficients[3].tolist()


@pytest.mark.parametrize(
    ("fresh", "entropy", "said"),
    [
        ((90, 94), 4.0, "it wins"),
        ((90, 99), 4.0, "does not win"),
        ((90, 94), 3.9, "does not win"),
        ((90,), 4.0, "entropy +0.000: one measurement"),
    ],
)
def test_a_win_is_beyond_the_seeds_and_no_collapse(fresh, entropy, said):
    def row(way, perplexities, nats):
        return {"way": way, "evaluations": 8, "figures": [{"gen_ppl": one, "entropy": nats} for one in perplexities]}

    rows = [row("ddim", (120, 122), 4.0), row("dpm++2m-sde", (98, 100), 4.0), row("fresh, a", fresh, entropy)]
    line = renoise.verdict([*rows, row("fresh, b", (300, 301), 4.0)], 8)
    assert line.startswith("8 evaluations: the best with fresh noise (fresh, a) has a perplexity")
    assert line.endswith(said)


def test_one_measurement_of_the_other_side_is_no_win_either():
    many, one = ([{"gen_ppl": ppl, "entropy": 4.0} for ppl in ppls] for ppls in ((99.8, 99.9), (100.0,)))
    assert drawn.compared(many, "it", one).endswith(": one measurement")


def test_texts_of_another_sampler_are_not_taken_up(gpt2, tmp_path):
    trial = renoise.Trial(tmp_path, tmp_path, "scorer", 2, None)
    trial.__dict__["trained"] = SimpleNamespace(checkpoint=SimpleNamespace(digest="0123456789"))
    trial.__dict__["tokenizer"] = load_tokenizer(str(gpt2))
    generator = SimpleNamespace(tokens=lambda sampler, some: torch.full((len(some), 3), int(sampler.temperature)))
    first, other, again = (
        trial._drawn("ddim", generator, SamplerConfig(steps=2, temperature=temperature), 0)
        for temperature in (5.0, 6.0, 5.0)
    )
    assert first == again != other and first.read_text() != other.read_text()


def test_it_draws_and_writes_down_what_it_found(trained, gpt2, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(renoise, "BUDGETS", (2,))
    places = ("--work", tmp_path / "work", "--run", trained, "--scorer", gpt2, "--output", tmp_path / "out")
    sizes = ("--texts", 2, "--seeds", 0, 1, "--reference", corpus, "--max-tokens", 8)
    words = [str(part) for part in (*places, *sizes)]
    renoise.main(words)
    (path,) = (tmp_path / "out").glob("renoise-*.json")
    found = json.loads(path.read_text())
    assert [row["way"] for row in found["rows"]] == [
        "dpm++2m-sde",
        "ddim",
        *[f"fresh {low:g}-{high:g}" for low, high in renoise.INTERVALS],
    ]
    texts = {file.name: file.read_text() for file in (tmp_path / "work").glob("*.jsonl")}
    assert len(texts) == 6 * 2 and len(set(texts.values())) >= 4
    renoise.main(words)
    assert {file.name: file.read_text() for file in (tmp_path / "work").glob("*.jsonl")} == texts
