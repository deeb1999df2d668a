"""Settings of texts that are continued from a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from ldlm.config.fields import setting


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Texts to continue, with a model that was trained with model.condition=prefix."""

    prompt: str | None = setting(None, "text to continue, with a model trained with model.condition=prefix")
    prompts: str | None = setting(
        None, "file of texts to continue, --num-samples times each: text, JSON or parquet", metavar="FILE"
    )
    text_column: str = setting("text", "field that holds the prompt in JSON and parquet files")
    prompt_guidance: float = setting(
        1.0, "w of guidance by the prompt, ẑ = ẑ_0 + w(ẑ_k − ẑ_0), with ẑ_0 from no prompt; 1 is off", low=0, high=100
    )
    encoder: str | None = setting(
        None,
        "folder or hub name of the frozen encoder, which reads the prompt, if it has moved since extraction",
        identity=False,
        metavar="DIR",
    )
