"""Parameters, FLOPs and memory of a configuration, counted by running its model without storage.

FLOPs are those of one training step, with the self-conditioning pass in expectation (SPEC 12.14).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldlm.config import AnyTrainConfig, ModelConfig, Shapes, TrainConfig, from_dict, preset
from ldlm.model.joint import JointModel, build_meta
from ldlm.model.prefix import Prefix
from ldlm.model.timesteps import TimestepSampler
from ldlm.runtime import World
from ldlm.training.fit import RESERVE, largest
from ldlm.training.learner import check_shares
from ldlm.training.method import AnyMethod
from ldlm.training.optim import moments
from ldlm.training.phases import Phase, phases

PRODUCTS = 4  # matrix products between two readings of the clock


def parameters(model: JointModel) -> dict[str, int]:
    """Number of parameters of each part; a deferred token decoder counts 0."""
    names = ("latent_encoder", "latent_decoder", "denoiser", "token_decoder")
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.parts().items()}
    return {**dict.fromkeys(names, 0), **counts}


def training_cost(
    method: AnyMethod, shapes: Shapes, *, devices: int = 1, features: str | None = None
) -> dict[str, Any]:
    """Parameters, FLOPs per token and memory of one of `devices` processes in a training step, as JSON.

    `features` is the kind of the features, if known.
    `device=auto` stands for a GPU, where precision `auto` is bf16. For a run of several phases, FLOPs and steps are
    given for each phase by name, and the memory is that of the largest.
    """
    config = method.config
    check_shares(config, World(size=devices))
    share = config.batch_size // devices
    rows, bf16 = share // config.accumulate, in_bf16(config)
    steps = method.phase_steps()
    flops = {phase: method.flops_per_token(shapes, phase, features) for phase in steps}
    step = method.footprint(shapes, bf16=bf16, device=device_kind(config), features=features)
    memory = step.memory(rows, share, devices=devices)
    several, network = len(steps) > 1, method.network(shapes, features)
    return {
        "parameters": method.parameters(network),
        **({"steps": steps} if several else {}),
        "flops_per_token": flops if several else next(iter(flops.values())),
        "devices": devices,
        "device": device_kind(config),
        "precision": "bf16" if bf16 else "fp32",
        "accumulate": config.accumulate,
        "recompute": config.recompute,
        "rows_at_once": rows,
        "weight_bytes": memory.weights,
        "batch_bytes": memory.batches,
        "step_bytes": memory.step,
        "memory_bytes": memory.total,
        "checkpoint_bytes": _checkpoint_bytes(config, network),
        "reserve": RESERVE,
        "largest_rows_at_once": {size: largest(step, size, share, devices) for size in ("40GB", "80GB")},
    }


def _checkpoint_bytes(config: AnyTrainConfig, network: nn.Module) -> int:
    """Bytes of a checkpoint: float32 weights, their average and the optimiser's moments."""
    return 4 * (2 * sum(p.numel() for p in network.parameters()) + moments(network, config.optimizer))


def device_kind(config: AnyTrainConfig) -> str:
    """The kind of device that costs are counted for: cpu if the configuration says so, else cuda."""
    return "cpu" if config.device == "cpu" else "cuda"


def in_bf16(config: AnyTrainConfig) -> bool:
    """Whether a step on `device_kind` computes its products in bf16."""
    chosen = config.compute.precision
    return chosen == "bf16" or (chosen == "auto" and device_kind(config) == "cuda")


def flops_per_token(config: TrainConfig, shapes: Shapes, phase: Phase | None = None, *, scratch: bool = False) -> int:
    """FLOPs per token of a training step in a phase, by default the first.

    With `scratch`, embeddings are trained in place of the encoder. Recomputing activations to save memory does not
    count.
    """
    model, phase = build_meta(config.model, shapes, scratch=scratch), phase or phases(config)[0]
    plain, conditioned = (_step_flops(model, config, phase, self_conditioning=p) for p in (0, 1))
    p = config.diffusion.self_conditioning
    return round(((1 - p) * plain + p * conditioned) / shapes.seq_len)


