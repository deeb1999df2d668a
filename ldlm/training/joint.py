"""The state of a joint training run, and one step of it. The loop stands in `stages/train.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldlm.compute import Compute
from ldlm.config import Shapes, TrainConfig, total_steps
from ldlm.features.stream import Batch
from ldlm.model.joint import JointModel, build
from ldlm.model.layers import compile_blocks, recompute_activations
from ldlm.model.objective import Losses, Objective, draw_t, warmup_gamma
from ldlm.model.timesteps import TimestepSampler
from ldlm.runtime import ALONE, World
from ldlm.training.checkpoint import Checkpoint
from ldlm.training.ema import EMA
from ldlm.training.learner import Learner, parallel
from ldlm.training.optim import adamw, learning_rate
from ldlm.training.phases import Phase, phase_at


@dataclass(kw_only=True)
class TrainState(Learner):
    """A joint training run: all parts, and the timestep sampler that their losses teach."""

    model: JointModel
    objective: Objective
    timesteps: TimestepSampler
    phase: Phase | None = None  # none before the first step

    def enter_phase(self) -> Phase:
        """The phase of the next step; enables gradients for the parts that it trains when it begins.

        Parts that it freezes keep their averaged weights, with which texts are sampled: the others learn beside those.
        """
        phase = phase_at(self.config, self.step)
        if phase != self.phase:
            self.phase, self.objective = phase, phase.objective(self.model, self.config)
            frozen = [name for name in self.model.parts() if not self.objective.trains(name)]
            if phase.begins_anew:
                self.ema.put_into(self.model, frozen)
            for name, part in self.model.parts().items():
                part.requires_grad_(name not in frozen)
            self.parallel = parallel(self.objective, self.world)  # it remembers what has gradients
        return phase

    @property
    def steps(self) -> int:
        """Optimiser steps in all, those of COSMOS's autoencoder included."""
        return total_steps(self.config)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds beside the tensors."""
        return {**super().facts(), "timesteps": self.timesteps.state_dict()}

    def load(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint."""
        super().load(saved)
        self.timesteps.load_state_dict(saved.state["timesteps"])


def start(
    config: TrainConfig, shapes: Shapes, *, scratch: bool, device: torch.device, world: World = ALONE
) -> TrainState:
    """A run at step 0."""
    compute = Compute.of(config.compute, device)
    model = build(config.model, shapes, seed=config.seed, scratch=scratch).to(device)
    if compute.compiled:
        compile_blocks(model)
    if config.recompute:
        recompute_activations(model)
    return TrainState(
        config=config,
        model=model,
        objective=phase_at(config, 0).objective(model, config),
        optimizer=adamw(model.parameters(), config.optimizer),
        ema=EMA(model, config.optimizer.ema_decay),
        timesteps=TimestepSampler(config.timesteps, config.diffusion.t_min),
        compute=compute,
        world=world,
    )


class Step(NamedTuple):
    """What a step did, in this process, as far as the device has come; `finite` is false where nothing was updated."""

    number: int  # of the steps before it
    phase: Phase
    losses: list[Losses]  # of each micro-batch
    gamma: float
    lr: float
    gradient_norm: Tensor
    part_norms: dict[str, Tensor]
    finite: Tensor


def train_step(state: TrainState, batch: Batch) -> Step:
    """One optimiser step: draw, forward, backward, clip, update, average. `settle` reads what came of it.

    A gradient that is not finite, in any process, makes all of them skip the batch.
    """
    config, number = state.config, state.step
    phase = state.enter_phase()
    done = number - phase.schedule_begins
    gamma, lr = warmup_gamma(number, config.recipe), learning_rate(done, phase.schedule_steps, config.optimizer)

    losses = [_backward(state, part, gamma) for part in state.micro_batches(batch)]
    part_norms = {name: _norm(part) for name, part in state.model.parts().items()}
    gradient_norm, finite = state.update(lr, done)
    return Step(number, phase, losses, gamma, lr, gradient_norm, part_norms, finite)


