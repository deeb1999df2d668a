"""LDLM against the token-level methods on one text, with equal steps and with equal training FLOPs.

    python -m benchmarks comparison --text novels.txt --output comparison --results benchmarks/results

Everything is a command of `ldlm` in a process of its own, all of them listed with their times in OUTPUT/commands.jsonl.
The same command goes on where it was interrupted. Several may work on different `--seeds` at once, when one has made
what all of them read (`--methods` alone); with `--report` the last one writes down what all of them found.

A fifth of the text is for training and held-out rows. The rest trains the scorer, with the same tokenizer, so that
scorer and models have no text in common. One store serves all: LDLM reads its states, the others its tokens alone.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison import autoregressive, plan, results
from benchmarks.comparison.plan import AUTOREGRESSIVE, EQUAL_FLOPS, EQUAL_STEPS, LDLM, NAMES, RIVALS, Draw, run_path
from ldlm import files, memory
from ldlm.config import EvaluateConfig
from ldlm.errors import InputError
from ldlm.evaluation import samples
from ldlm.evaluation.measure import measure
from ldlm.evaluation.scorer import Scorer
from ldlm.features import textfiles
from ldlm.features.documents import whole


@dataclass(frozen=True)
class Comparison:
    """The folder of a comparison, and its sizes."""

    folder: Path
    steps: int  # of every training but LDLM's with equal FLOPs
    texts: int  # of each set

    def ldlm(self, *arguments: object) -> dict[str, Any]:
        """Run a command of `ldlm` in the folder; returns its result, and lists it with its time in commands.jsonl."""
        words = list(map(str, arguments))
        started, cpu = time.perf_counter(), _cpu_of_children()
        command = [sys.executable, "-m", "ldlm.cli", *words, "--json"]
        try:
            shown = subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.PIPE, text=True).stdout
        finally:
            spent = {"seconds": time.perf_counter() - started, "cpu_seconds": _cpu_of_children() - cpu}
            with open(self.folder / "commands.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"ldlm": words, **spent}, ensure_ascii=False) + "\n")
        return json.loads(shown)

    # ------------------------------------------------------------------------------------------------------------------
    # What all methods share

    def prepare(self, text: Path) -> None:
        """Text, encoder, scorer, store and real texts."""
        self._split(text)
        self._pretrain("encoder", "train", ("--vocab-size", plan.VOCABULARY), plan.ENCODER)
        self._pretrain("scorer", "scorer", ("--tokenizer", "encoder"), plan.SCORER)
        data = ("--data", _part("train"), "--validation-data", _part("held-out"), "--seq-len", plan.SEQ_LEN)
        self._make("features", "extract-features", "--encoder", "encoder", *data)
        if not (self.folder / results.REAL).exists():
            self.ldlm("features", "texts", "features", "--rows", self.texts, "--output", "texts/real.jsonl")
            self._keep(results.REAL, self._score(Path("texts/real.jsonl")))

    def _split(self, text: Path) -> None:
        """Write the three parts of the text, a document a line; documents that occur twice are taken once."""
        record, source = self.folder / "text" / "text.json", textfiles.fingerprints([text])[str(text)]
        if record.exists():
            if files.read_json(record)["sha256"] != source:
                raise InputError(
                    f"{self.folder} holds a comparison on another text than {text}; choose another --output"
                )
            return
        documents = list(dict.fromkeys(whole(textfiles.file_documents([str(text)], "text"))))
        random.Random(0).shuffle(documents)
        first, second = (int(len(documents) * share) for share in (plan.HELD_OUT, plan.HELD_OUT + plan.TRAINING))
        parts = {"held-out": documents[:first], "train": documents[first:second], "scorer": documents[second:]}
        files.make_folder(record.parent)
        for name, part in parts.items():
            files.write_atomic(self.folder / _part(name), files.dump_jsonl({"text": document} for document in part))
        characters = {name: sum(map(len, part)) for name, part in parts.items()}
        files.write_json(record, {"file": text.name, "sha256": source, "characters": characters})

    def _pretrain(self, name: str, part: str, tokenizer: Sequence[object], sizes: dict[str, int]) -> None:
        options = [word for key, value in sizes.items() for word in (f"--{key}", value)]
        made = ("--data", _part(part), *tokenizer, "--positions", plan.SEQ_LEN, *options)
        self._make(name, "pretrain-encoder", *made)

    def _make(self, output: str | Path, *arguments: object) -> None:
        """Run a command unless its artefact is complete."""
        if not (self.folder / output / "manifest.json").exists():
            self.ldlm(*arguments, "--output", output)

    # ------------------------------------------------------------------------------------------------------------------
    # Training

    def train(self, regime: str, seed: int, method: str) -> None:
        """Train a method with the steps that a regime gives it."""
        output = run_path(regime, seed, method)
        if method == AUTOREGRESSIVE:
            sizes = {**plan.REFERENCE, "steps": self.steps, "seed": seed}
            return self._pretrain(str(output), "train", ("--tokenizer", "encoder"), sizes)
        rate = () if method == LDLM else ("--set", f"optimizer.lr={self.rate(method)}")
        self._train(output, method, seed, self.steps_of(method, regime), *rate)

    def _train(self, output: Path, method: str, seed: int, steps: int, *more: object) -> None:
        rhythm = ("--seed", seed, "--eval-every", 10**6, "--eval-rows", plan.EVAL_ROWS, "--save-every", 100)
        self._make(output, "train", *self.settings(method, steps), "--steps", steps, *rhythm, *more)

    def settings(self, method: str, steps: int) -> tuple[object, ...]:
        """Settings of a method's training: the preset's, and LDLM's warm-up over the first two fifths, as it has it."""
        own = ("--set", f"recipe.warmup_steps={steps * 2 // 5}") if method == LDLM else ("--method", method)
        return ("--features", "features", "--preset", "tiny", *own)

    def rate(self, method: str) -> float:
        """The learning rate with which a rival's loss on held-out rows is lowest after a short training."""
        place = self.folder / "rates" / f"{method}.json"
        if not place.exists():
            losses = {}
            for rate in plan.RATES:
                run = Path("rates") / f"{method}-{rate:g}"
                self._train(run, method, 0, min(plan.RATE_STEPS, self.steps), "--set", f"optimizer.lr={rate}")
                manifest = files.read_digested(self.folder / run / "manifest.json", "train it again")
                losses[f"{rate:g}"] = manifest["held_out"]["loss"]
            files.write_json(place, losses)
        found: dict[str, float] = files.read_json(place)
        return float(min(found, key=lambda rate: found[rate]))

    def steps_of(self, method: str, regime: str) -> int:
        """Steps of a method under a regime; with equal FLOPs those of LDLM that cost as much as the dearest rival's."""
        if method != LDLM or regime != EQUAL_FLOPS:
            return self.steps
        return round(self.steps * max(map(self.flops, RIVALS)) / self.flops(LDLM))

    def flops(self, method: str) -> float:
        """FLOPs per token of a training step, on average."""
        place = self.folder / "costs" / f"{method}.json"
        if not place.exists():
            files.make_folder(place.parent)
            files.write_json(place, self.ldlm("train", *self.settings(method, self.steps), "--dry-run"))
        return plan.flops_per_token(files.read_json(place))

    # ------------------------------------------------------------------------------------------------------------------
    # Drawing and scoring

    def draw(self, draw: Draw) -> None:
        """Draw a set of texts and score it."""
        record = draw.texts.with_suffix(".json")
        if self._done(record):
            return
        self.train(draw.regime, draw.seed, draw.way.method)
        steps, sizes = draw.way.steps(draw.budget), ("--num-samples", self.texts, "--seed", draw.seed)
        started = _cpu_of_children()
        drawn = self.ldlm(
            "sample", "--run", draw.run, *draw.way.options, "--steps", steps, *sizes, "--output", draw.texts
        )
        cost = {"cpu_seconds": _cpu_of_children() - started, "seconds": drawn.get("seconds")}
        if drawn.get("texts_made") != self.texts:  # an interrupted command went on
            cost = dict.fromkeys(cost)
        evaluations = drawn.get("evaluations_per_text", draw.budget)  # of LDLM one a step, with both of its samplers
        self._keep(record, {**cost, "evaluations": evaluations, **self._score(draw.texts)})

    def draw_autoregressive(self, seed: int) -> None:
        """Draw texts from the autoregressive model and score them."""
        texts = results.autoregressive_texts(seed)
        if self._done(texts.with_suffix(".json")):
            return
        self.train(EQUAL_STEPS, seed, AUTOREGRESSIVE)
        files.make_folder((self.folder / texts).parent)
        run, store = (self.folder / path for path in (run_path(EQUAL_STEPS, seed, AUTOREGRESSIVE), "features"))
        cost = autoregressive.write(run, store, self.texts, seed, self.folder / texts)
        self._keep(texts.with_suffix(".json"), {**cost, **self._score(texts)})

    def _done(self, record: Path) -> bool:
        path = self.folder / record
        return path.exists() and files.read_json(path)["num_texts"] == self.texts

    def _keep(self, record: Path, found: dict[str, Any]) -> None:
        files.write_json(self.folder / record, found)

    def _score(self, texts: Path) -> dict[str, Any]:
        path = self.folder / texts
        found = samples.described(samples.read(path), path).first(self.texts)
        config = EvaluateConfig(scorer=str(self.folder / "scorer"))
        scores = measure(found, self._scorer, config, plan.SEQ_LEN)
        return scores.pick("gen_ppl", "entropy", "diversity", "intervals", "num_texts", "protocol", "boundaries")

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(str(self.folder / "scorer"), torch.device("cpu"))


