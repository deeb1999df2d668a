"""Settings of exported models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ldlm.config.fields import again, setting
from ldlm.config.model import SamplerConfig
from ldlm.config.stages import SampleConfig

WeightPrecision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """`ldlm export`: denoiser, decoders and tokenizer as a folder to share."""

    decoder: str | None = setting(None, "decoder to export; none means all that belong to the checkpoint")
    checkpoint: str | None = again(SampleConfig, "checkpoint")
    sampler: SamplerConfig = setting(SamplerConfig(), "default sampler of the exported model")
    precision: WeightPrecision = setting(
        "fp32", "precision of the stored weights; bf16 takes half the space, and texts are drawn from it in fp32"
    )
    with_encoder: bool = setting(
        False, "include the frozen encoder, which reads prompts; for runs with model.condition=prefix"
    )
    push_to_hub: str | None = setting(
        None, "upload to the Hugging Face hub under this id, like name/model; a new one is public", identity=False
    )
