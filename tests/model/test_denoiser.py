"""The DiT: identity at initialisation (adaLN-Zero), its formula, batch invariance, and what it is conditioned on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from randomness import random, randomised
from torch import Tensor

from ldlm.config import DenoiserConfig
from ldlm.errors import InputError
from ldlm.model.denoiser import DiT, DiTBlock, modulate

SMALL = DenoiserConfig(layers=2, width=8, heads=2, time_dim=6)


def dit() -> DiT:
    return DiT(SMALL, num_latents=5, latent_dim=4)


# The reference: plain functions of named weights.


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-6)


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def turned(x: Tensor) -> Tensor:
    """Pair (i, i + K/2) of position n as a complex number, times exp(𝑖·n·10,000^(−2i/K)) (Su et al., 2021)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1]).double()[:, None] * 10_000 ** (-torch.arange(half).double() / half)
    pairs = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * angle)[:, None]
    return torch.cat([pairs.real, pairs.imag], -1)


def dit_block(w: dict[str, Tensor], x: Tensor, condition: Tensor, heads: int, turn: bool = False) -> Tensor:
    """x + gate·attention((1 + scale)·LN(x) + shift), and the same for the MLP (Peebles & Xie, 2023, Figure 3)."""
    batch, length, width = x.shape
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
        part[:, None] for part in linear(w, "modulation.1", silu(condition)).split(width, dim=-1)
    )
    y = layer_norm(x) * (1 + scale_a) + shift_a
    q, k, v = (
        part.reshape(batch, length, heads, width // heads)
        for part in linear(w, "attention.qkv", y).split(width, dim=-1)
    )
    if turn:
        q, k = turned(q), turned(k)
    weight = torch.exp(torch.einsum("bnhk,bmhk->bhnm", q, k) / math.sqrt(width // heads))
    mixed = torch.einsum("bhnm,bmhk->bnhk", weight / weight.sum(-1, keepdim=True), v).reshape(x.shape)
    x = x + gate_a * linear(w, "attention.out", mixed)
    y = linear(w, "mlp.0", layer_norm(x) * (1 + scale_m) + shift_m)
    y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    return x + gate_m * linear(w, "mlp.2", y)


def reference(w: dict[str, Tensor], z_t: Tensor, t: Tensor, previous: Tensor, turn: bool = False) -> Tensor:
    angle = 1000 * t[:, None] * 10_000 ** (-torch.arange(3).double() / 3)
    features = torch.cat([torch.cos(angle), torch.sin(angle)], -1)
    condition = linear(w, "time_mlp.2", silu(linear(w, "time_mlp.0", features)))
    x = linear(w, "project_in", torch.cat([z_t, previous], -1)) + w["positions_NW"]
    for i in range(2):
        block = {name.removeprefix(f"blocks.{i}."): value for name, value in w.items()}
        x = dit_block(block, x, condition, heads=2, turn=turn)
    shift, scale = linear(w, "final_modulation.1", silu(condition)).split(8, dim=-1)
    return linear(w, "project_out", layer_norm(x) * (1 + scale[:, None]) + shift[:, None])


# Initialisation


def test_at_initialisation_every_block_leaves_its_input_unchanged():
    network = dit()
    x, condition = random(3, 5, 8).float(), random(3, 8, seed=1).float()
    for block in network.blocks:
        assert torch.equal(block(x, block.modulation(condition).unflatten(-1, (6, 8))), x)


def test_positions_start_as_the_sines_and_cosines_of_the_published_dit_and_are_learned():
    positions = DiT(DenoiserConfig(layers=1, width=8, heads=2), num_latents=64, latent_dim=4).positions_NW
    assert isinstance(positions, torch.nn.Parameter)
    angle = torch.arange(64).double()[:, None] * torch.tensor([1, 0.1, 0.01, 0.001]).double()  # 10,000^(−i/4)
    expected = torch.cat([torch.cos(angle), torch.sin(angle)], -1)
    assert torch.allclose(positions.double(), expected, atol=1e-5)
    assert positions.detach().square().mean().sqrt().item() == pytest.approx(math.sqrt(0.5))


def test_positions_start_small_and_random_on_request():
    config = DenoiserConfig(layers=1, width=256, heads=2, positions="normal")
    positions = DiT(config, num_latents=64, latent_dim=4).positions_NW
    assert positions.std().item() == pytest.approx(0.02, rel=0.05)
    assert positions.mean().item() == pytest.approx(0, abs=1e-3)


def test_an_odd_width_has_no_sines_and_cosines_and_is_refused():
    odd = DenoiserConfig(layers=1, width=9, heads=3)
    with pytest.raises(InputError, match=r"model\.denoiser\.width=9 must be even"):
        DiT(odd, num_latents=5, latent_dim=4)
    DiT(replace(odd, positions="normal"), num_latents=5, latent_dim=4)


def test_at_initialisation_the_estimate_is_zero_and_the_rest_of_the_path_is_not():
    network = dit()
    seen = []
    network.project_out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    out = network(random(3, 5, 4).float(), torch.tensor([0.1, 0.5, 1.0]), random(3, 5, 4, seed=1).float())
    assert torch.equal(out, torch.zeros_like(out))
    assert seen[0].abs().mean() > 0.1


def test_at_initialisation_the_gates_and_the_output_can_learn():
    """A zero gate with zero inputs would never open: the first steps must move both."""
    network = dit()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        out = network(random(3, 5, 4).float(), torch.tensor([0.1, 0.5, 1.0]), torch.zeros(3, 5, 4))
        (out - random(3, 5, 4, seed=2).float()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in network.named_parameters():
        if "modulation" in name or "project_out" in name:
            assert parameter.abs().max() > 0, name


# The formula


def test_modulation_with_zero_shift_and_scale_is_the_identity():
    x, zero = random(2, 5, 8), torch.zeros(2, 8).double()
    assert torch.equal(modulate(x, zero, zero), x)
    assert torch.equal(modulate(x, zero + 1, zero + 2), 3 * x + 1)


def test_a_block_follows_its_formula():
    block = randomised(DiTBlock(8, 2))
    x, condition = random(3, 5, 8), random(3, 8, seed=1)
    got = block(x, block.modulation(condition).unflatten(-1, (6, 8)))
    assert torch.allclose(got, dit_block(block.state_dict(), x, condition, heads=2), atol=1e-10)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_the_network_follows_its_formula(positions):
    network = randomised(DiT(replace(SMALL, positions=positions), num_latents=5, latent_dim=4))
    z_t, previous = random(3, 5, 4), random(3, 5, 4, seed=1)
    t = torch.tensor([0.004, 0.01, 0.02], dtype=torch.float64)  # where float32 angles keep six digits
    expected = reference(network.state_dict(), z_t, t, previous, turn=positions == "rotary")
    assert torch.allclose(network(z_t, t, previous), expected, atol=1e-5)


# Invariances and conditions


def test_a_row_does_not_depend_on_the_rest_of_its_batch():
    network = randomised(dit())
    z_t, previous = random(4, 5, 4), random(4, 5, 4, seed=1)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    together = network(z_t, t, previous)
    for i in range(4):
        alone = network(z_t[i : i + 1], t[i : i + 1], previous[i : i + 1])
        assert torch.allclose(alone[0], together[i], atol=1e-12)
    assert torch.allclose(network(z_t.flip(0), t.flip(0), previous.flip(0)).flip(0), together, atol=1e-12)


def test_the_estimate_depends_on_z_t_on_the_time_and_on_the_previous_estimate():
    network = randomised(dit())
    z_t, t, previous = random(1, 5, 4), torch.tensor([0.3]), random(1, 5, 4, seed=1)
    out = network(z_t, t, previous)
    for changed in ((2 * z_t, t, previous), (z_t, t + 0.01, previous), (z_t, t, torch.zeros_like(previous))):
        assert (network(*changed) - out).abs().max() > 1e-3


def test_latents_are_told_apart_by_their_positions():
    network = randomised(dit())
    z_t, t, order = random(1, 5, 4), torch.tensor([0.3]), torch.tensor([3, 1, 4, 0, 2])
    moved = network(z_t[:, order], t, z_t[:, order])
    assert (moved - network(z_t, t, z_t)[:, order]).abs().max() > 1e-3
    with torch.no_grad():
        network.positions_NW.copy_(network.positions_NW[:1].expand(5, 8))
    assert torch.allclose(network(z_t[:, order], t, z_t[:, order]), network(z_t, t, z_t)[:, order], atol=1e-12)


def test_rotary_positions_add_no_parameters_and_start_with_the_sines_and_cosines():
    plain, rotary = (DiT(replace(SMALL, positions=kind), num_latents=5, latent_dim=4) for kind in ("sincos", "rotary"))
    assert [(n, p.shape) for n, p in plain.named_parameters()] == [(n, p.shape) for n, p in rotary.named_parameters()]
    assert torch.equal(plain.positions_NW, rotary.positions_NW)


def test_rotary_positions_ask_for_heads_of_an_even_width():
    odd = DenoiserConfig(layers=1, width=6, heads=2, positions="rotary")
    with pytest.raises(InputError, match=r"model\.denoiser\.heads=2 leaves heads of odd width 3"):
        DiT(odd, num_latents=5, latent_dim=4)
    DiT(replace(odd, positions="sincos"), num_latents=5, latent_dim=4)


def test_an_odd_time_embedding_is_refused():
    with pytest.raises(InputError, match=r"model\.denoiser\.time_dim=7 must be even"):
        DiT(DenoiserConfig(layers=1, width=8, heads=2, time_dim=7), num_latents=5, latent_dim=4)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match=r"model\.denoiser\.heads=3 must divide its width 8"):
        DiT(DenoiserConfig(layers=1, width=8, heads=3), num_latents=5, latent_dim=4)
