"""Sources of texts: the interface that checkpoints of runs and exported models share.

A method's runs and exported models make the same `Generator`, so they draw the same texts.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ldlm import artifact, files
from ldlm.compute import Compute
from ldlm.config import Shapes
from ldlm.errors import InputError
from ldlm.evaluation import metrics, samples
from ldlm.hub import load_tokenizer
from ldlm.progress import Progress
from ldlm.training import checkpoint
from ldlm.training.checkpoint import Checkpoint


class Generator(Protocol):
    """Draws texts, each a function of its seed alone, not of the batch around it."""

    @property
    def compute(self) -> Compute:
        """Device, precision and kernels."""

    @property
    def record(self) -> dict[str, Any]:
        """Entries in the record of its texts beside settings and checkpoint, as JSON."""

    def tokens(self, sampler: Any, seeds_B: Tensor) -> Tensor:
        """Token rows (B, L) int64 of the texts with these seeds."""

    def padded(self, seeds_B: Tensor, texts: int) -> Tensor:
        """The seeds of a last batch, padded to `texts` if a smaller batch would cost more."""

    def lines(self, tokenizer: Any, tokens_BL: Tensor, seeds_B: Tensor, clean_up: bool) -> list[dict[str, Any]]:
        """JSON objects of the texts with these token rows and seeds, as `ldlm sample` writes them."""

    def batch_size(self, most: int) -> int:
        """The batch size that is fastest per text, up to `most`."""

    def figures(self) -> dict[str, Any]:
        """The cost of drawing so far, as JSON."""


class Source(Protocol):
    """A trained model that draws texts."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that it was trained with."""

    @property
    def origin(self) -> dict[str, Any]:
        """Digest and step of the checkpoint."""

    @property
    def weights_precision(self) -> str:
        """Precision in which its weights are stored, `fp32` or `bf16`."""

    def texts(self, config: Any) -> int:
        """Number of texts that settings of `ldlm sample` ask for."""

    def drawing(self, config: Any) -> Generator:
        """The generator that settings of `ldlm sample` ask for."""

    def settled(self, config: Any) -> Any:
        """The settings of `ldlm sample`, with what depends on the model filled in where they leave it open."""

    def check(self, sampler: Any) -> None:
        """`InputError` for a sampler that is not offered."""

    def cost(self, config: Any) -> dict[str, Any]:
        """Evaluations of the network that settings of `ldlm sample` take, and their FLOPs, as JSON."""

    def remark(self, config: Any, progress: Progress) -> None:
        """Tell the user what was chosen in the absence of a setting."""


def plain_lines(tokenizer: Any, tokens_BL: Tensor, seeds_B: Tensor, clean_up: bool) -> list[dict[str, Any]]:
    """JSON objects of texts that continue no prompt: `text`, `tokens` and `seed`."""
    texts = metrics.decode_tokens(tokenizer, tokens_BL, clean_up=clean_up)
    return samples.rows(texts, tokens_BL.tolist(), seeds_B.tolist())


def checkpoint_of(run: Path, name: str | None) -> Checkpoint:
    """The checkpoint called `name`, else the newest that verifies; `InputError` if there is none."""
    if name is not None:
        return checkpoint.named(run / "checkpoints", name)
    found = checkpoint.latest(run / "checkpoints")
    if found is None:
        raise InputError(
            f"{run} has no checkpoint yet; run the same `ldlm train` or `ldlm distill` command again to continue"
        )
    return found


class OpenRun:
    """A checkpoint of a run of any method, on a device: the newest that verifies, or the one named."""

    weights_precision = "fp32"

    def __init__(self, path: str | Path, device: torch.device, name: str | None = None) -> None:
        self.path, self.device = Path(path), device
        self.artifact = artifact.open_artifact(self.path, "run", complete=False)
        self._check_method()
        self.checkpoint = checkpoint_of(self.path, name)
        self.features: dict[str, Any] = files.read_json(self.path / "features.json")
        self.shapes = Shapes(**self.features["shapes"])

    def _check_method(self) -> None:
        """`InputError` for a run whose method this class does not open."""

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that the run was trained with."""
        return load_tokenizer(str(self.path / "tokenizer"))

    @property
    def origin(self) -> dict[str, Any]:
        """Digest and step of the checkpoint."""
        return {"checkpoint": self.checkpoint.digest, "step": self.checkpoint.step}

    def remark_on_end(self, progress: Progress) -> None:
        """Note that the run is not finished, if that is so."""
        if not self.artifact.complete:
            progress.note(f"{self.path} is not finished: its newest checkpoint is from step {self.checkpoint.step:,}")
