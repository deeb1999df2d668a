"""Smoothness of a latent space: decode the path between latents of real texts and score it (Section 6, Figures 3, 4).

For random pairs of held-out texts, the points of a path from z_A to z_B are decoded without noise and scored at each a
(Figure 3 left), as is the mean of the two (Figure 4 right). Real text is the reference. The path between two texts that
the user gives is returned to be read, and not scored.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldlm import artifact, files, runtime
from ldlm.artifact import Artifact
from ldlm.completion import is_complete
from ldlm.config import EvaluateConfig, InterpolateConfig, decoder_noise
from ldlm.errors import InputError
from ldlm.evaluation import metrics, smoothness
from ldlm.evaluation.boundaries import Boundaries
from ldlm.evaluation.measure import measure
from ldlm.evaluation.samples import Texts
from ldlm.evaluation.scorer import Scorer
from ldlm.evaluation.scores import SetScores
from ldlm.evaluation.smoothness import HALF, PATHS, LatentPath, draw_pairs, edit_distance, edits_along, linear
from ldlm.features import text
from ldlm.features.documents import check_whole
from ldlm.features.encoder import check_online, online_encoder
from ldlm.features.store import FeatureStore
from ldlm.location import Location, folder_name, folder_names, local
from ldlm.pages import drawing, results
from ldlm.progress import SILENT, Progress
from ldlm.sampling.generation import Decoder
from ldlm.sampling.trained_run import TrainedRun
from ldlm.training import heldout


def plan(config: InterpolateConfig, runs: int = 1, *, given: bool = False) -> dict[str, Any]:
    """Numbers of texts to decode and to score, for pairs of held-out texts or, if `given`, for one given pair."""
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
    """Write `interpolation.json`, `texts.jsonl`, `interpolation.png` and `mean.png` to `out`, by default in the run.

    The same call resumes an interrupted one at the point of the path where it stopped.
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
    """Interpolate in several runs, each with its store, and score with one scorer: `out/NAME` each, and plots of all.

    A run is named by the shortest end of its path that is unique. The same call resumes an interrupted one and keeps
    the finished runs.
    """
    members = dict(zip(folder_names([path for path, _ in runs]), runs, strict=True))
    subjects: dict[str, dict[str, Any]] = {}
    lengths: dict[str, int] = {}
    for name, member in members.items():  # opened one by one, since all models together may not fit the device
        ahead = overwrite or not is_complete(out / name)
        subjects[name], lengths[name] = _looked_at(config, member, allow_partial, ahead)
    _check_lengths(lengths)
    scorer = _scorer(config, max(lengths.values()), progress)
    inputs = {name: _inputs(subject, scorer) for name, subject in subjects.items()}
    reads = local(*(place for member in runs for place in member), config.scorer)
    with artifact.working(out, "comparison", config, inputs, overwrite=overwrite, reads=reads) as result:
        if result.complete:
            progress.note(f"{out} is complete; nothing to do")
            return result
        for name, own in inputs.items():  # what is refused is found before hours of measuring the others
            artifact.check(out / name, "interpolation", config, own)
        found: dict[str, dict[str, Any]] = {}
        for name, member in members.items():
            progress.note(f"{len(found) + 1} of {len(members)}: {name}")
            made = _measured(config, _open(config, *member, allow_partial), scorer, out / name, progress)
            found[name] = files.read_json(made.path / "interpolation.json")
        _draw(out, found)
        return result.finish(runs=found)


def _looked_at(
    config: InterpolateConfig, member: tuple[Path, Location], allow_partial: bool, ahead: bool
) -> tuple[dict[str, Any], int]:
    """The inputs of a run with its store, and the tokens per row; the model leaves the device on return.

    `InputError` as of `check_online` if the run is still to be measured (`ahead`).
    """
    subject = _open(config, *member, allow_partial)
    if ahead:
        check_online(subject.store)
    return subject.inputs, subject.length


def _check_lengths(lengths: Mapping[str, int]) -> None:
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise InputError(
            f"the runs have rows of different length ({found}), on which perplexity depends; compare runs of one length"
        )


