"""The condition on a prefix: what a row sees of it, that k = 0 is the unconditional model, and how k is drawn."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from randomness import random, randomised
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ldlm import config as configs
from ldlm.attention import attention
from ldlm.compute import Compute
from ldlm.config import DenoiserConfig, Shapes, TrainConfig
from ldlm.errors import InputError
from ldlm.model.cosmos import DenoiserObjective
from ldlm.model.denoiser import DiT
from ldlm.model.diffusion import noised
from ldlm.model.joint import build
from ldlm.model.layers import rotate
from ldlm.model.objective import JointObjective
from ldlm.model.prefix import UNCONDITIONAL, UNWRITTEN, PrefixAttention, draw_lengths
from ldlm.model.timesteps import TimestepSampler
from ldlm.training import cost, joint
from ldlm.training.distillation import start_distillation
from ldlm.training.joint_method import JointTraining
from ldlm.training.phases import phases

SMALL = DenoiserConfig(layers=2, width=8, heads=2, time_dim=6)
SHAPES = Shapes(seq_len=20, hidden_dim=6, vocab_size=50)
MODEL = {
    "condition": "prefix",
    "autoencoder": {"layers": 1, "width": 8, "heads": 2, "num_latents": 5, "latent_dim": 4},
    "denoiser": {"layers": 2, "width": 8, "heads": 2, "time_dim": 6},
    "token_decoder": {"layers": 0},
}
TRAIN = {"steps": 3, "batch_size": 4, "model": MODEL, "device": "cpu", "recipe": {"sigma_dec": 1.0}}


@pytest.fixture(scope="module", params=["sincos", "rotary"])
def dit(request) -> DiT:
    config = replace(SMALL, positions=request.param)
    return randomised(DiT(config, num_latents=5, latent_dim=4, prefixed=SHAPES)).requires_grad_(False)


def config(**changes) -> TrainConfig:
    return configs.from_dict(TrainConfig, configs.merge(TRAIN, changes))


def estimate(dit: DiT, h_BLD: Tensor | None, k_B: Tensor | None, rows: slice = slice(None)) -> Tensor:
    z_t, previous, t = random(3, 5, 4)[rows], random(3, 5, 4, seed=1)[rows], torch.tensor([0.1, 0.5, 0.9])[rows]
    prefix = None if h_BLD is None else dit.prefix(h_BLD[rows], k_B[rows])
    return dit(z_t, t, previous, prefix)


K = torch.tensor([0, 3, 12])


def test_a_row_sees_its_first_k_states_and_nothing_after_them(dit):
    h = random(3, 12, 6, seed=2)
    seen = estimate(dit, h, K)
    changed = h.clone()
    changed[0] += 7
    changed[1, 3:] += 7
    assert torch.equal(estimate(dit, changed, K), seen)
    for i in range(3):  # each of those that it does see counts
        changed = h.clone()
        changed[1, i] += 1
        assert (estimate(dit, changed, K)[1] - seen[1]).abs().max() > 1e-3
        assert torch.equal(estimate(dit, changed, K)[2], seen[2])


def test_no_gradient_flows_to_states_from_k_on(dit):
    h = random(3, 12, 6, seed=2).requires_grad_()
    (gradient,) = torch.autograd.grad(estimate(dit, h, K).square().sum(), h)
    assert [int(row.abs().sum(-1).gt(0).sum()) for row in gradient] == K.tolist()
    assert not gradient[1, 3:].any()


def test_without_tokens_to_see_it_is_the_unconditional_model(dit):
    positions = "rotary" if dit.blocks[0].attention.rotary else "sincos"
    plain = DiT(replace(SMALL, positions=positions), num_latents=5, latent_dim=4).double()
    plain.load_state_dict({name: w for name, w in dit.state_dict().items() if not name.startswith("prefix.")})
    expected = estimate(plain, None, None)
    assert torch.equal(estimate(dit, None, None), expected)
    assert torch.allclose(estimate(dit, random(3, 12, 6), torch.zeros(3, dtype=torch.int64)), expected, atol=1e-12)


def test_rows_do_not_depend_on_the_prefixes_of_others_nor_on_how_far_theirs_is_filled_up(dit):
    h = random(3, 12, 6, seed=2)
    together = estimate(dit, h, K)
    for i, k in enumerate(K.tolist()):
        alone = estimate(dit, h[:, : max(k, 1)], K, slice(i, i + 1))
        assert torch.allclose(alone[0], together[i], atol=1e-12)


def test_the_prefix_is_read_in_order(dit):
    h, order = random(3, 12, 6, seed=2), torch.tensor([2, 0, 1, *range(3, 12)])
    assert (estimate(dit, h[:, order], K)[1] - estimate(dit, h, K)[1]).abs().max() > 1e-3


def test_with_rotary_positions_keys_of_a_prefix_turn_from_its_first_token_on():
    attend = randomised(PrefixAttention(8, 2, bias=True, rotary=True))
    x, more, seen = random(2, 5, 8), random(2, 4, 2, 8, seed=1), torch.tensor([[True, True, False, False], [True] * 4])
    q, k, v = (part.unflatten(-1, (2, 4)) for part in attend.qkv(x).chunk(3, dim=-1))
    more_k, more_v = (part.unflatten(-1, (2, 4)) for part in more.unbind(2))
    keys, values = torch.cat([rotate(k), rotate(more_k)], 1), torch.cat([v, more_v], 1)
    every = torch.cat([torch.ones(2, 5, dtype=torch.bool), seen], 1)
    expected = attend.out(attention(rotate(q), keys, values, every).flatten(-2))
    assert torch.allclose(attend(x, more, seen), expected, atol=1e-12)


def test_masked_attention_is_softmax_attention_over_what_is_seen():
    q, k, v = random(2, 3, 4, 6), random(2, 5, 4, 6, seed=1), random(2, 5, 4, 6, seed=2)
    seen = torch.tensor([[True, True, False, True, False], [True] * 5])
    weight = torch.exp(torch.einsum("bnhk,blhk->bhnl", q, k) / math.sqrt(6)) * seen[:, None, None]
    expected = torch.einsum("bhnl,blhk->bnhk", weight / weight.sum(-1, keepdim=True), v)
    assert torch.allclose(attention(q, k, v, seen), expected, atol=1e-12)
    assert torch.equal(attention(q, k, v, torch.ones(2, 5, dtype=torch.bool))[1], attention(q, k, v, seen)[1])


# ----------------------------------------------------------------------------------------------------------------------
# k


def test_k_is_a_function_of_seed_step_and_row_with_its_published_law():
    rows = torch.arange(40_000)
    k = draw_lengths(seed=1, step=2, rows_B=rows, seq_len=20)
    assert torch.equal(draw_lengths(seed=1, step=2, rows_B=rows[7:9], seq_len=20), k[7:9])
    for other in (
        draw_lengths(seed=0, step=2, rows_B=rows, seq_len=20),
        draw_lengths(seed=1, step=3, rows_B=rows, seq_len=20),
    ):
        assert not torch.equal(other, k)
    counts = torch.bincount(k, minlength=20 - UNWRITTEN + 1) / len(rows)
    assert len(counts) == 20 - UNWRITTEN + 1  # 0 … 12
    expected = torch.tensor([UNCONDITIONAL] + [(1 - UNCONDITIONAL) / 12] * 12)
    assert (counts - expected).abs().max() < 5 * math.sqrt(0.1 / len(rows))


def objective(seed: int = 0, **changes) -> JointObjective:
    made = config(**changes)
    return JointObjective(build(made.model, SHAPES, seed=seed), made)


def test_a_step_draws_k_and_one_of_the_papers_recipe_draws_none():
    drawing = {"seed": 3, "step": 4, "rows_B": torch.arange(6)}
    timesteps = TimestepSampler(config().timesteps, 1e-5)
    draws = objective().draw(timesteps, **drawing)
    assert torch.equal(draws.k_B, draw_lengths(seq_len=20, **drawing))
    plain = objective(model={"condition": "none"}).draw(timesteps, **drawing)
    assert plain.k_B is None
    assert torch.equal(draws.eps_BNC, plain.eps_BNC)  # everything else is as it was
    assert torch.equal(draws.t_B, plain.t_B)


@pytest.mark.parametrize("space", ["ldlm", "cosmos"])
def test_the_loss_sees_the_first_k_states_in_both_passes(space):
    """Of COSMOS in the phase of the denoiser."""
    asked = config(model={"space": space}, recipe={"reconstruction": "ce" if space == "ldlm" else "ce+mse"})
    learns = phases(asked)[-1].objective
    made = learns(build(asked.model, SHAPES, seed=0), asked)
    assert isinstance(made, JointObjective if space == "ldlm" else DenoiserObjective)
    randomised(made.model.denoiser)
    made.double()
    h, tokens = random(4, 20, 6), torch.zeros(4, 20, dtype=torch.int64)
    z_0 = made.model.latent_encoder(h).detach()
    rows = torch.arange(4)
    draws = made.draw(TimestepSampler(config().timesteps, 1e-5), seed=0, step=0, rows_B=rows)
    draws = replace(draws, k_B=torch.tensor([0, 2, 5, 12]), self_condition=True, eps_BNC=draws.eps_BNC.double())
    loss = made.denoising_loss(z_0, draws, h)
    z_t, t, prefix = (
        noised(made.schedule, z_0, draws.t_B, draws.eps_BNC),
        draws.t_B.float(),
        made.model.prefix(h, draws.k_B),
    )
    first = made.model.denoiser(z_t, t, torch.zeros_like(z_t), prefix)
    z_hat = made.model.denoiser(z_t, t, first, prefix)
    assert torch.allclose(loss, (z_hat - z_0).square().mean((1, 2)), atol=1e-12)
    after = h.clone()
    for row, k in enumerate(draws.k_B.tolist()):
        after[row, k:] += 3
    assert torch.equal(made.denoising_loss(z_0, draws, after), loss)
    h_1 = h.clone()
    h_1[1:, 0] += 1
    assert (made.denoising_loss(z_0, draws, h_1) - loss).abs().gt(1e-6).tolist() == [False, True, True, True]
    assert made(h, tokens, draws, 1.0).l_diff_B.shape == (4,)


# ----------------------------------------------------------------------------------------------------------------------
# Settings, parameters and costs


def test_the_papers_recipe_has_no_condition_and_no_parameters_of_one():
    assert TrainConfig().model.condition == "none"
    assert configs.from_stored(TrainConfig, {"recipe": {"edition": 1}}).model.condition == "none"
    plain, made = (build(config(model={"condition": c}).model, SHAPES, seed=0) for c in ("none", "prefix"))
    more = {name for name in made.state_dict() if name not in plain.state_dict()}
    assert more == {
        f"denoiser.prefix.{name}"
        for name in ("positions_LW", "project_in.weight", "project_in.bias", "keys_values.weight", "keys_values.bias")
    }


def test_rows_that_leave_nothing_to_write_are_refused():
    with pytest.raises(InputError, match="leaves 8 tokens of a row unwritten, and rows have 8"):
        build(config().model, replace(SHAPES, seq_len=8), seed=0)


def test_a_dry_run_counts_the_keys_and_values_of_the_prefix():
    """Projections of h and of keys and values, and two products of matrices for each latent; three passes each."""
    width, blocks, latents, most = 8, 2, 5, 12
    once = 2 * most * (6 * width + width * 2 * blocks * width)
    attends = blocks * 4 * latents * most * width
    plain, made = (
        cost.flops_per_token(config(model={"condition": c}, diffusion={"self_conditioning": 0.0}), SHAPES)
        for c in ("none", "prefix")
    )
    h_has_no_gradient = 2 * most * 6 * width
    assert (made - plain) * 20 == pytest.approx(3 * (once + attends) - h_has_no_gradient, abs=20)


def test_a_dry_run_knows_its_memory():
    found = JointTraining(config()).footprint(SHAPES, bf16=False, device="cpu").memory(4, 4)
    plain = JointTraining(config(model={"condition": "none"})).footprint(SHAPES, bf16=False, device="cpu").memory(4, 4)
    width, blocks, latents, rows, most, dim = 8, 2, 5, 4, 12, 6
    parameters = dim * width + width + most * width + (width + 1) * 2 * blocks * width
    assert found.weights - plain.weights == 4 * 4 * parameters  # weights, two moments and the average, float32
    made = 4 * rows * most * 2 * blocks * width  # keys and values of the prefix
    joined = 4 * rows * (most + latents) * 2 * blocks * width  # these behind the latents' own
    before = 4 * rows * most * 2 * width  # what they are computed from
    assert made < found.step - plain.step < made + joined + before


class Called(TorchDispatchMode):
    """Notes whether `ldlm::attention`, behind which xformers is, is called."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.fused |= func is torch.ops.ldlm.attention.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("condition", ["none", "prefix"])
