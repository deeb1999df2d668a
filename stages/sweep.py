"""Quality against the number of denoiser evaluations: every solver, grid and guidance on one model (Tables 5, 8, 9).

A *trajectory* is a solver, a grid, a guidance and a budget of evaluations; it is computed once. A *variant* is one way
to decode its end: the last mean or the last ẑ_0, a temperature, a decoder. All variants are screened with few texts.
The finalists are drawn again with many texts: at each budget the paper's sampler and the best variant, which has the
lowest perplexity at no less entropy than the paper's sampler has at its own budget. So a low perplexity that comes from
repetition does not win.

The variants of each trajectory are written to a file of their own, from which the same command resumes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldlm import artifact, files, runtime
from ldlm.artifact import Artifact
from ldlm.config import PAPERS_SAMPLER, EvaluateConfig, Final, SamplerConfig, SweepConfig
from ldlm.errors import InputError
from ldlm.evaluation import metrics, samples
from ldlm.evaluation.boundaries import Boundaries
from ldlm.evaluation.frontier import COUNTED, External, Frontier, Variant, finalists, is_papers, tables
from ldlm.evaluation.measure import measure
from ldlm.evaluation.samples import Texts
from ldlm.evaluation.scorer import Scorer
from ldlm.evaluation.scores import SetScores
from ldlm.features import textfiles
from ldlm.pages import plots
from ldlm.progress import SILENT, Progress, Task
from ldlm.sampling import solvers
from ldlm.sampling.generation import LARGEST_BATCH, TextGenerator, text_seeds
from ldlm.sampling.solvers import End
from ldlm.sampling.trained_run import TrainedRun


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
        """Settings of the sampler, with as many steps as the budget allows."""
        settings: Any = {"solver": self.solver, "grid": self.grid, "guidance": self.guidance, "t_min": self.t_min}
        config = SamplerConfig(**settings)
        return replace(config, steps=self.budget // solvers.evaluations_per_step(config))

    def finals(self, asked: Sequence[Final]) -> list[Final]:
        """The ends among `asked` that are offered for this solver and grid, each once."""
        return [final for final in dict.fromkeys(asked) if solvers.is_offered(replace(self.sampler, final=final))]


def trajectories(config: SweepConfig) -> list[Trajectory]:
    """All combinations that are offered and whose budget allows a step, cheapest first."""
    everything = [
        Trajectory(solver, grid, guidance, budget, _t_min(config, solver, grid, guidance))
        for solver in dict.fromkeys(config.solvers)
        for grid in dict.fromkeys(config.grids)
        for guidance in dict.fromkeys(config.guidances)
        for budget in sorted(set(config.budgets))
    ]
    offered = [one for one in everything if one.finals(config.finals)]
    if not offered:
        solvers.check(replace(everything[0].sampler, final=config.finals[0]))
    affordable = [one for one in offered if solvers.evaluations_per_step(one.sampler) <= one.budget]
    if not affordable:
        raise InputError(
            f"none of the solvers takes a step in {max(config.budgets)} evaluations; give larger --budgets (heun takes "
            f"two a step, and guidance twice as many)"
        )
    return sorted(affordable, key=lambda one: one.budget)


def _t_min(config: SweepConfig, solver: str, grid: str, guidance: float) -> float:
    """End of a trajectory's grid; the paper's sampler keeps the paper's."""
    row = {"solver": solver, "grid": grid, "guidance": guidance}
    return PAPERS_SAMPLER["t_min"] if is_papers(row) else config.t_min


def plan(config: SweepConfig) -> dict[str, Any]:
    """Numbers of trajectories, variants, evaluations and texts that it would take."""
    found = trajectories(config)
    ends = sum(len(one.finals(config.finals)) for one in found)
    variants = ends * len(config.temperatures) * max(1, len(config.decoders))
    return {
        "trajectories": len(found),
        "variants": variants,
        "denoiser_evaluations_to_screen": config.screen_texts * sum(one.budget for one in found),
        "texts_to_screen": config.screen_texts * variants,
        "finalists_at_most": 2 * len(set(config.budgets)),
    }


