"""The chunked vocabulary loss against torch's cross-entropy over all logits, and against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ldlm.model import token_loss
from ldlm.model.token_loss import token_losses

B, L, D, V = 3, 7, 5, 11


@pytest.fixture(params=[1, 2 * V, 4 * V + 3, 10_000])
def chunk(request, monkeypatch):
    """Logits at a time: one position, two, four and a remainder, all."""
    monkeypatch.setitem(token_loss.CHUNK, "cpu", request.param)
    return request.param


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, L, D, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=dtype).requires_grad_()
    return x, weight, torch.randint(V, (B, L), generator=generator)


def plain(x, weight, tokens):
    """The same with all logits at a time."""
    logits = x @ weight.T
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(B, L)
    return loss, logits.argmax(-1) == tokens


def test_losses_and_right_tokens_are_those_of_all_logits(chunk):
    x, weight, tokens = inputs()
    found = token_losses(x, weight, tokens)
    loss, right = plain(x, weight, tokens)
    torch.testing.assert_close(found.loss_BL, loss)
    torch.testing.assert_close(found.mean, loss.mean())
    assert torch.equal(found.right_BL, right)
    assert 0 < right.sum() < B * L
    assert not found.loss_BL.requires_grad


@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_gradients_are_those_of_the_mean_over_all_logits(chunk, scale):
    x, weight, tokens = inputs()
    got = torch.autograd.grad(scale * token_losses(x, weight, tokens).mean, (x, weight))
    expected = torch.autograd.grad(scale * plain(x, weight, tokens)[0].mean(), (x, weight))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_the_slopes_of_the_loss(chunk):
    x, weight, tokens = inputs()
    assert torch.autograd.gradcheck(lambda x, weight: token_losses(x, weight, tokens).mean, (x, weight))


@pytest.mark.parametrize("frozen", ["x", "weight", "both"])
def test_what_needs_no_gradient_gets_none(chunk, frozen):
    x, weight, tokens = inputs()
    x.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "x")
    found = token_losses(x, weight, tokens)
    torch.testing.assert_close(found.mean, plain(x, weight, tokens)[0].mean())
    if frozen != "both":
        found.mean.backward()
        assert (x.grad is None) == (frozen == "x")
        assert (weight.grad is None) == (frozen == "weight")


def test_without_gradients_none_are_made_and_all_else_is_the_same(chunk):
    x, weight, tokens = inputs()
    expected = token_losses(x, weight, tokens)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        found = token_losses(x, weight, tokens)
    assert all(map(torch.equal, found, expected))
    assert counter.get_total_flops() == 2 * B * L * D * V  # the logits alone


def test_extreme_logits_neither_overflow_nor_vanish(chunk):
    x, weight, tokens = inputs(torch.float32)
    found = token_losses(300 * x, weight, tokens)
    torch.testing.assert_close(found.loss_BL, plain(300 * x, weight, tokens)[0])
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(found.mean, (x, weight)))


def test_what_is_not_finite_stays_so():
    x, weight, tokens = inputs()
    with torch.no_grad():
        x[1, 2, 3] = torch.nan
    assert token_losses(x, weight, tokens).mean.isnan()


def test_products_under_autocast_are_in_bfloat16_and_sums_in_float32(chunk):
    x, weight, tokens = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_losses(x, weight, tokens)
    assert found.mean.dtype == torch.float32
    loss, _ = plain(x, weight, tokens)
    torch.testing.assert_close(found.loss_BL, loss, rtol=0.02, atol=0.05)
    assert (found.loss_BL - loss).abs().max() > 1e-4  # which float32 would not lose
    got = torch.autograd.grad(found.mean, (x, weight))
    for a, b in zip(got, torch.autograd.grad(loss.mean(), (x, weight)), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.005)


def test_no_tensor_is_ever_larger_than_a_chunk(monkeypatch):
    """But for the gradient of the weight, which is as large as the weight."""
    monkeypatch.setitem(token_loss.CHUNK, "cpu", 512)

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, torch.Tensor):
                    Largest.elements = max(Largest.elements, tensor.numel())
            return out

    x = torch.randn(1, 4096, 2, requires_grad=True)
    weight = torch.randn(64, 2, requires_grad=True)
    with Largest():
        token_losses(x, weight, torch.zeros(1, 4096, dtype=torch.int64)).mean.backward()
    assert Largest.elements == 2 * 4096  # of x; the logits would be 64 · 4,096
