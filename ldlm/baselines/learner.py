"""Training of a rival: its state, and one step of it. The loop is LDLM's, in `ldlm.training.loop`.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ldlm.baselines import methods
from ldlm.baselines.backbone import Backbone, Dropout, InTraining
from ldlm.baselines.interface import Losses, Method
from ldlm.config import Shapes, TokenTrainConfig
from ldlm.features.batch import Batch
from ldlm.model.layers import compile_blocks, recompute_activations
from ldlm.runtime import ALONE, World
from ldlm.training.ema import EMA
from ldlm.training.learner import Bound, Learner, Step, parallel
from ldlm.training.optim import learning_rate, optimizer


@dataclass(frozen=True, kw_only=True)
class TokenStep(Step):
    """A launched step of a rival, with the losses of this process by row."""

    loss_B: Tensor


@dataclass(kw_only=True)
class TokenState(Learner[TokenStep]):
    """A rival in training."""

    shown: ClassVar[tuple[str, ...]] = ("loss",)

    config: TokenTrainConfig
    model: Backbone
    objective: TokenObjective
    shapes: Shapes

    def figures(self, step: TokenStep) -> dict[str, float]:
        """Figures of a step over all processes."""
        loss = self.world.sum(step.loss_B.mean().double().cpu()) / self.world.size
        return {"loss": loss.item(), "lr": step.lr, "gradient_norm": step.gradient_norm.item()}

    def losses_of(self, step: TokenStep) -> tuple[dict[str, Tensor], Tensor]:
        """The loss by row."""
        return {"loss": step.loss_B}, step.loss_B

    @property
    def binds_steps(self) -> Bound | None:
        """The reason why a run cannot continue to another number of steps: a curriculum takes a share of them."""
        if self.config.curriculum_steps:
            return Bound("curriculum.share counts", "curriculum.kind=none and optimizer.lr_decay=constant")
        return super().binds_steps

    @property
    def remedy(self) -> str:
        """Advice to a user whose losses are not finite."""
        return f"in another --output, lower optimizer.lr (it is {self.config.optimizer.lr})"


class TokenObjective(nn.Module):
    """The loss of a method as one module, for a data-parallel wrapper."""

    def __init__(self, method: Method, network: Backbone) -> None:
        super().__init__()
        self.method, self.network = method, network

    def forward(self, tokens_BL: Tensor, draws: Any, dropout: Dropout) -> Losses:
        """The loss of rows of tokens (B, L)."""
        return self.method.losses(InTraining(self.network, dropout), tokens_BL, draws)


def start(config: TokenTrainConfig, shapes: Shapes, *, device: torch.device, world: World = ALONE) -> TokenState:
    """A run at step 0."""
    model = methods.network(config, shapes, config.seed).to(device)
    compute = methods.compute(config.compute, model, device)
    if compute.compiled:
        compile_blocks(model)
    if config.recompute:
        recompute_activations(model)
    objective = TokenObjective(methods.method(config, shapes), model)
    return TokenState(
        config=config,
        model=model,
        optimizer=optimizer(model, config.optimizer),
        ema=EMA(model, config.optimizer.ema_decay),
        compute=compute,
        world=world,
        parallel=parallel(objective, world),
        objective=objective,
        shapes=shapes,
    )


def token_step(state: TokenState, batch: Batch) -> TokenStep:
    """Launch one optimiser step: draw, corrupt, forward, backward, clip, update, average."""
    lr = learning_rate(state.step, state.config.steps, state.config.optimizer)
    loss_B = torch.cat([_backward(state, part) for part in state.micro_batches(batch)])
    return TokenStep(**vars(state.update(batch, lr, state.step)), loss_B=loss_B)


def _backward(state: TokenState, batch: Batch) -> Tensor:
    """Add the gradient of one micro-batch; returns the loss by row."""
    config = state.config
    rows_B = batch.index_B.to(state.device, non_blocking=True)
    draws = state.objective.method.draw(
        seed=config.seed,
        step=state.step,
        rows_B=rows_B,
        batch=config.batch_size,
        seq_len=state.shapes.seq_len,
        normal=state.compute.normal,
    )
    # As a tensor: with an int the masks would be compiled anew for each step.
    number = torch.full((1,), state.step, device=state.device)
    dropout = Dropout(config.seed, number, rows_B, state.compute.kept)
    with state.compute.autocast():
        losses = cast(Losses, (state.parallel or state.objective)(batch.tokens_BL, draws, dropout))
    state.backward(losses.mean)
    return losses.loss_BL.mean(dim=1)
