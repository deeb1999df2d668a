"""Continued texts beside real ones: how much a prompt tells about its continuation, according to a causal model.

    python -m benchmarks prompts --work prompts --novels DIR --steps 3000 --output benchmarks/results

The preset tiny is trained with model.condition=prefix on the features of a finished `python -m benchmarks comparison`
(`--novels DIR`), or on stories that are made here. Held-out rows give prompts of `--prompt-tokens` tokens. Each is
continued at several strengths of guidance, and compared with

- glued: unconditional texts of the same run, whose tokens from k on are appended to the prompts;
- real: what follows the prompt in its row;
- random real: what follows the prompt of another row.

Perplexity is that of a continuation given its prompt, per token of the scorer. The gain is log p(continuation | prompt)
− log p(continuation) in nats per continuation: what the scorer learns about it from the prompt. Prompt and continuation
are tokenised separately. `±` is half the range over the sampling seeds. A run resumes where it was interrupted.
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

from benchmarks.recipe import SHARES, Bench, Init
from benchmarks.records import keep
from ldlm import config, files, memory
from ldlm.cli import show
from ldlm.config import ExtractConfig, PromptConfig, SampleConfig, SamplerConfig, TrainConfig
from ldlm.errors import InputError
from ldlm.evaluation import metrics
from ldlm.evaluation.scorer import Scorer
from ldlm.features.store import FeatureStore
from ldlm.hub import load_tokenizer
from ldlm.model.prefix import longest_prefix
from ldlm.sampling import prompts
from ldlm.stages import sample, train

INIT: Init = "published"  # initial weights of the encoder of stories
GUIDANCES = (1.0, 1.5, 2.0)
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
    """A run that continues held-out prompts."""

    bench: Bench
    steps: int
    prompt_tokens: int
    texts: int
    seed: int

    @property
    def folder(self) -> Path:
        """Folder of the run and of its texts."""
        return self.bench.folder / f"prompts; {self.steps} steps; seed {self.seed}"

    @property
    def train(self) -> TrainConfig:
        """The preset tiny with a condition; settings that count steps keep their shares of the steps."""
        data = config.merge(config.PRESETS["tiny"].overrides, {"model": {"condition": "prefix"}})
        of = data["steps"]
        for room, name in SHARES:
            data = config.merge(data, {room: {name: max(1, round(data[room][name] / of * self.steps))}})
        given = {"steps": self.steps, "seed": self.seed, "device": "cpu"}
        given |= {"eval_every": self.steps, "save_every": max(1, self.steps // 10)}
        return config.from_dict(TrainConfig, {**data, **given})

    @cached_property
    def store(self) -> FeatureStore:
        """Features of the source."""
        return FeatureStore(self.bench.features(ExtractConfig().layer))

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(str(self.store.tokenizer_path))

    def made(self) -> Path:
        """The run, trained if it is not yet."""
        return train.run(self.train, self.store.path, self.folder / "run", progress=show.Terminal()).path

    @cached_property
    def real(self) -> list[Pair]:
        """Held-out rows with one document up to the prompt's end, whose prompt is tokenised as in the row."""
        found, k = list[Pair](), 1 + self.prompt_tokens
        if k > longest_prefix(self.store.shapes.seq_len):
            raise InputError(f"--prompt-tokens {self.prompt_tokens} leave no room for a continuation; take fewer")
        for row in self.store.held_out().tokens[:].tolist():
            prompt = self.tokenizer.decode(row[1:k])
            try:
                same = prompts.tokenised([prompt], self.tokenizer, k) == [row[:k]]
            except InputError:
                same = False
            if same and row[0] not in row[1:k] and len(found) < self.texts:
                found.append(self.pair(prompt, row, k))
        return found

    def pair(self, prompt: str, row: Sequence[int], k: int) -> Pair:
        """The prompt with a row's tokens from k on, without the EOS that ends it."""
        return Pair(prompt, self.tokenizer.decode(row[k:-1]), row[k:-1])

    def drawn(self, seed: int, guidance: float | None) -> list[Pair]:
        """A continuation of each prompt; if `guidance` is None, unconditional texts glued to them."""
        path = self.folder / "prompts.jsonl"
        files.write_atomic(path, files.dump_jsonl({"text": pair.prompt} for pair in self.real))
        given = PromptConfig()
        if guidance is not None:
            given = PromptConfig(prompts=str(path), prompt_guidance=guidance, encoder=str(self.bench.encoder))
        count = len(self.real) if guidance is None else 1
        settings = SampleConfig(num_samples=count, prompting=given, sampler=SamplerConfig(), seed=seed, device="cpu")
        what = f"{len(self.real)} prompts of {self.prompt_tokens}; seed {seed}.jsonl"
        out = self.folder / f"{'glued' if guidance is None else guidance}; {what}"
        sample.run(settings, self.folder / "run", out, progress=show.Terminal())
        k = 1 + self.prompt_tokens
        rows = zip(self.real, files.read_jsonl(out), strict=True)
        return [self.pair(pair.prompt, line["tokens"], k) for pair, line in rows]

    def measure(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Figures by kind of continuation; those of drawn continuations for each seed."""
        made = self.made()
        scorer, ends = Scorer(str(self.bench.scorer), torch.device("cpu")), [*self.real[1:], self.real[0]]
        moved = [Pair(a.prompt, b.continuation, b.tokens) for a, b in zip(self.real, ends, strict=True)]
        sets: dict[str, list[list[Pair]]] = {"real": [self.real], "random real": [moved]}
        sets["glued"] = [self.drawn(seed, None) for seed in seeds]
        for guidance in GUIDANCES:
            sets[f"guidance {guidance:g}"] = [self.drawn(seed, guidance) for seed in seeds]
        figures = {name: [judged(pairs, scorer) for pairs in found] for name, found in sets.items()}
        held_out = files.read_json(made / "manifest.json")["held_out"]
        return {
            "source": self.bench.source,
            "init": None if self.bench.novels else INIT,
            "steps": self.steps,
            "seed": self.seed,
            "prompts": len(self.real),
            "prompt_tokens": self.prompt_tokens,
            "held_out": {key: held_out[key] for key in ("l_diff", "l_diff_prefix", "l_diff_mean")},
            "figures": figures,
            "first": self.continuations(),
        }

    def continuations(self) -> dict[str, Any]:
        """Several continuations of the first prompt, as they come."""
        prompt = self.real[0].prompt
        given = PromptConfig(prompt=prompt, encoder=str(self.bench.encoder))
        settings = SampleConfig(num_samples=SHOWN, prompting=given, device="cpu")
        out = self.folder / "first.jsonl"
        sample.run(settings, self.folder / "run", out, overwrite=True, progress=show.Terminal())
        return {"prompt": prompt, "continuations": [line["continuation"] for line in files.read_jsonl(out)]}


def judged(pairs: Sequence[Pair], scorer: Scorer) -> dict[str, float]:
    """Figures of continuations: those from the scorer, and those from their tokens alone."""
    start = [] if scorer.eos_id is None else [scorer.eos_id]
    most = scorer.positions or 1024
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
    """The table, the held-out losses, and several continuations of one prompt."""
    real, rows = found["figures"]["real"][0], []
    for name, figures in found["figures"].items():
        cells = {key: [one[key] for one in figures] for key in real}
        cells["share"] = [one["gain"] / real["gain"] for one in figures]
        rows.append((name, *(_cell(cells[key]) for key in COLUMNS)))
    loss, first = found["held_out"], found["first"]
    return "\n\n".join(
        [
            f"{found['source']}, {found['steps']:,} steps, seed {found['seed']}: {found['prompts']} held-out prompts "
            f"of {found['prompt_tokens']} tokens",
            show.table(("continuation", *COLUMNS.values()), rows),
            f"held-out L_diff {show.value(loss['l_diff'])} without a prefix, {show.value(loss['l_diff_prefix'])} with "
            f"one, {show.value(loss['l_diff_mean'])} of the mean latent",
            f"{SHOWN} continuations of {first['prompt']!r}:",
            *(f"- {text!r}" for text in first["continuations"]),
        ]
    )


def _cell(values: Sequence[float]) -> str:
    half = (max(values) - min(values)) / 2
    return show.value(statistics.mean(values)) + (f" ± {show.value(half)}" if len(values) > 1 else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, continue and judge."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks prompts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the run and its texts")
    parser.add_argument("--novels", type=Path, help="a comparison's folder: use its text instead of stories")
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--texts", type=int, default=200, help="number of prompts")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="seeds of sampling")
    parser.add_argument("--output", type=Path, help="folder for the table and its JSON")
    chosen = parser.parse_args(arguments)
    memory.keep_freed()  # as the commands do
    bench = Bench(chosen.work.absolute(), chosen.novels and chosen.novels.absolute())
    try:
        bench.prepare(INIT)
        found = Trial(bench, chosen.steps, chosen.prompt_tokens, chosen.texts, chosen.seed).measure(chosen.seeds)
    except InputError as error:
        sys.exit(f"Error: {error}")
    keep(report(found), f"prompts-{found['source']}-{found['steps']}", chosen.output, found)
