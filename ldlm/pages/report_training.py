"""Sections of a report on the training itself: its course, its speed, and what it was made of and with."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldlm import config as configs
from ldlm.config import TrainConfig, decoder_noise
from ldlm.pages import curves
from ldlm.pages.report_data import NOTHING_YET, Block, Facts, Report, Row, Section, Settings, charts, model_name


def losses(report: Report) -> Section:
    """The losses over the steps."""
    return Section(
        "losses",
        "Losses",
        "What the latents cost: denoising them (L_diff), rebuilding the hidden states from them (L_h) and the tokens "
        "(L_w). Faint lines are single steps; dots are held-out rows with averaged weights.",
        charts(curves.losses(report.metrics)),
    )


def timesteps(report: Report) -> Section:
    """The loss against time, and the times that training draws."""
    evaluations = report.lines("eval")
    if not evaluations:
        return Section("timesteps", "Timesteps", "", [NOTHING_YET])
    kind = report.config.timesteps.kind
    lead = (
        f"Where denoising is hard, at step {evaluations[-1]['step']:,}, and the times that training draws ({kind} "
        f"sampling)."
    )
    lead += " Adaptive sampling makes the loss grow evenly in its own time F(t)." if kind == "adaptive" else ""
    return Section("timesteps", "Timesteps", lead, charts(curves.timesteps(report.metrics)))


def latents(report: Report) -> Section:
    """The spread of the latents, and the warm-up."""
    recipe = report.config.recipe
    return Section(
        "latents",
        "Latents",
        f"How far the latents spread, beside the standard deviation 1 of the noise, and how much of L_diff's gradient "
        f"reaches the encoder that shapes them (S_wu = {recipe.warmup_steps:,}, decoder noise "
        f"{decoder_noise(report.config.model.space, recipe)}).",
        charts(curves.latents(report.metrics)),
    )


def speed(report: Report) -> Section:
    """Tokens per second and the use of the machine."""
    timed = [line for line in report.lines("train") if "timing" in line]
    if not timed:
        return Section("speed", "Speed", "", [NOTHING_YET])
    lead = (
        f"{statistics.median(speeds(report)):,.0f} tokens per second in the median; {report.tokens:,} tokens in about "
        f"{_duration(_seconds(report, timed))} of training steps."
    )
    return Section("speed", "Speed", lead, charts(curves.speed(report.metrics)))


def speeds(report: Report) -> list[float]:
    """Tokens per second at each line of the metrics that has a timing."""
    return [line["timing"]["tokens_per_second"] for line in report.lines("train") if "timing" in line]


def _seconds(report: Report, timed: Sequence[Row]) -> float:
    """Duration of the steps, from the rate at each line of the metrics, over all sessions of the run."""
    steps = np.diff([0, *(line["step"] for line in timed)])
    rates = [line["timing"]["rows_per_second"] for line in timed]
    return float(sum(report.config.batch_size * n / rate for n, rate in zip(steps, rates, strict=True) if rate))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


# ----------------------------------------------------------------------------------------------------------------------
# Provenance


def provenance(report: Report) -> Section:
    """Text, encoder, parameters, versions, fingerprints, and settings other than the defaults."""
    changed = configs.differences(configs.to_dict(TrainConfig()), configs.to_dict(report.config))
    blocks: list[Block] = [
        Facts(title, values, wide=title == "Fingerprints") for title, values in _origins(report).items() if values
    ]
    if changed:
        lines = [line.replace(" -> ", " → ") for line in changed]
        blocks.append(Settings("Settings other than the defaults: default → here", lines))
    return Section(
        "provenance",
        "Where it comes from",
        "What it was made of and with. The same fingerprints (SHA-256) mean the same text, weights and states.",
        blocks,
    )


def _origins(report: Report) -> dict[str, Mapping[str, Any]]:
    sources: dict[str, Any] = {}
    prints: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    if report.features is not None:
        encoder = report.features["encoder"]
        sources = {
            "encoder": model_name(encoder["name"]),
            "kind": encoder["kind"],
            "layer": encoder["layer"],
            **{f"rows, {split}": f"{count:,}" for split, count in report.features["rows"].items()},
        }
        prints = {
            "text": report.features["text"],
            "features": report.features["store"],
            **{f"encoder: {what}": encoder[key] for what, key in _PRINTS.items()},
        }
    if report.manifest is not None:
        versions = {name: version for name, version in report.manifest["versions"].items() if version is not None}
        prints |= {"checkpoint": report.manifest["checkpoint"]}
        prints |= {"commit of ldlm": versions.pop("commit")} if "commit" in versions else {}
    trained_with = report.manifest or report.status or {}
    if "attention" in trained_with:  # runs of earlier versions don't say
        versions["attention"] = trained_with["attention"]
    parameters = {part.replace("_", " "): f"{count:,}" for part, count in report.parameters.items()}
    return {"Text and encoder": sources, "Parameters": parameters, "Made with": versions, "Fingerprints": prints}


_PRINTS = {"weights": "fingerprint", "tokenizer": "tokenizer", "normalisation": "statistics"}
