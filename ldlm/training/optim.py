"""AdamW and the learning-rate schedule (Appendix C)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ldlm.config import OptimizerConfig


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of a step: linear from `lr_start` in the warm-up, then constant, or cosine to 0."""
    warmup = config.lr_warmup_steps
    if step < warmup:
        return config.lr_start + (config.lr - config.lr_start) * step / warmup
    if config.lr_decay == "constant":
        return config.lr
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with one setting for all parameters; the learning rate is set before each step."""
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def optimizer_tensors(optimizer: torch.optim.AdamW, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state by parameter name, for a safetensors file."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.AdamW, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Restore the optimiser's state from `optimizer_tensors`."""
    by_name = dict(model.named_parameters())
    for path, value in tensors.items():
        key, _, name = path.partition("/")
        parameter = by_name[name]
        # Fused AdamW keeps its step count in float32 on the parameter's device.
        optimizer.state[parameter][key] = value.to(parameter.device)
