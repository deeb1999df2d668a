"""A run of a rival as later stages see it: the counterpart of `sampling.trained_run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ldlm import config as configs
from ldlm.baselines import generation, methods
from ldlm.baselines.backbone import Backbone
from ldlm.baselines.generation import TokenGenerator
from ldlm.compute import Compute
from ldlm.config import ComputeConfig, SamplerOfTokens, TokenSampleConfig, TokenTrainConfig
from ldlm.errors import InputError
from ldlm.model.layers import head_widths
from ldlm.progress import Progress
from ldlm.sampling.source import OpenRun


class TrainedTokenRun(OpenRun):
    """A checkpoint of a token-level run with the averaged weights, on a device: the newest intact, or the one named."""

    def __init__(self, path: str | Path, device: torch.device, name: str | None = None) -> None:
        super().__init__(path, device, name)
        self.config: TokenTrainConfig = configs.from_stored(configs.training_class(self.method), self.artifact.config)
        self.network = self._load_network()

    @property
    def method(self) -> str:
        """The method that it was trained by."""
        return configs.method_of(self.artifact.config)

    def _check_method(self) -> None:
        if self.method == configs.LDLM:
            raise InputError(f"{self.path} is a run of LDLM, and one of a token-level method is needed")

    def _load_network(self) -> Backbone:
        network = methods.network(self.config, self.shapes)
        network.load_state_dict(self.checkpoint.tensors("ema"))
        return network.eval().requires_grad_(False).to(self.device)

    def compute(self, config: ComputeConfig) -> Compute:
        """Precision and kernels with which its network draws texts."""
        return Compute.of(config, self.device, head_widths(self.network))

    def generator(self, compute: Compute | None = None) -> TokenGenerator:
        """A generator of texts."""
        return TokenGenerator(self.config, self.network, self.shapes, compute or self.compute(ComputeConfig()))

    def drawing(self, config: TokenSampleConfig) -> TokenGenerator:
        """The generator that settings of `ldlm sample` ask for."""
        return self.generator(self.compute(config.compute))

    def check(self, sampler: SamplerOfTokens) -> None:
        """Every sampler of the method is offered."""

    def cost(self, config: TokenSampleConfig) -> dict[str, Any]:
        """Evaluations that settings of `ldlm sample` take at most, and their FLOPs, as JSON."""
        return generation.drawing_cost(config, self.config, self.shapes)

    def remark(self, config: TokenSampleConfig, progress: Progress) -> None:
        """Nothing is chosen that settings do not say."""
