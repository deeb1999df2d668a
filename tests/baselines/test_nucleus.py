"""Nucleus filtering in both readings."""

import pytest
import torch

from ldlm.baselines.nucleus import SORTED, Nucleus

P = (0.5, 0.3, 0.15, 0.05)


def filtered(p, top_p, rule):
    return Nucleus(top_p, rule)(torch.tensor([p], dtype=torch.float64))[0].tolist()


def test_the_token_that_crosses_p_is_kept_or_dropped():
    assert filtered(P, 0.9, "exclusive") == pytest.approx([0.625, 0.375, 0, 0])
    assert filtered(P, 0.9, "inclusive") == pytest.approx([0.5263158, 0.3157895, 0.1578947, 0])


def test_the_order_of_the_tokens_does_not_matter():
    assert filtered((0.15, 0.5, 0.05, 0.3), 0.9, "exclusive") == pytest.approx([0, 0.625, 0, 0.375])


@pytest.mark.parametrize("rule", ["exclusive", "inclusive"])
def test_a_first_token_beyond_p_is_kept_alone(rule):
    assert filtered((0.05, 0.95), 0.9, rule) == [0, 1]
    assert filtered((0.0, 1.0), 0.9, rule) == [0, 1]


@pytest.mark.parametrize("rule", ["exclusive", "inclusive"])
def test_p_of_one_leaves_everything(rule):
    p = torch.full((3, 50_000), 1 / 50_000)  # whose sum is not 1 in float32
    assert Nucleus(1.0, rule)(p) is p


@pytest.mark.parametrize(("rule", "kept"), [("exclusive", 2), ("inclusive", 3)])
def test_of_equally_likely_tokens_the_first_are_kept(rule, kept):
    assert filtered((0.25,) * 4, 0.6, rule) == pytest.approx([1 / kept] * kept + [0] * (4 - kept))


def test_rows_are_filtered_one_by_one():
    found = Nucleus(0.9, "exclusive")(torch.tensor([P, P[::-1]], dtype=torch.float64))
    assert found[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert found[1].tolist() == pytest.approx([0, 0, 0.375, 0.625])


@pytest.mark.parametrize("rule", ["exclusive", "inclusive"])
def test_it_is_the_same_as_by_a_sort_of_the_whole_vocabulary(rule):
    # Rounded logits, as bf16 makes them, are full of equals; flat ones need more than the first tokens that are sorted.
    noise = torch.randn(8, 20_000, generator=torch.Generator().manual_seed(0))
    sharpness = torch.tensor([4.0, 0, 2, 20, 0, 4, 2, 20])[:, None]
    p = (noise * sharpness).to(torch.bfloat16).double().softmax(-1)
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    mass = ordered.cumsum(-1)
    kept = (mass if rule == "exclusive" else mass - ordered) <= 0.9
    kept[:, 0] = True
    expected = torch.zeros_like(p).scatter_(-1, order, ordered * kept)
    nucleus = Nucleus(0.9, rule)
    found = nucleus(p)
    assert {1 if n <= 512 else 2 if n <= 8_192 else 3 for n in (found > 0).sum(-1).tolist()} == {1, 2, 3}
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True))
    for on_a_gpu, here in zip(nucleus.bounds(p, SORTED), nucleus.bounds(p, ()), strict=True):
        assert torch.equal(on_a_gpu, here)