def _part(name: str) -> Path:
    return Path("text") / f"{name}.jsonl"


def _cpu_of_children() -> float:
    """Seconds that all finished child processes have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(
    comparison: Comparison, text: Path, seeds: Sequence[int], budgets: Sequence[int], methods: Sequence[str]
) -> None:
    """Do all of it; what is there already is not done again."""
    files.make_folder(comparison.folder)
    comparison.prepare(text)
    for seed in seeds:
        if AUTOREGRESSIVE in methods:
            comparison.draw_autoregressive(seed)
    for draw in plan.draws(seeds, budgets, methods):
        comparison.draw(draw)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks comparison",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text", type=Path, required=True, help="text, a document a line; also JSON lines and others")
    parser.add_argument("--output", type=Path, required=True, help="folder for models, runs and texts")
    parser.add_argument("--results", type=Path, help="folder for the tables, the picture and the figures")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--methods", nargs="*", default=list(NAMES), metavar="METHOD")
    parser.add_argument(
        "--steps",
        type=int,
        default=plan.STEPS,
        help="steps of every training but LDLM's with equal FLOPs, which has fewer",
    )
    parser.add_argument("--texts", type=int, default=plan.TEXTS, help="texts of each set")
    parser.add_argument("--budgets", nargs="+", type=int, default=list(plan.BUDGETS), help="evaluations per text")
    parser.add_argument("--report", action="store_true", help="run nothing; write down what is there")
    chosen = parser.parse_args(arguments)
    memory.keep_freed()  # as the commands do
    comparison = Comparison(chosen.output.absolute(), chosen.steps, chosen.texts)
    try:
        if not chosen.report:
            run(comparison, chosen.text.absolute(), chosen.seeds, chosen.budgets, chosen.methods)
    except (InputError, subprocess.CalledProcessError) as error:
        sys.exit(f"Error: {error}")
    results.write(results.collect(comparison.folder, chosen.seeds, chosen.budgets), chosen.results)


if __name__ == "__main__":
    main()
