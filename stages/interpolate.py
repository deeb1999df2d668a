"""How smooth a latent space is: decode the way between latents of real texts (Section 6, Figures 3 and 4).

For random pairs of held-out texts, the points of a path from z_A to z_B are decoded without noise and scored at each a
(Figure 3 left), as is the mean of the two (Figure 4 right). Real text is the reference. Of two given texts the path is
returned to be read.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldlm import artifact, files, runtime
from ldlm.artifact import Artifact
from ldlm.config import EvaluateConfig, InterpolateConfig, decoder_noise
from ldlm.errors import InputError
from ldlm.evaluation import metrics
from ldlm.evaluation.boundaries import Boundaries
from ldlm.evaluation.measure import measure
from ldlm.evaluation.samples import Texts
from ldlm.evaluation.scorer import Scorer
from ldlm.evaluation.scores import SetScores
from ldlm.evaluation.smoothness import PATHS, LatentPath, edit_distance, linear
from ldlm.features import text
from ldlm.features.documents import check_whole
from ldlm.features.encoder import online_encoder
from ldlm.features.store import FeatureStore
from ldlm.location import Location
from ldlm.pages import plots
from ldlm.progress import SILENT, Progress
from ldlm.sampling.generation import LOGITS_AT_ONCE, Decoder
from ldlm.sampling.trained_run import TrainedRun
from ldlm.training import heldout

HALF = 0.5  # the a of the mean of two latents


def plan(config: InterpolateConfig, runs: int = 1, *, given: bool = False) -> dict[str, Any]:
    """How many texts it would decode and score: of pairs, or of two given texts."""
    if given:
        return {"texts_decoded": runs * config.points, "texts_scored": 0}
    decoded = config.points + (not _mean_is_on_path(config))
    return {"texts_decoded": runs * config.pairs * decoded, "texts_scored": runs * config.pairs * (decoded + 1)}


def run(
    config: InterpolateConfig,
    run_path: Path,
    features: Location,
    out: Path | None = None,
    *,
    allow_partial: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Artifact:
    """Write `interpolation.json`, `texts.jsonl`, `interpolation.png` and `mean.png` to `out`.

    That is the run's own `interpolation` where nothing else is said. The same call takes up an interrupted one at the
    point of the path where it stopped.
    """
    subject = _open(config, run_path, features, allow_partial)
    scorer = _scorer(config, subject.length, progress)
    return _measured(config, subject, scorer, out or run_path / "interpolation", progress, overwrite)


def compare(
    config: InterpolateConfig,
    runs: Sequence[tuple[Path, Location]],
    out: Path,
    *,
    allow_partial: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Artifact:
    """The same of several runs, each with its store, by one scorer: `out/NAME` of each, and the pictures of all.

    A run is named by as much of the end of its path as tells it apart. The same call takes up an interrupted one and
    keeps what is finished.
    """
    members = dict(zip(_names([path for path, _ in runs]), runs, strict=True))
    inputs: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for name, member in members.items():  # opened one by one, for many models together may not fit the device
        subject = _open(config, *member, allow_partial)
        inputs[name], lengths[name] = subject.inputs, subject.length
    _check_lengths(lengths)
    scorer = _scorer(config, max(lengths.values()), progress)
    reads = [place for member in runs for place in member if isinstance(place, Path)]
    result = artifact.begin(out, "comparison", config, inputs, overwrite=overwrite, reads=reads)
    if result.complete:
        progress.note(f"{out} is complete; nothing to do")
        return result
    found: dict[str, dict[str, Any]] = {}
    for name, member in members.items():
        progress.note(f"{len(found) + 1} of {len(members)}: {name}")
        made = _measured(config, _open(config, *member, allow_partial), scorer, out / name, progress)
        found[name] = files.read_json(made.path / "interpolation.json")
    _draw(out, found)
    return result.finish(runs=found)


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ, as names of folders."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"--run names a run twice ({', '.join(map(str, paths))}); give each once")


def _check_lengths(lengths: Mapping[str, int]) -> None:
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise InputError(
            f"the runs have rows of different length ({found}), on which perplexity depends; compare runs of one length"
        )


def between(
    config: InterpolateConfig, run_path: Path, texts: tuple[str, str], *, progress: Progress = SILENT
) -> dict[str, Any]:
    """The path from one given text to another as a JSON-ready record; nothing is written, and nothing scored.

    Each text becomes a row of the run's length (`text.row_of`: followed by itself where it is shorter, cut where it is
    longer, with a note) and is encoded by the encoder that the run records. Of each point: a, the decoded `row`, its
    `text` as far as the first EOS, and `edits`, the edit distance in tokens from the row before.
    """
    run = TrainedRun(run_path, runtime.device(config.device), config.checkpoint)
    run.remark_on_decoder(config.decoder, progress)
    decoder, tokenizer = run.decoder(config.decoder), run.tokenizer
    rows = [_given_row(run, tokenizer, *given, progress) for given in zip(("--from", "--to"), texts, strict=True)]
    if config.encoder is not None and run.model.embedding is not None:
        raise InputError(f"{run_path} was trained from scratch and has no encoder; leave --encoder out")
    try:
        ends = run.encode(torch.from_numpy(np.stack(rows)), config.encoder).split(1)
    except InputError as error:  # it can't be had, or is another one
        if config.encoder is not None:
            raise
        raise InputError(f"{error}; if it is elsewhere now, say where with --encoder DIR") from None
    a_P = _points(config)
    tokens_PL = np.concatenate([_decode_at(run, decoder, PATHS[config.path], ends, a, 1) for a in a_P])
    return {
        "run": str(run.path),
        "from": texts[0],
        "to": texts[1],
        "path": config.path,
        "points": [
            {"a": a, "text": text, "row": row, "edits": None if a == 0 else edits}
            for a, text, row, edits in zip(
                a_P,
                _first_documents(tokenizer, tokens_PL, config.clean_up),
                metrics.decode_tokens(tokenizer, tokens_PL, clean_up=config.clean_up),
                _edits(tokens_PL[:, None]).ravel().tolist(),
                strict=True,
            )
        ],
        "decoder": decoder.name,
        "checkpoint_step": run.checkpoint.step,
    }


def _given_row(run: TrainedRun, tokenizer: Any, flag: str, given: str, progress: Progress) -> np.ndarray:
    """The row of a text that the user has typed."""
    if not given.strip():
        raise InputError(f'{flag} is empty; give a text, for example {flag} "The sea was calm."')
    check_whole(given, flag)
    row, tokens = text.row_of(given, tokenizer, run.shapes.seq_len)
    room = run.shapes.seq_len - 2
    if tokens > room:
        progress.note(f"{flag} has {tokens:,} tokens and a row of {run.path} holds {room:,}; the rest is cut off")
    return row


def _first_documents(tokenizer: Any, tokens_PL: np.ndarray, clean_up: bool = False) -> list[str]:
    """What stands in each row between BOS and the first EOS."""
    bos, eos = text.special_tokens(tokenizer)
    documents = []
    for row in tokens_PL.tolist():
        inner = row[1:] if row[0] == bos else row
        documents.append(np.array(inner[: inner.index(eos)] if eos in inner else inner))
    return [metrics.decode_tokens(tokenizer, tokens_L[None], clean_up=clean_up)[0] for tokens_L in documents]


# ----------------------------------------------------------------------------------------------------------------------
# A run on the pairs of its store


@dataclass(frozen=True)
class Subject:
    """A run, its store and its decoder: whose latents are interpolated."""

    run: TrainedRun
    store: FeatureStore
    decoder: Decoder

    @property
    def length(self) -> int:
        """Tokens per row."""
        return self.run.shapes.seq_len

    @property
    def inputs(self) -> dict[str, Any]:
        """Fingerprints of what the result is made from."""
        checkpoint, features = self.run.checkpoint.digest, self.store.fingerprint
        return {"checkpoint": checkpoint, "features": features, "decoder": self.decoder.name}


def _open(config: InterpolateConfig, run_path: Path, features: Location, allow_partial: bool) -> Subject:
    run = TrainedRun(run_path, runtime.device(config.device), config.checkpoint)
    store = FeatureStore(features, allow_partial=allow_partial)
    run.check_store(store)
    draw_pairs(store.held_out().rows, config.pairs, config.seed)
    return Subject(run, store, run.decoder(config.decoder))


def _scorer(config: InterpolateConfig, length: int, progress: Progress) -> Scorer:
    scorer = Scorer(config.scorer, runtime.device(config.device))
    scorer.fitting(length, progress.note)
    return scorer


def _measured(
    config: InterpolateConfig,
    subject: Subject,
    scorer: Scorer,
    out: Path,
    progress: Progress,
    overwrite: bool = False,
) -> Artifact:
    """One run's artefact."""
    reads = [place for place in (subject.run.path, subject.store.path) if isinstance(place, Path)]
    result = artifact.begin(out, "interpolation", config, subject.inputs, overwrite=overwrite, reads=reads)
    if result.complete:
        progress.note(f"{out} is complete; nothing to do")
        return result
    subject.run.remark_on_decoder(config.decoder, progress)
    scored = _scored(config, subject, scorer, out / "scored", progress)
    summary = _summary(config, subject, scored)
    files.write_json(out / "interpolation.json", summary)
    files.write_atomic(out / "texts.jsonl", files.dump_jsonl(_lines(config, scored)))
    _draw(out, {subject.run.path.name: summary})
    shutil.rmtree(out / "scored")
    return result.finish(**summary)


