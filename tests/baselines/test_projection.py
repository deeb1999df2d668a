"""Noise through an embedding: its covariance, the gradient's mean, and more tokens than the width or fewer."""

import pytest
import torch

from ldlm.baselines.projection import factor, numbers, projected

SIZES = [(40, 8), (8, 8), (3, 8)]


def embedding(vocab, width):
    return torch.randn(vocab, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("vocab", "width"), SIZES)
def test_the_covariance_is_that_of_v_numbers_times_the_embedding(vocab, width):
    e_VW = embedding(vocab, width)
    c_RW = factor(e_VW)
    assert len(c_RW) == numbers(vocab, width) == min(vocab, width)
    assert torch.allclose(c_RW.T @ c_RW, e_VW.T @ e_VW, rtol=0, atol=1e-12)
    # ζ with covariance 1 exactly
    zeta = len(c_RW) ** 0.5 * torch.eye(len(c_RW), dtype=torch.float64)[:, None]
    noise = projected(zeta, c_RW)
    assert noise.shape == (len(c_RW), 1, width)
    assert torch.allclose(torch.einsum("nbw,nbu->wu", noise, noise) / len(c_RW), e_VW.T @ e_VW, atol=1e-12)


@pytest.mark.parametrize(("vocab", "width"), SIZES)
def test_the_gradient_has_the_mean_of_the_published_one(vocab, width):
    """Of a loss that is quadratic in the noise, ½ nᵀAn with n = ε·E, it is E·A."""
    e_VW = embedding(vocab, width).requires_grad_()
    a_WW = embedding(width, width).T @ embedding(width, width)
    zeta = numbers(vocab, width) ** 0.5 * torch.eye(numbers(vocab, width), dtype=torch.float64)[:, None]
    noise = projected(zeta, factor(e_VW))
    torch.einsum("nbw,wu,nbu->n", noise, a_WW, noise).mean().div(2).backward()
    assert torch.allclose(e_VW.grad, e_VW.detach() @ a_WW, rtol=0, atol=1e-10)


def test_it_is_exact_within_autocast():
    e_VW = embedding(40, 8).float()
    zeta = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    expected = projected(zeta, factor(e_VW))
    with torch.autocast("cpu", torch.bfloat16):
        c_RW = factor(e_VW)
        found = projected(zeta, c_RW)
    assert torch.equal(c_RW, factor(e_VW))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert factor(e_VW.bfloat16()).dtype == torch.float32


def test_an_embedding_without_full_rank_is_not_taken_for_one():
    e_VW = embedding(40, 8)
    e_VW[:, 0] = 0
    assert factor(e_VW).isnan().all()
