"""The sweep of a rival: its samplers at every budget, with the settings of the papers' rows or others.

Every way is drawn once. A chain of N steps takes N + 1 rows, the last of which removes the remaining noise, so N is one
less than the budget. The rows that evaluate the network are counted: with absorbing states their number depends on the
batch size, which is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldlm import config as configs
from ldlm.baselines import methods, opening
from ldlm.baselines.exported import TokenDiffusion
from ldlm.baselines.generation import TokenGenerator
from ldlm.baselines.trained import TrainedTokenRun
from ldlm.config import TOKEN_SAMPLERS, ChainConfig, SampleConfig, SamplerOfTokens, TokenSweepConfig
from ldlm.errors import InputError
from ldlm.evaluation.beside import Judge
from ldlm.evaluation.fronts import Fronts, Point
from ldlm.location import folder_name
from ldlm.progress import Progress
from ldlm.sampling.generation import LARGEST_BATCH
from ldlm.sampling.ways import Bench, Drawn

NAMED = ("name", "steps", "top_p")  # settings that a way shows in another form, steps as its budget


@dataclass(frozen=True)
class TokenWay:
    """A sampler at a budget."""

    sampler: SamplerOfTokens
    budget: int  # the most evaluations of the network per text

    @property
    def words(self) -> str:
        """The sampler in words: its name, p if it filters, and everything else that is not as published."""
        p = getattr(self.sampler, "top_p", 1.0)
        name = self.sampler.name if p == 1 else f"{self.sampler.name}, p = {p}"
        published = configs.to_dict(configs.from_dict(type(self.sampler), {}))
        others = {key: value for key, value in configs.used(self.sampler).items() if value != published[key]}
        return ", ".join([name, *(f"{key} {value}" for key, value in others.items() if key not in NAMED)])

    @property
    def name(self) -> str:
        """Name of the files of its scores and texts."""
        return f"{self.words.replace(', p = ', '_p').replace(', ', '_').replace(' ', '-')}_{self.budget}"


def ways(config: TokenSweepConfig, method: str, run: str | Path) -> list[TokenWay]:
    """All samplers of the method that are asked for, at each budget, cheapest first.

    `InputError`, naming the run, if it has none of the samplers, and for a budget within which none takes a step; also
    for settings that a sampler does not have, or that change nothing beside the others.
    """
    fitting, own = list(TOKEN_SAMPLERS[method]), _own(config, method)
    if not own:
        raise InputError(
            f"{run} is of method {method} and draws with {' or '.join(fitting)}, not with "
            f"{' or '.join(config.token_samplers)}; add one of its own to --token-samplers"
        )
    by_words = {TokenWay(one, 0).words: one for given in own for one in _settings(config, method, given)}
    settings = list(by_words.values())
    found = []
    for budget in sorted(set(config.budgets)):
        # A chain has one row more than its steps.
        steps = {chosen: budget - isinstance(chosen, ChainConfig) for chosen in settings}
        paid = [TokenWay(replace(chosen, steps=count), budget) for chosen, count in steps.items() if count >= 1]
        if not paid:
            raise InputError(
                f"{run} has no sampler for --budgets {budget}: a chain of N steps "
                f"({' or '.join(dict.fromkeys(given['name'] for given in own))}) takes N + 1 evaluations; give budgets "
                f"from 2 on"
            )
        found += paid
    return found


def _own(config: TokenSweepConfig, method: str) -> list[dict[str, Any]]:
    """The samplers that are asked for and that the method has, in its order."""
    fitting = list(TOKEN_SAMPLERS[method])
    asked = [configs.sampler_in_words(text) for text in config.token_samplers or fitting]
    return sorted((given for given in asked if given["name"] in fitting), key=lambda one: fitting.index(one["name"]))


def _settings(config: TokenSweepConfig, method: str, given: Mapping[str, Any]) -> list[SamplerOfTokens]:
    """The settings of a sampler, on top of the published ones, with each p of the sweep if it gives none."""
    if _takes_top_ps(method, given):
        # With the least p, since a rule of the nucleus changes something if any p filters.
        found = _sampler(method, {**given, "top_p": min(config.top_ps)})
        return [replace(found, top_p=p) for p in dict.fromkeys(config.top_ps)]
    return [_sampler(method, given)]


def _sampler(method: str, given: Mapping[str, Any]) -> Any:
    """A sampler with the settings that are `given` and otherwise the published ones."""
    return configs.drawing_config(SampleConfig, method, {"sampler": given}).sampler


def _takes_top_ps(method: str, given: Mapping[str, Any]) -> bool:
    """Whether a sampler filters and has no p of its own, published or `given`."""
    published = TOKEN_SAMPLERS[method][given["name"]]()
    return getattr(published, "top_p", None) == 1 and "top_p" not in given


@dataclass(frozen=True)
class TokenSweep:
    """The sweep of a run or exported model of a rival; `InputError` if the budgets allow it no way."""

    path: Path
    config: TokenSweepConfig
    method: str

    def __post_init__(self) -> None:
        about = opening.about(self.path)
        training: Any = configs.stored_training(about.settings)
        for way in ways(self.config, self.method, self.path):
            methods.sampler(training, way.sampler, about.shapes)  # checks what the settings cannot

    @property
    def takes_top_ps(self) -> bool:
        """Whether any of its samplers is drawn with each p of `top_ps`."""
        return any(_takes_top_ps(self.method, given) for given in _own(self.config, self.method))

    def plan(self) -> dict[str, Any]:
        """Numbers of ways, evaluations and texts that it would take."""
        found = ways(self.config, self.method, self.path)
        return {
            "ways": len(found),
            "evaluations_at_most": self.config.texts * sum(way.budget for way in found),
            "texts_to_draw": self.config.texts * len(found),
        }

    def load(self, source: Any, progress: Progress) -> LoadedTokenRun:
        """The network of a source; a note may say how it computes."""
        generator = source.generator(source.compute(self.config.compute))
        generator.compute.tell(progress)
        return LoadedTokenRun(self, source, generator)

    def points(self, name: str, summary: Mapping[str, Any]) -> list[Point]:
        """Everything that was drawn, under the run's name on this frontier."""
        return [replace(Point.from_json(row), run=name) for row in summary["points"]]


