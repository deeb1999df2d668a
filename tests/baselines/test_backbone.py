"""The rivals' backbone: its published size, its formula, what it starts as, and dropout by address."""

from __future__ import annotations

import math
import re
from functools import partial

import pytest
import randomness
import torch
from randomness import random
from torch import Tensor, nn

from ldlm import attention
from ldlm.baselines.backbone import Backbone, Dropout, InTraining, capped_attention, soft_capped
from ldlm.config import BackboneConfig, DenoiserConfig, FLMBackboneConfig, TrainConfig, from_dict, preset
from ldlm.errors import InputError
from ldlm.model import layers

SMALL = DenoiserConfig(layers=2, width=8, heads=2, time_dim=6)
randomised = partial(randomness.randomised, std=0.5)


def backbone(**settings) -> Backbone:
    return Backbone(SMALL, BackboneConfig(**settings), vocab=11, embeddings=12)


# ----------------------------------------------------------------------------------------------------------------------
# Its size


@pytest.mark.parametrize("name", ["owt-1024", "lm1b-128"])
def test_the_published_model_has_its_published_size(name):
    config = from_dict(TrainConfig, preset(name).overrides).model.denoiser
    with torch.device("meta"):
        network = Backbone(config, FLMBackboneConfig(), vocab=50_258, embeddings=50_258)
    total = sum(p.numel() for p in network.parameters())
    assert total == pytest.approx(169.6e6, abs=0.1e6)
    assert sum(p.numel() for p in network.blocks.parameters()) == pytest.approx(92.1e6, abs=0.1e6)
    assert network.embedding.numel() == 50_258 * 768
    assert network.head.weight.numel() == 50_258 * 768  # untied
    assert network.blocks[0].modulation.in_features == 128
    names = {name.removeprefix("blocks.0.") for name in network.state_dict() if name.startswith("blocks.0.")}
    assert {n for n in names if "bias" in n} == {"mlp.0.bias", "mlp.2.bias", "modulation.bias"}


def test_a_narrow_model_has_a_condition_of_its_own_width():
    assert backbone().blocks[0].modulation.in_features == 8
    tiny = from_dict(TrainConfig, preset("tiny").overrides).model.denoiser
    assert Backbone(tiny, BackboneConfig(), vocab=5, embeddings=5).blocks[0].modulation.in_features == tiny.width == 128


# ----------------------------------------------------------------------------------------------------------------------
# Its formula. The reference: plain functions of named weights, position by position and head by head.


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)


def turned(x: Tensor, position: int) -> Tensor:
    """A head's vector (K,): pairs (i, i + K/2) turn by position·10000^(−2i/K)."""
    half = len(x) // 2
    z = torch.complex(x[:half], x[half:])
    angle = position * 10_000.0 ** (-torch.arange(half).double() / half)
    z = z * torch.polar(torch.ones(half).double(), angle)
    return torch.cat([z.real, z.imag])


def attended(w: dict[str, Tensor], x: Tensor, cap: float | None, heads: int = 2) -> Tensor:
    """Self-attention of one row (L, W)."""
    out = []
    size = x.shape[1] // heads
    for head in range(heads):
        q, k, v = (
            x @ w["attention.qkv.weight"][start + head * size : start + (head + 1) * size].T
            for start in (0, x.shape[1], 2 * x.shape[1])
        )
        q, k = (torch.stack([turned(row, i) for i, row in enumerate(part)]) for part in (q, k))
        s = q @ k.T / math.sqrt(size)
        s = s if cap is None else cap * torch.tanh(s / cap)
        out.append(torch.exp(s) / torch.exp(s).sum(1, keepdim=True) @ v)
    return torch.cat(out, 1) @ w["attention.out.weight"].T


def reference(w: dict[str, Tensor], e: Tensor, scalar: float, caps: tuple[float, float] | None) -> Tensor:
    """Logits (L, V) of one row of embeddings (L, W)."""
    angle = scalar * 10_000 ** (-torch.arange(3).double() / 3)
    c = torch.cat([torch.cos(angle), torch.sin(angle)])
    for i in (0, 2):
        c = silu(w[f"condition_mlp.{i}.weight"] @ c + w[f"condition_mlp.{i}.bias"])
    x = e
    for number in range(2):
        b = {n.removeprefix(f"blocks.{number}."): value for n, value in w.items() if n.startswith(f"blocks.{number}.")}
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (b["modulation.weight"] @ c + b["modulation.bias"]).split(
            8
        )
        y = layer_norm(x, b["attention_norm.weight"]) * (1 + scale_a) + shift_a
        x = x + gate_a * attended(b, y, caps[0] if caps else None)
        y = layer_norm(x, b["mlp_norm.weight"]) * (1 + scale_m) + shift_m
        y = y @ b["mlp.0.weight"].T + b["mlp.0.bias"]
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + gate_m * (y @ b["mlp.2.weight"].T + b["mlp.2.bias"])
    shift, scale = (w["final_modulation.weight"] @ c + w["final_modulation.bias"]).split(8)
    x = layer_norm(x, w["final_norm.weight"]) * (1 + scale) + shift
    logits = x @ w["head.weight"].T + w["head.bias"]
    return caps[1] * torch.tanh(logits / caps[1]) if caps else logits


