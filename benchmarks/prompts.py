"""Continued texts beside real ones: how much a prompt tells about its continuation, according to a causal model.

    python -m benchmarks prompts --work prompts --run run --features features --encoder encoder --scorer scorer

A run, or several that were trained with other seeds, with `model.condition=prefix`. Held-out rows give prompts of
`--prompt-tokens` tokens. Each is continued at several strengths of guidance, and compared with

- glued: unconditional texts of the same run, whose tokens from k on are appended to the prompts;
- real: what follows the prompt in its row;
- random real: what follows the prompt of another row.

Perplexity is that of a continuation given its prompt, per token of the scorer. The gain is log p(continuation | prompt)
− log p(continuation) in nats per continuation: what the scorer learns about it from the prompt. Prompt and continuation
are tokenised separately. `±` is the standard deviation over runs and sampling seeds. The same command resumes where it
was interrupted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.records import cell, keep
from ldlm import files, memory
from ldlm.cli import show
from ldlm.config import PromptConfig, SampleConfig
from ldlm.errors import InputError
from ldlm.evaluation import metrics
from ldlm.evaluation.scorer import Scorer
from ldlm.features.store import FeatureStore
from ldlm.hub import load_tokenizer
from ldlm.model.prefix import longest_prefix
from ldlm.paper.comparing import ONE
from ldlm.sampling import prompts
from ldlm.stages import sample

REAL, GLUED, MOVED = "real", "glued", "random real"
GUIDANCES = (1.0, 1.5, 2.0)
PLAIN = "guidance 1"
SHOWN = 10  # continuations of one prompt, unedited
COLUMNS = {
    "gen_ppl": "ppl given prompt",
    "gain": "gain",
    "share": "of the real",
    "entropy": "entropy",
    "repeated": "repeated 2-grams",
    "diversity": "diversity",
}


@dataclass(frozen=True)
class Pair:
    """A prompt and its continuation, as text, with the continuation's tokens in the model's vocabulary."""

    prompt: str
    continuation: str
    tokens: Sequence[int]


@dataclass(frozen=True)
class Trial:
    """Runs that continue held-out prompts."""

    work: Path
    runs: Sequence[Path]
    features: Path
    encoder: str
    scorer: str
    prompt_tokens: int
    texts: int

    @property
    def k(self) -> int:
        """Tokens of a prompt, BOS counted."""
        return 1 + self.prompt_tokens

    @cached_property
    def store(self) -> FeatureStore:
        """Features of the runs."""
        return FeatureStore(self.features)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(str(self.store.tokenizer_path))

    @cached_property
    def real(self) -> list[Pair]:
        """Held-out rows with one document up to the prompt's end, whose prompt is tokenised as in the row."""
        found, k = list[Pair](), self.k
        if k > longest_prefix(self.store.shapes.seq_len):
            raise InputError(f"--prompt-tokens {self.prompt_tokens} leave no room for a continuation; take fewer")
        for row in self.store.held_out().tokens[:].tolist():
            prompt = self.tokenizer.decode(row[1:k])
            try:
                same = prompts.tokenised([prompt], self.tokenizer, k) == [row[:k]]
            except InputError:
                same = False
            if same and row[0] not in row[1:k] and len(found) < self.texts:
                found.append(self.pair(prompt, row))
        return found

    def pair(self, prompt: str, row: Sequence[int]) -> Pair:
        """The prompt with a row's tokens from k on, without the EOS that ends it."""
        return Pair(prompt, self.tokenizer.decode(row[self.k : -1]), row[self.k : -1])

    def drawn(self, run: Path, seed: int, guidance: float | None) -> list[Pair]:
        """A continuation of each prompt; if `guidance` is None, unconditional texts glued to them."""
        path = self.work / f"{len(self.real)} prompts of {self.prompt_tokens}.jsonl"
        files.write_atomic(path, files.dump_jsonl({"text": pair.prompt} for pair in self.real))
        given = PromptConfig()
        if guidance is not None:
            given = PromptConfig(prompts=str(path), prompt_guidance=guidance, encoder=self.encoder)
        count = len(self.real) if guidance is None else 1
        settings = SampleConfig(num_samples=count, prompting=given, seed=seed, device="cpu")
        name = GLUED if guidance is None else f"guidance {guidance:g}"
        out = self.work / run.resolve().name / f"{path.stem}; {name}; seed {seed}.jsonl"
        sample.run(settings, run, out, progress=show.Terminal())
        rows = zip(self.real, files.read_jsonl(out), strict=True)
        return [self.pair(pair.prompt, line["tokens"]) for pair, line in rows]

    def measure(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Figures by kind of continuation; those of drawn continuations for each run and seed."""
        scorer, ends = Scorer(self.scorer, torch.device("cpu")), [*self.real[1:], self.real[0]]
        moved = [Pair(a.prompt, b.continuation, b.tokens) for a, b in zip(self.real, ends, strict=True)]
        sets: dict[str, list[list[Pair]]] = {REAL: [self.real], MOVED: [moved]}
        draws = [(run, seed) for run in self.runs for seed in seeds]
        sets[GLUED] = [self.drawn(*draw, None) for draw in draws]
        for guidance in GUIDANCES:
            sets[f"guidance {guidance:g}"] = [self.drawn(*draw, guidance) for draw in draws]
        manifests = [files.read_json(run / "manifest.json") for run in self.runs]
        losses = ("l_diff", "l_diff_prefix", "l_diff_mean")
        return {
            "runs": [{"steps": one["step"], **{key: one["held_out"][key] for key in losses}} for one in manifests],
            "seeds": list(seeds),
            "prompts": len(self.real),
            "prompt_tokens": self.prompt_tokens,
            "figures": {name: [judged(pairs, scorer) for pairs in found] for name, found in sets.items()},
            "first": self.continuations(),
        }

    def continuations(self) -> dict[str, Any]:
        """Several continuations of the first prompt by the first run, as they come."""
        prompt, run = self.real[0].prompt, self.runs[0]
        given = PromptConfig(prompt=prompt, encoder=self.encoder)
        settings = SampleConfig(num_samples=SHOWN, prompting=given, device="cpu")
        out = self.work / run.resolve().name / "first.jsonl"
        sample.run(settings, run, out, overwrite=True, progress=show.Terminal())
        return {"prompt": prompt, "continuations": [line["continuation"] for line in files.read_jsonl(out)]}


def judged(pairs: Sequence[Pair], scorer: Scorer) -> dict[str, float]:
    """Figures of continuations: those from the scorer, and those from their tokens alone."""
    start = [] if scorer.eos_id is None else [scorer.eos_id]
    # Not the last position: a model from `pretrain-encoder` expects EOS there, where all rows of its training end.
    most = (scorer.positions or 1024) - 1
    ids = scorer.tokens([text for pair in pairs for text in (pair.prompt, pair.continuation)], most)
    given, alone, counts = list[np.ndarray](), list[np.ndarray](), list[int]()
    for prompt, whole in zip(ids[::2], ids[1::2], strict=True):
        continuation = whole[: most - len(start) - len(prompt)]  # another tokenizer may split it into more tokens
        given.append(np.array([*start, *prompt, *continuation], np.int32))
        alone.append(np.array([*start, *continuation], np.int32))
        counts.append(len(continuation))
    nlls = [scorer.token_nll(rows, 16) for rows in (given, alone)]
    with_prompt, without = (
        np.array([nll[len(nll) - n :].sum() for nll, n in zip(found, counts, strict=True)]) for found in nlls
    )
    rows = [pair.tokens for pair in pairs]
    return {
        "gen_ppl": float(np.exp(with_prompt.sum() / sum(counts))),
        "gain": float((without - with_prompt).mean()),
        "entropy": float(metrics.entropies(rows).mean()),
        "repeated": statistics.mean(repeated(row) for row in rows),
        "diversity": metrics.diversity(rows),
    }


def repeated(row: Sequence[int]) -> float:
    """Share of a text's 2-grams that repeat an earlier one."""
    grams = list(metrics.ngrams(row, 2))
    return 1 - len(set(grams)) / len(grams)


def report(found: Mapping[str, Any]) -> str:
    """The table, the claim, the held-out losses, and several continuations of one prompt."""
    figures, first = found["figures"], found["first"]
    rows = []
    for name, sets in figures.items():
        cells = {key: [one[key] for one in sets] for key in sets[0]}
        cells["share"] = [one["gain"] / figures[REAL][0]["gain"] for one in sets]
        rows.append((name, *(cell(cells[key]) for key in COLUMNS)))
    return "\n\n".join(
        [
            f"{found['prompts']} held-out prompts of {found['prompt_tokens']} tokens, sampling seeds "
            f"{', '.join(map(str, found['seeds']))}",
            show.table(("continuation", *COLUMNS.values()), rows),
            verdict(figures),
            "\n".join(_losses(run) for run in found["runs"]),
            f"{SHOWN} continuations of {first['prompt']!r}:",
            *(f"- {text!r}" for text in first["continuations"]),
        ]
    )


def verdict(figures: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Whether continuations follow from their prompts more than glued texts do; how far their entropy is from real."""
    ours, glued = ([one["gain"] for one in figures[name]] for name in (PLAIN, GLUED))
    apart = statistics.mean(ours) - statistics.mean(glued)
    spread = max(max(gains) - min(gains) for gains in (ours, glued))
    beyond = f"{'more' if apart > spread else 'not more'} than the {spread:.3g} that runs and seeds differ"
    if min(len(ours), len(glued)) < 2:
        beyond = ONE
    entropy = statistics.mean(one["entropy"] for one in figures[PLAIN]) - figures[REAL][0]["entropy"]
    return (
        f"{PLAIN}: a gain of {apart:+.3g} nats above glued texts, {beyond}; an entropy of {entropy:+.3g} beside real "
        f"continuations"
    )


def _losses(run: Mapping[str, float]) -> str:
    return (
        f"after {run['steps']:,} steps, held-out L_diff {show.value(run['l_diff'])} without a prefix, "
        f"{show.value(run['l_diff_prefix'])} with one, {show.value(run['l_diff_mean'])} of the mean latent"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Continue and judge."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks prompts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="runs with model.condition=prefix")
    parser.add_argument("--features", type=Path, required=True, help="their feature store")
    parser.add_argument("--encoder", required=True, help="its frozen encoder")
    parser.add_argument("--scorer", required=True, help="causal model that scores the texts")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--texts", type=int, default=200, help="number of prompts")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="seeds of sampling")
    parser.add_argument("--output", type=Path, help="folder for the table and its JSON")
    chosen = parser.parse_args(arguments)
    memory.keep_freed()  # as the commands do
    places = (chosen.work, chosen.run, chosen.features, chosen.encoder, chosen.scorer)
    try:
        if len({run.resolve().name for run in chosen.run}) < len(chosen.run):
            raise InputError("--run: folders need names of their own, by which their texts are kept apart; rename one")
        found = Trial(*places, chosen.prompt_tokens, chosen.texts).measure(chosen.seeds)
    except InputError as error:
        sys.exit(f"Error: {error}")
    keep(report(found), "prompts", chosen.output, found)
