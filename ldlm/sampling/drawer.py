"""Drawing texts from LDLM, shared by its runs and the models exported from them; each is a `source.Source`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from ldlm.compute import Compute
from ldlm.config import ComputeConfig, ModelConfig, SampleConfig, SamplerConfig, Shapes
from ldlm.features.encoder import OnlineEncoder
from ldlm.progress import Progress
from ldlm.sampling import generation
from ldlm.sampling.generation import TextGenerator
from ldlm.sampling.prompts import prompts_of, texts_in_all


class DrawsTexts(ABC):
    """Drawing from a denoiser. A class that has it says what was trained, and makes generators and the encoder."""

    device: torch.device
    shapes: Shapes
    tokenizer: Any

    @property
    @abstractmethod
    def trained(self) -> ModelConfig:
        """The model's settings in its training."""

    @abstractmethod
    def compute(self, config: ComputeConfig) -> Compute:
        """Precision and kernels with which its denoiser draws texts."""

    @abstractmethod
    def generator(self, decoder: str | None = None, compute: Compute | None = None) -> TextGenerator:
        """A generator of texts with the decoder of that name."""

    @abstractmethod
    def frozen_encoder(self, where: str | None) -> OnlineEncoder:
        """The encoder that reads prompts, in the folder or of the hub name `where`, or where the record has it."""

    @property
    def condition(self) -> str:
        """`model.condition` of its training."""
        return self.trained.condition

    def texts(self, config: SampleConfig) -> int:
        """Number of texts that settings of `ldlm sample` ask for: `num_samples` of each prompt, where there are any."""
        return texts_in_all(config)

    def drawing(self, config: SampleConfig) -> TextGenerator:
        """The generator that settings of `ldlm sample` ask for, with the prompts that its texts continue."""
        made = self.generator(config.decoder, self.compute(config.compute))
        return replace(made, prompts=prompts_of(config, self))

    def cost(self, config: SampleConfig) -> dict[str, Any]:
        """Evaluations of the denoiser that settings of `ldlm sample` take, and their FLOPs, as JSON."""
        return generation.drawing_cost(config, self.trained, self)


def remark_on_student(student: SamplerConfig | None, asked: Iterable[SamplerConfig], progress: Progress) -> None:
    """Note, once, that a distilled model draws by samplers that it has not learned; None is a model that isn't."""
    names = ("solver", "grid", "t_min", "steps", "guidance", "eta")
    if student is not None and any(getattr(student, name) != getattr(one, name) for one in asked for name in names):
        progress.note(
            f"this model is distilled to {student.steps} evaluations, and has learned to draw by --solver "
            f"{student.solver} --grid {student.grid} --t-min {student.t_min:g} --steps {student.steps} alone"
        )