def draw_pairs(rows: int, pairs: int, seed: int) -> np.ndarray:
    """Row numbers (2, pairs), no row twice; `InputError` when there are too few."""
    if rows < 2 * pairs:
        remedy = f"use at most {rows // 2}" if rows > 1 else "extract more text, or hold out more of it"
        raise InputError(f"--pairs {pairs} needs {2 * pairs} held-out rows, and the store has {rows}; {remedy}")
    return np.random.default_rng(seed).permutation(rows)[: 2 * pairs].reshape(2, pairs)


@dataclass(frozen=True)
class Scored:
    """A set of texts, their tokens (B, L) and their scores."""

    tokens: np.ndarray
    texts: list[str]
    scores: SetScores

    @property
    def figures(self) -> dict[str, Any]:
        """The JSON of the metrics with their intervals."""
        return self.scores.pick("gen_ppl", "entropy", "diversity", "diversity_texts", "intervals")


def _scored(
    config: InterpolateConfig, subject: Subject, scorer: Scorer, folder: Path, progress: Progress
) -> dict[float | str, Scored]:
    """Every point of the path by its a, `mean` of the two latents, and `real` text.

    Each is written to `folder` as soon as it is there, for scoring takes long: an interruption costs one.
    """
    run, max_tokens = subject.run, scorer.fitting(subject.length)
    evaluation = EvaluateConfig(scorer=config.scorer, boundaries=config.boundaries, batch_size=config.batch_size)
    *ends, real_BL = _latents(config, subject)

    def at(path: LatentPath, a: float) -> Callable[[], np.ndarray]:
        return lambda: _decode_at(run, subject.decoder, path, ends, a, config.batch_size)

    wanted: dict[float | str, Callable[[], np.ndarray]] = {a: at(PATHS[config.path], a) for a in _points(config)}
    if not _mean_is_on_path(config):
        wanted["mean"] = at(linear, HALF)
    wanted["real"] = lambda: real_BL

    found: dict[float | str, Scored] = {}
    tokenizer = run.tokenizer
    boundaries = Boundaries.of(tokenizer)
    with progress.task("interpolate", len(wanted), "set") as task:
        for name, tokens_of in wanted.items():
            record = folder / f"{name}.json"
            if not record.exists():
                tokens = tokens_of()
                decoded = metrics.decode_tokens(tokenizer, tokens, clean_up=config.clean_up)
                texts = Texts(decoded, tokens.tolist(), boundaries=boundaries, clean_up=config.clean_up)
                scores = measure(texts, scorer, evaluation, max_tokens)
                files.write_json(record, {"tokens": texts.tokens, "texts": texts.texts, "measured": scores.to_json()})
            kept = files.read_json(record)
            found[name] = Scored(np.array(kept["tokens"]), kept["texts"], SetScores(**kept["measured"]))
            task.advance(1)
    if _mean_is_on_path(config):
        found["mean"] = found[HALF]
    return found


