"""Settings of `ldlm likelihood`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ldlm.config.fields import again, setting
from ldlm.config.stages import DEVICE_HELP, MAX_SEED, SampleConfig


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """`ldlm likelihood`: the likelihood of rows of a store under a model, or a bound on it (docs/likelihood.md)."""

    split: Literal["validation", "train"] = setting(
        "validation", "which rows of the store to take: the held-out ones, or those of training"
    )
    rows: int | None = setting(
        1_024,
        "rows to take from the beginning of the split, or all; τ is chosen on every second of them, and the figures "
        "are those of the others",
        low=4,
        none="all",
    )
    taus: tuple[float, ...] = setting(
        (),
        "noise levels τ of the curve; none given means 13 around the noise that the decoder was trained with, each √2 "
        "times the next",
        low=1e-9,
        high=1e9,
    )
    draws: int = setting(
        2,
        "draws of noise per row at each τ, and of time between each two τ; for token-level runs, in each eighth of the "
        "time",
        low=2,
    )
    decoder: str | None = again(SampleConfig, "decoder")
    checkpoint: str | None = again(SampleConfig, "checkpoint")
    batch_size: int = setting(16, "rows per batch; it does not change the figures", low=1, identity=False)
    seed: int = setting(
        0,
        "seed of noises and times, which are the same for every run, so that runs can be compared",
        low=0,
        high=MAX_SEED,
    )
    device: str = setting("auto", DEVICE_HELP, identity=False)
