"""The shuffle window: what a larger one gains, at the size of a full store and on real text.

Rows are shuffled in blocks of 16 neighbours from all over the text, within a window of blocks. Neighbours: how many
other rows of a row's block are in its batch, from the order alone, for as many rows as a store of OpenWebText might
have. Gradient noise: the variance over batches of the gradient of LDLM's loss, summed over all parameters, at fixed
weights, relative to batches of fully shuffled rows. Windows hold as many batches as at full size. Noise and times are
those of training, or the same for every batch, so that the variance comes from the rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.packing import prose, prose_name
from ldlm import config as configs
from ldlm.cli import show
from ldlm.config import ExtractConfig, PretrainConfig, TrainConfig
from ldlm.features.batch import Batch
from ldlm.features.store import FeatureStore, Split
from ldlm.features.stream import BLOCK_ROWS, RowOrder
from ldlm.stages import extract_features, pretrain_encoder
from ldlm.training.joint import TrainState, start, train_step

FULL_ROWS, FULL_BATCH = 1_000_000, 512
WINDOWS = {"before": 512, "now, L = 1,024": 2_048, "now, L = 128": 10_880}  # in fp16, 768 wide, batches of 512
CHARACTERS, EVERY, EXCERPT, SEQ_LEN = 700_000, 30, 2**16, 32  # excerpts from all over the text
BATCH, BATCHES, STEPS = 128, 32, 30
KINDS = ("own noise", "same noise")

Rows = Callable[[int], np.ndarray]  # number of a batch → its rows


def run(folder: Path) -> dict[str, Any]:
    """Measure everything; a store is made below `folder`."""
    return {
        "text": prose_name(),
        "rows": FULL_ROWS,
        "batch_size": FULL_BATCH,
        "neighbours": {
            **{name: neighbours(_windowed(FULL_ROWS, window, FULL_BATCH)) for name, window in WINDOWS.items()},
            "fully shuffled": neighbours(_shuffled(FULL_ROWS, FULL_BATCH)),
        },
        "gradient": gradient_noise(_store(folder)),
    }


def _windowed(rows: int, window: int, size: int) -> Rows:
    order = RowOrder(rows, 0, window)
    return lambda number: order.rows_at(number * size, size)


def _shuffled(rows: int, size: int) -> Rows:
    order = np.random.default_rng(0).permutation(rows)
    return lambda number: order[np.arange(number * size, (number + 1) * size) % rows]


def neighbours(batch: Rows, batches: int = 20) -> dict[str, float]:
    """Means over batches: other rows of a row's block in its batch, and blocks from which a batch has rows."""
    counts = [np.unique(batch(number) // BLOCK_ROWS, return_counts=True)[1] for number in range(batches)]
    others = [(count * (count - 1)).sum() / count.sum() for count in counts]
    return {"neighbours": float(np.mean(others)), "blocks": float(np.mean([len(count) for count in counts]))}


def _store(folder: Path) -> FeatureStore:
    """A store of real text, from a small encoder trained on it for a few steps."""
    text, whole = folder / "text.txt", prose(CHARACTERS * EVERY)
    text.write_text("\n".join(whole[at : at + EXCERPT] for at in range(0, len(whole), EXCERPT * EVERY)))
    common: dict[str, Any] = {"data": (str(text),), "device": "cpu"}
    sizes: dict[str, Any] = {"vocab_size": 512, "layers": 4, "width": 32, "heads": 2, "positions": 64}
    encoder = pretrain_encoder.run(PretrainConfig(**common, **sizes, steps=20, batch_size=8), folder / "encoder").path
    made = ExtractConfig(**common, encoder=str(encoder), seq_len=SEQ_LEN)
    return FeatureStore(extract_features.run(made, folder / "features").path)


def gradient_noise(store: FeatureStore) -> dict[str, Any]:
    """Variance of a batch's gradient by order, with each batch's own noise and with the same noise for all batches."""
    split = store.split("train")
    tiny = configs.from_dict(TrainConfig, configs.PRESETS["tiny"].overrides)
    state = start(tiny, store.shapes, scratch=False, device=torch.device("cpu"))
    shuffled = _shuffled(split.rows, BATCH)
    for number in range(STEPS):
        train_step(state, _batch(split, shuffled(split.rows // BATCH - 1 - number), number))
    orders = {name: _windowed(split.rows, window * BATCH // FULL_BATCH, BATCH) for name, window in WINDOWS.items()}
    orders["fully shuffled"] = shuffled
    found: dict[str, Any] = {"rows": split.rows, "batch_size": BATCH, "batches": BATCHES}
    for kind in KINDS:
        variances = {}
        for name, order in orders.items():
            steps = range(BATCHES) if kind == "own noise" else [0] * BATCHES
            variances[name] = _variance(
                _gradient(state, _batch(split, order(number), number), step) for number, step in enumerate(steps)
            )
        found[kind] = {name: variance / variances["fully shuffled"] for name, variance in variances.items()}
    return found


def _batch(split: Split, rows: np.ndarray, number: int) -> Batch:
    parts, tokens = split.read_rows(rows)
    tokens_BL = torch.from_numpy(tokens).long()
    return Batch(split.states(parts, tokens_BL), tokens_BL, torch.arange(len(rows)), number * len(rows))


def _gradient(state: TrainState, batch: Batch, step: int) -> Tensor:
    """The gradient of a batch's loss with the noise and times of a step, as one vector."""
    state.model.zero_grad()
    draws = state.objective.draw(state.timesteps, seed=0, step=step, rows_B=batch.index_B, device=state.device)
    state.objective(batch.hidden_BLD, batch.tokens_BL, draws, 1.0).loss.backward()
    found = [weight.grad.flatten() for weight in state.model.parameters() if weight.grad is not None]
    return torch.cat(found).double()


def _variance(vectors: Iterable[Tensor]) -> float:
    """The variance of vectors, summed over their coordinates."""
    count, total, squares = 0, torch.zeros(()).double(), 0.0
    for vector in vectors:
        count, total, squares = count + 1, total + vector, squares + float(vector.square().sum())
    return (squares - float(total.square().sum()) / count) / (count - 1)


def report(figures: dict[str, Any]) -> str:
    """The figures as text."""
    near, gradient = figures["neighbours"], figures["gradient"]
    rows = [
        (name, f"{found['neighbours']:.2f}", round(found["blocks"]), *(f"{gradient[kind][name]:.2f}" for kind in KINDS))
        for name, found in near.items()
    ]
    return "\n".join(
        [
            f"shuffle windows: of a batch of {figures['batch_size']} of {figures['rows']:,} rows, the other rows of a "
            f"row's block of {BLOCK_ROWS} and",
            "the blocks it has rows of; and the variance of a batch's gradient, of that with fully shuffled rows",
            f"({gradient['batches']} batches of {gradient['batch_size']} of {gradient['rows']:,} rows of "
            f"{figures['text']}, windows of as many batches)",
            "",
            show.table(("window", "neighbours", "blocks", "gradient variance", "with the same noise"), rows),
        ]
    )
