"""Attention against softmax attention written out, by every kernel."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from ldlm.attention import attention, use_attention


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q·k/√K)·v with the softmax written out; (B, sequence, H, K)."""
    weight = torch.exp(torch.einsum("bnhk,blhk->bhnl", q, k) / math.sqrt(q.shape[-1]))
    return torch.einsum("bhnl,blhk->bnhk", weight / weight.sum(-1, keepdim=True), v)


def test_attention_is_softmax_attention_without_a_mask():
    q, k, v = random(2, 3, 4, 6), random(2, 5, 4, 6, seed=1), random(2, 5, 4, 6, seed=2)
    assert torch.allclose(attention(q, k, v), plain_attention(q, k, v), atol=1e-12)
    assert torch.allclose(attention(q.float(), k.float(), v.float()).double(), plain_attention(q, k, v), atol=1e-5)


def test_attention_has_the_gradient_of_softmax_attention():
    inputs = [random(1, 3, 2, 4, seed=i).requires_grad_() for i in range(3)]
    direction = random(1, 3, 2, 4, seed=9)
    got = torch.autograd.grad((attention(*inputs) * direction).sum(), inputs)
    expected = torch.autograd.grad((plain_attention(*inputs) * direction).sum(), inputs)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("inputs", [1, 2], ids=["denoiser", "resampler"])  # whose keys are [inputs; latents]
@pytest.mark.parametrize(
    ("length", "heads", "width"), [(7, 12, 64), (64, 4, 32), (128, 12, 64), (1024, 12, 64), (4096, 1, 64)]
)
def test_attention_in_float32_is_softmax_attention_forward_and_backward_at_the_models_shapes(
    length, heads, width, inputs
):
    lengths = (length, inputs * length, inputs * length)
    q, k, v = (random(1, n, heads, width, seed=i).float().requires_grad_() for i, n in enumerate(lengths))
    direction = random(1, length, heads, width, seed=9).float()
    found, expected = attention(q, k, v), plain_attention(q, k, v)
    gradients = (torch.autograd.grad((out * direction).sum(), (q, k, v)) for out in (found, expected))
    for a, b in [(found, expected), *zip(*gradients, strict=True)]:
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_xformers_is_imported_without_a_word():
    """It warns where its own kernels were built for another CUDA, or for none."""
    program = "from ldlm import attention; print(attention._fmha() is not None)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout.strip() in ("True", "False"), done.stderr) == (True, "")


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["xformers", "sdpa"])
@pytest.mark.parametrize("length", [7, 128, 1024, 4096])
def test_kernels_on_a_gpu_are_softmax_attention(kernel, length):
    device = torch.device("cuda")
    use_attention(kernel, device)
    q, k, v = (torch.randn(2, length, 12, 64, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in "qkv")
    scores = torch.einsum("bnhk,blhk->bhnl", q.float(), k.float()) / 8
    expected = torch.einsum("bhnl,blhk->bnhk", scores.softmax(-1), v.float())
    got = attention(q, k, v).float()
    assert (got - expected).norm() / expected.norm() < 1e-2
    direction = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * direction).sum(), (q, k, v)),
        torch.autograd.grad((expected * direction).sum(), (q, k, v)),
        strict=True,
    ):
        assert (a.float() - b.float()).norm() / b.float().norm() < 1e-2
