"""The benchmark of the rivals: the published forms give what ours do, and all runs; no figure is judged."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from randomness import random

from benchmarks import contenders, published, rivals
from benchmarks.contenders import OURS, PUBLISHED, WAYS
from ldlm.baselines.candi import CANDISampler
from ldlm.baselines.interface import draw_texts
from ldlm.baselines.nucleus import Nucleus
from ldlm.config import DenoiserConfig

SIZES = DenoiserConfig(layers=1, width=8, heads=2, time_dim=6)
VOCAB, LENGTH = 20, 5
ROWS = {"seed": 1, "step": 2, "rows_B": torch.arange(4), "batch": 4, "seq_len": LENGTH}
MADE = contenders.methods(VOCAB, 8)


def network(name):
    torch.manual_seed(0)
    return contenders.backbone(name, SIZES, VOCAB).double()


# ----------------------------------------------------------------------------------------------------------------------
# The published forms


@pytest.mark.parametrize("rule", ["exclusive", "inclusive"])
def test_the_sorted_nucleus_is_the_nucleus(rule):
    p_PV = (3 * random(50, 2_000)).softmax(-1)
    found = published.SortedNucleus(0.9, rule)(p_PV)
    assert torch.allclose(found, Nucleus(0.9, rule)(p_PV), rtol=0, atol=1e-12)
    assert 5 < (found > 0).sum(-1).min() < (found > 0).sum(-1).max() < 1_000


@pytest.mark.parametrize("name", ["CANDI", "FLM"])
def test_inputs_from_v_numbers_are_ours_where_those_are_as_many(name):
    """With no more tokens than the width, ours draws V numbers as well, and takes the embedding itself."""
    made = contenders.methods(7, 8)[name]
    x_BL, draws = torch.randint(7, (4, LENGTH)), made[OURS].draw(**ROWS)
    embedding = random(made[OURS].embeddings, 8)
    assert draws.zeta_BLR.shape == (4, LENGTH, 7)
    draws = draws._replace(zeta_BLR=draws.zeta_BLR.double())
    wide, narrow = (made[way].corrupt(embedding, x_BL, draws) for way in (PUBLISHED, OURS))
    assert torch.allclose(wide, narrow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["Duo, curriculum", "CANDI", "FLM"])
def test_a_step_draws_v_standard_normal_numbers_and_all_else_as_ours(name):
    wide, narrow = (MADE[name][way].draw(**{**ROWS, "seq_len": 500}) for way in (PUBLISHED, OURS))
    eps_BLV = wide.numbers[0] if name.startswith("Duo") else wide.zeta_BLR
    assert eps_BLV.shape == (4, 500, VOCAB)
    assert (eps_BLV.mean().item(), eps_BLV.var().item()) == pytest.approx((0, 1), abs=0.03)
    assert all(torch.equal(a, b) for a, b in zip(wide[:-1], narrow[:-1], strict=True))


@pytest.mark.parametrize("name", MADE)
def test_the_loss_has_a_gradient_in_either_way(name):
    x_BL = torch.randint(VOCAB, (4, LENGTH))
    for way in WAYS:
        model = network(name)
        MADE[name][way].losses(model, x_BL, MADE[name][way].draw(**ROWS)).mean.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
        assert model.embedding.grad.abs().max() > 0


def test_flm_s_state_of_v_numbers_gives_our_texts():
    model, by_way = network("FLM"), contenders.samplers(VOCAB, LENGTH, 6)["FLM"]
    wide, narrow = (by_way[way].begin(model, torch.arange(3)) for way in (PUBLISHED, OURS))
    wide = wide._replace(z_BLV=wide.z_BLV.double())
    narrow = narrow._replace(e_BLW=wide.z_BLV @ model.embedding)
    for row in range(6):
        wide, narrow = (by_way[way].step(model, state, row) for way, state in ((PUBLISHED, wide), (OURS, narrow)))
        assert row == 5 or torch.allclose(wide.z_BLV @ model.embedding, narrow.e_BLW, rtol=0, atol=1e-10)
    assert torch.equal(by_way[PUBLISHED].finish(wide), by_way[OURS].finish(narrow))


def test_candi_starts_with_noise_of_the_same_law():
    model, by_way = network("CANDI"), contenders.samplers(VOCAB, LENGTH, 6)["CANDI"]
    seeds = torch.arange(3_000)
    first, second = (
        torch.einsum("blw,blu->wu", y_BLW, y_BLW) / (3_000 * LENGTH)
        for y_BLW in (by_way[way].begin(model, seeds).y_BLW for way in WAYS)
    )
    assert ((first - second).abs() / first.diagonal().max()).max() < 0.08


@pytest.mark.parametrize("name", ["MDLM", "ReMDM", "Duo", "Duo + Ψ"])
def test_chains_have_the_same_law_in_every_row(name):
    model, by_way = network(name), contenders.samplers(VOCAB, LENGTH, 4)[name]
    state = contenders.half_way(by_way[OURS], by_way[OURS].begin(model, torch.arange(3)))
    for row in range(by_way[OURS].rows):
        laws = [one.law(state, row, one.estimate(model, state, row)) for one in by_way.values()]
        assert torch.allclose(*laws, rtol=0, atol=1e-12)
    assert [one.drawing for one in by_way.values()] == ["exact", "race"]


# ----------------------------------------------------------------------------------------------------------------------
# What is timed


@pytest.mark.parametrize("name", contenders.samplers(VOCAB, LENGTH, 4))
def test_texts_begin_in_the_middle_of_the_grid_and_go_on(name):
    model = network(name)
    for way, sampler in contenders.samplers(VOCAB, 400, 8)[name].items():
        sampling = contenders.Sampling(sampler, model, torch.arange(4), way)
        if isinstance(sampler, CANDISampler):
            assert sampling.state.clean_BL.double().mean() == pytest.approx(0.5, abs=0.05)
        elif name in contenders.MASKED:
            assert (sampling.state.z_BL == VOCAB).double().mean() == pytest.approx(0.5, abs=0.05)
        for row in (4, 5, 6):
            assert sampling.row == row
            sampling.step()
        assert sampler.finish(sampling.state).shape == (4, 400)


def test_every_sampler_evaluates_its_network_in_every_row():
    for name, by_way in contenders.samplers(VOCAB, LENGTH, 40).items():
        drawn = draw_texts(by_way[OURS], network(name), torch.arange(1))
        assert drawn.evaluations == drawn.rows == (40 if name in ("CANDI", "FLM") else 41)


def test_weights_are_as_peaked_as_those_of_a_trained_network():
    logits_BLV = contenders.backbone("MDLM", SIZES, 5_000)(random(20, 3, 8).float())
    assert logits_BLV.std().item() == pytest.approx(contenders.LOGIT_STD, rel=0.1)


def test_ratios_are_those_of_a_turn():
    found = rivals.rows({("LDLM", OURS): [1.0, 2.0, 4.0], ("FLM", PUBLISHED): [3.0, 4.0, 4.0]}, extrapolated=True)
    mine = {"method": "LDLM", "way": OURS, "seconds": 2.0, "extrapolated": True, "ratio": 1.0, "ratios": [1.0] * 3}
    other = {"method": "FLM", "way": PUBLISHED, "seconds": 4.0, "ratio": 2.0, "ratios": [3.0, 2.0, 1.0]}
    assert found == [mine, {**mine, **other}]
    assert rivals.Reverse(5, *[lambda: None] * 3).seconds(0.5, 2.0) == 10.5


def test_turns_go_forth_and_back_and_end_when_the_time_is_over(monkeypatch):
    monkeypatch.setattr(rivals, "SCALE", replace(rivals.SCALE, turns=(2, 4), limit=0.0, seconds=0.0))
    called = []
    spent = rivals.in_turns({name: lambda name=name: called.append(name) for name in "ab"})
    assert called == list("abba")
    assert [len(seconds) for seconds in spent.values()] == [2, 2]


@pytest.mark.slow
def test_all_is_measured_from_end_to_end(tmp_path, monkeypatch):
    small = {"lengths": (8, 16), "vocabularies": (50, 300), "steps": 8, "tokens": 32, "turns": (1, 1)}
    scale = replace(rivals.SCALE, **small, limit=0.0, seconds=0.0, whole_steps=4)
    monkeypatch.setattr(rivals, "SCALE", scale)
    figures = rivals.run(tmp_path)
    for cell in figures["cells"]:
        for kind, names in (("training", contenders.methods(50, 8)), ("sampling", contenders.samplers(50, 8, 8))):
            expected = [("LDLM", OURS), *((name, way) for name in names for way in WAYS)]
            assert [(row["method"], row["way"]) for row in cell[kind]] == expected
            assert all(0 < row["seconds"] < math.inf and row["ratio"] > 0 for row in cell[kind])
            assert all(row["extrapolated"] == (kind == "sampling") for row in cell[kind])
    assert [(cell["length"], cell["vocabulary"], cell["texts"]) for cell in figures["cells"]] == [
        (8, 50, 4), (16, 50, 2), (8, 300, 4), (16, 300, 2),
    ]  # fmt: skip
    text = rivals.report(figures)
    for part in ("V × 6, L = 16", "L × 2, V = 300", "extrapolated", "| Duo + Ψ | published |", "drawn whole"):
        assert part in text