def test_the_kernel_that_is_named_is_the_one_that_the_denoiser_calls(condition, monkeypatch):
    made = config(model={"condition": condition}, compute={"precision": "fp32"})
    monkeypatch.setattr(Compute, "of", lambda config, device, widths: Compute(device, attention="xformers"))
    learner = joint.start(made, SHAPES, scratch=False, device=torch.device("cpu"))
    model = learner.model
    seen = None if condition == "none" else model.prefix(torch.zeros(3, 20, 6), K)
    with Called() as called:
        model.denoiser(torch.zeros(3, 5, 4), torch.full((3,), 0.5), torch.zeros(3, 5, 4), seen)
    assert called.fused == (condition == "none")
    named = "xformers" if called.fused else "sdpa"
    assert JointTraining(made).attention("xformers") == learner.compute.attention == named

    halving = configs.DistillConfig(start=4, evaluations=2, steps=1)
    settings = configs.DistilledConfig(**vars(made), distillation=halving)
    times = torch.linspace(1, 0.1, 5, dtype=torch.float64)
    student = start_distillation(settings, model, times, {}, guide=lambda one: one, device=torch.device("cpu"))
    assert student.compute.attention == named


# ----------------------------------------------------------------------------------------------------------------------
# What it learns


def test_a_continuation_that_the_prompt_determines_is_learnt():
    """Rows are BOS and one of four words, again and again: two states tell all of it, and fewer tell nothing."""
    words, length = 4, 12
    model = {"space": "tencdm", "denoiser": {"layers": 2, "width": 32, "heads": 2, "time_dim": 8}}
    made = config(model={**model, "autoencoder": {"num_latents": None, "latent_dim": None}})
    learner = JointObjective(build(made.model, Shapes(length, 8, words + 1), seed=0), made)
    table = torch.randn(words + 1, 8, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(learner.model.denoiser.parameters(), lr=5e-3)
    timesteps, rows = TimestepSampler(made.timesteps, 1e-5), torch.arange(64)
    tokens = (1 + rows % words)[:, None].repeat(1, length)
    tokens[:, 0] = 0
    h = table[tokens]
    for step in range(150):
        draws = learner.draw(timesteps, seed=0, step=step, rows_B=rows)
        learner.denoising_loss(h, draws, h).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    noise, shares = torch.randn(64, length, 8, generator=torch.Generator().manual_seed(1)), []
    for k in (0, 1, 2, 4):
        with torch.no_grad():
            prefix = learner.model.prefix(h, torch.full((64,), k))
            z_hat = learner.model.denoiser(noise, torch.ones(64), torch.zeros_like(noise), prefix)
        nearest = torch.cdist(z_hat[:, 2:], table).argmin(-1)
        shares.append((nearest == tokens[:, 2:]).float().mean().item())
    assert max(shares[:2]) < 0.5
    assert min(shares[2:]) > 0.98
