"""E_z, D_h and D_w against an independent reference written from the formulas, and their invariances."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import randomness
import torch
from randomness import random
from torch import Tensor, nn

from ldlm.config import AutoencoderConfig
from ldlm.errors import InputError
from ldlm.model.autoencoder import (
    DecoderBlock,
    LatentDecoder,
    LatentEncoder,
    PerceiverResampler,
    ResamplerLayer,
    SelfAttentionEncoder,
    TokenDecoder,
)

SMALL = AutoencoderConfig(layers=2, width=8, heads=2)
randomised = partial(randomness.randomised, around_ones=True)


# The reference: plain functions of named weights.


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * gain


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weight = torch.exp(torch.einsum("bnhk,bmhk->bhnm", q, k) / math.sqrt(q.shape[-1]))
    out = torch.einsum("bhnm,bmhk->bnhk", weight / weight.sum(-1, keepdim=True), v)
    return out.reshape(*out.shape[:2], -1)


def gelu_mlp(w: dict[str, Tensor], x: Tensor) -> Tensor:
    a = x @ w["mlp.0.weight"].T + w["mlp.0.bias"]
    a = a * 0.5 * (1 + torch.erf(a / math.sqrt(2)))
    return a @ w["mlp.2.weight"].T + w["mlp.2.bias"]


def resampler_layer(w: dict[str, Tensor], inputs: Tensor, latents: Tensor, heads: int) -> Tensor:
    """Queries from the latents; keys and values of inputs and of latents by projections of their own."""
    x, y = rms_norm(inputs, w["inputs_norm.weight"]), rms_norm(latents, w["latents_norm.weight"])
    k_x, v_x = (x @ part.T for part in w["attention.kv_inputs.weight"].chunk(2))
    k_y, v_y = (y @ part.T for part in w["attention.kv_latents.weight"].chunk(2))
    q = rms_norm(heads_of(y @ w["attention.q.weight"].T, heads), w["attention.q_norm.weight"])
    k = rms_norm(heads_of(torch.cat([k_x, k_y], 1), heads), w["attention.k_norm.weight"])
    v = heads_of(torch.cat([v_x, v_y], 1), heads)
    latents = latents + softmax_attention(q, k, v) @ w["attention.out.weight"].T
    return latents + gelu_mlp(w, rms_norm(latents, w["mlp_norm.weight"]))


def self_attention_layer(w: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    y = rms_norm(x, w["attention_norm.weight"])
    q, k, v = (heads_of(y @ part.T, heads) for part in w["attention.qkv.weight"].chunk(3))
    x = x + softmax_attention(q, k, v) @ w["attention.out.weight"].T
    return x + gelu_mlp(w, rms_norm(x, w["mlp_norm.weight"]))


def turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    angle = torch.outer(torch.arange(x.shape[1]).double(), 10_000.0 ** (-torch.arange(half).double() / half))[:, None]
    pairs = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag], -1)


def decoder_block(w: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    y = rms_norm(x, w["attention_norm.weight"])
    q, k, v = (heads_of(y @ part.T, heads) for part in w["attention.qkv.weight"].chunk(3))
    x = x + softmax_attention(turned(q), turned(k), v) @ w["attention.out.weight"].T
    y = rms_norm(x, w["mlp_norm.weight"])
    gate, up = (y @ part.T for part in w["mlp.gate_up.weight"].chunk(2))
    return x + (gate * torch.sigmoid(gate) * up) @ w["mlp.down.weight"].T


def below(w: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}


# Blocks


def test_a_resampler_layer_follows_its_formula():
    layer = randomised(ResamplerLayer(8, 2))
    inputs, latents = random(3, 5, 8), random(3, 4, 8, seed=1)
    expected = resampler_layer(layer.state_dict(), inputs, latents, heads=2)
    assert torch.allclose(layer(inputs, latents), expected, atol=1e-10)


def test_a_decoder_block_follows_its_formula():
    block = randomised(DecoderBlock(8, 2, 4))
    assert block.mlp.down.weight.shape == (8, 32)
    x = random(3, 5, 8)
    assert torch.allclose(block(x), decoder_block(block.state_dict(), x, heads=2), atol=1e-6)  # float32 angles
    assert not any(name.endswith("bias") for name in block.state_dict())


# Whole networks


def test_the_resampler_passes_learned_queries_through_its_layers_while_the_inputs_stay_fixed():
    network = randomised(PerceiverResampler(SMALL, length_in=5, dim_in=6, length_out=3, dim_out=4))
    w, x = network.state_dict(), random(2, 5, 6)
    inputs = x @ w["project_in.weight"].T + w["project_in.bias"] + w["positions_LW"]
    latents = torch.stack([w["latents_NW"]] * 2)
    for i in range(2):
        latents = resampler_layer(below(w, f"layers.{i}."), inputs, latents, heads=2)
    expected = latents @ w["project_out.weight"].T + w["project_out.bias"]
    assert torch.allclose(network(x), expected, atol=1e-10)


def test_the_resampler_has_no_maps_where_the_widths_agree():
    network = PerceiverResampler(SMALL, length_in=5, dim_in=8, length_out=3, dim_out=8)
    assert not [name for name in network.state_dict() if name.startswith("project")]


def test_queries_start_at_a_spread_of_0_02_and_positions_at_the_configured_one():
    config = AutoencoderConfig(layers=1, width=64, heads=2, position_std=1.0)
    network = PerceiverResampler(config, length_in=200, dim_in=64, length_out=200, dim_out=64)
    assert network.latents_NW.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.positions_LW.std().item() == pytest.approx(1.0, rel=0.05)


def test_the_self_attention_variant_updates_the_states_themselves():
    network = randomised(SelfAttentionEncoder(SMALL, length_in=5, dim_in=6, length_out=5, dim_out=4))
    w, x = network.state_dict(), random(2, 5, 6)
    states = x @ w["project_in.weight"].T + w["project_in.bias"] + w["positions_LW"]
    for i in range(2):
        states = self_attention_layer(below(w, f"layers.{i}."), states, heads=2)
    assert torch.allclose(network(x), states @ w["project_out.weight"].T + w["project_out.bias"], atol=1e-10)


def test_the_self_attention_variant_refuses_another_number_of_latents_than_tokens():
    with pytest.raises(InputError, match=r"num_latents asks for 3 against 5 tokens"):
        SelfAttentionEncoder(SMALL, length_in=5, dim_in=8, length_out=3, dim_out=8)


@pytest.mark.parametrize("layers", [0, 2])
def test_the_token_decoder_is_blocks_a_norm_and_a_bias_free_head(layers):
    network = randomised(TokenDecoder(width=8, layers=layers, heads=2, mlp_ratio=4, vocab_size=11))
    w, x = network.state_dict(), random(2, 5, 8)
    states = x
    for i in range(layers):
        states = decoder_block(below(w, f"blocks.{i}."), states, heads=2)
    expected = rms_norm(states, w["norm.weight"]) @ w["head.weight"].T
    assert torch.allclose(network(x), expected, atol=1e-6)
    assert "head.bias" not in w


def test_the_token_decoder_refuses_heads_of_odd_width():
    with pytest.raises(InputError, match="heads of odd width 3"):
        TokenDecoder(width=6, layers=1, heads=2, mlp_ratio=4, vocab_size=11)
    TokenDecoder(width=6, layers=0, heads=2, mlp_ratio=4, vocab_size=11)  # nothing rotates


def test_encoder_and_decoder_go_from_tokens_to_latents_and_back():
    sizes = {"seq_len": 5, "hidden_dim": 6, "num_latents": 3, "latent_dim": 4}
    z = LatentEncoder(SMALL, **sizes)(random(2, 5, 6).float())
    assert z.shape == (2, 3, 4)
    assert LatentDecoder(SMALL, **sizes)(z).shape == (2, 5, 6)


def test_the_output_norm_is_off_by_default_and_fixes_the_size_of_a_latent_when_on():
    sizes = {"seq_len": 5, "hidden_dim": 8, "num_latents": 5, "latent_dim": 8}
    free, normed = (
        LatentEncoder(AutoencoderConfig(layers=1, width=8, heads=2, output_norm=on), **sizes) for on in (False, True)
    )
    assert isinstance(free.output_norm, nn.Identity)
    normed.load_state_dict(free.state_dict(), strict=False)
    h = random(3, 5, 8).float()
    size = free(h).square().mean(-1).sqrt()
    assert (size - 1).abs().min() > 0.1
    assert torch.allclose(normed(h).square().mean(-1).sqrt(), torch.ones_like(size), atol=1e-2)


NETWORKS = {
    "resampler encoder": lambda: LatentEncoder(SMALL, seq_len=5, hidden_dim=8, num_latents=3, latent_dim=8),
    "resampler decoder": lambda: LatentDecoder(SMALL, seq_len=3, hidden_dim=8, num_latents=5, latent_dim=8),
    "self-attention encoder": lambda: LatentEncoder(
        AutoencoderConfig(kind="self_attention", layers=2, width=8, heads=2),
        seq_len=5, hidden_dim=8, num_latents=5, latent_dim=8,
    ),
    "token decoder": lambda: TokenDecoder(width=8, layers=2, heads=2, mlp_ratio=4, vocab_size=11),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_row_does_not_depend_on_the_rest_of_its_batch(name):
    network = randomised(NETWORKS[name]())
    x = random(4, 5, 8)
    together = network(x)
    for i in range(4):
        assert torch.allclose(network(x[i : i + 1])[0], together[i], atol=1e-12)
    assert torch.allclose(network(x.flip(0)).flip(0), together, atol=1e-12)
    assert (together[0] - together[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_every_position_sees_every_other_one(name):
    """Bidirectional: no causal mask anywhere."""
    network = randomised(NETWORKS[name]())
    x = random(1, 5, 8).requires_grad_()
    out = network(x)
    for position in range(out.shape[1]):
        (gradient,) = torch.autograd.grad(out[0, position].sum(), x, retain_graph=True)
        assert (gradient[0].abs().max(dim=-1).values > 1e-6).all()


def test_an_aligned_resampler_starts_with_latent_i_reading_input_i():
    sizes = {"length_in": 12, "dim_in": 64, "length_out": 12, "dim_out": 64}
    config = AutoencoderConfig(layers=1, width=64, heads=2, position_std=1.0, aligned=True)
    matches = {}
    for aligned in (True, False):
        torch.manual_seed(0)
        body = PerceiverResampler(dataclasses.replace(config, aligned=aligned), **sizes)
        layer = body.layers[0]
        queries = layer.attention.q(layer.latents_norm(body.latents_NW))
        keys = layer.attention.kv_inputs(layer.inputs_norm(body.positions_LW))[:, :64]
        similarity = torch.nn.functional.normalize(queries, dim=-1) @ torch.nn.functional.normalize(keys, dim=-1).T
        matches[aligned] = (similarity.argmax(-1) == torch.arange(12)).float().mean().item()
    assert matches[True] == 1.0
    assert matches[False] < 0.5
    with pytest.raises(InputError, match="as many latents as tokens"):
        PerceiverResampler(config, **{**sizes, "length_out": 6})