@pytest.mark.parametrize("caps", [None, (0.7, 3.0)])
def test_the_network_follows_its_formula(caps):
    network = randomised(backbone(**(dict(zip(("attention_cap", "logit_cap"), caps, strict=True)) if caps else {})))
    tokens = torch.tensor([[0, 3, 11, 5, 5], [7, 1, 2, 9, 0], [4, 4, 4, 8, 10]])
    e, condition = network.embedding[tokens], torch.tensor([0.25, 1.5, 6.0], dtype=torch.float64)
    got = network(e, condition)
    assert got.dtype == torch.float64
    weights = network.state_dict()
    for row in range(3):
        expected = reference(weights, weights["embedding"][tokens[row]], condition[row].item(), caps)
        assert torch.allclose(got[row], expected, rtol=0, atol=1e-5)  # its sines and cosines are float32
    zero = torch.zeros(1, dtype=torch.float64)
    assert torch.allclose(network(e)[0], reference(weights, e[0], 0.0, caps), rtol=0, atol=1e-6)
    assert torch.equal(network(e), network(e, zero))


def test_soft_caps_bound_and_leave_small_numbers():
    x = torch.linspace(-300, 300, 1_001, dtype=torch.float64)
    assert soft_capped(x, 30.0).abs().max() <= 30
    assert torch.allclose(soft_capped(x / 1e4, 30.0), x / 1e4, atol=1e-8)
    assert torch.equal(soft_capped(x, 0.0), x)


def test_a_cap_that_is_never_reached_gives_plain_attention():
    q, k, v = (3 * random(2, 5, 2, 4, seed=seed) for seed in range(3))
    assert torch.allclose(capped_attention(q, k, v, 1e7), attention.attention(q, k, v), atol=1e-10)
    assert (capped_attention(q, k, v, 1.0) - attention.attention(q, k, v)).abs().max() > 0.1


def test_attention_without_a_cap_is_the_chosen_kernels(monkeypatch):
    calls = []
    monkeypatch.setattr(layers, "attention", lambda *parts: (calls.append(1), attention.attention(*parts))[1])
    for caps, expected in (({}, 2), ({"attention_cap": 50.0}, 2)):
        network = backbone(**caps)
        network(network.embedding[torch.zeros(1, 4, dtype=torch.long)])
        assert len(calls) == expected


# ----------------------------------------------------------------------------------------------------------------------
# What it starts as


def test_at_initialisation_every_token_is_equally_likely_and_blocks_are_the_identity():
    network = backbone()
    e = random(2, 4, 8).float()
    assert not network(e, torch.tensor([0.5, 2.0])).any()
    for block in network.blocks:
        assert torch.equal(block(e, random(2, 8).float()), e)
    bound = 1 / math.sqrt(8)
    assert bound * 0.9 < network.embedding.abs().max() <= bound


def test_every_parameter_learns_within_three_steps():
    """A zero gate with zero inputs would never open."""
    network = backbone()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    tokens = torch.arange(12).reshape(3, 4)
    for _ in range(3):
        logits = network(network.embedding[tokens], torch.tensor([0.1, 1.0, 3.0]))
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten() % 11).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [name for name, p in network.named_parameters() if torch.equal(p, before[name])] == []


# ----------------------------------------------------------------------------------------------------------------------
# Invariances, and dropout


def test_a_row_does_not_depend_on_the_rest_of_its_batch():
    network = randomised(backbone())
    e, condition = random(4, 5, 8), torch.tensor([0.1, 0.4, 2.0, 6.0])
    together = network(e, condition)
    for i in range(4):
        assert torch.allclose(network(e[i : i + 1], condition[i : i + 1])[0], together[i], atol=1e-12)


def test_positions_are_relative_to_one_another():
    network = randomised(backbone())
    e, order = random(1, 5, 8), torch.tensor([3, 1, 4, 0, 2])
    assert (network(e[:, order]) - network(e)[:, order]).abs().max() > 1e-3


def test_the_logits_of_some_positions_are_those_of_all():
    network = randomised(backbone(logit_cap=30.0))
    h = network.hidden(random(2, 5, 8))
    assert torch.allclose(network.logits(h[1, 3]), network.logits(h)[1, 3], atol=1e-12)


def trained(network: Backbone, rows: Tensor, step: int = 7) -> Tensor:
    """States of rows of the global batch under dropout."""
    e = random(6, 5, 8)[rows]
    return InTraining(network, Dropout(3, torch.tensor([step]), rows)).hidden(e, None)


