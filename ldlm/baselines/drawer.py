"""Drawing texts from a rival, for its runs and the models exported from them; each is a `sampling.Source`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from ldlm.baselines import generation, methods
from ldlm.baselines.backbone import Backbone
from ldlm.baselines.generation import TokenGenerator
from ldlm.compute import Compute
from ldlm.config import ComputeConfig, SamplerOfTokens, Shapes, TokenSampleConfig, TokenTrainConfig
from ldlm.progress import Progress


class DrawsTokens(ABC):
    """Draws texts with a rival's network; a subclass gives what was trained, the sizes and the device."""

    shapes: Shapes
    device: torch.device

    @property
    @abstractmethod
    def training(self) -> TokenTrainConfig:
        """The settings of the training."""

    @property
    @abstractmethod
    def network(self) -> Backbone:
        """The network."""

    def compute(self, config: ComputeConfig) -> Compute:
        """Precision and kernels of the network when it draws texts."""
        return methods.compute(config, self.network, self.device)

    def generator(self, compute: Compute | None = None) -> TokenGenerator:
        """A generator of texts."""
        return TokenGenerator(self.training, self.network, self.shapes, compute or self.compute(ComputeConfig()))

    def texts(self, config: TokenSampleConfig) -> int:
        """Number of texts that settings of `ldlm sample` ask for."""
        return config.num_samples

    def drawing(self, config: TokenSampleConfig) -> TokenGenerator:
        """The generator that settings of `ldlm sample` ask for."""
        return self.generator(self.compute(config.compute))

    def settled(self, config: TokenSampleConfig) -> TokenSampleConfig:
        """The settings as they are, since they leave nothing open."""
        return config

    def check(self, sampler: SamplerOfTokens) -> None:
        """`InputError` for settings of a sampler that contradict each other."""
        methods.sampler(self.training, sampler, self.shapes)

    def cost(self, config: TokenSampleConfig) -> dict[str, Any]:
        """The most evaluations that settings of `ldlm sample` take, and their FLOPs, as JSON."""
        return generation.drawing_cost(config, self.training, self.shapes)

    def remark(self, config: TokenSampleConfig, progress: Progress) -> None:  # noqa: B027  # there is nothing to do
        """Do nothing: no choice is made beyond the settings."""
