"""The pass without gradients of a self-conditioned step under autocast: it takes nothing from the pass that learns."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ldlm.compute import Compute
from ldlm.config import (
    AutoencoderConfig,
    ComputeConfig,
    DenoiserConfig,
    ModelConfig,
    RecipeConfig,
    Shapes,
    TokenDecoderConfig,
    TrainConfig,
)
from ldlm.model.joint import build
from ldlm.model.layers import compile_blocks, recompute_activations
from ldlm.model.objective import Draws, JointObjective

CPU = torch.device("cpu")
SHAPES = Shapes(seq_len=8, hidden_dim=32, vocab_size=40)
MODEL = ModelConfig(
    autoencoder=AutoencoderConfig(layers=1, width=32, heads=2, position_std=1.0),
    denoiser=DenoiserConfig(layers=2, width=32, heads=2, time_dim=16),
    token_decoder=TokenDecoderConfig(layers=1, heads=2),
)
ROWS = 16


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HIDDEN, TOKENS = normal(ROWS, 8, 32, seed=1), torch.arange(ROWS * 8).reshape(ROWS, 8) % 40


def made():
    """An objective whose weights are all random: the zeros that a denoiser starts with hide its gradients."""
    model = build(MODEL, SHAPES, seed=0)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.05 * normal(*parameter.shape, seed=number))
    return JointObjective(model, TrainConfig(model=MODEL, recipe=RecipeConfig(sigma_dec=0.5)))


def step_of(objective, precision):
    draws = Draws(
        t_B=(torch.arange(ROWS).double() + 0.5) / ROWS,
        weight_B=torch.ones(ROWS),
        eps_BNC=normal(ROWS, 8, 32, seed=2),
        eps_dec_BNC=normal(ROWS, 8, 32, seed=3),
        self_condition=True,
    )
    with Compute.of(ComputeConfig(precision=precision), CPU).autocast():
        losses = objective(HIDDEN, TOKENS, draws, 1.0)
    return losses.loss


def gradients(objective, precision):
    """Of one self-conditioned step, by part, flattened; zeros where none came."""
    objective.zero_grad(set_to_none=True)
    step_of(objective, precision).backward()
    return {
        name: torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in part.parameters()])
        for name, part in objective.model.parts().items()
    }


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch's about its own tracing
@pytest.mark.parametrize("way", ["plain", "recomputed", pytest.param("compiled", marks=pytest.mark.slow)])
def test_the_gradient_of_a_self_conditioned_step_in_bf16_is_that_in_float32(way):
    exact, objective = gradients(made(), "fp32"), made()
    if way == "recomputed":
        recompute_activations(objective.model)
    if way == "compiled":
        compile_blocks(objective.model)
    for _ in range(2):  # what one step keeps must not reach the next either
        rounded = gradients(objective, "bf16")
        for name, expected in exact.items():
            cosine = torch.cosine_similarity(rounded[name], expected, dim=0).item()
            assert cosine >= 0.99, name
            assert rounded[name].norm().item() == pytest.approx(expected.norm().item(), rel=0.1), name


class Casts(TorchDispatchMode):
    """Counts the copies in bfloat16 of each parameter."""

    def __init__(self, parameters):
        super().__init__()
        self.counts = {parameter.data_ptr(): 0 for parameter in parameters}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.name() == "aten::_to_copy" and result.dtype == torch.bfloat16:
            pointer = args[0].data_ptr()
            if pointer in self.counts:
                self.counts[pointer] += 1
        return result


def test_no_cast_of_a_weight_is_handed_from_the_pass_without_gradients_to_the_other():
    """Whatever the version of torch keeps and for whom: each of the two passes casts the denoiser's weights itself."""
    objective = made()
    weights = [m.weight for m in objective.model.denoiser.modules() if isinstance(m, torch.nn.Linear)]
    with Casts(weights) as casts:
        step_of(objective, "bf16")
    assert set(casts.counts.values()) == {2}
    assert torch.is_autocast_cache_enabled()


def test_without_autocast_nothing_is_cast():
    objective = made()
    with Casts(objective.parameters()) as casts:
        step_of(objective, "fp32")
    assert set(casts.counts.values()) == {0}
