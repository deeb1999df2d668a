"""The interface between a training method and the training stage: what differs between LDLM and its rivals.

Loop, stream, checkpoints, journal and costs are the same for all. `joint_method.py` is LDLM's implementation, and
`ldlm.baselines.training` that of the rivals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import nn

from ldlm.config import AnyTrainConfig, Shapes
from ldlm.features.batch import Batch
from ldlm.runtime import World
from ldlm.training.footprint import Footprint
from ldlm.training.learner import Learner, Step

if TYPE_CHECKING:  # costs can be counted without the packages that read stores
    from ldlm.features.encoder import FrozenEncoder
    from ldlm.features.store import FeatureStore, Split
    from ldlm.location import Location

AnyConfig = TypeVar("AnyConfig", bound=AnyTrainConfig)
AnyLearner = TypeVar("AnyLearner", bound=Learner[Any])
Self = TypeVar("Self", bound="TrainingMethod[Any, Any]")


class TrainingMethod(ABC, Generic[AnyConfig, AnyLearner]):
    """A method with the settings of a training run."""

    def __init__(self, config: AnyConfig) -> None:
        self.config = config

    def changed(self: Self, **settings: Any) -> Self:
        """The method with other settings."""
        return type(self)(replace(self.config, **settings))

    # Before the training.

    def taken_up(self: Self, stored: Mapping[str, Any]) -> tuple[Self, str | None]:
        """The method with which a run begun with the settings `stored` continues, and what it keeps of them, in words.

        The words are None if the run's settings mean what they mean now.
        """
        return self, None

    def check_kind(self, kind: str, seq_len: int, place: Location) -> None:
        """`InputError` for settings that contradict each other, or the kind of features that `place` has or gets."""

    def check_encoder(self, encoder: FrozenEncoder, seq_len: int) -> None:
        """`InputError` for settings that contradict an encoder, by which features are yet to be made."""

    @abstractmethod
    def check(self, store: FeatureStore) -> None:
        """`InputError` for settings that contradict each other or the store."""

    def remarks(self, store: FeatureStore) -> Iterator[str]:
        """Notes to the user about the settings."""
        yield from ()

    @abstractmethod
    def rows(self, store: FeatureStore) -> tuple[Split, Split]:
        """Training and held-out rows, with the parts that the method reads."""

    def record(self, store: FeatureStore, out: Path) -> None:
        """Write to the run `out` what later stages need from the features, beside their description."""

    # The training.

    @abstractmethod
    def start(self, store: FeatureStore, *, device: torch.device, world: World) -> AnyLearner:
        """A learner at step 0."""

    @abstractmethod
    def step(self, learner: AnyLearner, batch: Batch) -> Step:
        """Launch one optimiser step."""

    @abstractmethod
    def evaluate(self, learner: AnyLearner, held_out: Split) -> dict[str, Any]:
        """Figures of the weights in the model on held-out rows, as JSON."""

    def warning(self, evaluations: Sequence[Mapping[str, Any]]) -> str | None:
        """A warning to the user after the evaluations so far; None if there is nothing to warn about."""
        return None

    # Its cost.

    @abstractmethod
    def network(self, shapes: Shapes, features: str | None = None) -> nn.Module:
        """Everything that is trained, on the meta device; `features` is the kind of the features, if known."""

    @abstractmethod
    def parameters(self, model: nn.Module) -> dict[str, int]:
        """Number of parameters of each part of the model."""

    def attention(self, kernel: str) -> str:
        """Name of the attention kernel that the method uses on a device whose kernel is `kernel`."""
        return kernel

    @abstractmethod
    def phase_steps(self) -> dict[str, int]:
        """Phases of the training that differ in cost, in order, and the steps of each."""

    @abstractmethod
    def flops_per_token(self, shapes: Shapes, phase: str, features: str | None = None) -> int:
        """FLOPs per token of a step of a phase; recomputing activations to save memory does not count."""

    @abstractmethod
    def footprint(self, shapes: Shapes, *, bf16: bool, device: str, features: str | None = None) -> Footprint:
        """Memory of its steps on a kind of device."""

    def phase_at(self, step: int) -> str:
        """The phase of the step that follows `step` steps."""
        begins = 0
        for name, steps in self.phase_steps().items():
            begins += steps
            if step < begins:
                return name
        return name


AnyMethod = TrainingMethod[Any, Any]