def _latents(config: InterpolateConfig, subject: Subject) -> tuple[Tensor, Tensor, np.ndarray]:
    """z_A and z_B (pairs, N, C) on the CPU, and the tokens of the A rows: as many real texts as there are decoded ones.

    Diversity falls with the number of texts.
    """
    split = subject.store.held_out(online_encoder(subject.store))
    rows = draw_pairs(split.rows, config.pairs, config.seed).ravel()
    batches = np.split(rows, range(config.batch_size, len(rows), config.batch_size))
    encoded = [heldout.encode_rows(subject.run.model, split, batch, subject.run.device) for batch in batches]
    z_A_BNC, z_B_BNC = torch.cat([z_BNC.cpu() for z_BNC, _ in encoded]).chunk(2)
    return z_A_BNC, z_B_BNC, np.concatenate([tokens_BL for _, tokens_BL in encoded])[: config.pairs]


def _decode_at(
    run: TrainedRun, decoder: Decoder, path: LatentPath, ends: Sequence[Tensor], a: float, batch_size: int
) -> np.ndarray:
    """Tokens (B, L) of the point a of the path between latents (B, N, C) and (B, N, C)."""
    pieces = zip(*(z_BNC.split(batch_size) for z_BNC in ends), strict=True)
    return np.concatenate([decode(run, decoder, path(z_A, z_B, a), batch_size) for z_A, z_B in pieces])


