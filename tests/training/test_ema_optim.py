"""The weight average, AdamW, Muon and the learning-rate schedule, against values worked out by hand and by an SVD."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ldlm.config import OptimizerConfig, Shapes, TrainConfig, from_dict, preset
from ldlm.model.joint import JointModel
from ldlm.training.ema import EMA
from ldlm.training.optim import learning_rate, load_optimizer_tensors, optimizer, optimizer_tensors


def one_weight(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


class Network(nn.Module):
    """A block and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([nn.Linear(3, 4)]), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks[0](x).tanh())


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network()


# EMA


def test_the_average_starts_at_the_weights_and_ramps_up():
    model = one_weight(1.0)
    ema = EMA(model, decay=0.9999)
    assert ema.weights["weight"].item() == 1.0
    nn.init.constant_(model.weight, 12.0)
    ema.update(model, step=1)  # δ = 2/11
    assert ema.weights["weight"].item() == pytest.approx(1 * 2 / 11 + 12 * 9 / 11, rel=1e-6)
    nn.init.constant_(model.weight, -2.0)
    ema.update(model, step=2)  # δ = 3/12
    assert ema.weights["weight"].item() == pytest.approx(10 / 4 - 2 * 3 / 4, rel=1e-6)


def test_a_step_that_changed_nothing_is_not_averaged():
    model = one_weight(1.0)
    ema = EMA(model, decay=0.5)
    nn.init.constant_(model.weight, 3.0)
    ema.update(model, 100, torch.tensor(False))
    assert ema.weights["weight"].item() == 1.0
    ema.update(model, 100, torch.tensor(True))
    assert ema.weights["weight"].item() == 2.0


def test_the_ramp_ends_at_the_configured_decay():
    model = one_weight(0.0)
    for decay, step, expected in ((0.99, 890, 891 / 900), (0.99, 892, 0.99), (0.9999, 10**7, 0.9999), (0.0, 5, 0.0)):
        ema = EMA(model, decay)
        ema.weights["weight"].fill_(1.0)
        ema.update(model, step)
        assert ema.weights["weight"].item() == pytest.approx(expected, abs=1e-7)


def test_the_model_computes_with_the_average_inside_the_block_and_has_its_own_weights_after_it():
    model = one_weight(1.0)
    ema = EMA(model, decay=0.5)
    nn.init.constant_(model.weight, 3.0)
    x = torch.ones(1, 1)
    with ema.applied_to(model):
        assert model(x).item() == 1.0
    assert model(x).item() == 3.0
    assert ema.weights["weight"].item() == 1.0
    with pytest.raises(RuntimeError, match="inside"), ema.applied_to(model):
        raise RuntimeError("inside")
    assert model(x).item() == 3.0
    ema.update(model, step=100)  # it still averages the right way round
    assert (model.weight.item(), ema.weights["weight"].item()) == (3.0, 2.0)


def test_swapping_leaves_the_optimizer_on_the_models_own_weights():
    model = one_weight(1.0)
    optimizer, ema = torch.optim.SGD(model.parameters(), lr=1.0), EMA(model, decay=0.5)
    with ema.applied_to(model):
        pass
    model(torch.ones(1, 1)).backward()
    optimizer.step()
    assert (model.weight.item(), ema.weights["weight"].item()) == (0.0, 1.0)


def test_every_parameter_is_averaged():
    model = network()
    ema = EMA(model, decay=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    ema.update(model, step=1)
    assert {name: value.tolist() for name, value in ema.weights.items()} == {
        name: p.tolist() for name, p in model.named_parameters()
    }


# The learning rate


def test_the_learning_rate_rises_linearly_and_stays():
    config = OptimizerConfig()
    assert learning_rate(0, 10**6, config) == 1e-8
    assert learning_rate(2_500, 10**6, config) == pytest.approx((1e-8 + 3e-4) / 2, rel=1e-12)
    assert learning_rate(4_999, 10**6, config) < 3e-4
    assert {learning_rate(step, 10**6, config) for step in (5_000, 5_001, 999_999)} == {3e-4}


def test_the_cosine_falls_from_the_end_of_the_warm_up_to_zero():
    config = OptimizerConfig(lr=2.0, lr_start=0.0, lr_warmup_steps=100, lr_decay="cosine")
    assert learning_rate(50, 500, config) == 1.0
    assert learning_rate(100, 500, config) == 2.0
    assert learning_rate(200, 500, config) == pytest.approx(1 + math.sqrt(0.5), rel=1e-12)
    assert learning_rate(300, 500, config) == pytest.approx(1.0, rel=1e-12)
    assert learning_rate(500, 500, config) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(600, 500, config) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_a_run_without_warm_up_or_shorter_than_it_has_a_learning_rate(decay):
    none = OptimizerConfig(lr_warmup_steps=0, lr_decay=decay)
    assert learning_rate(0, 10, none) == 3e-4
    long = OptimizerConfig(lr_warmup_steps=100, lr_decay=decay)
    assert learning_rate(5, 10, long) == pytest.approx(1.5e-5, rel=1e-2)
    assert math.isfinite(learning_rate(100, 100, long))


# AdamW


def test_adamw_takes_the_steps_of_its_formula():
    config = OptimizerConfig(lr=0.1, weight_decay=0.01)
    model = one_weight(2.0)
    adamw = optimizer(model, config)
    w, m, v = 2.0, 0.0, 0.0
    for step, gradient in enumerate((0.5, -3.0, 0.1), start=1):
        model.weight.grad = torch.tensor([[gradient]])
        adamw.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
        corrected = math.sqrt(v / (1 - 0.98**step)) + 1e-8
        w = w * (1 - 0.1 * 0.01) - 0.1 * m / (1 - 0.9**step) / corrected
        assert model.weight.item() == pytest.approx(w, rel=1e-6)


def take(model: nn.Module, stepped: torch.optim.AdamW, first: int, count: int) -> None:
    for i in range(first, first + count):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(i))
        model(x).square().sum().backward()
        stepped.step()
        stepped.zero_grad(set_to_none=True)