def check_used(sweeps: Sequence[TokenSweep]) -> None:
    """`InputError` for samplers that fit none of the runs on a frontier, and for values of p that none takes."""
    if not sweeps:
        return
    config = sweeps[0].config  # that of all
    fitting = list(dict.fromkeys(name for sweep in sweeps for name in TOKEN_SAMPLERS[sweep.method]))
    asked = dict.fromkeys(configs.sampler_in_words(text)["name"] for text in config.token_samplers)
    if others := [name for name in asked if name not in fitting]:
        raise InputError(
            f"token_samplers {', '.join(others)}: no run here has {'them' if others[1:] else 'it'}, only "
            f"{', '.join(fitting)}; leave {'them' if others[1:] else 'it'} out"
        )
    if config.top_ps != TokenSweepConfig().top_ps and not any(one.takes_top_ps for one in sweeps):
        raise InputError(
            "top_ps changes nothing, since no sampler here takes it, or each has a p of its own; leave it out"
        )


@dataclass(frozen=True)
class LoadedTokenRun:
    """A run of a rival that draws texts with its samplers."""

    sweep: TokenSweep
    source: TrainedTokenRun | TokenDiffusion
    generator: TokenGenerator

    @property
    def config(self) -> TokenSweepConfig:
        """The settings of the sweep."""
        return self.sweep.config

    @property
    def tokenizer(self) -> Any:
        """The run's tokenizer."""
        return self.source.tokenizer

    @property
    def inputs(self) -> dict[str, Any]:
        """The checkpoint and the precisions, as inputs of the artefact."""
        return {
            "checkpoint": self.source.origin["checkpoint"],
            "precision": self.generator.compute.precision,
            "weights_precision": self.source.weights_precision,
        }

    @property
    def name(self) -> str:
        """Name of the run."""
        return folder_name(self.sweep.path)

    def find(self, out: Path, judge: Judge, progress: Progress) -> Fronts:
        """Draw every way."""
        bench: Bench[TokenWay, Point] = Bench(self.config, out, self, judge)
        found = ways(self.config, self.sweep.method, self.sweep.path)
        points = bench.rows("draw", found, range(self.config.texts), progress)
        about = {"device": str(self.source.device), "step": self.source.origin["step"]}
        origin = {"method": self.sweep.method, **self.inputs, **about, "seed": self.config.seed}
        return Fronts(
            points=points,
            runs={self.name: origin},
            externals=judge.externals,
            real=judge.real,
            about={"texts": self.config.texts, **bench.about, **about},
        )

    def read(self, row: Mapping[str, Any]) -> Point:
        """The inverse of `Point.to_json`."""
        return Point.from_json(row)

    def draw(self, way: TokenWay, seeds_B: Tensor) -> Iterator[Drawn[Point]]:
        """Draw the texts of a way, one set."""
        size = min(self._batch_size, len(seeds_B))
        # Do not time what a first use compiles or loads.
        self.generator.tokens(replace(way.sampler, steps=1), seeds_B[:1].expand(size))
        before, started = replace(self.generator.taken), time.perf_counter()
        found = [self.generator.tokens(way.sampler, self.generator.padded(part, size)) for part in seeds_B.split(size)]
        tokens_BL = torch.cat(found)[: len(seeds_B)].cpu()  # waits for the device
        seconds = (time.perf_counter() - started) / len(seeds_B)
        taken = self.generator.taken
        row = partial(
            Point,
            run=self.name,
            method=self.sweep.method,
            way=way.words,
            budget=way.budget,
            rows=taken.rows,
            evaluations=(taken.evaluations - before.evaluations) / (taken.texts - before.texts),
            seconds=seconds,
            batch_size=size,
            sampler=configs.used(way.sampler),
        )
        yield Drawn(way.name, tokens_BL, row)

    @cached_property
    def _batch_size(self) -> int:
        """Batch size of all ways, measured once."""
        return self.config.batch_size or self.generator.batch_size(min(self.config.texts, LARGEST_BATCH))
