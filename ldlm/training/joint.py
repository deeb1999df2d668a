"""Joint training of all parts: its state, and one step of it. The loop is in `loop.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldlm.compute import Compute
from ldlm.config import Shapes, TrainConfig, total_steps
from ldlm.features.batch import Batch
from ldlm.model.joint import JointModel, build
from ldlm.model.layers import compile_blocks, head_widths, recompute_activations
from ldlm.model.objective import Losses, Objective, draw_t, warmup_gamma
from ldlm.model.timesteps import TimestepSampler
from ldlm.runtime import ALONE, World
from ldlm.training.checkpoint import Checkpoint
from ldlm.training.ema import EMA
from ldlm.training.learner import Learner, Step, parallel
from ldlm.training.optim import learning_rate, optimizer
from ldlm.training.phases import Phase, phase_at

_LOGGED = ("loss", "l_diff", "l_h", "l_w", "token_accuracy")


@dataclass(frozen=True, kw_only=True)
class JointStep(Step):
    """A launched step of joint training, with its losses."""

    phase: Phase
    losses: list[Losses]  # one per micro-batch; they share the sums over the latents of all micro-batches
    gamma: float
    part_norms: dict[str, Tensor]  # of each part's gradient, before clipping


@dataclass(kw_only=True)
class TrainState(Learner[JointStep]):
    """A joint training run: all parts, and the timestep sampler that learns from their losses."""

    shown: ClassVar[tuple[str, ...]] = ("l_diff", "l_h", "l_w", "token_accuracy")

    config: TrainConfig
    model: JointModel
    objective: Objective
    timesteps: TimestepSampler
    phase: Phase | None = None  # none before the first step

    def enter_phase(self) -> Phase:
        """The phase of the next step; at its beginning, gradients are enabled for the parts that it trains.

        Parts that it freezes take their averaged weights, which sampling uses, so the others learn with those.
        """
        phase = phase_at(self.config, self.step)
        if phase != self.phase:
            self.phase, self.objective = phase, phase.objective(self.model, self.config)
            frozen = [name for name in self.model.parts() if not self.objective.trains(name)]
            if phase.begins_anew:
                self.ema.put_into(self.model, frozen)
            for name, part in self.model.parts().items():
                part.requires_grad_(name not in frozen)
            self.parallel = parallel(self.objective, self.world)  # the wrapper fixes which parameters have gradients
        return phase

    @property
    def steps(self) -> int:
        """Total optimiser steps, including those of COSMOS's autoencoder."""
        return total_steps(self.config)

    def read_step(self, step: JointStep) -> bool:
        """Wait for a step; its losses go to the timestep sampler unless it was skipped (see `Learner.read_step`)."""
        finite = super().read_step(step)
        if step.phase.objective.draws_times:
            if finite:
                self._observe(step)
            self.timesteps.refresh_if_due(step.number + 1)
        return finite

    def _observe(self, step: JointStep) -> None:
        """Feed the timestep sampler the losses of the whole batch, in the same order in every process."""
        loss_B = torch.zeros(self.config.batch_size, dtype=torch.float64)
        loss_B[step.index_B] = torch.cat([losses.l_diff_B for losses in step.losses]).double().cpu()
        rows_B = torch.arange(self.config.batch_size)
        t_B = draw_t(self.timesteps, seed=self.config.seed, step=step.number, rows_B=rows_B)
        self.timesteps.observe(t_B, self.world.sum(loss_B))

    @property
    def next_step_depends_on_last(self) -> bool:
        """Whether the last step refreshes the distribution that the next draws its times from."""
        return self.timesteps.refreshes_after(self.step)

    def figures(self, step: JointStep) -> dict[str, float]:
        """Figures of a step over all processes; terms of the loss are means over elements, as in held-out figures."""
        micro, scales = step.losses, self.objective.scales
        mine = {name: torch.stack([getattr(losses, name) for losses in micro]).mean() for name in _LOGGED}
        if self.config.recipe.edition > 1:  # runs of the first edition log the sums that they minimise
            for name, scale in {"l_diff": scales.diff, "l_h": scales.h, "l_w": scales.w}.items():
                mine[name] = mine[name] / scale
        mine["latent_norm"] = torch.stack([losses.latents.norm for losses in micro]).mean() / self.rows_at_once
        mean = self.world.sum(torch.stack([value.detach().double().cpu() for value in mine.values()])) / self.world.size
        return {
            **dict(zip(mine, mean.tolist(), strict=True)),
            **self._spread(micro),
            "gamma": step.gamma,
            "lr": step.lr,
            "gradient_norm": step.gradient_norm.item(),
            **{f"gradient_norm_{name}": norm.item() for name, norm in step.part_norms.items()},
        }

    def _spread(self, micro: list[Losses]) -> dict[str, float]:
        """Standard deviation of a latent coordinate over the batch: the mean, and that of the extreme channels."""
        mine = torch.stack([micro[-1].latents.sum_NC, micro[-1].latents.square_NC]).cpu()
        mean_NC, square_NC = self.world.sum(mine) / self.config.batch_size
        std_NC = (square_NC - mean_NC.square()).clamp(min=0).sqrt()
        std_C = std_NC.mean(dim=0)
        names = ("latent_std", "latent_std_least", "latent_std_most")
        return dict(zip(names, torch.stack([std_NC.mean(), std_C.min(), std_C.max()]).tolist(), strict=True))

    def losses_of(self, step: JointStep) -> tuple[dict[str, Tensor], Tensor]:
        """The three terms, and L_diff by row."""
        terms = ("l_diff", "l_h", "l_w")
        by_name = {name: torch.stack([getattr(losses, name) for losses in step.losses]) for name in terms}
        return by_name, torch.cat([losses.l_diff_B for losses in step.losses])

    @property
    def remedy(self) -> str:
        """Advice to a user whose losses are not finite."""
        return f"in another --output, lower optimizer.lr (it is {self.config.optimizer.lr}) or lengthen the warm-ups"

    def facts(self) -> dict[str, Any]:
        """State beside the tensors, as JSON."""
        return {**super().facts(), "timesteps": self.timesteps.state_dict()}

    def load(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint."""
        super().load(saved)
        self.timesteps.load_state_dict(saved.state["timesteps"])


def start(
    config: TrainConfig, shapes: Shapes, *, scratch: bool, device: torch.device, world: World = ALONE
) -> TrainState:
    """A run at step 0."""
    model = build(config.model, shapes, seed=config.seed, scratch=scratch).to(device)
    compute = compute_of(config, model, device)
    if compute.compiled:
        compile_blocks(model)
    if config.recompute:
        recompute_activations(model)
    return TrainState(
        config=config,
        model=model,
        objective=phase_at(config, 0).objective(model, config),
        optimizer=optimizer(model, config.optimizer),
        ema=EMA(model, config.optimizer.ema_decay),
        timesteps=TimestepSampler(config.timesteps, config.diffusion.t_min),
        compute=compute,
        world=world,
    )


def compute_of(config: TrainConfig, model: JointModel, device: torch.device) -> Compute:
    """Precision and kernels for a model whose denoiser is trained; the attention kernel is the denoiser's."""
    found = Compute.of(config.compute, device, head_widths(model))
    return replace(found, attention=denoiser_kernel(config, found.attention))


def denoiser_kernel(config: TrainConfig, kernel: str) -> str:
    """Name of the denoiser's attention kernel where attention without a mask has `kernel`."""
    return "sdpa" if config.model.condition == "prefix" else kernel  # keys of a prefix are masked


def train_step(state: TrainState, batch: Batch) -> JointStep:
    """Launch one optimiser step: draw, forward, backward, clip, update, average.

    `TrainState.read_step` reads the outcome. If the gradient is not finite in any process, all of them skip the batch.
    """
    config, phase = state.config, state.enter_phase()
    done = state.step - phase.schedule_begins
    gamma, lr = warmup_gamma(state.step, config.recipe), learning_rate(done, phase.schedule_steps, config.optimizer)

    losses: list[Losses] = []
    for part in state.micro_batches(batch):
        one = _backward(state, part, gamma)
        latents = one.latents.added_to(losses[-1].latents) if losses else one.latents
        losses.append(one._replace(latents=latents))
    part_norms = {name: _gradient_norm(part) for name, part in state.model.parts().items()}
    taken = state.update(batch, lr, done)
    return JointStep(**vars(taken), phase=phase, losses=losses, gamma=gamma, part_norms=part_norms)


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


def _gradient_norm(part: nn.Module) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in part.parameters() if p.grad is not None])
