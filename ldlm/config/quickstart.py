"""Settings of the quickstart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldlm.config.fields import setting
from ldlm.config.stages import COLUMN_HELP, DEVICE_HELP, MAX_SEED, SEED_HELP


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """`ldlm quickstart`: every stage on one text, small enough for two cores."""

    text: str = setting(
        "stories",
        "stories, those of `ldlm stories`; python, the documentation of Python and the installed packages; or a text, "
        "JSON or parquet file",
        metavar="stories|python|FILE",
    )
    text_column: str = setting("text", COLUMN_HELP)
    encoder: str | None = setting(None, "hub name or folder of an encoder, instead of pretraining a small GPT-2")
    scorer: str | None = setting(
        None,
        "hub name or folder of a scorer; none means, for real text, a small GPT-2 trained on a part of it that the "
        "model never sees, and for stories the encoder, which scores only paths between texts",
    )
    seed: int = setting(0, SEED_HELP, low=0, high=MAX_SEED)
    device: str = setting("auto", DEVICE_HELP, identity=False)

    @staticmethod
    def with_defaults(data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings in the terms of this version; in those of 0.1.0 no text meant Python's documentation."""
        return {**data, "text": "python"} if "text" in data and data["text"] is None else data
