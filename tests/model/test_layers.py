"""The shared layers against the same formulas written out with explicit loops, einsum and complex numbers."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from randomness import random
from written_out import plain_attention

from ldlm.errors import InputError
from ldlm.model.layers import MLP, SelfAttention, SwiGLU, head_width, rotate, split_heads, time_features


def test_a_head_is_a_run_of_neighbouring_coordinates():
    x = torch.arange(12.0).reshape(1, 1, 12)
    assert split_heads(x, 3)[0, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_heads_that_do_not_divide_the_width_are_refused_with_both_numbers():
    assert head_width(768, 12, "model.denoiser") == 64
    with pytest.raises(InputError, match=r"model\.denoiser\.heads=5 must divide its width 768"):
        head_width(768, 5, "model.denoiser")


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_self_attention_is_qkv_attention_and_an_output_map(rotary, bias):
    layer = SelfAttention(8, 2, bias=bias, rotary=rotary).double()
    assert (layer.qkv.bias is not None) == bias
    x = random(2, 5, 8)
    q, k, v = (
        (x @ w.T + (b if bias else 0)).reshape(2, 5, 2, 4)
        for w, b in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3) if bias else (None,) * 3, strict=True)
    )
    if rotary:
        q, k = complex_rotation(q), complex_rotation(k)
    expected = plain_attention(q, k, v).reshape(2, 5, 8) @ layer.out.weight.T + (layer.out.bias if bias else 0)
    assert torch.allclose(layer(x), expected, atol=1e-6 if rotary else 1e-12)  # the angles are float32


def complex_rotation(x: torch.Tensor, base: float = 10_000.0) -> torch.Tensor:
    """Rotary positions as multiplication of x_i + j·x_{i+K/2} by e^{j·position·base^(−2i/K)}."""
    half = x.shape[-1] // 2
    turn = [[cmath.exp(1j * n * base ** (-2 * i / (2 * half))) for i in range(half)] for n in range(x.shape[1])]
    pairs = torch.complex(x[..., :half], x[..., half:]) * torch.tensor(turn, dtype=torch.complex128)[:, None]
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def test_rotary_positions_turn_pairs_of_coordinates():
    x = random(2, 7, 3, 8)
    assert torch.allclose(rotate(x), complex_rotation(x), atol=1e-5)
    assert torch.equal(rotate(x)[:, 0], x[:, 0])
    assert torch.allclose(rotate(x).norm(dim=-1), x.norm(dim=-1), atol=1e-6)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = (random(1, 1, 1, 8, seed=i).expand(1, 9, 1, 8) for i in range(2))
    scores = torch.einsum("bnhk,blhk->nl", rotate(q), rotate(k))
    for offset in range(-8, 9):
        diagonal = scores.diagonal(offset)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5)
    assert scores[0].std() > 0.1


def test_the_mlp_is_linear_gelu_linear_four_times_as_wide():
    for approximate in ("none", "tanh"):
        mlp = MLP(3, approximate=approximate).double()
        x = random(5, 3)
        a = x @ mlp[0].weight.T + mlp[0].bias
        assert a.shape == (5, 12)
        if approximate == "none":
            gelu = a * 0.5 * (1 + torch.erf(a / math.sqrt(2)))
        else:
            gelu = 0.5 * a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
        assert torch.allclose(mlp(x), gelu @ mlp[2].weight.T + mlp[2].bias, atol=1e-12)


def test_swiglu_gates_with_silu_and_has_no_bias():
    layer = SwiGLU(3, 5).double()
    x = random(4, 3)
    w_gate, w_up = layer.gate_up.weight[:5], layer.gate_up.weight[5:]
    gate = x @ w_gate.T
    expected = ((gate / (1 + torch.exp(-gate))) * (x @ w_up.T)) @ layer.down.weight.T
    assert torch.allclose(layer(x), expected, atol=1e-12)
    assert sum(p.numel() for p in layer.parameters()) == 3 * 3 * 5


def test_the_time_embedding_is_cosines_and_sines_of_1000_t():
    times = [0.0, 1e-5, 0.25, 1.0]
    got = time_features(torch.tensor(times, dtype=torch.float64), 6)
    for place, t in enumerate(times):
        angles = [1000 * t * 10_000 ** (-i / 3) for i in range(3)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert got[place].tolist() == pytest.approx(expected, abs=1e-4)  # float32 angles of up to 1000
