"""LDLM against the token-level methods on one text, with equal steps and with equal training FLOPs.

    python -m benchmarks comparison --text novels.txt --output comparison --results benchmarks/results

Everything is an `ldlm` command in its own process, all of them listed with their times in OUTPUT/commands.jsonl. The
same command resumes where it was interrupted, and waits for what a killed one still has at work. Several may work on
different `--seeds` at once, after one has made what all of them read (`--methods` without a name); with `--report`, the
last one writes down what all of them found.

A fifth of the text is for training and held-out rows. The rest trains the scorer, with the same tokenizer, so scorer
and models have no text in common. One store serves all: LDLM reads its states, the others only its tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison import autoregressive, plan, results
from benchmarks.comparison.plan import AUTOREGRESSIVE, EQUAL_FLOPS, EQUAL_STEPS, LDLM, NAMES, RIVALS, Draw, run_path
from benchmarks.comparison.sources import ComparisonText, RealText
from ldlm import children, files, locks, memory, runtime
from ldlm.errors import InputError, Stopped
from ldlm.location import check_output_folder
from ldlm.paper import origin


# No list of jobs like that of `ldlm.paper.runner`: what is run depends on results, as on the best learning rate.
@dataclass(frozen=True)
class Comparison:
    """The folder of a comparison, and its sizes."""

    source: ComparisonText
    folder: Path
    steps: int  # of every training but LDLM's with equal FLOPs
    texts: int  # of each set

    def ldlm(self, *arguments: object) -> dict[str, Any]:
        """Run an `ldlm` command in the folder, list it with its time in commands.jsonl, and return its result."""
        words = list(map(str, arguments))
        with self._alone(words) as lock, runtime.Stop() as stop:
            done = children.run([*words, "--json"], self.folder, lock, stop)
            line = {"ldlm": words, "seconds": done.seconds, "cpu_seconds": done.cpu_seconds, **runtime.occasion()}
            origin.append(self.folder / origin.COMMANDS, line)
        if stop.wished:
            raise Stopped(f"{stop.wished}; the same command goes on")
        if done.status:
            raise subprocess.CalledProcessError(done.status, ["ldlm", *words])
        return json.loads(done.printed)

    @contextmanager
    def _alone(self, words: Sequence[str]) -> Iterator[int | None]:
        """Hold the lock on what a command makes, after another process that makes it; None if it makes nothing."""
        if "--output" not in words:
            yield None
            return
        output = words[words.index("--output") + 1]
        place = self.folder / "locks" / f"{output.replace('/', '-')}.lock"
        with ExitStack() as held:
            lock = held.enter_context(locks.passed_on(place))
            if lock is None:
                print(f"another process is at work on {self.folder / output}; waiting for it", file=sys.stderr)
                lock = held.enter_context(locks.passed_on(place, wait=True))
            yield lock

    # ------------------------------------------------------------------------------------------------------------------
    # What all methods share

    def prepare(self) -> None:
        """Make text, encoder, scorer, store and real texts."""
        self._check_steps()
        self._check_texts()
        self.source.prepare(self)
        parts = ("--data", plan.part("train"), "--validation-data", plan.part("held-out"))
        self._make("features", "extract-features", "--encoder", "encoder", *parts, "--seq-len", plan.SEQ_LEN)
        if not self._done(results.REAL):
            self.ldlm("features", "texts", "features", "--rows", self.texts, "--output", "texts/real.jsonl")
            self._keep(results.REAL, self._score(Path("texts/real.jsonl")))

    def _check_steps(self) -> None:
        """`InputError` where the folder has trainings of another number of steps: they would stand in one table."""
        place = self.folder / "steps.json"
        begun = files.read_json(place)["steps"] if place.exists() else self.steps
        if begun != self.steps:
            raise InputError(
                f"{self.folder} has trainings of {begun:,} steps, not {self.steps:,}; give --steps {begun}, or another "
                "--output"
            )
        files.write_json(place, {"steps": self.steps})

    def _check_texts(self) -> None:
        """`InputError` where real texts were measured on larger sets: files of texts grow, and never shrink."""
        place = self.folder / results.REAL
        there = files.read_json(place)["num_texts"] if place.exists() else 0
        if there > self.texts:
            raise InputError(
                f"{self.folder} has sets of {there:,} texts, and --texts {self.texts} asks for fewer; give --texts "
                f"{there} or more, or another --output"
            )

    def pretrain(self, name: str, part: str, tokenizer: Sequence[object], sizes: dict[str, int]) -> None:
        """Pretrain a GPT-2 on a part of the text, with the options of a tokenizer."""
        options = [word for key, value in sizes.items() for word in (f"--{key}", value)]
        made = ("--data", plan.part(part), *tokenizer, "--positions", plan.SEQ_LEN, *options)
        self._make(name, "pretrain-encoder", *made)

    def _make(self, output: str | Path, *arguments: object) -> None:
        """Run a command unless its artefact is complete."""
        if not (self.folder / output / "manifest.json").exists():
            self.ldlm(*arguments, "--output", output)

    # ------------------------------------------------------------------------------------------------------------------
    # Training

    def train(self, regime: str, seed: int, method: str) -> None:
        """Train a method for the steps that a regime gives it."""
        output = run_path(regime, seed, method)
        if method == AUTOREGRESSIVE:
            sizes = {**plan.REFERENCE, "steps": self.steps, "seed": seed}
            return self.pretrain(str(output), "train", ("--tokenizer", "encoder"), sizes)
        self.flops(method)  # recorded for the results
        rate = () if method == LDLM else ("--set", f"optimizer.lr={self.rate(method)}")
        self._train(output, method, seed, self.steps_of(method, regime), *rate)

    def _train(self, output: Path, method: str, seed: int, steps: int, *more: object) -> None:
        rhythm = ("--seed", seed, "--eval-every", 10**6, "--eval-rows", plan.EVAL_ROWS, "--save-every", 100)
        self._make(output, "train", *self.settings(method, steps), "--steps", steps, *rhythm, *more)

    def settings(self, method: str, steps: int) -> tuple[object, ...]:
        """Settings of a training: the preset's; for LDLM also its warm-up in proportion, and its own on this text."""
        settings = {"recipe.warmup_steps": steps * 2 // 5, **self.source.ldlm}
        sets = (word for key, value in settings.items() for word in ("--set", f"{key}={value}"))
        own = tuple(sets) if method == LDLM else ("--method", method)
        return ("--features", "features", "--preset", "tiny", *own)

    def rate(self, method: str) -> float:
        """The learning rate with which a rival's loss on held-out rows is lowest after a short training.

        All seeds share the trials. A process waits while another one is at them.
        """
        lock = self.folder / "locks" / f"rates-{method}"
        files.make_folder(lock)
        with locks.exclusive_lock(lock, wait=True):
            losses = self._tried(method)
        return float(min(losses, key=lambda rate: losses[rate]))

    def _tried(self, method: str) -> dict[str, float]:
        """A rival's loss on held-out rows after a short training with each learning rate."""
        place = self.folder / "rates" / f"{method}.json"
        losses: dict[str, float] = files.read_json(place) if place.exists() else {}
        if missing := [rate for rate in plan.RATES if f"{rate:g}" not in losses]:
            for rate in missing:
                run = Path("rates") / f"{method}-{rate:g}"
                self._train(run, method, 0, min(self.source.rate_steps, self.steps), "--set", f"optimizer.lr={rate}")
                manifest = files.read_digested(self.folder / run / "manifest.json", "train it again")
                losses[f"{rate:g}"] = manifest["held_out"]["loss"]
            files.write_json(place, losses)
        return losses

    def steps_of(self, method: str, regime: str) -> int:
        """Steps of a method under a regime; for equal FLOPs, LDLM's cost as much as the most expensive rival's."""
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
        started = children.cpu_seconds()
        drawn = self.ldlm(
            "sample", "--run", draw.run, *draw.way.options, "--steps", steps, *sizes, "--output", draw.texts
        )
        cost = {"cpu_seconds": children.cpu_seconds() - started, "seconds": drawn.get("seconds")}
        if drawn.get("texts_made") != self.texts:  # resumed after an interruption
            cost = dict.fromkeys(cost)
        counted = draw.budget if draw.way.method == LDLM else None  # one per step, with both of LDLM's samplers
        evaluations = drawn.get("evaluations_per_text", counted)  # of texts that were there already, not known
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
        return self.source.score(self.folder, self.folder / texts, self.texts)


def run(comparison: Comparison, seeds: Sequence[int], budgets: Sequence[int], methods: Sequence[str]) -> None:
    """Do all of it; finished parts are not repeated."""
    files.make_folder(comparison.folder)
    comparison.prepare()
    for seed in seeds:
        if AUTOREGRESSIVE in methods:
            comparison.draw_autoregressive(seed)
    for draw in plan.draws(seeds, budgets, methods):
        comparison.draw(draw)


def positive(value: str) -> int:
    """A whole number of 1 or more, as argparse takes it."""
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value} is no whole number of 1 or more")
    return int(value)