def between(
    config: InterpolateConfig, run_path: Path, texts: tuple[str, str], *, progress: Progress = SILENT
) -> dict[str, Any]:
    """The path from one given text to another as a JSON record; nothing is written, and nothing scored.

    Each text becomes a row of the run's length (`text.row_of`: repeated where it is shorter, cut with a note where it
    is longer) and is encoded by the encoder that the run records. A point has its a, the decoded `row`, its `text` up
    to the first EOS, and `edits`, the edit distance in tokens from the row before.
    """
    run = TrainedRun(run_path, runtime.device(config.device), config.checkpoint)
    run.remark_on_end(progress)
    run.remark_on_decoder(config.decoder, progress)
    decoder, tokenizer = run.decoder(config.decoder), run.tokenizer
    rows = [_given_row(run, tokenizer, *given, progress) for given in zip(("--from", "--to"), texts, strict=True)]
    if config.encoder is not None and run.model.embedding is not None:
        raise InputError(f"{run_path} was trained from scratch and has no encoder; leave --encoder out")
    try:
        ends = run.encode(torch.from_numpy(np.stack(rows)), config.encoder).split(1)
    except InputError as error:  # the encoder can't be loaded, or is a different one
        if config.encoder is not None:
            raise
        raise InputError(f"{error}; if it has moved, say where with --encoder DIR") from None
    a_P = smoothness.points(config.points)
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
                edits_along(tokens_PL[:, None]).ravel().tolist(),
                strict=True,
            )
        ],
        "decoder": decoder.name,
        "checkpoint_step": run.checkpoint.step,
    }


def _given_row(run: TrainedRun, tokenizer: Any, flag: str, given: str, progress: Progress) -> np.ndarray:
    """Tokens (L,) of a text from the command line."""
    if not given.strip():
        raise InputError(f'{flag} is empty; give a text, for example {flag} "The sea was calm."')
    check_whole(given, flag)
    row, tokens = text.row_of(given, tokenizer, run.shapes.seq_len)
    room = run.shapes.seq_len - 2
    if tokens > room:
        progress.note(f"{flag} has {tokens:,} tokens and a row of {run.path} holds {room:,}; the rest is cut off")
    if share := text.unknown_share(row[1:-1], tokenizer):
        progress.note(
            f"{share:.0%} of the tokens of {flag} are {tokenizer.unk_token}: {run.path} does not know its words"
        )
    return row


def _first_documents(tokenizer: Any, tokens_PL: np.ndarray, clean_up: bool = False) -> list[str]:
    """The text of each row from BOS to the first EOS."""
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
    """The run in whose latent space paths are drawn, with its store and its decoder."""

    run: TrainedRun
    store: FeatureStore
    decoder: Decoder

    @property
    def length(self) -> int:
        """Tokens per row."""
        return self.run.shapes.seq_len

    @property
    def inputs(self) -> dict[str, Any]:
        """Fingerprints of checkpoint, store and decoder."""
        checkpoint, features = self.run.checkpoint.digest, self.store.fingerprint
        return {"checkpoint": checkpoint, "features": features, **self.decoder.record}


def _open(config: InterpolateConfig, run_path: Path, features: Location, allow_partial: bool) -> Subject:
    run = TrainedRun(run_path, runtime.device(config.device), config.checkpoint)
    store = FeatureStore(features, allow_partial=allow_partial)
    run.check_store(store)
    draw_pairs(store.held_out().rows, config.pairs, config.seed)
    return Subject(run, store, run.decoder(config.decoder))


def _inputs(subject: Mapping[str, Any], scorer: Scorer) -> dict[str, Any]:
    """The inputs of a run's artefact: those of the subject, and the scorer."""
    return {**subject, "scorer_revision": scorer.revision}


def _scorer(config: InterpolateConfig, length: int, progress: Progress) -> Scorer:
    scorer = Scorer(config.scorer, runtime.device(config.device), progress.note)
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
    """The artefact of one run."""
    reads = [subject.run.path, *subject.store.reads, *local(config.scorer)]
    inputs = _inputs(subject.inputs, scorer)
    if overwrite:
        check_online(subject.store)
    with artifact.working(out, "interpolation", config, inputs, overwrite=overwrite, reads=reads) as result:
        if result.complete:
            shutil.rmtree(out / "scored", ignore_errors=True)  # left by a call that was killed just after it finished
            progress.note(f"{out} is complete; nothing to do")
            return result
        subject.run.remark_on_end(progress)
        subject.run.remark_on_decoder(config.decoder, progress)
        scored = _scored(config, subject, scorer, out / "scored", progress)
        summary = _summary(config, subject, scored)
        files.write_json(out / "interpolation.json", summary)
        files.write_atomic(out / "texts.jsonl", files.dump_jsonl(_lines(config, scored)))
        _draw(out, {folder_name(subject.run.path): summary})
        finished = result.finish(**summary)
        shutil.rmtree(out / "scored", ignore_errors=True)
        return finished


