"""A rival's run as later stages see it: the counterpart of `sampling.trained_run`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from ldlm import config as configs
from ldlm.baselines import methods
from ldlm.baselines.backbone import Backbone
from ldlm.baselines.drawer import DrawsTokens
from ldlm.config import TokenSampleConfig, TokenTrainConfig
from ldlm.errors import InputError
from ldlm.progress import Progress
from ldlm.sampling.source import OpenRun


class TrainedTokenRun(DrawsTokens, OpenRun):
    """A checkpoint of a token-level run with the averaged weights, on a device: the newest intact, or the one named."""

    def __init__(self, path: str | Path, device: torch.device, name: str | None = None) -> None:
        super().__init__(path, device, name)
        self.config = cast(TokenTrainConfig, configs.stored_training(self.artifact.config))
        self._network = self._load_network()

    @property
    def method(self) -> str:
        """The method that it was trained with."""
        return configs.method_of(self.artifact.config)

    @property
    def training(self) -> TokenTrainConfig:
        """The settings of the run."""
        return self.config

    @property
    def network(self) -> Backbone:
        """The network, with the averaged weights."""
        return self._network

    def remark(self, config: TokenSampleConfig, progress: Progress) -> None:
        """Note that the run is not finished, if that is so."""
        self.remark_on_end(progress)

    def _check_method(self) -> None:
        if self.method == configs.LDLM:
            raise InputError(f"{self.path} is a run of LDLM, but one of a token-level method is needed")

    def _load_network(self) -> Backbone:
        network = methods.network(self.config, self.shapes)
        network.load_state_dict(self.checkpoint.tensors("ema"))
        return network.eval().requires_grad_(False).to(self.device)
