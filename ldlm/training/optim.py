"""AdamW, Muon beside it, and the learning-rate schedule (Appendix C)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ldlm.config import OptimizerConfig
from ldlm.model.layers import blocks_of


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of a step: linear from `lr_start` in the warm-up, then constant, or cosine to 0."""
    warmup = config.lr_warmup_steps
    if step < warmup:
        return config.lr_start + (config.lr - config.lr_start) * step / warmup
    if config.lr_decay == "constant":
        return config.lr
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """The optimiser of a model's parameters; the learning rate of its first group is set before each step."""
    matrices = _by_muon(model, config)
    if matrices:
        return MuonAdamW(model, matrices, config)
    return torch.optim.AdamW(model.parameters(), **_adamw(config))


def moments(model: nn.Module, config: OptimizerConfig) -> int:
    """The number of moments of all parameters: two of each under AdamW, and one under Muon."""
    return 2 * sum(p.numel() for p in model.parameters()) - sum(matrix.numel() for matrix in _by_muon(model, config))


def _by_muon(model: nn.Module, config: OptimizerConfig) -> list[Tensor]:
    """The matrices of a model that Muon updates."""
    inside = (module for block in blocks_of(model) for module in block.modules())
    return [module.weight for module in inside if isinstance(module, nn.Linear) and config.kind == "muon"]


class MuonAdamW(torch.optim.AdamW):
    """Muon for some matrices of a model and AdamW for its other parameters (Jordan et al., 2024; Liu et al., 2025).

    Muon's updates have the size of AdamW's, so both take the same learning rate and weight decay. `state` holds both.
    """

    def __init__(self, model: nn.Module, matrices: list[Tensor], config: OptimizerConfig) -> None:
        by_muon = {id(matrix) for matrix in matrices}
        super().__init__([p for p in model.parameters() if id(p) not in by_muon], **_adamw(config))
        self._muon = torch.optim.Muon(
            matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self._muon.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; none where `found_inf` is set, which Muon, unlike fused AdamW, has to wait for."""
        super().step()
        if not bool(getattr(self, "found_inf", False)):
            self._muon.param_groups[0]["lr"] = self.param_groups[0]["lr"]
            self._muon.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        super().zero_grad(set_to_none)
        self._muon.zero_grad(set_to_none)


def _adamw(config: OptimizerConfig) -> dict[str, Any]:
    betas = (config.beta1, config.beta2)
    return {"lr": config.lr, "betas": betas, "eps": config.eps, "weight_decay": config.weight_decay, "fused": True}


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