def run(
    config: SweepConfig,
    run_path: Path,
    out: Path,
    *,
    reference: Path | None = None,
    externals: Sequence[External] = (),
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Artifact:
    """Write `sweep.json`, `table.md`, `frontier.png` and the finalists' texts to `out`."""
    found = trajectories(config)
    beside = Beside.read(config, reference, externals, progress)
    sweep = _open(config, run_path, out, beside.fewest, progress)
    reads = [run_path, *([] if reference is None else [reference]), *(one.path for one in externals)]
    inputs = {**sweep.inputs, **beside.inputs}
    result = artifact.begin(out, "sweep", config, inputs, overwrite=overwrite, reads=reads)
    if result.complete:
        progress.note(f"{out} is complete; nothing to do")
        return result

    if not config.decoders:
        sweep.run.remark_on_decoder(None, progress)
    screened = sweep.draw("screen", found, config.screen_texts, progress)
    chosen = finalists(screened, config.entropy_slack)
    drawn = sweep.draw("finalists", list(dict.fromkeys(map(Trajectory.of, chosen))), config.texts, progress)
    with_many_texts = {row.way: row for row in drawn}
    frontier = Frontier(
        finalists=[replace(with_many_texts[one.way], best=one.best) for one in chosen],
        drawn=drawn,
        screened=screened,
        externals={one: sweep.score(texts) for one, texts in beside.externals.items()},
        real=None if beside.real is None else sweep.score(beside.real),
        about=sweep.about,
    )

    summary = frontier.to_json()
    files.write_json(out / "sweep.json", summary)
    files.write_atomic(out / "table.md", tables(frontier))
    plots.frontier(out / "frontier.png", summary)
    return result.finish(**summary)


@dataclass(frozen=True)
class Beside:
    """Texts of the reference and of other models, which are scored beside the run's."""

    real: Texts | None
    externals: dict[External, Texts]
    fewest: int  # texts in the smallest set, the run's among them
    inputs: dict[str, Any]  # hashes of the files and costs, as inputs of the artefact

    @classmethod
    def read(
        cls, config: SweepConfig, reference: Path | None, externals: Sequence[External], progress: Progress
    ) -> Beside:
        """Read the reference and the texts of other models; notes say how their boundaries are found."""
        if len({one.name for one in externals}) < len(externals):
            raise InputError("two --external have one name; give each a name of its own")
        hashes = textfiles.fingerprints([*([reference] if reference else []), *(one.path for one in externals)])
        named = samples.remarks(map(Path, hashes), config.boundary_tokens)
        for remark in [*textfiles.remarks(hashes, config.text_column), *named]:
            progress.note(remark)
        real = None if reference is None else _read(config, reference)
        others = {one: _read(config, one.path) for one in externals}
        fewest = min([config.texts, *(len(texts) for texts in (real, *others.values()) if texts is not None)])
        if fewest < config.texts:
            progress.note(f"diversity is that of {fewest:,} texts of each set, for the smallest has no more")
        inputs = {
            "reference": None if reference is None else hashes[str(reference)],
            "externals": {one.name: [hashes[str(one.path)], one.nfe, one.seconds] for one in externals},
        }
        # Of the reference as many as are drawn: diversity falls with the number of texts.
        return cls(None if real is None else real.first(config.texts), others, fewest, inputs)


def _read(config: SweepConfig, path: Path) -> Texts:
    return samples.described(samples.read(path, config.text_column), path, config.boundary_tokens)


def _open(config: SweepConfig, run_path: Path, out: Path, fewest: int, progress: Progress) -> Sweep:
    device = runtime.device(config.device)
    run = TrainedRun(run_path, device, config.checkpoint)
    compute = run.compute(config.compute)
    compute.tell(progress)
    generators = {g.decoder.name: g for g in (run.generator(name, compute) for name in config.decoders or (None,))}
    scorer = Scorer(config.scorer, device)
    return Sweep(config, out, run, generators, scorer, scorer.fitting(run.shapes.seq_len, progress.note), fewest)


# ----------------------------------------------------------------------------------------------------------------------
# Drawing and scoring


@dataclass(frozen=True)
class Sweep:
    """Draws and scores trajectories."""

    config: SweepConfig
    out: Path
    run: TrainedRun
    generators: dict[str, TextGenerator]  # by decoder, of one denoiser
    scorer: Scorer
    max_tokens: int  # after which texts are cut for the scorer
    fewest: int  # texts of each set that diversity is measured on

    def draw(self, what: str, trajectories: Sequence[Trajectory], count: int, progress: Progress) -> list[Variant]:
        """Every variant of the trajectories over `count` texts; `what` names the work to the user."""
        evaluations = count * sum(one.budget for one in trajectories)
        with progress.task(what, evaluations, "evaluation") as task:
            return [row for one in trajectories for row in self._variants(one, count, task)]

    def _variants(self, trajectory: Trajectory, count: int, task: Task) -> list[Variant]:
        """The variants of a trajectory, from its file where they have been measured."""
        path = self.out / "trajectories" / f"{trajectory.name}-{count}.json"
        if not path.exists():
            files.write_json(path, [row.to_json() for row in self._measure(trajectory, count)])
        task.advance(count * trajectory.budget)
        return [Variant.from_json(row) for row in files.read_json(path)]

    def _measure(self, trajectory: Trajectory, count: int) -> Iterator[Variant]:
        seeds_B = text_seeds(self.config.seed, 0, count)
        end, seconds = self._ends(trajectory.sampler, seeds_B)
        for (name, generator), final, temperature in product(
            self.generators.items(), trajectory.finals(self.config.finals), dict.fromkeys(self.config.temperatures)
        ):
            started = time.perf_counter()
            tokens_BL = generator.decode(getattr(end, final), seeds_B, temperature).cpu()
            decoding = (time.perf_counter() - started) / count
            tokens = tokens_BL.tolist()
            written = metrics.decode_tokens(self.run.tokenizer, tokens_BL, clean_up=self.config.clean_up)
            texts = Texts(written, tokens, boundaries=self.boundaries, clean_up=self.config.clean_up)
            yield Variant(
                **asdict(trajectory),
                steps=trajectory.sampler.steps,
                final=final,
                temperature=temperature,
                decoder=name,
                seconds=seconds + decoding,
                **self.score(texts).pick(*COUNTED),
            )
            if count == self.config.texts:
                self._keep(f"{trajectory.name}_{name}_{final}_{temperature:g}", texts, tokens, seeds_B)

    def _ends(self, sampler: SamplerConfig, seeds_B: Tensor) -> tuple[End, float]:
        """The ends of a trajectory, and the seconds per text that it took."""
        generator, size = next(iter(self.generators.values())), min(self._batch_size, len(seeds_B))
        generator.prepare(sampler, size)
        started = time.perf_counter()
        found = [generator.ends(sampler, generator.padded(seeds, size)) for seeds in seeds_B.split(size)]
        end = End(*(torch.cat(parts)[: len(seeds_B)] for parts in zip(*found, strict=True)))
        end.mean.sum().item()  # which waits for the device
        return end, (time.perf_counter() - started) / len(seeds_B)

    @cached_property
    def _batch_size(self) -> int:
        """Batch size of all trajectories, measured once."""
        generator, most = next(iter(self.generators.values())), max(self.config.texts, self.config.screen_texts)
        return self.config.batch_size or generator.batch_size(min(most, LARGEST_BATCH))

    @property
    def inputs(self) -> dict[str, Any]:
        """The checkpoint, the decoders and the precision, as inputs of the artefact."""
        precision = next(iter(self.generators.values())).compute.precision
        return {"checkpoint": self.run.checkpoint.digest, "decoders": list(self.generators), "precision": precision}

    @property
    def about(self) -> dict[str, Any]:
        """Everything that all figures depend on, as in `sweep.json`."""
        return {
            "texts": self.config.texts,
            "screen_texts": self.config.screen_texts,
            "diversity_texts": self.fewest,
            "scorer": self.scorer.name,
            "max_tokens": self.max_tokens,
            "boundaries": self.config.boundaries,
            "boundary_tokens": list(self.boundaries.tokens),
            "clean_up": self.config.clean_up,
            "device": str(self.run.device),
            "step": self.run.checkpoint.step,
        }

    @cached_property
    def boundaries(self) -> Boundaries:
        """Boundary tokens of the run's tokenizer."""
        return Boundaries.of(self.run.tokenizer)

    def _keep(self, name: str, texts: Texts, tokens: list[list[int]], seeds_B: Tensor) -> None:
        rows, path = samples.rows(texts.texts, tokens, seeds_B.tolist()), self.out / "texts" / f"{name}.jsonl"
        samples.write_record(path, "texts", samples.record_of(self.run.tokenizer, self.config.clean_up))
        files.write_atomic(path, files.dump_jsonl(rows))

    def score(self, texts: Texts) -> SetScores:
        """Scores of a set of texts, its diversity of as many texts as the smallest set has."""
        evaluation = EvaluateConfig(scorer=self.config.scorer, boundaries=self.config.boundaries)
        return measure(texts, self.scorer, evaluation, self.max_tokens, self.fewest)
