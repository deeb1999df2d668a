"""Charts of LDLM's training, from `metrics.jsonl`: losses, timesteps, latents, speed, and several runs side by side.

Those of the rivals are in `token_curves`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from ldlm.config import AnyTrainConfig
from ldlm.pages.chart import BLUE, GREEN, GREY, ORANGE, PURPLE, Axis, Chart, Line, percent

PROFILES = 6  # densities of t over the course of training

Row = Mapping[str, Any]
Config_co = TypeVar("Config_co", bound=AnyTrainConfig, covariant=True)

STEP = Axis("step", low=0, number=lambda step: f"{step:,.0f}")
SQUARED = Axis("mean squared error, log scale", log=True)
SHARE = Axis("share", low=0, number=percent, short=percent)


@dataclass(frozen=True)
class Course(Generic[Config_co]):
    """The measurements taken during a training, and its settings."""

    config: Config_co
    metrics: Sequence[Row]


def of_kind(metrics: Sequence[Row], kind: str) -> list[Row]:
    """The lines of the metrics of that kind: `train` or `eval`."""
    return [line for line in metrics if line["kind"] == kind]


def losses(metrics: Sequence[Row]) -> list[Chart]:
    """The three losses and the share of tokens rebuilt, in training and on held-out rows."""
    tokens = Axis("share of tokens", low=0, number=percent, short=percent)
    baseline = held_out(metrics, "predicting the mean", "l_diff_mean", GREY)
    clean = held_out(metrics, "held out, no noise", "token_accuracy_clean", GREEN)
    return [
        _loss("Denoising, L_diff", SQUARED, metrics, "l_diff", baseline),
        _loss("Hidden states, L_h", SQUARED, metrics, "l_h"),
        _loss("Tokens, L_w", Axis("cross-entropy, nats per token", low=0), metrics, "l_w"),
        _loss("Tokens rebuilt", tokens, metrics, "token_accuracy", clean),
    ]


def _loss(title: str, y: Axis, metrics: Sequence[Row], key: str, *more: Line) -> Chart:
    training = over_steps(of_kind(metrics, "train"), "training", key, BLUE, noisy=True)
    lines = [training, held_out(metrics, "held out", key, ORANGE), *more]
    # A loss that is 0 throughout does not exist: the hidden states are the latents, or the decoder is not trained.
    return Chart(title, STEP, y, [line for line in lines if any(line.y)])


def held_out(metrics: Sequence[Row], name: str, key: str, color: str) -> Line:
    """A figure of the held-out evaluations over the steps."""
    return over_steps(of_kind(metrics, "eval"), name, key, color, dots=True, dashed=color == GREY)


def over_steps(lines: Sequence[Row], name: str, key: str, color: str, **how: Any) -> Line:
    """A figure over the steps, from the lines of the metrics that have it."""
    there = [line for line in lines if key in line]
    return Line(name, color, [line["step"] for line in there], [line[key] for line in there], **how)


def timesteps(metrics: Sequence[Row]) -> list[Chart]:
    """Held-out L_diff against t and against F(t) (Figure 6), and the density of t over the course of training."""
    evaluations = of_kind(metrics, "eval")
    if not evaluations:
        return []
    newest = evaluations[-1]
    profiles = [
        Line(name, color, centres(len(newest[key])), newest[key], dots=True)
        for name, key, color in (("time t", "l_diff_by_t", ORANGE), ("adapted time F(t)", "l_diff_by_u", BLUE))
        if key in newest
    ]
    chosen = evenly(evaluations, PROFILES)
    densities = [_density(evaluation, faint=evaluation is not newest) for evaluation in chosen]
    note = "Faint: earlier in training." if len(densities) > 1 else ""
    drawn = [Line("uniform", GREY, [0, 1], [1, 1], dashed=True), *densities]
    return [
        Chart("Loss against time", Axis("time", low=0, high=1), Axis("held-out L_diff", low=0), profiles),
        Chart("Times that are drawn", Axis("t", low=0, high=1), Axis("density of t", low=0), drawn, note),
    ]


def evenly(values: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the values, evenly spread from the first to the last."""
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int))]


def centres(bins: int) -> list[float]:
    """Centres of equal bins of [0, 1]."""
    return [(index + 0.5) / bins for index in range(bins)]


def _density(evaluation: Row, *, faint: bool) -> Line:
    """The density of t at an evaluation, constant in equal bins of t."""
    p = np.array(evaluation["timestep_p"]) * len(evaluation["timestep_p"])
    edges = np.linspace(0, 1, len(p) + 1).round(9).tolist()
    return Line(f"at step {evaluation['step']:,}", BLUE, edges, [*p.tolist(), float(p[-1])], faint=faint, steps=True)


def latents(metrics: Sequence[Row]) -> list[Chart]:
    """The standard deviation of the latents and γ(s), the share of L_diff's gradient that reaches E_z."""
    train = of_kind(metrics, "train")
    ends = [line["latent_std_least"] for line in train], [line["latent_std_most"] for line in train]
    std = [
        over_steps(train, "training", "latent_std", BLUE, band=ends),
        held_out(metrics, "held out", "latent_std", ORANGE),
    ]
    note = "The region reaches from the least to the most spread channel."
    spread = Axis("standard deviation of a coordinate", low=0)
    gamma = over_steps(train, "γ", "gamma", PURPLE)
    return [
        Chart("Spread of the latents", STEP, spread, std, note),
        Chart("Warm-up", STEP, Axis("γ, share of the gradient", low=0, high=1.05), [gamma]),
    ]


def training(metrics: Sequence[Row]) -> list[Chart]:
    """Losses, timesteps and latents."""
    return [*losses(metrics), *timesteps(metrics), *latents(metrics)]


def speed(metrics: Sequence[Row]) -> list[Chart]:
    """Tokens per second, and the shares of the time spent waiting for data and of the machine's FLOP/s used."""
    timed = [line for line in of_kind(metrics, "train") if "timing" in line]
    lines = [{"step": line["step"], **line["timing"]} for line in timed]
    shares = [
        over_steps(lines, "waiting for data", "data_wait", ORANGE, noisy=True),
        over_steps(lines, "FLOPs utilisation", "flops_utilisation", BLUE, noisy=True),
    ]
    shares = [line for line in shares if any(value is not None for value in line.y)]
    tokens = over_steps(lines, "speed", "tokens_per_second", BLUE, noisy=True)
    return [
        Chart("Tokens per second", STEP, Axis("tokens/s", low=0), [tokens]),
        Chart("Use of the machine", STEP, SHARE, shares),
    ]


def dynamics(runs: Mapping[str, Sequence[Row]], colors: Mapping[str, str]) -> list[Chart]:
    """Losses (Figure 3, middle and right), warm-up (Figure 5) and latents of one run or several, by name."""
    charts = []
    for title, y, key in (
        ("Diffusion loss (Fig. 3, middle)", Axis("L_diff, log scale", log=True), "l_diff"),
        ("Decoder loss (Fig. 3, right)", Axis("L_w, nats per token", low=0), "l_w"),
        ("Warm-up (Fig. 5)", Axis("γ(s)", low=0, high=1.05), "gamma"),
        ("Latents", Axis("standard deviation of a coordinate", low=0), "latent_std"),
    ):
        lines = [
            over_steps(of_kind(metrics, "train"), name, key, colors[name], noisy=key != "gamma")
            for name, metrics in runs.items()
        ]
        charts.append(Chart(title, STEP, y, lines))
    return charts