def _method(value: str) -> str:
    """The name of a method, as argparse takes it; `choices` would refuse no names at all, which are a choice."""
    if value not in NAMES:
        raise argparse.ArgumentTypeError(f"there is no method {value}; choose from {', '.join(NAMES)}")
    return value


def options(
    program: str, told: str | None, *, seeds: Sequence[int], budgets: Sequence[int], steps: int
) -> argparse.ArgumentParser:
    """A parser of the options that comparisons share, with these defaults."""
    parser = argparse.ArgumentParser(
        prog=program, description=told, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for models, runs and texts")
    parser.add_argument("--results", type=Path, help="folder for the tables, the picture and the figures")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    parser.add_argument("--methods", nargs="*", type=_method, default=list(NAMES), metavar="METHOD")
    parser.add_argument(
        "--steps",
        type=positive,
        default=steps,
        help="steps of every training except LDLM's with equal FLOPs, which has fewer",
    )
    parser.add_argument("--texts", type=positive, default=plan.TEXTS, help="texts in each set")
    parser.add_argument("--budgets", nargs="+", type=positive, default=list(budgets), help="evaluations per text")
    parser.add_argument("--report", action="store_true", help="run nothing; write down what is finished")
    parser.add_argument(
        "--join",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="results (JSON) of the same comparison on other machines, whose seeds are included in the tables",
    )
    return parser


def go(chosen: argparse.Namespace, source: ComparisonText) -> None:
    """Run a comparison on a source, and write down what is finished."""
    memory.keep_freed()  # as the commands do
    comparison = Comparison(source, chosen.output.absolute(), chosen.steps, chosen.texts)
    try:
        for folder, flag in ((chosen.output, "--output"), (chosen.results, "--results")):
            if folder is not None:
                check_output_folder(folder, flag)
        if not chosen.report:
            run(comparison, chosen.seeds, chosen.budgets, chosen.methods)
        found = results.collect(source, comparison.folder, chosen.seeds, chosen.budgets)
        others = {path: results.read(path, source) for path in chosen.join}
        found = results.joined(found, {path: other["figures"] for path, other in others.items()})
    except (InputError, Stopped, subprocess.CalledProcessError) as error:
        sys.exit(f"Error: {error}")
    measured = results.measured_at(comparison.folder, others.values(), here=not chosen.report)
    results.write(found, source, measured, chosen.results)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison on a file of text."""
    parser = options(
        "python -m benchmarks comparison", __doc__, seeds=(0, 1), budgets=plan.BUDGETS, steps=RealText.steps
    )
    parser.add_argument("--text", type=Path, required=True, help="text, a document per line; or JSON lines and others")
    chosen = parser.parse_args(arguments)
    go(chosen, RealText(chosen.text.absolute()))


if __name__ == "__main__":
    main()