def test_dropout_is_the_same_for_a_row_in_any_batch_and_new_at_each_step():
    network = randomised(backbone(dropout=0.3))
    together = trained(network, torch.arange(6))
    assert torch.allclose(trained(network, torch.tensor([4, 1])), together[[4, 1]], atol=1e-12)
    assert (trained(network, torch.arange(6), step=8) - together).abs().max() > 1e-3
    plain = network.hidden(random(6, 5, 8))
    assert (plain - together).abs().max() > 1e-3
    assert torch.equal(network.hidden(random(6, 5, 8)), plain)


def test_every_branch_of_every_block_and_step_has_dropout_of_its_own():
    at = [(step, block, branch) for step in range(3) for block in range(2) for branch in range(2)]
    masks = {}
    for step, block, branch in at:
        keep_B2LW = Dropout(0, step, torch.arange(2)).masks(0.5, block, 2, (9, 8))
        assert keep_B2LW.shape == (2, 2, 9, 8)
        for row in range(2):
            masks[tuple(keep_B2LW[row, branch].flatten().tolist())] = True
    assert len(masks) == 2 * len(at)
    assert Dropout(0, 0, torch.arange(2)).masks(0.0, 0, 2, (9, 8)) is None


def test_dropout_keeps_the_mean_of_each_branch():
    network = randomised(backbone(dropout=0.25))
    block, e, condition = network.blocks[0], random(1, 5, 8), random(1, 8)
    shift, scale, gate, _, _, gate_m = block.modulation(condition).split(8, -1)
    branch = gate * block.attention(block.attention_norm(e) * (1 + scale) + shift)
    keep = Dropout(0, 0, torch.arange(4_000)).masks(0.25, 0, 2, (5, 8))

    # Attention alone: nothing comes out of the MLP.
    with torch.no_grad():
        bias = block.mlp[2].bias.clone()
        block.mlp[2].weight.zero_()
        block.mlp[2].bias.zero_()
    many = block(e.expand(4_000, 5, 8), condition, keep) - e
    assert ((many != 0) == keep[:, 0]).all()
    assert torch.allclose(many[keep[:, 0]], (branch / 0.75).expand_as(many)[keep[:, 0]], rtol=0, atol=1e-12)
    assert keep.double().mean().item() == pytest.approx(0.75, abs=4 * math.sqrt(0.25 * 0.75 / keep.numel()))

    # The MLP alone, and its bias
    with torch.no_grad():
        block.mlp[2].bias.copy_(bias)
        block.attention.out.weight.zero_()
    many = block(e.expand(4_000, 5, 8), condition, keep) - e
    assert torch.allclose(many, (gate_m * bias / 0.75).expand_as(many) * keep[:, 1], rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch's about its own tracing
@pytest.mark.parametrize("way", ["recomputed", pytest.param("compiled", marks=pytest.mark.slow)])
def test_compiled_or_recomputed_blocks_compute_the_same(way):
    def gradient(network):
        trained(network, torch.arange(6)).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in network.blocks.parameters()])

    plain, network = randomised(backbone(dropout=0.3)), randomised(backbone(dropout=0.3))
    if way == "compiled":
        layers.compile_blocks(network)
    layers.recompute_activations(network)
    assert torch.allclose(gradient(network), gradient(plain), rtol=1e-5, atol=1e-5)  # float32 sines


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match=r"model\.denoiser\.heads=3 must divide its width 8"):
        Backbone(DenoiserConfig(layers=1, width=8, heads=3), BackboneConfig(), vocab=5, embeddings=5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 30, "heads": 10}, "model.denoiser.heads=10 leaves heads of odd width 3, and rotary positions turn"),
        ({"width": 15, "heads": 1}, "model.denoiser.heads=1 leaves heads of odd width 15, and rotary positions turn"),
        ({"width": 8, "heads": 2, "time_dim": 9}, "model.denoiser.time_dim=9 must be even: it holds sines and cosines"),
    ],
)
@pytest.mark.parametrize("cap", [0.0, 50.0])
def test_sizes_that_positions_and_times_can_not_have_are_refused(sizes, message, cap):
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        Backbone(DenoiserConfig(layers=1, **sizes), BackboneConfig(attention_cap=cap), vocab=5, embeddings=5)
    assert "positions=" not in str(refused.value)  # the backbone has no other ones


def test_within_autocast_the_body_is_rounded_and_the_head_is_not():
    """Logits and loss are float32 in training, on held-out rows and in drawing."""
    network, h_BLW = randomised(backbone()).float(), random(2, 4, 8).float()
    exact, states = network.logits(h_BLW), network.hidden(h_BLW)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.logits(h_BLW), exact)
        assert torch.equal(network.logits(h_BLW.bfloat16()), network.logits(h_BLW.bfloat16().float()))
        rounded = network.hidden(h_BLW)
    assert 1e-4 < (rounded - states).abs().max() / states.abs().max() < 0.1
