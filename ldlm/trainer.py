"""The state of a joint training run, and one step of it. The loop stands in `stages/train.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldlm import checkpoint
from ldlm.checkpoint import Checkpoint
from ldlm.config import Shapes, TrainConfig
from ldlm.ema import EMA
from ldlm.errors import InputError
from ldlm.model import LDLM, build
from ldlm.objective import Losses, Objective, draw, warmup_gamma
from ldlm.optim import adamw, learning_rate, load_optimizer_tensors, optimizer_tensors
from ldlm.stream import Batch
from ldlm.timesteps import TimestepSampler


@dataclass
class TrainState:
    """Everything that a checkpoint holds. `step` counts the optimiser steps taken."""

    config: TrainConfig
    objective: Objective
    optimizer: torch.optim.AdamW
    ema: EMA
    timesteps: TimestepSampler
    device: torch.device
    step: int = 0

    @property
    def model(self) -> LDLM:
        """The trainable parts."""
        return self.objective.model

    @property
    def position(self) -> int:
        """Rows seen so far: where the stream goes on."""
        return self.step * self.config.batch_size

    def save(self, folder: Path) -> Checkpoint:
        """Write a checkpoint of this step and prune old ones."""
        tensors = {
            "model": self.model.state_dict(),
            "ema": self.ema.weights,
            "optimizer": optimizer_tensors(self.optimizer, self.model),
        }
        state = {"rows_seen": self.position, "timesteps": self.timesteps.state_dict()}
        saved = checkpoint.save(folder, self.step, tensors, state)
        checkpoint.prune(folder, self.config.keep)
        return saved

    def load(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(saved.tensors("model"))
        self.ema.load(saved.tensors("ema"))
        load_optimizer_tensors(self.optimizer, self.model, saved.tensors("optimizer"))
        self.timesteps.load_state_dict(saved.state["timesteps"])
        self.step = saved.step


def start(config: TrainConfig, shapes: Shapes, *, scratch: bool, device: torch.device) -> TrainState:
    """A run at step 0."""
    model = build(config.model, shapes, seed=config.seed, scratch=scratch).to(device)
    return TrainState(
        config=config,
        objective=Objective(model, config.diffusion, config.recipe),
        optimizer=adamw(model.parameters(), config.optimizer),
        ema=EMA(model, config.optimizer.ema_decay),
        timesteps=TimestepSampler(config.timesteps, config.diffusion.t_min),
        device=device,
    )


def train_step(state: TrainState, batch: Batch) -> tuple[Losses, dict[str, Any]]:
    """One optimiser step: draw, forward, backward, clip, update, average. Returns losses and the step's settings."""
    config, step = state.config, state.step
    gamma = warmup_gamma(step, config.recipe)
    draws = draw(
        config.diffusion,
        state.timesteps,
        seed=config.seed,
        step=step,
        rows_B=torch.arange(len(batch.tokens_BL), device=state.device),
        latent_shape=(state.model.num_latents, state.model.latent_dim),
    )

    losses = state.objective(batch.hidden_BLD, batch.tokens_BL, draws, gamma)
    losses.loss.backward()
    gradient_norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.clip_norm)

    if not torch.isfinite(gradient_norm):
        raise InputError(
            f"step {step}: the loss ({losses.loss.item():.4g}) or its gradient is not finite; nothing was updated, and "
            f"the checkpoints are whole; lower optimizer.lr (it is {config.optimizer.lr}) or lengthen the warm-ups"
        )

    lr = learning_rate(step, config.steps, config.optimizer)
    state.optimizer.param_groups[0]["lr"] = lr
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)

    state.step += 1
    state.ema.update(state.model, state.step)
    state.timesteps.observe(draws.t_B, losses.l_diff_B, state.step)
    return losses, {"gamma": gamma, "lr": lr, "gradient_norm": gradient_norm}
