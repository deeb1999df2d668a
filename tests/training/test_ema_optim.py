"""The weight average, AdamW and the learning-rate schedule, each against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ldlm.config import OptimizerConfig
from ldlm.training.ema import EMA
from ldlm.training.optim import adamw, learning_rate, load_optimizer_tensors, optimizer_tensors


def one_weight(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


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
    optimizer = adamw(model.parameters(), config)
    w, m, v = 2.0, 0.0, 0.0
    for step, gradient in enumerate((0.5, -3.0, 0.1), start=1):
        model.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
        corrected = math.sqrt(v / (1 - 0.98**step)) + 1e-8
        w = w * (1 - 0.1 * 0.01) - 0.1 * m / (1 - 0.9**step) / corrected
        assert model.weight.item() == pytest.approx(w, rel=1e-6)


def steps(model: nn.Module, optimizer: torch.optim.AdamW, first: int, count: int) -> None:
    for i in range(first, first + count):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(i))
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def test_the_optimizers_state_by_name_continues_to_the_bit():
    config = OptimizerConfig(lr=0.01)
    model = network()
    optimizer = adamw(model.parameters(), config)
    steps(model, optimizer, 0, 4)
    saved = {name: value.clone() for name, value in optimizer_tensors(optimizer, model).items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert {name.split("/")[0] for name in saved} == {"step", "exp_avg", "exp_avg_sq"}
    assert len(saved) == 3 * len(weights)
    steps(model, optimizer, 4, 3)

    resumed = network(seed=1)
    resumed.load_state_dict(weights)
    other = adamw(resumed.parameters(), config)
    load_optimizer_tensors(other, resumed, saved)
    steps(resumed, other, 4, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))

    forgetful = network(seed=1)
    forgetful.load_state_dict(weights)
    steps(forgetful, adamw(forgetful.parameters(), config), 4, 3)
    assert not torch.equal(forgetful[0].weight, model[0].weight)
