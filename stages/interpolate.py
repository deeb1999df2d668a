"""How smooth a latent space is: decode the way between latents of real texts (Section 6, Figures 3 and 4).

For random pairs of held-out texts, z = (1−a)·z_A + a·z_B is decoded without noise and scored at each a. Perplexity at
a = ½ is that of the mean of two latents. Real text is the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ldlm.stages.evaluate import measure
from torch import Tensor

from ldlm import artifact, files, heldout, metrics, plots, runtime
from ldlm.artifact import Artifact
from ldlm.config import EvaluateConfig, InterpolateConfig
from ldlm.errors import InputError
from ldlm.generation import Decoder
from ldlm.location import Location
from ldlm.metrics import Scorer
from ldlm.progress import SILENT, Progress
from ldlm.run import TrainedRun
from ldlm.samples import Texts
from ldlm.store import FeatureStore


def plan(config: InterpolateConfig) -> dict[str, Any]:
    """How many texts it would decode and score."""
    return {"texts_decoded": config.pairs * config.points, "texts_scored": config.pairs * (config.points + 2)}


def run(
    config: InterpolateConfig,
    run_path: Path,
    features: Location,
    out: Path,
    *,
    allow_partial: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Artifact:
    """Write `interpolation.json`, `texts.jsonl` and `interpolation.png` to `out`."""
    device = runtime.device(config.device)
    run, store = TrainedRun(run_path, device, config.checkpoint), FeatureStore(features, allow_partial=allow_partial)
    run.check_store(store)
    decoder = run.decoder(config.decoder)
    scorer = Scorer(config.scorer, device)
    length = run.shapes.seq_len
    scorer.check_length(length)
    pairs = draw_pairs(store.held_out().rows, config.pairs, config.seed)
    inputs = {"checkpoint": run.checkpoint.digest, "features": store.fingerprint, "decoder": decoder.name}
    result = artifact.begin(out, "interpolation", config, inputs, overwrite=overwrite)
    if result.complete:
        progress.note(f"{out} is complete; nothing to do")
        return result

    z_BNC, tokens_BL = _latents(run, store, pairs)
    evaluation = EvaluateConfig(scorer=config.scorer, batch_size=config.batch_size)
    points, lines = [], []
    with progress.task("interpolate", config.points, "point") as task:
        for a in np.linspace(0, 1, config.points).tolist():
            tokens = decode(
                run, decoder, (1 - a) * z_BNC[: config.pairs] + a * z_BNC[config.pairs :], config.batch_size
            )
            texts = Texts(metrics.decode_tokens(run.tokenizer, tokens), tokens.tolist())
            points.append({"a": a, **_figures(measure(texts, scorer, evaluation, length))})
            lines += [{"pair": pair, "a": a, "text": text} for pair, text in enumerate(texts.texts)]
            task.advance(1)

    real = Texts(metrics.decode_tokens(run.tokenizer, tokens_BL), tokens_BL.tolist())
    measured = measure(real, scorer, evaluation, length)
    summary = {
        "pairs": config.pairs,
        "points": points,
        "real": _figures(measured),
        **{key: measured[key] for key in ("protocol", "scorer", "max_tokens")},
        "decoder": decoder.name,
        "checkpoint_step": run.checkpoint.step,
        "seed": config.seed,
    }
    files.write_json(out / "interpolation.json", summary)
    files.write_atomic(out / "texts.jsonl", files.dump_jsonl(sorted(lines, key=lambda line: line["pair"])))
    plots.interpolation(out / "interpolation.png", summary)
    return result.finish(**summary)


def draw_pairs(rows: int, pairs: int, seed: int) -> np.ndarray:
    """Row numbers (2, pairs), no row twice; `InputError` when there are too few."""
    if rows < 2 * pairs:
        raise InputError(
            f"--pairs {pairs} needs {2 * pairs} held-out rows, and the store has {rows}; use at most {rows // 2}"
        )
    return np.random.default_rng(seed).permutation(rows)[: 2 * pairs].reshape(2, pairs)


def _latents(run: TrainedRun, store: FeatureStore, pairs: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """z_0 of all A rows, then all B rows, and their tokens."""
    return heldout.encode_rows(run.model, store.held_out(), pairs.ravel(), run.device)


@torch.no_grad()
def decode(run: TrainedRun, decoder: Decoder, z_BNC: Tensor, batch_size: int) -> np.ndarray:
    """Most likely tokens (B, L) of latents, without noise."""
    return np.concatenate([decoder.logits(z).argmax(-1).cpu().numpy() for z in z_BNC.split(batch_size)])


def _figures(measured: dict[str, Any]) -> dict[str, float]:
    return {name: measured[name] for name in ("gen_ppl", "entropy", "diversity")}
