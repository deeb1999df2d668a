"""States made by the frozen encoder inside the training step, for a store that holds tokens and statistics only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldlm.errors import InputError
from ldlm.features.encoder import FrozenEncoder

BLOCK_ROWS = 32  # rows per pass: what is in memory on the way doesn't grow with the batch


class OnlineEncoder:
    """tokens (B, L) → normalised states (B, L, D) float32, as a store in fp32 would give them.

    `record` is a store's description of its encoder. The model is loaded at the first call, onto the tokens' device.
    """

    def __init__(self, record: Mapping[str, Any], mean_D: np.ndarray, std_D: np.ndarray) -> None:
        self.record = record
        self.mean_D, self.std_D = torch.from_numpy(mean_D), torch.from_numpy(std_D)
        self._encoder: FrozenEncoder | None = None

    def __call__(self, tokens_BL: Tensor) -> Tensor:
        encoder = self._load(tokens_BL.device, tokens_BL.shape[1])
        h_BLD = torch.cat([encoder(tokens) for tokens in tokens_BL.split(BLOCK_ROWS)])
        return (h_BLD - self.mean_D) / self.std_D

    def _load(self, device: torch.device, seq_len: int) -> FrozenEncoder:
        """The encoder on `device`; `InputError` when it is not the one that the statistics were taken with."""
        if self._encoder is None or self._encoder.device != device:
            name, kind, layer = (self.record[key] for key in ("name", "kind", "layer"))
            precision = self.record["precision"]
            encoder = FrozenEncoder(name, kind=kind, layer=layer, seq_len=seq_len, device=device, precision=precision)
            if encoder.fingerprint() != self.record["fingerprint"]:
                raise InputError(
                    f"{name} is not the encoder that the features were prepared with: its fingerprint is "
                    f"{encoder.fingerprint()[:12]} and theirs {self.record['fingerprint'][:12]}"
                )
            self._encoder = encoder
            self.mean_D, self.std_D = self.mean_D.to(device), self.std_D.to(device)
        return self._encoder