@dataclass(frozen=True)
class Scored:
    """A set of texts, their tokens (B, L) and their scores."""

    tokens: np.ndarray
    texts: list[str]
    scores: SetScores


def _scored(
    config: InterpolateConfig, subject: Subject, scorer: Scorer, folder: Path, progress: Progress
) -> dict[float | str, Scored]:
    """Scores of every point of the path, by its a, of the `mean` of the two latents, and of `real` text.

    Each set is written to `folder` as soon as it is scored: an interruption costs one set.
    """
    run, max_tokens = subject.run, scorer.fitting(subject.length)
    evaluation = EvaluateConfig(scorer=config.scorer, boundaries=config.boundaries, batch_size=config.batch_size)
    *ends, real_BL = _latents(config, subject)

    def at(path: LatentPath, a: float) -> Callable[[], np.ndarray]:
        return lambda: _decode_at(run, subject.decoder, path, ends, a, config.batch_size)

    a_P = smoothness.points(config.points)
    wanted: dict[float | str, Callable[[], np.ndarray]] = {a: at(PATHS[config.path], a) for a in a_P}
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
            found[name] = Scored(np.array(kept["tokens"]), kept["texts"], SetScores.from_json(kept["measured"]))
            task.advance(1)
    if _mean_is_on_path(config):
        found["mean"] = found[HALF]
    return found


def _latents(config: InterpolateConfig, subject: Subject) -> tuple[Tensor, Tensor, np.ndarray]:
    """z_A and z_B (pairs, N, C) on the CPU, and the tokens of the A rows as real text.

    The A rows are as many as the decoded texts of a point, because diversity falls as the number of texts grows.
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
    """Decoded tokens (B, L) at the point a of the paths between the two `ends`, latents (B, N, C) each."""
    pieces = zip(*(z_BNC.split(batch_size) for z_BNC in ends), strict=True)
    return np.concatenate([run.decode(decoder, path(z_A, z_B, a), batch_size).numpy() for z_A, z_B in pieces])


def _mean_is_on_path(config: InterpolateConfig) -> bool:
    return config.path == "linear" and HALF in smoothness.points(config.points)


# ----------------------------------------------------------------------------------------------------------------------
# Results


_SHARED = (
    "bootstrap", "protocol", "boundaries", "boundary_tokens", "clean_up", "scorer", "scorer_revision", "dtype",
    "max_tokens",
)  # fmt: skip


def _summary(config: InterpolateConfig, subject: Subject, scored: Mapping[float | str, Scored]) -> dict[str, Any]:
    a_P = smoothness.points(config.points)
    rows_PBL = np.stack([scored[a].tokens for a in a_P])
    edits_PB = edits_along(rows_PBL)
    points = smoothness.path_points(a_P, [scored[a].scores for a in a_P], edits_PB)
    mean, real = scored["mean"].scores, scored["real"].scores
    noise = decoder_noise(subject.run.config.model.space, subject.run.config.recipe)
    return {
        "run": folder_name(subject.run.path),
        "pairs": config.pairs,
        "path": config.path,
        "points": [point.to_json() for point in points],
        "mean": mean.pick(*smoothness.RECORDED),
        "real": real.pick(*smoothness.RECORDED),
        # In tokens. If the texts wander, the path is longer than the edit distance between its ends.
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
    """The lines of `texts.jsonl`, pair by pair along the path."""
    a_P = smoothness.points(config.points)
    return [{"pair": pair, "a": a, "text": scored[a].texts[pair]} for pair in range(config.pairs) for a in a_P]


def _draw(out: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    drawing.png(out / "interpolation.png", results.along(found))
    drawing.png(out / "mean.png", results.mean_of_two(found))