def encoder_share(network: nn.Module, seq_len: int) -> float:
    """The frozen encoder's share of the FLOPs of a step that runs it and trains the paper's model (owt-1024)."""
    encoder = encoder_flops(network, seq_len) / seq_len
    return encoder / (encoder + _papers_flops_per_token(seq_len))


@cache
def _papers_flops_per_token(seq_len: int) -> int:
    """FLOPs per token of a training step of the paper's model (owt-1024) on rows of `seq_len` tokens."""
    paper = preset("owt-1024")
    return flops_per_token(from_dict(TrainConfig, paper.overrides), replace(paper.shapes, seq_len=seq_len))


def encoder_flops(network: nn.Module, seq_len: int) -> int:
    """FLOPs of the frozen encoder over one row."""
    tokens_BL = torch.zeros(1, seq_len, dtype=torch.int64, device=next(network.parameters()).device)
    with torch.no_grad():
        return _forward_flops(lambda: network(tokens_BL))


def latent_encoder_flops(config: ModelConfig, shapes: Shapes) -> int:
    """FLOPs of making the latents of one text from its states."""
    model, _ = _one_text(config, shapes)
    hidden_BLD = torch.empty(1, shapes.seq_len, shapes.hidden_dim, device="meta")
    return _forward_flops(lambda: model.latent_encoder(hidden_BLD))


def denoiser_flops(config: ModelConfig, shapes: Shapes, prefix: int = 0) -> int:
    """FLOPs of one denoiser evaluation of one text, which sees a prefix of `prefix` tokens; 0 for none."""
    model, z_BNC = _one_text(config, shapes)
    seen = _prefix(model, prefix) if prefix else None
    return _forward_flops(lambda: model.denoiser(z_BNC, torch.empty(1, device="meta"), z_BNC, seen))


def prefix_flops(config: ModelConfig, shapes: Shapes, prefix: int) -> int:
    """FLOPs of the keys and values of a prefix of `prefix` tokens, needed once per text; 0 for none."""
    model, _ = _one_text(config, shapes)
    return _forward_flops(lambda: _prefix(model, prefix)) if prefix else 0


def _prefix(model: JointModel, length: int) -> Prefix | None:
    with torch.device("meta"):
        return model.prefix(torch.empty(1, length, model.shapes.hidden_dim), torch.empty(1, dtype=torch.int64))


def _one_text(config: ModelConfig, shapes: Shapes) -> tuple[JointModel, Tensor]:
    model = build_meta(config, shapes).requires_grad_(False)
    return model, torch.empty(1, model.num_latents, model.latent_dim, device="meta")


def _forward_flops(forward: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops()


def matmul_flops(device: torch.device, dtype: torch.dtype = torch.float32, seconds: float = 0.2) -> float:
    """Measured FLOP/s of square matrix products on `device`: the limit that a training step is compared with."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    best, ends = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < ends or best == 0.0:
        started = time.perf_counter()
        for _ in range(PRODUCTS - 1):
            a @ a
        (a @ a)[0, 0].item()  # waits for the device
        best = max(best, PRODUCTS * 2 * size**3 / (time.perf_counter() - started))
    return best


def _step_flops(model: JointModel, config: TrainConfig, phase: Phase, *, self_conditioning: float) -> int:
    """FLOPs of one row, self-conditioned with the given probability."""
    config = replace(config, diffusion=replace(config.diffusion, self_conditioning=self_conditioning))
    objective = phase.objective(model, config)
    for name, part in model.parts().items():
        part.requires_grad_(objective.trains(name))
    with torch.device("meta"):
        has_states = model.embedding is None
        hidden_BLD = torch.empty(1, model.shapes.seq_len, model.shapes.hidden_dim) if has_states else None
        tokens_BL = torch.empty(1, model.shapes.seq_len, dtype=torch.int64)
    draws = objective.draw(
        TimestepSampler(config.timesteps, config.diffusion.t_min),
        seed=0,
        step=0,
        rows_B=torch.zeros(1, dtype=torch.int64),
        device="meta",
    )
    with FlopCounterMode(display=False) as counter:
        objective(hidden_BLD, tokens_BL, draws, 1.0).loss.backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()
