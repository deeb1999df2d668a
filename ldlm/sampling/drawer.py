"""Drawing texts from LDLM, for its runs and the models exported from them; each is a `source.Source`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ldlm.compute import Compute
from ldlm.config import ComputeConfig, ExportConfig, ModelConfig, SampleConfig, SamplerConfig, Shapes
from ldlm.errors import InputError
from ldlm.features.encoder import OnlineEncoder
from ldlm.model.timesteps import TimestepSampler
from ldlm.progress import Progress
from ldlm.sampling import generation, solvers
from ldlm.sampling.generation import TextGenerator
from ldlm.sampling.prompts import prompts_of, texts_in_all

Drawing = TypeVar("Drawing", SampleConfig, ExportConfig)


def check_guidance(guidance: float, self_conditioned: bool) -> None:
    """`InputError` for guidance by an estimate that the denoiser has not learned to read."""
    if guidance != 1 and not self_conditioned:
        raise InputError(
            f"guidance {guidance:g} needs self-conditioning, which this model was trained without "
            f"(diffusion.self_conditioning=0); leave --guidance at 1"
        )


class DrawsTexts(ABC):
    """Draws texts with a denoiser; a subclass says what was trained, and makes generators and the encoder."""

    device: torch.device
    shapes: Shapes
    tokenizer: Any

    @property
    @abstractmethod
    def trained(self) -> ModelConfig:
        """The model's settings in training."""

    @property
    @abstractmethod
    def timesteps(self) -> TimestepSampler:
        """The timestep sampler, whose F(t) defines the `learned` grid."""

    @property
    @abstractmethod
    def self_conditioned(self) -> bool:
        """Whether its denoiser has learned to read ẑ_prev."""

    @abstractmethod
    def compute(self, config: ComputeConfig) -> Compute:
        """Precision and kernels of its denoiser when it draws texts."""

    @abstractmethod
    def generator(self, decoder: str | None = None, compute: Compute | None = None) -> TextGenerator:
        """A generator of texts with the decoder called `decoder`."""

    @abstractmethod
    def frozen_encoder(self, where: str | None) -> OnlineEncoder:
        """The encoder that reads prompts: `where` is its folder or hub name, None for the one on record."""

    @property
    def conditioning(self) -> dict[str, bool]:
        """Whether it has learned to read ẑ_prev, for records."""
        return generation.conditioning(self.self_conditioned)

    @property
    def condition(self) -> str:
        """`model.condition` of its training."""
        return self.trained.condition

    def settled(self, config: Drawing) -> Drawing:
        """The settings with the grid that is taken if they name none."""
        return replace(config, sampler=solvers.settled(config.sampler, self.timesteps))

    def remark_on_grid(self, asked: SamplerConfig, progress: Progress, remedy: str = "") -> None:
        """Note a default grid that is not `learned`; `remedy` says how to take another."""
        if asked.grid is None and self.timesteps.flat:
            progress.note(f"timesteps are uniform here (F(t) is t), so the default grid is log-snr{remedy}")

    def remark_on_sampler(
        self, student: SamplerConfig | None, asked: SamplerConfig, progress: Progress, prompt_guidance: float
    ) -> None:
        """Note a default grid that is not `learned`, and settings that a distilled model has not learned."""
        self.remark_on_grid(asked, progress, "; --grid takes another")
        taken = solvers.settled(asked, self.timesteps)
        remark_on_student(student, [taken], progress, prompt_guidance=prompt_guidance)

    def texts(self, config: SampleConfig) -> int:
        """Number of texts that settings of `ldlm sample` ask for: `num_samples`, or as many for each prompt."""
        return texts_in_all(config)

    def drawing(self, config: SampleConfig) -> TextGenerator:
        """The generator that settings of `ldlm sample` ask for, with the prompts that its texts continue."""
        made = self.generator(config.decoder, self.compute(config.compute))
        return replace(made, prompts=prompts_of(config, self))

    def cost(self, config: SampleConfig) -> dict[str, Any]:
        """Evaluations of the denoiser that settings of `ldlm sample` take, and their FLOPs, as JSON."""
        return generation.drawing_cost(config, self.trained, self)


def remark_on_student(
    student: SamplerConfig | None, asked: Iterable[SamplerConfig], progress: Progress, *, prompt_guidance: float = 1.0
) -> None:
    """Note, once, if a distilled model is to draw with samplers it has not learned; `student` is None for others."""
    if student is not None and prompt_guidance != 1:
        progress.note(
            f"this model is distilled to {student.steps} evaluations without prompt guidance, which takes twice as many"
        )
    names = ("solver", "grid", "t_min", "steps", "guidance", "eta")
    if student is not None and any(getattr(student, name) != getattr(one, name) for one in asked for name in names):
        progress.note(
            f"this model is distilled to {student.steps} evaluations, and has learned to draw with --solver "
            f"{student.solver} --grid {student.grid} --t-min {student.t_min:g} --steps {student.steps} alone"
        )