@pytest.mark.parametrize(("kind", "states"), [("adamw", 4 * 3), ("muon", 1 + 3 * 3)])
def test_the_optimizers_state_by_name_continues_to_the_bit(kind, states):
    config = OptimizerConfig(kind=kind, lr=0.01)
    model = network()
    first = optimizer(model, config)
    take(model, first, 0, 4)
    saved = {name: value.clone() for name, value in optimizer_tensors(first, model).items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    momentum = {"momentum_buffer"} if kind == "muon" else set()
    assert {name.split("/")[0] for name in saved} == {"step", "exp_avg", "exp_avg_sq"} | momentum
    assert len(saved) == states
    take(model, first, 4, 3)

    resumed = network(seed=1)
    resumed.load_state_dict(weights)
    other = optimizer(resumed, config)
    load_optimizer_tensors(other, resumed, saved)
    take(resumed, other, 4, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))

    forgetful = network(seed=1)
    forgetful.load_state_dict(weights)
    take(forgetful, optimizer(forgetful, config), 4, 3)
    assert not torch.equal(forgetful.head.weight, model.head.weight)


# Muon


def test_muon_moves_a_matrix_of_a_block_along_the_nearest_orthogonal_one():
    config = OptimizerConfig(kind="muon", lr=0.1, weight_decay=0.5)
    model = network()
    matrix = model.blocks[0].weight  # 4 × 3
    before, gradient = matrix.detach().clone(), torch.randn(4, 3, generator=torch.Generator().manual_seed(7))
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    matrix.grad = gradient.clone()
    optimizer(model, config).step()
    moved = (before * (1 - 0.1 * 0.5) - matrix.detach()) / (0.1 * 0.2 * math.sqrt(4))
    in_its_axes = u.T @ moved @ v.T
    # Five Newton-Schulz steps in bfloat16 leave singular values between 0.6 and 1.3, in the gradient's own axes.
    assert (in_its_axes.diagonal() - 0.95).abs().max() < 0.35
    assert (in_its_axes - in_its_axes.diagonal().diag()).abs().max() < 0.05


def test_muon_takes_the_learning_rate_of_the_step():
    model = network()
    stepped = optimizer(model, OptimizerConfig(kind="muon", lr=0.1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stepped.param_groups[0]["lr"] = 0.0
    take(model, stepped, 0, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_muon_takes_the_matrices_of_blocks_and_adamw_all_others():
    model = JointModel(
        from_dict(TrainConfig, preset("tiny").overrides).model, Shapes(seq_len=8, hidden_dim=16, vocab_size=11)
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    both = optimizer(model, OptimizerConfig(kind="muon"))
    both.step()
    by_muon = {name for name, p in model.named_parameters() if "momentum_buffer" in both.state[p]}
    by_adamw = {name for name, p in model.named_parameters() if "exp_avg" in both.state[p]}
    assert by_muon | by_adamw == {name for name, _ in model.named_parameters()}
    assert not by_muon & by_adamw
    assert {"denoiser.blocks.0.attention.qkv.weight", "token_decoder.blocks.0.mlp.down.weight"} <= by_muon
    assert {"denoiser.positions_NW", "denoiser.project_in.weight", "token_decoder.head.weight"} <= by_adamw


def test_a_network_without_blocks_has_adamw_alone():
    model = one_weight(1.0)
    assert type(optimizer(model, OptimizerConfig(kind="muon"))) is torch.optim.AdamW


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_state(kind):
    model = network()
    stepped = optimizer(model, OptimizerConfig(kind=kind, lr=0.01))
    take(model, stepped, 0, 2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value.clone() for name, value in optimizer_tensors(stepped, model).items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    vars(stepped)["found_inf"] = torch.tensor(1.0)
    stepped.step()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, state[name]) for name, value in optimizer_tensors(stepped, model).items())
