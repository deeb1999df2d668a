"""What a configuration costs, counted on the meta device from the model that would run: nothing is re-derived by hand.

FLOPs and bytes mean one training step, with the self-conditioning pass in expectation (SPEC 12.14).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldlm.config import ModelConfig, Shapes, TrainConfig
from ldlm.model import LDLM, build_meta
from ldlm.objective import Draws, Objective

# float32 weights, their gradients, AdamW's two moments and the weight average
BYTES_PER_PARAMETER = 4 * 5


def parameters(model: LDLM) -> dict[str, int]:
    """Number of parameters of each part; a deferred token decoder counts 0."""
    names = ("latent_encoder", "latent_decoder", "denoiser", "token_decoder")
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.parts().items()}
    return {**dict.fromkeys(names, 0), **counts}


def training_cost(config: TrainConfig, shapes: Shapes, *, rows: int | None = None) -> dict[str, Any]:
    """Parameters, FLOPs per token and bytes of one training step of `rows` rows (the batch size) in float32."""
    rows = rows or config.batch_size
    model = build_meta(config.model, shapes)
    objective = Objective(model, config.diffusion, config.recipe)
    plain_flops, activations = _step(objective, shapes, self_condition=False)
    conditioned_flops, _ = _step(objective, shapes, self_condition=True)
    p = config.diffusion.self_conditioning
    counts = parameters(model)
    return {
        "parameters": counts,
        "flops_per_token": round(((1 - p) * plain_flops + p * conditioned_flops) / shapes.seq_len),
        "batch_size": rows,
        "memory_bytes": BYTES_PER_PARAMETER * sum(counts.values()) + rows * activations,
    }


def denoiser_flops(config: ModelConfig, shapes: Shapes) -> int:
    """FLOPs of one denoiser evaluation of one text."""
    model = build_meta(config, shapes)
    with torch.device("meta"):
        z_BNC = torch.empty(1, model.num_latents, model.latent_dim)
        t_B = torch.empty(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.denoiser(z_BNC, t_B, z_BNC)
    return counter.get_total_flops()


def _step(objective: Objective, shapes: Shapes, *, self_condition: bool) -> tuple[int, int]:
    """(FLOPs, bytes saved for the backward pass) of one row."""
    model = objective.model
    latents = (1, model.num_latents, model.latent_dim)
    with torch.device("meta"):
        hidden_BLD = torch.empty(1, shapes.seq_len, shapes.hidden_dim)
        tokens_BL = torch.empty(1, shapes.seq_len, dtype=torch.int64)
        ones = torch.empty(1, dtype=torch.float64)
        draws = Draws(ones, ones, torch.empty(latents), torch.empty(latents), self_condition)
    saved: dict[int, int] = {}
    lengths = {shapes.seq_len, model.num_latents, shapes.seq_len + model.num_latents}

    def note(tensor: Tensor) -> Tensor:
        # On the meta device attention saves its probabilities; the fused kernels that really run never do.
        is_probabilities = tensor.ndim >= 3 and {*tensor.shape[-2:]} <= lengths
        if not isinstance(tensor, torch.nn.Parameter) and not is_probabilities:
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses = objective(hidden_BLD, tokens_BL, draws, 1.0)
        losses.loss.backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops(), sum(saved.values())
