"""Quality against the number of denoiser evaluations: every solver, grid and guidance on one model (Tables 5, 8, 9).

A *trajectory* is a solver, a grid, a guidance and a budget of evaluations; it is computed once. A *variant* is one way
to decode its end: the last mean or the last ẑ_0, a temperature, a decoder. All of them are screened with a few texts.
Finalists, drawn again with many texts, are the paper's own sampler at each budget and beside it the best variant: the
lowest perplexity at no less entropy than the paper's sampler has at its own budget. So a low perplexity that is bought
with repetition does not win.

Each trajectory's figures are a file of their own, so that the same command takes up an interrupted sweep.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldlm import artifact, files, runtime
from ldlm.artifact import Artifact
from ldlm.compute import Compute
from ldlm.config import PAPERS_SAMPLER, EvaluateConfig, Final, SamplerConfig, SweepConfig
from ldlm.errors import InputError
from ldlm.evaluation import metrics, samples
from ldlm.evaluation.boundaries import Boundaries
from ldlm.evaluation.samples import Texts
from ldlm.evaluation.scorer import Scorer
from ldlm.features import textfiles
from ldlm.pages import plots, results
from ldlm.progress import SILENT, Progress, Task
from ldlm.sampling import solvers as samplers
from ldlm.sampling.generation import LARGEST_BATCH, TextGenerator, text_seeds
from ldlm.sampling.solvers import End
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages.evaluate import measure

PAPERS_BUDGET = 128  # whose entropy the finalists are held to, or the nearest budget that is swept
FIGURES = ("gen_ppl", "entropy", "diversity")


@dataclass(frozen=True)
class Trajectory:
    """One way through the reverse process."""

    solver: str
    grid: str
    guidance: float
    budget: int  # evaluations of the denoiser per text
    t_min: float = SamplerConfig().t_min

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Trajectory:
        """That of a row of figures; sweeps that have no `t_min` in them ended where the paper's sampler does."""
        return cls(**{key: row[key] for key in _KEYS}, t_min=row.get("t_min", PAPERS_SAMPLER["t_min"]))

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.solver}_{self.grid}_w{self.guidance:g}_{self.budget}"

    @property
    def sampler(self) -> SamplerConfig:
        """Its settings, with as many steps as the budget pays for."""
        settings: Any = {"solver": self.solver, "grid": self.grid, "guidance": self.guidance, "t_min": self.t_min}
        config = SamplerConfig(**settings)
        return replace(config, steps=self.budget // samplers.evaluations_per_step(config))

    def finals(self, asked: Sequence[Final]) -> list[Final]:
        """Those of its ends that are offered, each once."""
        return [final for final in dict.fromkeys(asked) if samplers.is_offered(replace(self.sampler, final=final))]


@dataclass(frozen=True)
class External:
    """Anybody's samples, with what they cost: `name=FILE,nfe,seconds` (seconds per text)."""

    name: str
    path: Path
    nfe: int
    seconds: float

    @classmethod
    def parse(cls, given: str) -> External:
        """From the command line; `InputError` when it reads otherwise."""
        name, equals, rest = given.partition("=")
        parts = rest.rsplit(",", 2)
        try:
            if not (name and equals and parts[0]):
                raise ValueError
            return cls(name, Path(parts[0]), int(parts[1]), float(parts[2]))
        except (ValueError, IndexError):
            raise InputError(
                f"--external takes NAME=FILE,NFE,SECONDS (evaluations and seconds per text), for example "
                f"mdlm=mdlm.jsonl,128,2.5, and not {given!r}"
            ) from None


def trajectories(config: SweepConfig) -> list[Trajectory]:
    """All combinations that are offered and whose budget pays for a step, cheapest first."""
    everything = [
        Trajectory(solver, grid, guidance, budget, _t_min(config, solver, grid, guidance))
        for solver in dict.fromkeys(config.solvers)
        for grid in dict.fromkeys(config.grids)
        for guidance in dict.fromkeys(config.guidances)
        for budget in sorted(set(config.budgets))
    ]
    offered = [one for one in everything if one.finals(config.finals)]
    if not offered:
        samplers.check(replace(everything[0].sampler, final=config.finals[0]))
    affordable = [one for one in offered if samplers.evaluations_per_step(one.sampler) <= one.budget]
    if not affordable:
        raise InputError(
            f"none of the solvers takes a step in {max(config.budgets)} evaluations; give larger --budgets (heun takes "
            f"two a step, and guidance twice as many)"
        )
    return sorted(affordable, key=lambda one: one.budget)


def _t_min(config: SweepConfig, solver: str, grid: str, guidance: float) -> float:
    """Where the grid of a trajectory ends: for the paper's sampler, where the paper's ends."""
    row = {"solver": solver, "grid": grid, "guidance": guidance}
    return PAPERS_SAMPLER["t_min"] if _is_papers(row) else config.t_min


def plan(config: SweepConfig) -> dict[str, Any]:
    """How much it would draw and score."""
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
    if len({one.name for one in externals}) < len(externals):
        raise InputError("two --external have one name; give each a name of its own")
    found = trajectories(config)
    hashes = textfiles.fingerprints([*([reference] if reference else []), *(one.path for one in externals)])
    named = samples.remarks(map(Path, hashes), config.boundary_tokens)
    for remark in [*textfiles.remarks(hashes, config.text_column), *named]:
        progress.note(remark)
    real = None if reference is None else _read(config, reference)
    others = {one: _read(config, one.path) for one in externals}
    fewest = min([config.texts, *(len(texts) for texts in (real, *others.values()) if texts is not None)])
    if fewest < config.texts:
        progress.note(f"diversity is that of {fewest:,} texts of each set, for the smallest has no more")
    device = runtime.device(config.device)
    run = TrainedRun(run_path, device, config.checkpoint)
    compute = Compute.of(config.compute, device)
    generators = {g.decoder.name: g for g in (run.generator(name, compute) for name in config.decoders or (None,))}
    scorer = Scorer(config.scorer, device)
    max_tokens = scorer.fitting(run.shapes.seq_len, progress.note)
    inputs = {
        "checkpoint": run.checkpoint.digest,
        "decoders": list(generators),
        "precision": compute.precision,
        "reference": None if reference is None else hashes[str(reference)],
        "externals": {one.name: [hashes[str(one.path)], one.nfe, one.seconds] for one in externals},
    }
    reads = [run_path, *([] if reference is None else [reference]), *(one.path for one in externals)]
    result = artifact.begin(out, "sweep", config, inputs, overwrite=overwrite, reads=reads)
    if result.complete:
        progress.note(f"{out} is complete; nothing to do")
        return result

    if not config.decoders:
        run.remark_on_decoder(None, progress)
    sweep = Sweep(config, out, run, generators, scorer, max_tokens, fewest)
    with progress.task("screen", config.screen_texts * sum(one.budget for one in found), "evaluation") as task:
        screened = [row for one in found for row in sweep.figures(one, config.screen_texts, task)]
    chosen = finalists(screened, config.entropy_slack)
    again = list(dict.fromkeys(map(Trajectory.of, chosen)))
    with progress.task("finalists", config.texts * sum(one.budget for one in again), "evaluation") as task:
        drawn = [row for one in again for row in sweep.figures(one, config.texts, task)]

    summary = {
        "finalists": [
            {**next(row for row in drawn if _variant(row) == _variant(one)), "best": one["best"]} for one in chosen
        ],
        "drawn": drawn,
        "screened": screened,
        "externals": [
            {"name": one.name, "nfe": one.nfe, "seconds": one.seconds, **sweep.score(texts)}
            for one, texts in others.items()
        ],
        # As many as are drawn: diversity falls with the number of texts.
        "real": None if real is None else sweep.score(real.first(config.texts)),
        **sweep.record,
    }
    files.write_json(out / "sweep.json", summary)
    files.write_atomic(out / "table.md", tables(summary))
    plots.frontier(out / "frontier.png", summary)
    return result.finish(**summary)


def _read(config: SweepConfig, path: Path) -> Texts:
    return samples.described(samples.read(path, config.text_column), path, config.boundary_tokens)


_KEYS = ("solver", "grid", "guidance", "budget")


def _variant(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in (*_KEYS, "decoder", "final", "temperature"))


def finalists(rows: Sequence[dict[str, Any]], entropy_slack: float) -> list[dict[str, Any]]:
    """For each budget the best variant of the paper's sampler and the best of all, which is marked as `best`.

    Best is the lowest perplexity among those whose entropy is at most `entropy_slack` below the bar; where there is
    none, the highest entropy. The bar is the entropy of the paper's sampler (any variant of it, the best by
    perplexity) at `PAPERS_BUDGET`, or at the nearest budget; without it, that of all there. A row without a perplexity,
    whose texts have nothing to score, is neither the bar nor the best; where there are only such, none is marked.
    """
    bar = _bar(rows)

    def best(among: list[dict[str, Any]]) -> dict[str, Any]:
        among = results.scored(among) or among
        diverse = [row for row in results.scored(among) if row["entropy"] >= bar - entropy_slack]
        if diverse:
            return min(diverse, key=lambda row: row["gen_ppl"])
        return max(among, key=lambda row: row["entropy"])

    chosen: list[dict[str, Any]] = []
    for budget in sorted({row["budget"] for row in rows}):
        there = [row for row in rows if row["budget"] == budget]
        papers, winner = [row for row in there if _is_papers(row)], best(there)
        if papers and (pick := best(papers)) is not winner:
            chosen.append({**pick, "best": False})
        chosen.append({**winner, "best": winner["gen_ppl"] is not None})
    return chosen


def _bar(rows: Sequence[dict[str, Any]]) -> float:
    """The entropy that finalists are held to; 0 where no row has a perplexity."""
    there = results.scored(rows)
    own = [row for row in there if _is_papers(row)] or there
    if not own:
        return 0.0
    nearest = min({row["budget"] for row in own}, key=lambda budget: abs(budget - PAPERS_BUDGET))
    return min((row for row in own if row["budget"] == nearest), key=lambda row: row["gen_ppl"])["entropy"]


def _is_papers(row: dict[str, Any]) -> bool:
    return all(row.get(key, value) == value for key, value in PAPERS_SAMPLER.items())


# ----------------------------------------------------------------------------------------------------------------------
# One trajectory


@dataclass(frozen=True)
class Sweep:
    """What all trajectories share."""

    config: SweepConfig
    out: Path
    run: TrainedRun
    generators: dict[str, TextGenerator]  # by decoder, of one denoiser
    scorer: Scorer
    max_tokens: int  # at which texts are cut for the scorer
    fewest: int  # texts in the smallest set that stands beside the finalists

    def figures(self, trajectory: Trajectory, count: int, task: Task) -> list[dict[str, Any]]:
        """The figures of every variant over `count` texts, from its file where it has been measured."""
        path = self.out / "trajectories" / f"{trajectory.name}-{count}.json"
        if not path.exists() or not all(map(self._holds, files.read_json(path))):
            files.write_json(path, list(self._measure(trajectory, count)))
        task.advance(count * trajectory.budget)
        finals = trajectory.finals(self.config.finals)  # an earlier version offered more
        return [row for row in files.read_json(path) if row["final"] in finals]

    def _holds(self, row: dict[str, Any]) -> bool:
        """Whether a row would be measured alike now. One of an earlier version has boundaries as they are written."""
        as_written = self.boundaries.are_the_scorers(self.scorer)
        return "diversity_texts" in row or (row["num_texts"] <= self.fewest and as_written)

    def _measure(self, trajectory: Trajectory, count: int) -> Iterator[dict[str, Any]]:
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
            row = {**asdict(trajectory), "steps": trajectory.sampler.steps, "final": final}
            row |= {"temperature": temperature, "decoder": name, "seconds": seconds + decoding}
            yield {**row, **self.score(texts)}
            if count == self.config.texts:
                self._keep(f"{trajectory.name}_{name}_{final}_{temperature:g}", texts, tokens, seeds_B)

    def _ends(self, sampler: SamplerConfig, seeds_B: Tensor) -> tuple[End, float]:
        """Where a trajectory ends, and the seconds per text that it took."""
        generator, size = next(iter(self.generators.values())), min(self._batch_size, len(seeds_B))
        generator.prepare(sampler, size)
        started = time.perf_counter()
        found = [generator.ends(sampler, generator.whole(seeds, size)) for seeds in seeds_B.split(size)]
        end = End(*(torch.cat(parts)[: len(seeds_B)] for parts in zip(*found, strict=True)))
        end.mean.sum().item()  # which waits for the device
        return end, (time.perf_counter() - started) / len(seeds_B)

    @cached_property
    def _batch_size(self) -> int:
        """Of all trajectories, so that it is measured once."""
        generator, most = next(iter(self.generators.values())), max(self.config.texts, self.config.screen_texts)
        return self.config.batch_size or generator.batch_size(min(most, LARGEST_BATCH))

    @property
    def record(self) -> dict[str, Any]:
        """What all its figures depend on."""
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
        """How the model's tokenizer writes them."""
        return Boundaries.of(self.run.tokenizer)

    def _keep(self, name: str, texts: Texts, tokens: list[list[int]], seeds_B: Tensor) -> None:
        rows, path = samples.rows(texts.texts, tokens, seeds_B.tolist()), self.out / "texts" / f"{name}.jsonl"
        samples.write_record(path, "texts", samples.record_of(self.run.tokenizer, self.config.clean_up))
        files.write_atomic(path, files.dump_jsonl(rows))

    def score(self, texts: Texts) -> dict[str, Any]:
        """Perplexity, entropy, diversity, and how many texts they are of."""
        evaluation = EvaluateConfig(scorer=self.config.scorer, boundaries=self.config.boundaries)
        measured = measure(texts, self.scorer, evaluation, self.max_tokens, self.fewest)
        return {key: measured[key] for key in (*FIGURES, "num_texts", "diversity_texts")}


# ----------------------------------------------------------------------------------------------------------------------
# What was found, as text

_COLUMNS = {
    "evaluations": "budget", "solver": "solver", "grid": "grid", "w": "guidance", "decoder": "decoder",
    "final": "final", "temperature": "temperature", "gen. ppl": "gen_ppl", "entropy": "entropy",
    "diversity": "diversity", "s/text": "seconds",
}  # fmt: skip
_DIGITS = {
    "gen_ppl": ".1f",
    "entropy": ".3f",
    "diversity": ".3f",
    "seconds": ".4f",
    "guidance": "g",
    "temperature": "g",
}


def tables(summary: dict[str, Any]) -> str:
    """The finalists, the ways to decode the paper's sampler, others' samples, and all that was screened (Markdown)."""
    own = [row for row in summary["drawn"] if _is_papers(row)]
    parts = [
        f"Scorer {summary['scorer']}, model at step {summary['step']:,}, {summary['texts']:,} texts each, "
        f"{summary['screen_texts']:,} to screen; diversity of {summary['diversity_texts']:,} texts of each; boundaries "
        f"{summary['boundaries']}; seconds on {summary['device']}.",
        "## The paper's sampler and the best at each budget",
        _markdown(summary["finalists"]),
    ]
    if summary["real"] is not None:
        parts.append(f"Real text: {_figures(summary['real'])}.")
    parts.append(verdict(summary))
    if own:
        nearest = min({row["budget"] for row in own}, key=lambda budget: abs(budget - PAPERS_BUDGET))
        parts += [
            f"## Decoding the paper's sampler at {nearest} evaluations",
            _markdown([row for row in own if row["budget"] == nearest]),
        ]
    without = len(summary["screened"]) - len(results.scored(summary["screened"]))
    if without:
        parts.append(
            f"{without:,} of the {len(summary['screened']):,} combinations that were screened have no perplexity (–): "
            f"none of their texts has a token to score."
        )
    if summary["externals"]:
        parts.append("## Other models")
        parts += [
            f"- {one['name']}: {_figures(one)}, {one['nfe']} evaluations, {one['seconds']:g} s/text, "
            f"{one['num_texts']:,} texts"
            for one in summary["externals"]
        ]
    parts += [f"## Screened with {summary['screen_texts']:,} texts", _markdown(summary["screened"])]
    return "\n\n".join(parts) + "\n"


def verdict(summary: dict[str, Any]) -> str:
    """The best finalist at a quarter of the paper's evaluations, or fewer, beside the paper's sampler."""
    own, winners = results.frontier_lines(summary["finalists"]).values()
    if not results.scored(summary["finalists"]):
        return "No combination has a perplexity: none of the texts has a token to score."
    if not own:
        swept = any(map(_is_papers, summary["finalists"]))
        return f"The paper's sampler {'has no perplexity' if swept else 'was not among those swept'}."
    base = min(own, key=lambda row: abs(row["budget"] - PAPERS_BUDGET))
    fewer = [row for row in winners if row["budget"] <= base["budget"] / 4]
    if not fewer:
        return f"Nothing was swept at a quarter of {base['budget']} evaluations."
    best = max(fewer, key=lambda row: row["budget"])
    return (
        f"At {best['budget']} evaluations {best['solver']} ({best['grid']}, w = {best['guidance']:g}): "
        f"{_figures(best)}; the paper's sampler at {base['budget']}: {_figures(base)}."
    )


def _figures(row: Mapping[str, Any]) -> str:
    shown = "no perplexity" if row["gen_ppl"] is None else f"perplexity {row['gen_ppl']:.1f}"
    return f"{shown}, entropy {row['entropy']:.3f}, diversity {row['diversity']:.3f}"


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    for row in rows:
        cells = ["–" if row[key] is None else format(row[key], _DIGITS.get(key, "")) for key in _COLUMNS.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