@torch.no_grad()
def decode(run: TrainedRun, decoder: Decoder, z_BNC: Tensor, batch_size: int) -> np.ndarray:
    """Most likely tokens (B, L) of latents, without noise."""
    size = min(batch_size, max(1, LOGITS_AT_ONCE // (run.shapes.seq_len * run.shapes.vocab_size)))
    return np.concatenate([decoder.logits(z.to(run.device)).argmax(-1).cpu().numpy() for z in z_BNC.split(size)])


def _points(config: InterpolateConfig) -> list[float]:
    """The values of a. ½ is exactly one of them where their number is odd."""
    return [number / (config.points - 1) for number in range(config.points)]


def _mean_is_on_path(config: InterpolateConfig) -> bool:
    return config.path == "linear" and HALF in _points(config)


def _edits(rows_PBL: np.ndarray) -> np.ndarray:
    """Edit distance (P, B) of every row from that of the same pair at the point before; 0 at the first point."""
    return np.stack([edit_distance(rows_PBL[max(0, i - 1)], rows_PBL[i]) for i in range(len(rows_PBL))])


# ----------------------------------------------------------------------------------------------------------------------
# Results


_SHARED = (
    "bootstrap", "protocol", "boundaries", "boundary_tokens", "clean_up", "scorer", "scorer_revision", "dtype",
    "max_tokens",
)  # fmt: skip


def _summary(config: InterpolateConfig, subject: Subject, scored: Mapping[float | str, Scored]) -> dict[str, Any]:
    rows_PBL = np.stack([scored[a].tokens for a in _points(config)])
    real = scored["real"].scores
    noise = decoder_noise(subject.run.config.model.space, subject.run.config.recipe)
    points = [{"a": a, **scored[a].figures, "edits": None} for a in _points(config)]
    edits_PB = _edits(rows_PBL)
    resampling = {key: real.bootstrap[key] for key in ("resamples", "seed")}
    for point, edits_B in zip(points[1:], edits_PB[1:], strict=True):
        point["edits"] = float(edits_B.mean())
        point["intervals"]["edits"] = metrics.bootstrap(partial(_mean, edits_B), config.pairs, **resampling)
    return {
        "run": subject.run.path.name,
        "pairs": config.pairs,
        "path": config.path,
        "points": points,
        "mean": scored["mean"].figures,
        "real": scored["real"].figures,
        # a path of texts that wanders is longer than the straight way between its ends
        "edits": {
            "path": float(edits_PB.sum(axis=0).mean()),
            "ends": float(edit_distance(rows_PBL[0], rows_PBL[-1]).mean()),
        },
        **real.pick(*_SHARED),
        "decoder": subject.decoder.name,
        "checkpoint_step": subject.run.checkpoint.step,
        "sigma_dec": noise.size if noise.kind == "additive" else None,
        "seed": config.seed,
    }


def _lines(config: InterpolateConfig, scored: Mapping[float | str, Scored]) -> list[dict[str, Any]]:
    """The texts, pair by pair along the path."""
    return [
        {"pair": pair, "a": a, "text": scored[a].texts[pair]} for pair in range(config.pairs) for a in _points(config)
    ]


def _mean(values: np.ndarray, chosen: np.ndarray) -> float:
    return float(values[chosen].mean())


def _draw(out: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    plots.interpolation(out / "interpolation.png", found)
    plots.mean_of_two(out / "mean.png", found)
