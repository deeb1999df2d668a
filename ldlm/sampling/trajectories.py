"""The sweep of a run of LDLM: every solver, grid and guidance on one model (Tables 5, 8, 9).

A *trajectory* is a solver, a grid, a guidance and a budget of evaluations; it is computed once. A *variant* is one way
to decode its end: the last mean or the last ẑ_0, a temperature, a decoder. All variants are screened with few texts.
The finalists are drawn with many other texts: at each budget, the paper's sampler and the best variant, which has the
lowest perplexity with no less entropy than the paper's sampler has at its own budget, so that a low perplexity due to
repetition does not win.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldlm import artifact
from ldlm.config import LDLM, PAPERS_SAMPLER, DiffusionConfig, Final, Grid, SamplerConfig, SweepConfig
from ldlm.errors import InputError
from ldlm.evaluation.beside import Judge
from ldlm.evaluation.frontier import Frontier, Variant, finalists, is_papers, read_finalists
from ldlm.evaluation.fronts import Point
from ldlm.progress import Progress
from ldlm.sampling import drawer, exported, solvers
from ldlm.sampling.generation import LARGEST_BATCH, TextGenerator, text_seeds
from ldlm.sampling.solvers import End
from ldlm.sampling.trained_run import TrainedRun
from ldlm.sampling.ways import Bench, Drawn


@dataclass(frozen=True)
class Offer:
    """The facts about a model that decide which trajectories are offered for it."""

    flat: bool = False  # whether F(t) is t, so that `learned` has the times of `time`
    known: SamplerConfig | None = None  # with which it was exported, or that it has learned

    def has(self, sampler: SamplerConfig) -> bool:
        """Whether a sampler is offered, as for `ldlm sample`."""
        return solvers.is_offered(sampler, self.known, flat=self.flat)

    def repeats(self, grids: Sequence[Grid]) -> bool:
        """Whether `learned` would draw what `time` draws."""
        asked = {"learned", "time"} <= {*grids}
        return asked and self.flat and (self.known is None or self.known.grid != "learned")

    def distinct(self, grids: Sequence[Grid]) -> list[Grid]:
        """The grids whose times differ, each once."""
        left_out = {"learned"} if self.repeats(grids) else set[str]()
        return [grid for grid in dict.fromkeys(grids) if grid not in left_out]


ANY = Offer()  # for plans without a model


@dataclass(frozen=True)
class Trajectory:
    """One way through the reverse process."""

    solver: str
    grid: str
    guidance: float
    budget: int  # evaluations of the denoiser per text
    t_min: float

    @classmethod
    def of(cls, row: Variant) -> Trajectory:
        """The trajectory whose end a variant decodes."""
        return cls(row.solver, row.grid, row.guidance, row.budget, row.t_min)

    @property
    def name(self) -> str:
        """Name of the file of a variant's texts."""
        return f"{self.solver}_{self.grid}_w{self.guidance:g}_{self.budget}"

    @property
    def sampler(self) -> SamplerConfig:
        """The sampler's settings, with as many steps as the budget allows."""
        settings: Any = {"solver": self.solver, "grid": self.grid, "guidance": self.guidance, "t_min": self.t_min}
        config = SamplerConfig(**settings)
        return replace(config, steps=self.budget // solvers.evaluations_per_step(config))

    def finals(self, asked: Sequence[Final], offer: Offer = ANY) -> list[Final]:
        """The ends in `asked` that are offered for this solver and grid, each once."""
        return [final for final in dict.fromkeys(asked) if offer.has(replace(self.sampler, final=final))]


def trajectories(config: SweepConfig, offer: Offer = ANY) -> list[Trajectory]:
    """All combinations that are offered and whose budget allows a step, cheapest first."""
    everything = [
        Trajectory(solver, grid, guidance, budget, _t_min(config, solver, grid, guidance))
        for solver in dict.fromkeys(config.solvers)
        for grid in offer.distinct(config.grids)
        for guidance in dict.fromkeys(config.guidances)
        for budget in sorted(set(config.budgets))
    ]
    offered = [one for one in everything if one.finals(config.finals, offer)]
    if not offered:
        solvers.check(replace(everything[0].sampler, final=config.finals[0]), flat=offer.flat)
    affordable = [one for one in offered if solvers.evaluations_per_step(one.sampler) <= one.budget]
    if not affordable:
        raise InputError(
            f"none of the solvers takes a step in {max(config.budgets)} evaluations; give larger --budgets (heun takes "
            f"two per step, and guidance twice as many)"
        )
    return sorted(affordable, key=lambda one: one.budget)


def _t_min(config: SweepConfig, solver: str, grid: str, guidance: float) -> float:
    """End of a trajectory's grid; the paper's sampler keeps the paper's."""
    row = {"solver": solver, "grid": grid, "guidance": guidance}
    return PAPERS_SAMPLER["t_min"] if is_papers(row) else config.t_min


def plan(config: SweepConfig, offer: Offer = ANY) -> dict[str, Any]:
    """Numbers of trajectories, variants, evaluations and texts that it would take."""
    found = trajectories(config, offer)
    ends = sum(len(one.finals(config.finals, offer)) for one in found)
    variants = ends * len(config.temperatures) * max(1, len(config.decoders))
    return {
        "trajectories": len(found),
        "variants": variants,
        "denoiser_evaluations_to_screen": config.screen_texts * sum(one.budget for one in found),
        "texts_to_screen": config.screen_texts * variants,
        "finalists_at_most": 2 * len(set(config.budgets)),
    }


@dataclass(frozen=True)
class TrajectorySweep:
    """The sweep of a run of LDLM; `InputError` if the budgets allow no trajectory that is offered."""

    path: Path
    config: SweepConfig
    offer: Offer
    method: str = LDLM

    def __post_init__(self) -> None:
        trajectories(self.config, self.offer)

    def plan(self) -> dict[str, Any]:
        """Numbers of trajectories, variants, evaluations and texts that it would take."""
        return plan(self.config, self.offer)

    def load(self, source: Any, progress: Progress) -> LoadedRun:
        """The denoiser and the decoders of a source; a note may say how they compute."""
        compute = source.compute(self.config.compute)
        compute.tell(progress)
        generators = [source.generator(name, compute) for name in self.config.decoders or (None,)]
        return LoadedRun(self.config, self.offer, source, {one.decoder.name: one for one in generators})

    def points(self, name: str, summary: Mapping[str, Any]) -> list[Point]:
        """The finalists, as the two lines that they form: the paper's sampler, and the best at each budget."""
        found = read_finalists(summary)
        lines = {PAPERS: [row for row in found if row.is_papers], BEST: [row for row in found if row.best]}
        return [_point(name, way, row) for way, rows in lines.items() for row in rows]


def guiding(config: SweepConfig, path: Path, diffusion: DiffusionConfig, progress: Progress) -> SweepConfig:
    """The settings without guidance that a run can't be drawn with; `InputError` if none is left."""
    if diffusion.self_conditioned or set(config.guidances) == {1}:
        return config
    if 1 not in config.guidances:
        drawer.check_guidance(config.guidances[0], diffusion.self_conditioned)
    progress.note(f"{path}: trained without self-conditioning, and swept with --guidances 1 alone: guidance needs it")
    return replace(config, guidances=(1.0,))


SCREEN_SEEDS = "screen_seeds"
PAPERS, BEST = "the paper's sampler", "best at each budget"
SETTINGS = ("solver", "grid", "guidance", "t_min", "steps", "final", "temperature", "decoder")  # of a variant


def _point(run: str, way: str, row: Variant) -> Point:
    sampler = Trajectory.of(row).sampler
    settings = {name: getattr(row, name) for name in SETTINGS}
    evaluations = row.steps * solvers.evaluations_per_step(sampler)
    return Point(
        run=run, method=LDLM, way=way, budget=row.budget, rows=row.steps, evaluations=evaluations, seconds=row.seconds,
        gen_ppl=row.gen_ppl, entropy=row.entropy, diversity=row.diversity, intervals=row.intervals,
        num_texts=row.num_texts, diversity_texts=row.diversity_texts, sampler=settings,
    )  # fmt: skip


@dataclass(frozen=True)
class LoadedRun:
    """A run of LDLM that draws texts along trajectories."""

    config: SweepConfig
    offer: Offer
    source: TrainedRun | exported.LDLM
    generators: dict[str, TextGenerator]  # by decoder, all with one denoiser

    @property
    def tokenizer(self) -> Any:
        """The run's tokenizer."""
        return self.source.tokenizer

    @property
    def inputs(self) -> dict[str, Any]:
        """The checkpoint, decoders, precisions and seeds of the screening, as inputs of the artefact."""
        decoders = [one.decoder for one in self.generators.values()]
        precision = next(iter(self.generators.values())).compute.precision
        return {
            "checkpoint": self.source.origin["checkpoint"],
            **self.source.conditioning,
            "decoders": [one.name for one in decoders],
            "decoder_sha256": {one.name: one.sha256 for one in decoders if one.sha256 is not None},
            "precision": precision,
            "weights_precision": self.source.weights_precision,
            SCREEN_SEEDS: self._screen_seeds,
        }

    @property
    def _screen_numbers(self) -> range:
        """Numbers of the texts of the screening, behind those of the finalists, which they must not have chosen."""
        return range(self.config.texts, self.config.texts + self.config.screen_texts)

    @property
    def _screen_seeds(self) -> list[int]:
        """The lowest and the highest seed of the screening."""
        return text_seeds(self.config.seed, self._screen_numbers.start, self._screen_numbers.stop)[[0, -1]].tolist()

    def remark(self, progress: Progress) -> None:
        """Note the default decoder if none is named, a grid left out, and samplers that a student has not learned."""
        if not self.config.decoders and isinstance(self.source, TrainedRun):  # an export has its default on record
            self.source.remark_on_decoder(None, progress)
        if self.offer.repeats(self.config.grids):
            progress.note(
                "timesteps are uniform here (F(t) is t), so the grid learned has the times of time, and is left out"
            )
        drawer.remark_on_student(self.source.student, [one.sampler for one in self._trajectories], progress)

    @property
    def _trajectories(self) -> list[Trajectory]:
        return trajectories(self.config, self.offer)

    def find(self, out: Path, judge: Judge, progress: Progress) -> Frontier:
        """Screen all trajectories, and draw the finalists again."""
        self.remark(progress)
        bench: Bench[Trajectory, Variant] = Bench(self.config, out, self, judge)
        # A sweep that an earlier version began has finalists of the seeds that chose them.
        apart = SCREEN_SEEDS in artifact.open_artifact(out, "sweep", complete=False).inputs
        numbers = self._screen_numbers if apart else range(self.config.screen_texts)
        screened = bench.rows("screen", self._trajectories, numbers, progress)
        chosen = finalists(screened, self.config.entropy_slack)
        again = list(dict.fromkeys(map(Trajectory.of, chosen)))
        drawn = bench.rows("finalists", again, range(self.config.texts), progress)
        with_many_texts = {row.way: row for row in drawn}
        return Frontier(
            finalists=[replace(with_many_texts[one.way], best=one.best) for one in chosen],
            drawn=drawn,
            screened=screened,
            externals=judge.externals,
            real=judge.real,
            about={
                "texts": self.config.texts,
                "screen_texts": self.config.screen_texts,
                **({SCREEN_SEEDS: self._screen_seeds} if apart else {}),
                **bench.about,
                "device": str(self.source.device),
                "step": self.source.origin["step"],
            },
        )

    def read(self, row: Mapping[str, Any]) -> Variant:
        """The inverse of `Variant.to_json`."""
        return Variant.from_json(row)

    def draw(self, way: Trajectory, seeds_B: Tensor) -> Iterator[Drawn[Variant]]:
        """Compute a trajectory once, and decode its end in all variants."""
        end, seconds = self._ends(way.sampler, seeds_B)
        for (name, generator), final, temperature in product(
            self.generators.items(), way.finals(self.config.finals, self.offer), dict.fromkeys(self.config.temperatures)
        ):
            started = time.perf_counter()
            tokens_BL = generator.decode(getattr(end, final), seeds_B, temperature).cpu()
            decoding = (time.perf_counter() - started) / len(seeds_B)
            row = partial(
                Variant,
                **asdict(way),
                steps=way.sampler.steps,
                final=final,
                temperature=temperature,
                decoder=name,
                seconds=seconds + decoding,
            )
            yield Drawn(f"{way.name}_{name}_{final}_{temperature:g}", tokens_BL, row)

    def _ends(self, sampler: SamplerConfig, seeds_B: Tensor) -> tuple[End, float]:
        """The ends of a trajectory, and the seconds per text that it took."""
        generator, size = next(iter(self.generators.values())), min(self._batch_size, len(seeds_B))
        generator.prepare(sampler, size)
        started = time.perf_counter()
        found = [generator.ends(sampler, generator.padded(seeds, size)) for seeds in seeds_B.split(size)]
        end = End(*(torch.cat(parts)[: len(seeds_B)] for parts in zip(*found, strict=True)))
        end.mean.sum().item()  # waits for the device
        return end, (time.perf_counter() - started) / len(seeds_B)

    @cached_property
    def _batch_size(self) -> int:
        """Batch size of all trajectories, measured once."""
        generator, most = next(iter(self.generators.values())), max(self.config.texts, self.config.screen_texts)
        return self.config.batch_size or generator.batch_size(min(most, LARGEST_BATCH))