def settle(state: TrainState, batch: Batch, step: Step) -> bool:
    """Whether the step updated anything: counts those that did not, and teaches the timestep sampler by those that did.

    Waits for the device. Steps are settled in their order, and before one draws from what they teach (`must_settle`).
    """
    finite = bool(step.finite)
    state.skipped += not finite
    if step.phase.objective.draws_times:
        if finite:
            _observe(state, step.number, batch, step.losses)
        state.timesteps.refresh_if_due(step.number + 1)
    return finite


def must_settle(state: TrainState) -> bool:
    """Whether the next step depends on what the last one found."""
    return state.timesteps.refreshes_after(state.step)


def _backward(state: TrainState, batch: Batch, gamma: float) -> Losses:
    """Add the gradient of one micro-batch; returns its losses."""
    draws = state.objective.draw(
        state.timesteps,
        seed=state.config.seed,
        step=state.step,
        rows_B=batch.index_B,
        device=state.device,
        normal=state.compute.normal,
    )
    objective = state.parallel or state.objective
    with state.compute.autocast():
        losses: Losses = objective(batch.hidden_BLD, batch.tokens_BL, draws, gamma)
    state.backward(losses.loss)
    return losses.detached()


def _norm(part: nn.Module) -> Tensor:
    gradients = [p.grad for p in part.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _observe(state: TrainState, step: int, batch: Batch, losses: list[Losses]) -> None:
    """Show the timestep sampler the losses of the whole batch, in the same order in every process."""
    loss_B = torch.zeros(state.config.batch_size, dtype=torch.float64)
    loss_B[batch.index_B] = torch.cat([part.l_diff_B for part in losses]).double().cpu()
    t_B = draw_t(state.timesteps, seed=state.config.seed, step=step, rows_B=torch.arange(len(loss_B)))
    state.timesteps.observe(t_B, state.world.sum(loss_B))


def figures(state: TrainState, step: Step) -> dict[str, float]:
    """A step as numbers, over all processes; the terms of the loss are means over elements, as held-out ones are."""
    losses, scales = step.losses, state.objective.scales
    mine = {name: torch.stack([getattr(part, name) for part in losses]).mean() for name in _LOGGED}
    if state.config.recipe.edition > 1:  # before, the lines of a run were of what it summed
        for name, scale in {"l_diff": scales.diff, "l_h": scales.h, "l_w": scales.w}.items():
            mine[name] = mine[name] / scale
    mine["latent_norm"] = torch.stack([part.latents.norm for part in losses]).mean() / state.rows_at_once
    mean = state.world.sum(torch.stack([value.detach().double().cpu() for value in mine.values()])) / state.world.size
    norms = {"gradient_norm": step.gradient_norm.item()}
    norms |= {f"gradient_norm_{name}": norm.item() for name, norm in step.part_norms.items()}
    spread = _spread(state, losses)
    return {**dict(zip(mine, mean.tolist(), strict=True)), **spread, "gamma": step.gamma, "lr": step.lr, **norms}


_LOGGED = ("loss", "l_diff", "l_h", "l_w", "token_accuracy")


def _spread(state: TrainState, losses: list[Losses]) -> dict[str, float]:
    """Standard deviation of a latent coordinate over the whole batch: its mean, and that of the extreme channels."""
    mine = torch.stack([torch.stack([part.latents.sum_NC, part.latents.square_NC]) for part in losses]).sum(0).cpu()
    mean_NC, square_NC = state.world.sum(mine) / state.config.batch_size
    std_NC = (square_NC - mean_NC.square()).clamp(min=0).sqrt()
    std_C = std_NC.mean(dim=0)
    names = ("latent_std", "latent_std_least", "latent_std_most")
    return dict(zip(names, torch.stack([std_NC.mean(), std_C.min(), std_C.max()]).tolist(), strict=True))
