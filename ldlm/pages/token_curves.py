"""Charts of a rival's training: losses, gradient, learning rate, and several runs. Made from `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ldlm.config import TokenTrainConfig
from ldlm.pages.chart import BLUE, ORANGE, PURPLE, Axis, Chart, Line, Rule
from ldlm.pages.curves import PROFILES, STEP, Course, Row, centres, evenly, held_out, of_kind, over_steps

NATS = Axis("nats per token", low=0)
RATE = Axis("learning rate", low=0, short=lambda value: f"{value:g}")


def losses(course: Course[TokenTrainConfig]) -> list[Chart]:
    """The loss over the steps, in training and on held-out rows, and held-out losses against time."""
    train, evaluations = (of_kind(course.metrics, kind) for kind in ("train", "eval"))
    bound = any("nelbo" in evaluation for evaluation in evaluations)
    end = course.config.curriculum_steps
    passed = end and any(line["step"] > end for line in course.metrics)
    lines = [
        over_steps(train, "training", "loss", BLUE, noisy=True),
        held_out(course.metrics, "held out, NELBO" if bound else "held out", "loss", ORANGE),
    ]
    over_time = [_over_time(one, faint=one is not evaluations[-1]) for one in evenly(evaluations, PROFILES)]
    note = "Faint: earlier in training." if len(over_time) > 1 else ""
    time = Axis(course.config.time, low=0, high=1)
    return [
        Chart("Loss", STEP, NATS, lines, rules=[Rule("end of the curriculum", end)] if passed else []),
        Chart("Loss against time", time, Axis("held-out loss, nats per token", low=0), over_time, note),
    ]


def _over_time(evaluation: Row, *, faint: bool) -> Line:
    """Held-out losses of an evaluation in equal bins of time."""
    losses = evaluation["loss_by_t"]
    return Line(f"at step {evaluation['step']:,}", ORANGE, centres(len(losses)), losses, dots=True, faint=faint)


def optimisation(course: Course[TokenTrainConfig]) -> list[Chart]:
    """The norm of the gradient and the learning rate over the steps."""
    train = of_kind(course.metrics, "train")
    gradient = over_steps(train, "gradient", "gradient_norm", PURPLE, noisy=True)
    return [
        Chart("Gradient", STEP, Axis("norm before clipping", low=0), [gradient]),
        Chart("Learning rate", STEP, RATE, [over_steps(train, "learning rate", "lr", BLUE)]),
    ]


def training(course: Course[TokenTrainConfig]) -> list[Chart]:
    """All of a training."""
    return [*losses(course), *optimisation(course)]


def timesteps(course: Course[TokenTrainConfig]) -> list[Chart]:
    """Held-out losses against time."""
    return losses(course)[1:]


def dynamics(runs: Mapping[str, Sequence[Row]], colors: Mapping[str, str]) -> list[Chart]:
    """Losses of one or more runs, by name. Held-out losses that are bounds have a chart of their own."""
    train = [
        over_steps(of_kind(metrics, "train"), name, "loss", colors[name], noisy=True) for name, metrics in runs.items()
    ]
    bounds, others = list[Line](), list[Line]()
    for name, metrics in runs.items():
        bound = any("nelbo" in evaluation for evaluation in of_kind(metrics, "eval"))
        (bounds if bound else others).append(held_out(metrics, name, "nelbo" if bound else "loss", colors[name]))
    return [
        Chart("Training loss", STEP, NATS, train),
        Chart("Held-out NELBO", STEP, NATS, bounds),
        Chart("Held-out loss, no bound", STEP, NATS, others),
    ]
