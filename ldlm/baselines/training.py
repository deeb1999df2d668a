"""The rivals as training methods: their checks, held-out figures and costs.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldlm.baselines import heldout, learner, methods
from ldlm.baselines.backbone import Backbone, Dropout
from ldlm.baselines.interface import Losses, Method
from ldlm.baselines.learner import TokenObjective, TokenState, TokenStep
from ldlm.config import Shapes, TokenTrainConfig
from ldlm.features.batch import Batch
from ldlm.features.store import FeatureStore, Split
from ldlm.model.layers import recompute_activations
from ldlm.model.token_loss import positions_at_once
from ldlm.runtime import World
from ldlm.training.footprint import Footprint, fake_step, mapped, on_cpu, sizes_of, timeline
from ldlm.training.method import TrainingMethod

PARTS = {"embedding": "embedding", "head": "head", "condition_mlp": "condition"}  # the rest are the blocks


class TokenTraining(TrainingMethod[TokenTrainConfig, TokenState]):
    """Training of MDLM, Duo, CANDI or FLM, which read the tokens of a store of any kind."""

    def check(self, store: FeatureStore) -> None:
        """`InputError` for settings that contradict each other or the size of the vocabulary."""
        methods.method(self.config, store.shapes)

    def rows(self, store: FeatureStore) -> tuple[Split, Split]:
        """Training and held-out rows, without states."""
        return store.split("train").without_states(), store.held_out().without_states()

    def start(self, store: FeatureStore, *, device: torch.device, world: World) -> TokenState:
        """A run at step 0."""
        return learner.start(self.config, store.shapes, device=device, world=world)

    def step(self, learner_: TokenState, batch: Batch) -> TokenStep:
        """Launch one optimiser step."""
        return learner.token_step(learner_, batch)

    def evaluate(self, learner_: TokenState, held_out: Split) -> dict[str, Any]:
        """Losses of the weights in the model on held-out rows, as JSON."""
        config = self.config
        method = methods.held_out_method(config, learner_.shapes)
        with learner_.compute.autocast():
            return heldout.evaluate(
                method,
                learner_.model,
                held_out,
                bound=method.bound,
                rows=config.eval_rows,
                batch_size=min(learner_.rows_at_once, config.eval_rows),
                device=learner_.device,
            ).to_json()

    # Its cost.

    def network(self, shapes: Shapes, features: str | None = None) -> Backbone:
        """The network, on the meta device."""
        with torch.device("meta"):
            return methods.network(self.config, shapes)

    def parameters(self, model: nn.Module) -> dict[str, int]:
        """Number of parameters of embedding, blocks, head and the condition's network."""
        counts = dict.fromkeys(("embedding", "blocks", "head", "condition"), 0)
        for name, parameter in model.named_parameters():
            counts[PARTS.get(name.partition(".")[0], "blocks")] += parameter.numel()
        return counts

    def attention(self, kernel: str) -> str:
        """Name of the attention kernel; capped scores use none."""
        return methods.CAPPED if self.config.model.backbone.attention_cap else kernel

    def phase_steps(self) -> dict[str, int]:
        """One phase, or a curriculum and what follows it."""
        return self.config.phase_steps

    def flops_per_token(self, shapes: Shapes, phase: str, features: str | None = None) -> int:
        """FLOPs per token of a step of a phase, by one process."""
        batch, micro_batches = self.config.batch_size, self.config.accumulate
        per_row, fixed = _flops(replace(self.config, accumulate=1), shapes, self._first_step(phase))
        return round((batch * per_row + micro_batches * fixed) / (batch * shapes.seq_len))

    def footprint(self, shapes: Shapes, *, bf16: bool, device: str, features: str | None = None) -> Footprint:
        """Memory of its steps on a kind of device."""
        steps = tuple(self._first_step(phase) for phase in self.phase_steps())
        return _footprint(replace(self.config, accumulate=1), shapes, steps, bf16, device)

    def _first_step(self, phase: str) -> int:
        """Steps before a phase."""
        names = list(steps := self.phase_steps())
        return sum(steps[name] for name in names[: names.index(phase)])


# ----------------------------------------------------------------------------------------------------------------------
# A step without storage


@dataclass(frozen=True)
class TokenTrace:
    """A step of a rival's training; a `TracedStep`."""

    config: TokenTrainConfig
    shapes: Shapes
    number: int  # of the steps before it

    @cached_property
    def method(self) -> Method:
        """The method, which must be made where tensors have values."""
        return methods.method(self.config, self.shapes)

    @property
    def sizes(self) -> Iterable[int]:
        """Sizes of the network."""
        return sizes_of(self.config.model.denoiser)

    def draws(self, rows: int) -> Any:
        """The randomness of a step: that of one row, repeated."""
        one_B, seq_len = torch.zeros(1, dtype=torch.int64), self.shapes.seq_len
        drawn = self.method.draw(seed=0, step=self.number, rows_B=one_B, batch=rows, seq_len=seq_len)
        return mapped(lambda of_B: of_B.expand(rows, *of_B.shape[1:]), drawn)

    def model(self) -> Backbone:
        """The network."""
        model = methods.network(self.config, self.shapes)
        if self.config.recompute:
            recompute_activations(model)
        return model

    def loss(self, model: Backbone, hidden_BLD: Tensor | None, tokens_BL: Tensor, draws: Any) -> Tensor:
        """The mean loss."""
        dropout = Dropout(0, self.number, torch.arange(len(tokens_BL)))
        losses: Losses = TokenObjective(self.method, model)(tokens_BL, draws, dropout)
        return losses.mean


@cache
def _footprint(config: TokenTrainConfig, shapes: Shapes, steps: tuple[int, ...], bf16: bool, device: str) -> Footprint:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in methods.network(config, shapes).parameters())
    return Footprint(
        shapes,
        parameters=parameters,
        timelines=[timeline(TokenTrace(config, shapes, step), shapes, bf16=bf16, has_states=False) for step in steps],
        positions=positions_at_once(device, shapes.vocab_size),
        has_states=False,
    )


@cache
def _flops(config: TokenTrainConfig, shapes: Shapes, number: int) -> tuple[int, int]:
    """FLOPs of a micro-batch in the step after `number` steps: per row, and independent of the rows.

    FLM and CANDI multiply the embedding by itself once for all rows.
    """
    one, two = (_flops_of(config, shapes, number, rows) for rows in (1, 2))
    return two - one, 2 * one - two


def _flops_of(config: TokenTrainConfig, shapes: Shapes, number: int, rows: int) -> int:
    step = TokenTrace(replace(config, recompute=False), shapes, number)
    draws = step.draws(rows)
    with fake_step(rows * shapes.seq_len * shapes.vocab_size):
        model, tokens_BL = step.model(), torch.zeros(rows, shapes.seq_len, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            step.loss(model, None, tokens_BL, on_cpu(draws)).backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops()
