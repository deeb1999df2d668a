"""The figures of a row, read from the files that its jobs have left in the output folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldlm import config as configs
from ldlm import files
from ldlm.artifact import recorded_config
from ldlm.paper.plan import RowPlan

EARLY = (0.1, 0.2)  # share of the steps between which the diffusion loss counts as early
MILLION_STEPS, DAY = 1_000_000, 86_400
PATHS = {
    "middle_ppl": ("middle", "gen_ppl"),
    "middle_entropy": ("middle", "entropy"),
    "mean_ppl": ("mean", "gen_ppl"),
    "mean_entropy": ("mean", "entropy"),
}
BySet = list[float | None]


def of_row(folder: Path, planned: RowPlan, columns: Sequence[str]) -> dict[tuple[str, int | None], BySet]:
    """BySet of the columns by quantity and evaluations, one per sampling seed if there are several."""
    found: dict[tuple[str, int | None], BySet] = {}
    for quantity in columns:
        for budget, values in SOURCES[quantity](folder, planned, quantity).items():
            if values:
                found[quantity, budget] = values
    return found


def _scores(folder: Path, planned: RowPlan, quantity: str) -> dict[int | None, BySet]:
    """A score of each set of texts."""
    found: dict[int | None, BySet] = {}
    for budget, place in planned.scores.items():
        if (folder / place).exists():
            record = files.read_json(folder / place)
            found[budget] = [one.get(quantity) for one in record.get("files", [record])]
            if all(value is None for value in found[budget]):
                del found[budget]
    return found


def _path(folder: Path, planned: RowPlan, quantity: str) -> dict[int | None, BySet]:
    """Perplexity or entropy in the middle of the paths between latents, or of the mean of two latents."""
    record = None if planned.paths is None else folder / planned.paths / "interpolation.json"
    if record is None or not record.exists():
        return {}
    found = files.read_json(record)
    place, score = PATHS[quantity]
    return {None: [(_middle(found) if place == "middle" else found["mean"]).get(score)]}


def _middle(found: Mapping[str, Any]) -> Mapping[str, Any]:
    points: Sequence[Mapping[str, Any]] = found["points"]
    return min(points, key=lambda point: abs(point["a"] - 0.5))


def _held_out(folder: Path, planned: RowPlan, quantity: str) -> dict[int | None, BySet]:
    """A figure of the finished run on held-out rows."""
    manifest = _manifest(folder, planned)
    return {} if manifest is None else {None: [manifest["held_out"].get(quantity)]}


def _manifest(folder: Path, planned: RowPlan) -> dict[str, Any] | None:
    path = None if planned.run is None else folder / planned.run / "manifest.json"
    return None if path is None or not path.exists() else files.read_digested(path, "train it again")


def _early(folder: Path, planned: RowPlan, quantity: str) -> dict[int | None, BySet]:
    """The mean diffusion loss of the training between a tenth and a fifth of its steps."""
    manifest = _manifest(folder, planned)
    if manifest is None:
        return {}
    low, high = (share * manifest["step"] for share in EARLY)
    lines = [line for line in metrics(folder, planned) if line["kind"] == "train" and low <= line["step"] <= high]
    return {None: [float(np.mean([line["l_diff"] for line in lines])) if lines else None]}


def metrics(folder: Path, planned: RowPlan) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`."""
    return list(files.read_jsonl(folder / str(planned.run) / "metrics.jsonl"))


def profile(folder: Path, planned: RowPlan) -> list[float | None] | None:
    """Held-out diffusion loss in equal bins of the time in which the run trains: t, or F(t) if that is adapted."""
    manifest = _manifest(folder, planned)
    if manifest is None:
        return None
    found: list[float | None] = manifest["held_out"]["l_diff_by_t" if is_uniform(folder, planned) else "l_diff_by_u"]
    return found


def is_uniform(folder: Path, planned: RowPlan) -> bool:
    """Whether a run draws its times uniformly, by its recorded settings."""
    return bool(recorded_config(folder / str(planned.run))["timesteps"]["kind"] == "uniform")


def _bend(folder: Path, planned: RowPlan, quantity: str) -> dict[int | None, BySet]:
    """The share of the profile's variance that a straight line leaves unexplained: 0 if the loss grows linearly."""
    found = profile(folder, planned)
    return {} if found is None else {None: [bend(found)]}


def bend(loss: Sequence[float | None]) -> float | None:
    """1 − R² of the best straight line through equally spaced values; None for fewer than three."""
    places = [index for index, value in enumerate(loss) if value is not None]
    values = [value for value in loss if value is not None]
    if len(values) < 3:
        return None
    left = np.array(values) - np.polyval(np.polyfit(places, values, 1), places)
    variance = float(np.var(values))
    return float(np.var(left)) / variance if variance > 0 else 0.0


def _days(folder: Path, planned: RowPlan, quantity: str) -> dict[int | None, BySet]:
    """Days that a million steps take at the median speed of the training."""
    if _manifest(folder, planned) is None:
        return {}
    speeds = [line["timing"]["rows_per_second"] for line in metrics(folder, planned) if "timing" in line]
    rows = recorded_config(folder / str(planned.run))["batch_size"]
    return {None: [MILLION_STEPS * rows / float(np.median(speeds)) / DAY]} if speeds else {}


def _seconds(folder: Path, planned: RowPlan, quantity: str) -> dict[int | None, BySet]:
    """Seconds that drawing a set of texts took; none if it was interrupted and resumed."""
    found: dict[int | None, BySet] = {}
    for budget, place in planned.drawn.items():
        if (folder / place).exists():
            record = files.read_json(folder / place)
            if record.get("texts_made") == record["config"]["num_samples"]:
                found[budget] = [record["seconds"]]
    return found


def seconds_per_text(folder: Path, planned: RowPlan) -> dict[int | None, float]:
    """Seconds per text, by budget."""
    found = {}
    for budget, values in _seconds(folder, planned, "sample_seconds").items():
        texts = files.read_json(folder / planned.drawn[budget])["config"]["num_samples"]
        found[budget] = float(values[0] or math.nan) / texts
    return found


def _gamma(folder: Path, planned: RowPlan, quantity: str) -> dict[int | None, BySet]:
    """γ of the row's recipe (Eq. 30): halfway through the warm-up, at its midpoint c, or at its end."""
    from ldlm.model.objective import warmup_gamma

    config = configs.from_dict(configs.TrainConfig, configs.preset(planned.row.preset).overrides)
    share = {"gamma_half": 0.5, "gamma_at_c": config.recipe.warmup_c, "gamma_end": 1.0}[quantity]
    return {None: [warmup_gamma(round(share * config.recipe.warmup_steps), config.recipe)]}


SOURCES: dict[str, Callable[[Path, RowPlan, str], Mapping[int | None, BySet]]] = {
    **dict.fromkeys(("gen_ppl", "mauve", "diversity", "entropy"), _scores),
    **dict.fromkeys(PATHS, _path),
    **dict.fromkeys(("l_diff", "l_h", "l_w", "token_accuracy", "latent_std"), _held_out),
    **dict.fromkeys(("gamma_half", "gamma_at_c", "gamma_end"), _gamma),
    "early_l_diff": _early,
    "bend": _bend,
    "train_days": _days,
    "sample_seconds": _seconds,
}
