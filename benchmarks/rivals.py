"""The rivals beside LDLM on one core, the paper's Table 3 at the width of preset tiny: as published, and ours.

A training step and the sampling of 16 texts, for each method and for short and long texts with small and large
vocabularies. All have the depth, width and heads of the preset's denoiser, in float32, and nothing is compiled. Methods
are measured in turns, and a ratio is to LDLM in the same turn. `published.py` says what "published" means.

A training step, with a fixed number of tokens, comprises draws, forward, backward, clipping, AdamW and the weight
average. LDLM's is the mean of one with self-conditioning and one without, on precomputed states. Sampling is
extrapolated: steps in the middle of the grid, with a fixed number of tokens at a time, stand for all steps and texts;
what comes before and after is measured once and added. LDLM has its default solver. Every step has its evaluation,
though our samplers skip it if nothing is drawn from it.

Seconds are processor seconds of one thread: on a machine with other work they say more than wall-clock seconds.

`python -m benchmarks.rivals 64 50257` measures only training steps, for one length and vocabulary, in two minutes.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import OURS, Sampling, Training, backbone, methods, samplers
from benchmarks.speed import PLAIN, Bench, bench_of
from ldlm import markdown, memory
from ldlm.baselines.argmax import Unwarp
from ldlm.baselines.interface import draw_texts
from ldlm.config import SamplerConfig, Shapes
from ldlm.model.joint import build
from ldlm.sampling import solvers
from ldlm.sampling.generation import ReverseProcess, text_seeds

Work = Callable[[], object]
Key = tuple[str, str]  # method and way
LDLM = "LDLM"
TEXTS = 16


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    lengths: tuple[int, ...] = (64, 256, 1024)
    vocabularies: tuple[int, ...] = (4_096, 50_257)
    steps: int = 1_024  # of the sampler
    tokens: int = 1_024  # of a training step, and drawn at a time, at every length
    turns: tuple[int, int] = (2, 5)  # at least, and at most
    limit: float = 30.0  # wall-clock seconds after which no turn begins
    seconds: float = 0.2  # for which short calls are repeated, in a turn
    most: int = 4  # repetitions
    whole_steps: int = 32  # of samplers that are run whole


SCALE = Scale()


def run(folder: Path) -> dict[str, Any]:
    """Measure everything, on the CPU, whatever other device there is."""
    load, threads = [os.getloadavg()[0]], torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    try:
        cells = [Cell(length, vocab).figures() for vocab in SCALE.vocabularies for length in SCALE.lengths]
        whole = Cell(SCALE.lengths[0], SCALE.vocabularies[0]).whole()
    finally:
        torch.set_num_threads(threads)
    load.append(os.getloadavg()[0])
    sizes = {"texts": TEXTS, "steps": SCALE.steps, "tokens": SCALE.tokens}
    return {**sizes, "load_average": load, "cores": len(os.sched_getaffinity(0)), "cells": cells, "whole": whole}


@dataclass(frozen=True)
class Cell:
    """A length and a vocabulary."""

    length: int
    vocab: int

    @property
    def texts(self) -> int:
        """Rows of a training step, and texts drawn at a time."""
        return max(1, SCALE.tokens // self.length)

    @property
    def bench(self) -> Bench:
        """LDLM's side."""
        bench = bench_of(torch.device("cpu"), "tiny")
        shapes = Shapes(self.length, bench.shapes.hidden_dim, self.vocab)
        return replace(bench, shapes=shapes, settings=replace(bench.settings, batch_size=self.texts))

    def figures(self) -> dict[str, Any]:
        """Training and sampling of all methods."""
        _ = Unwarp.of(self.vocab), Unwarp.of(self.vocab, "cpu")  # FLM's tables, cached for each form of the call
        where = {"length": self.length, "vocabulary": self.vocab, "texts": self.texts}
        found = {**where, "training": self.training()}
        gc.collect()
        return {**found, "sampling": self.sampling()}

    # ------------------------------------------------------------------------------------------------------------------
    # Training

    def training(self) -> list[dict[str, Any]]:
        """Seconds per step, by method and way."""
        bench, sizes = self.bench, self.bench.settings.model.denoiser
        works: dict[tuple[str, str], Work] = {}
        for kind, p in (("with", 1.0), ("without", 0.0)):
            diffusion = replace(bench.settings.diffusion, self_conditioning=p)
            of_kind = replace(bench, settings=replace(bench.settings, diffusion=diffusion))
            works[LDLM, kind] = of_kind.step(PLAIN, of_kind.batch(self.texts), None)
        tokens_BL = torch.randint(self.vocab, (self.texts, self.length))
        for name, by_way in methods(self.vocab, sizes.width).items():
            training = Training(backbone(name, sizes, self.vocab), tokens_BL, bench.settings.optimizer)
            for way, method in by_way.items():
                works[name, way] = partial(training.step, method, way)
        spent = in_turns(works)
        kinds = zip(spent.pop((LDLM, "with")), spent.pop((LDLM, "without")), strict=True)
        return rows({(LDLM, OURS): [sum(pair) / 2 for pair in kinds], **spent}, extrapolated=False)

    # ------------------------------------------------------------------------------------------------------------------
    # Sampling

    def sampling(self) -> list[dict[str, Any]]:
        """Seconds for `TEXTS` texts at the sampler's number of steps, by method and way, extrapolated."""
        found = self.reverse(SCALE.steps)
        beside = {key: clock(one.beside) for key, one in found.items()}
        of_row = in_turns({key: one.row for key, one in found.items()})
        times = TEXTS / self.texts
        spent = {key: [times * one.seconds(beside[key], row) for row in of_row[key]] for key, one in found.items()}
        return rows(spent, extrapolated=True)

    def whole(self) -> dict[str, Any]:
        """Whole runs of few steps by LDLM and our samplers, beside their extrapolation from steps in the middle."""
        found = {}
        for (name, way), one in self.reverse(SCALE.whole_steps).items():
            if way == OURS:
                of_row = statistics.median(clock(one.row) for _ in range(SCALE.most))
                seconds = one.seconds(clock(one.beside), of_row)
                found[name] = {"extrapolated": seconds, "measured": clock(one.whole)}
        where = {"length": self.length, "vocabulary": self.vocab, "texts": self.texts, "steps": SCALE.whole_steps}
        return {**where, "seconds": found}

    def reverse(self, steps: int) -> dict[Key, Reverse]:
        """Samplers with that many steps, by method and way."""
        seeds_B, sizes = text_seeds(0, 0, self.texts), self.bench.settings.model.denoiser
        found = {(LDLM, OURS): self.latent(SamplerConfig(steps=steps), seeds_B)}
        for name, by_way in samplers(self.vocab, self.length, steps).items():
            network = backbone(name, sizes, self.vocab).eval().requires_grad_(False)
            for way, one in by_way.items():
                begin, whole = partial(one.begin, network, seeds_B), partial(draw_texts, one, network, seeds_B)
                found[name, way] = Reverse(one.rows, Sampling(one, network, seeds_B, way).step, begin, whole)
        return found

    def latent(self, sampler: SamplerConfig, seeds_B: Tensor) -> Reverse:
        """LDLM's sampler, which ends with one pass through the decoder."""
        bench = self.bench
        model = build(bench.settings.model, bench.shapes, seed=0).eval().requires_grad_(False)
        generator = bench.generator(model, PLAIN)
        grid = solvers.grid_of(sampler, generator.schedule, generator.timesteps)
        recurrence = solvers.solver(sampler)(generator.schedule, grid)
        process = ReverseProcess(generator, sampler.steps, bool(recurrence.eps.any()), False, len(seeds_B))

        def beside() -> None:
            process.begin(recurrence, 1.0, seeds_B)
            generator.decode(process.z_BNC, seeds_B)

        def row() -> None:
            process.row_1.fill_(sampler.steps // 2)
            process.step()

        whole = partial(generator.tokens, sampler, seeds_B)
        return Reverse(sampler.steps, torch.no_grad()(row), torch.no_grad()(beside), whole)


@dataclass(frozen=True)
class Reverse:
    """The parts of a sampler that are timed."""

    rows: int  # each with an evaluation
    row: Work  # takes one in the middle
    beside: Work  # what comes before and after the rows
    whole: Work  # draws the texts

    def seconds(self, beside: float, row: float) -> float:
        """Seconds of the whole, from those of its parts."""
        return beside + self.rows * row


# ----------------------------------------------------------------------------------------------------------------------
# Timing


def clock(work: Work) -> float:
    """Processor seconds of a call, the mean of several if it is short."""
    calls, spent, started = 0, 0.0, time.process_time()
    while calls == 0 or (spent < SCALE.seconds and calls < SCALE.most):
        work()
        calls, spent = calls + 1, time.process_time() - started
    return spent / calls


def in_turns(works: dict[Key, Work]) -> dict[Key, list[float]]:
    """Seconds of each in every turn; every other turn runs in reverse order."""
    spent: dict[Key, list[float]] = {key: [] for key in works}
    (least, most), ends = SCALE.turns, time.perf_counter() + SCALE.limit
    for turn in range(most):
        if turn >= least and time.perf_counter() > ends:
            break
        for key in list(works)[:: -1 if turn % 2 else 1]:
            spent[key].append(clock(works[key]))
    return spent


def rows(spent: dict[Key, list[float]], *, extrapolated: bool) -> list[dict[str, Any]]:
    """Figures by method and way: the median seconds, and the ratios to LDLM turn by turn with their median."""
    found = []
    for (name, way), seconds in spent.items():
        ratios = [one / of_ldlm for one, of_ldlm in zip(seconds, spent[LDLM, OURS], strict=True)]
        row = {"method": name, "way": way, "seconds": statistics.median(seconds), "extrapolated": extrapolated}
        found.append({**row, "ratio": statistics.median(ratios), "ratios": ratios})
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Report


def report(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    cells, load = figures["cells"], figures["load_average"]
    return "\n".join(
        [
            f"Times LDLM's, the median of some turns (least–most of them), and the seconds of one core of "
            f"{figures['cores']}; load average {load[0]:.1f} before and {load[1]:.1f} after",
            "",
            f"A training step of {figures['tokens']:,} tokens, measured",
            "",
            _of_cells(cells, "training"),
            "",
            f"{figures['texts']} texts at {figures['steps']:,} steps, extrapolated from some rows of "
            f"{figures['tokens']:,} tokens at a time",
            "",
            _of_cells(cells, "sampling"),
            "",
            "Growth: seconds with the largest over those with the smallest, in a training step of as many tokens, and "
            "in sampling",
            "",
            _growth(cells),
            "",
            _whole(figures["whole"]),
        ]
    )


def _of_cells(cells: Sequence[dict[str, Any]], kind: str) -> str:
    """Table of methods by cells."""
    head = ["", "", *(f"L = {cell['length']:,}, V = {cell['vocabulary']:,}" for cell in cells)]
    lines = []
    for of_method in zip(*(cell[kind] for cell in cells), strict=True):
        shown = [_ratio(row) for row in of_method]
        lines.append([of_method[0]["method"], "" if of_method[0]["method"] == LDLM else of_method[0]["way"], *shown])
    return markdown.table(head, lines)


def _ratio(row: dict[str, Any]) -> str:
    """A method's ratio to LDLM with its range, and its seconds; for LDLM, only seconds."""
    seconds = f"{'≈ ' if row['extrapolated'] else ''}{_digits(row['seconds'])} s"
    if row["method"] == LDLM:
        return seconds
    return f"{_digits(row['ratio'])} ({_digits(min(row['ratios']))}–{_digits(max(row['ratios']))}), {seconds}"


def _digits(number: float) -> str:
    """A number with three significant digits and no exponent."""
    return f"{float(f'{number:.3g}'):,.12g}"


def _growth(cells: Sequence[dict[str, Any]]) -> str:
    """Table of the growth with V at every length, and with L at every vocabulary size."""
    at = {(cell["length"], cell["vocabulary"]): cell for cell in cells}
    (short, *_, long), (small, *_, large) = (sorted({where[i] for where in at}) for i in (0, 1))
    lengths = list(dict.fromkeys(length for length, _ in at))
    pairs = {f"V × {large / small:.3g}, L = {length:,}": ((length, large), (length, small)) for length in lengths}
    pairs |= {f"L × {long // short}, V = {vocab:,}": ((long, vocab), (short, vocab)) for vocab in (small, large)}
    lines = []
    for kind in ("training", "sampling"):
        for number, row in enumerate(cells[0][kind]):
            seconds = [[at[where][kind][number]["seconds"] for where in pair] for pair in pairs.values()]
            lines.append([kind, row["method"], row["way"], *(f"{more / less:.3g}" for more, less in seconds)])
    return markdown.table(["", "", "", *pairs], lines)


def _whole(figures: dict[str, Any]) -> str:
    """Whole runs beside their extrapolation."""
    head = (
        f"{figures['texts']} texts at {figures['steps']} steps, L = {figures['length']:,}, V = "
        f"{figures['vocabulary']:,}, drawn whole: seconds, and those extrapolated from rows in the middle"
    )
    lines = [
        [name, f"{one['measured']:.3g}", f"{one['extrapolated']:.3g}", f"{one['extrapolated'] / one['measured']:.2f}"]
        for name, one in figures["seconds"].items()
    ]
    return f"{head}\n\n" + markdown.table(["", "measured", "extrapolated", "ratio"], lines)


if __name__ == "__main__":
    memory.keep_freed()  # as the commands do
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cell = Cell(*map(int, sys.argv[1:]))
    print(_of_cells([{"length": cell.length, "vocabulary": cell.vocab, "training": cell.training()}], "training"))
