"""Words and sections of the report on LDLM's training: its course, its speed, and what it was made of and with."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldlm import config as configs
from ldlm.config import TrainConfig, decoder_noise, total_steps
from ldlm.pages import curves
from ldlm.pages.chart import number, percent
from ldlm.pages.report_data import (
    NOTHING_YET,
    AnyReport,
    Block,
    Facts,
    Figure,
    Report,
    Row,
    Section,
    Settings,
    charts,
    model_name,
)


def what(report: Report[TrainConfig]) -> str:
    """The run in two sentences."""
    config, features = report.config, report.features
    model = "A latent diffusion language model" if config.model.space == "ldlm" else f"A {config.model.space} model"
    trained = f"trained in steps of {config.batch_size:,} rows with seed {config.seed}"
    if features is None:
        return f"{model}, {trained}."
    encoder, rows = features["encoder"], features["rows"]["train"]
    name = model_name(encoder["name"])
    size = f" with {sum(report.parameters.values()):,} parameters"
    seen = {
        "hidden": f"as the hidden states of {name}, layer {encoder['layer']}",
        "embedding": f"as the token embeddings of {name}",
        "scratch": f"in the tokens of {name}",
    }[encoder["kind"]]
    length = features["shapes"]["seq_len"]
    return f"{model}{size}, {trained}. It learns from {rows:,} rows of {length:,} tokens, which it sees {seen}."


def steps(report: Report[TrainConfig]) -> int:
    """Steps of the whole training."""
    return total_steps(report.config)


def held_out(report: Report[TrainConfig]) -> list[Figure]:
    """The figures of the newest held-out evaluation."""
    newest = next(reversed(report.lines("eval")), {})
    found = []
    if newest.get("l_diff") is not None:
        mean = newest["l_diff_mean"]
        beside = "" if mean is None else f"the mean latent: {number(mean)}"
        found.append(("held-out L_diff", number(newest["l_diff"]), beside))
    if newest.get("token_accuracy_clean") is not None:
        clean, noisy = percent(newest["token_accuracy_clean"]), percent(newest["token_accuracy"])
        found.append(("tokens rebuilt", clean, f"{noisy} under decoder noise"))
    if newest.get("latent_std") is not None:
        found.append(("latent std", number(newest["latent_std"]), "per coordinate"))
    return found


# ----------------------------------------------------------------------------------------------------------------------
# The training


def losses(report: Report[TrainConfig]) -> Section:
    """The losses over the steps."""
    return Section(
        "losses",
        "Losses",
        "What the latents cost: denoising them (L_diff), rebuilding the hidden states from them (L_h) and the tokens "
        "(L_w). Faint lines are single steps; dots are held-out rows with averaged weights.",
        charts(curves.losses(report.metrics)),
    )


def timesteps(report: Report[TrainConfig]) -> Section:
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


def latents(report: Report[TrainConfig]) -> Section:
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


def speed(report: AnyReport) -> Section:
    """Tokens per second and the use of the machine."""
    timed = [line for line in report.lines("train") if "timing" in line]
    if not timed:
        return Section("speed", "Speed", "", [NOTHING_YET])
    lead = (
        f"{statistics.median(speeds(report)):,.0f} tokens per second in the median; {report.tokens:,} tokens in about "
        f"{_duration(_seconds(report, timed))} of training steps."
    )
    return Section("speed", "Speed", lead, charts(curves.speed(report.metrics)))


def speeds(report: AnyReport) -> list[float]:
    """Tokens per second at each line of the metrics that has a timing."""
    return [line["timing"]["tokens_per_second"] for line in report.lines("train") if "timing" in line]


def _seconds(report: AnyReport, timed: Sequence[Row]) -> float:
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


def provenance(report: Report[TrainConfig]) -> Section:
    """Text, encoder, parameters, versions, fingerprints, and settings other than the defaults."""
    return origin(report, "Text and encoder", _ENCODER, _PRINTS, same="text, weights and states")


# Names on the page, and the keys of the encoder's record.
_ENCODER = {"encoder": "name", "kind": "kind", "layer": "layer"}
_PRINTS = {"encoder: weights": "fingerprint", "encoder: tokenizer": "tokenizer", "encoder: normalisation": "statistics"}


def origin(
    report: AnyReport, title: str, encoder: Mapping[str, str], prints: Mapping[str, str], *, same: str
) -> Section:
    """What a run was made of and with, and its settings other than the defaults.

    `encoder` and `prints` map names on the page to the keys of the encoder's record that are listed with the text and
    the fingerprints; `same` says what equal fingerprints mean to be equal.
    """
    default = configs.from_dict(type(report.config), {})
    changed = configs.differences(configs.to_dict(default), configs.to_dict(report.config))
    lists = {title: _text(report, encoder), "Parameters": _parameters(report), **_made_with(report, prints)}
    blocks: list[Block] = [
        Facts(title, values, wide=title == "Fingerprints") for title, values in lists.items() if values
    ]
    if changed:
        lines = [line.replace(" -> ", " → ") for line in changed]
        blocks.append(Settings("Settings other than the defaults: default → here", lines))
    return Section(
        "provenance",
        "Where it comes from",
        f"What it was made of and with. The same fingerprints (SHA-256) mean the same {same}.",
        blocks,
    )


def _text(report: AnyReport, encoder: Mapping[str, str]) -> dict[str, Any]:
    if report.features is None:
        return {}
    record = {**report.features["encoder"], "name": model_name(report.features["encoder"]["name"])}
    return {
        **{what: record[key] for what, key in encoder.items()},
        **{f"rows, {split}": f"{count:,}" for split, count in report.features["rows"].items()},
    }


def _parameters(report: AnyReport) -> dict[str, str]:
    return {part.replace("_", " "): f"{count:,}" for part, count in report.parameters.items()}


def _made_with(report: AnyReport, of_encoder: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    prints: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    if report.features is not None:
        prints = {
            "text": report.features["text"],
            "features": report.features["store"],
            **{what: report.features["encoder"][key] for what, key in of_encoder.items()},
        }
    if report.manifest is not None:
        versions = {name: version for name, version in report.manifest["versions"].items() if version is not None}
        prints |= {"checkpoint": report.manifest["checkpoint"]}
        prints |= {"commit of ldlm": versions.pop("commit")} if "commit" in versions else {}
    trained_with = report.manifest or report.status or {}
    if "attention" in trained_with:  # runs of earlier versions don't say
        versions["attention"] = trained_with["attention"]
    return {"Made with": versions, "Fingerprints": prints}
