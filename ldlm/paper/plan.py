"""A table or figure as jobs: the stages of every row, and which of them rows have in common.

At `--scale paper` text comes from the hub and the scorer is GPT-2 Large. At `--scale tiny` one text is split into parts
for the models, for the scorer, and held out, and encoder and scorer are pretrained on the first two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ldlm import config as configs
from ldlm import files
from ldlm.config import ExtractConfig, FinetuneConfig, InterpolateConfig, PretrainConfig
from ldlm.paper import settings
from ldlm.paper.exhibits import Exhibit, Group
from ldlm.paper.jobs import Job, changed, flags, named, options, unique
from ldlm.paper.rows import Row
from ldlm.paper.settings import PAPER, TINY

PARTS = {name: f"text/{name}.jsonl" for name in ("train", "scorer", "held-out")}
TEXT = "text/text.json"
# Settings that came after the first tables, and the values with which they change nothing: trainings keep their names.
NEWER = {("diffusion", "self_conditioning_noise"): 0.0, ("optimizer", "kind"): "adamw"}
PAIRS, TINY_PAIRS, POINTS = 1_000, 128, 11
# Settings of `ldlm paper` that change jobs, by what is measured; scale and rows choose them.
USED = {
    "texts": {"seeds", "text", "steps", "texts", "sampling_seeds", "mauve", "device"},
    "real": {"text", "steps", "texts", "device"},
    "paths": {"seeds", "text", "steps", "texts", "device"},
    "training": {"seeds", "text", "steps", "device"},
    "times": {"seeds", "text", "steps", "device"},  # of as many texts as the table says
    "schedule": set[str](),
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of a plan; None stands for the default of the scale."""

    scale: str
    seeds: int = 1  # of training
    steps: int | None = None  # of every training, at the tiny scale
    texts: int | None = None
    sampling_seeds: int | None = None
    mauve: bool = False
    device: str = "auto"

    @property
    def draws(self) -> int:
        """Number of sets of texts drawn from each run."""
        return self.sampling_seeds or (settings.SAMPLING_SEEDS if self.scale == PAPER else settings.TINY_SAMPLING_SEEDS)


@dataclass(frozen=True)
class RowPlan:
    """The jobs of a row with one training seed, and where its figures are."""

    row: Row
    seed: int
    jobs: tuple[Job, ...]
    run: str | None = None  # of the training
    scores: dict[int | None, str] = field(default_factory=dict)  # files of scores, by budget
    drawn: dict[int | None, str] = field(default_factory=dict)  # results of `sample` with the first seed, by budget
    paths: str | None = None  # of the interpolation


@dataclass(frozen=True)
class Plan:
    """The plan of a table or figure."""

    exhibit: Exhibit
    size: Size
    chosen: tuple[str, ...]  # keys of rows

    @cached_property
    def rows(self) -> list[RowPlan]:
        """Every row with every seed: all rows with the first seed, in the order of the exhibit, then with the next."""
        found = []
        for seed in range(self.size.seeds):
            for group in self.exhibit.at(self.size.scale):
                for row in group.rows:
                    once = row.real or group.measures == "schedule"
                    if row.key in self.chosen and not (once and seed):
                        found.append(self._row(group, row, seed))
        return found

    @property
    def jobs(self) -> list[Job]:
        """All jobs, each once, after those that it needs."""
        return unique(job for row in self.rows for job in row.jobs)

    @property
    def used(self) -> set[str]:
        """The settings of `ldlm paper` on which the jobs depend."""
        groups = [*self.exhibit.at(self.size.scale)]
        chosen = [(group, row) for group in groups for row in group.rows if row.key in self.chosen]
        return {name for group, row in chosen for name in USED["real" if row.real else group.measures]}

    @property
    def trainings(self) -> int:
        """Trainings of each row, by their seeds; 0 if nothing is trained."""
        return len({one.seed for one in self.rows if one.run is not None})

    @property
    def draws(self) -> int:
        """Sets of texts drawn from each training, at each budget; 0 if none are drawn."""
        sets = [sum(job.kind == "sample" for job in one.jobs) // len(one.drawn) for one in self.rows if one.drawn]
        return max(sets, default=0)

    def _row(self, group: Group, row: Row, seed: int) -> RowPlan:
        jobs = RowJobs(self.exhibit, self.size, row, seed)
        if group.measures == "schedule":
            return RowPlan(row, seed, ())
        if row.real:
            return jobs.real()
        return {
            "texts": jobs.of_texts,
            "times": jobs.of_times,
            "paths": jobs.of_paths,
            "training": jobs.of_training,
        }[group.measures]()


@dataclass(frozen=True)
class RowJobs:
    """The jobs of one row with one seed."""

    exhibit: Exhibit
    size: Size
    row: Row
    seed: int

    @property
    def tiny(self) -> bool:
        return self.size.scale == TINY

    # ------------------------------------------------------------------------------------------------------------------
    # What rows share

    def _pretrained(self, part: str, sizes: Mapping[str, Any], *words: str, needs: tuple[str, ...] = ()) -> Job:
        """An encoder or scorer of the tiny scale, on a part of the text."""
        steps = min(sizes["steps"], self.size.steps or sizes["steps"])
        given = {**sizes, "steps": steps, "positions": self.shapes.seq_len}
        config = PretrainConfig(**given, vocab_size=settings.VOCABULARY)
        command = ["pretrain-encoder", "--data", PARTS[part], *flags(given), *words]
        kind = "scorer" if part == "scorer" else "encoder"
        output = named(kind, words[-1].split("/")[-1].split("-")[0], *command)
        command += [*self._device(), "--output", output]
        return Job(kind, tuple(command), output, (TEXT, *needs), settings=config)

    def _encoder(self, row: Row) -> Job:
        """The small encoder of a row, with the architecture of the paper's."""
        vocabulary = ("--vocab-size", str(settings.VOCABULARY))
        return self._pretrained("train", settings.ENCODER, *vocabulary, "--arch", settings.architecture(row))

    def _before_features(self, row: Row) -> list[Job]:
        return [Job("text", (), TEXT), self._encoder(row)] if self.tiny else []

    def _scorer(self) -> list[Job]:
        """At the tiny scale, the scorer, after the encoder whose tokenizer it uses; else nothing."""
        if not self.tiny:
            return []
        *before, encoder = self._before_features(self._plain)
        tokenizer = ("--tokenizer", encoder.output)
        return [*before, encoder, self._pretrained("scorer", settings.SCORER, *tokenizer, needs=(encoder.output,))]

    @property
    def _plain(self) -> Row:
        """The row without settings of its own: real text comes from the rows of these features."""
        return replace(self.row, stages={}, tiny=replace(self.row.tiny, stages={}))

    @property
    def scorer(self) -> str:
        """The scorer's name, or its folder."""
        return self._scorer()[-1].output if self.tiny else settings.SCORER_NAME

    @property
    def shapes(self) -> configs.Shapes:
        """Sizes of the features."""
        return settings.shapes(self.row, self.size.scale)

    def features(self, row: Row) -> list[Job]:
        """The features of a row, after the jobs that they need."""
        before, config = self._before_features(row), settings.store(row, self.size.scale)
        encoder = before[-1].output if before else config.encoder
        words = ["extract-features", *flags(changed(config, ExtractConfig()) | {"encoder": encoder})]
        needs: tuple[str, ...] = ()
        if self.tiny:
            words += ["--data", PARTS["train"], "--validation-data", PARTS["held-out"]]
            needs = (TEXT, encoder)
        label = f"{settings.architecture(row)}-{config.kind}"
        label += f"{config.layer}" if config.kind == "hidden" else ""
        output = named("features", label, *words)
        words += [*self._device(), "--output", output]
        return [*before, Job("features", tuple(words), output, needs, settings=config)]

    def reference(self) -> list[Job]:
        """Real texts, as cut into rows with GPT-2's tokenizer, after the jobs that they need."""
        *before, store = self.features(self._plain)
        label = "tiny" if self.tiny else self.row.preset
        output = named("real", label, store.output, self.texts, suffix=".jsonl")
        words = ("features", "texts", store.output, "--rows", str(self.texts), "--output", output)
        return [*before, store, Job("reference", words, output, (store.output,), settings=self.texts)]

    @property
    def texts(self) -> int:
        """Texts of each sampling seed."""
        return self.size.texts or (self.exhibit.texts if not self.tiny else settings.TINY_TEXTS)

    def _device(self) -> list[str]:
        return [] if self.size.device == "auto" else ["--device", self.size.device]

    # ------------------------------------------------------------------------------------------------------------------
    # A run, and what is measured on it

    def trained(self) -> list[Job]:
        """The training of the row, after the jobs that it needs."""
        *before, features = self.features(self.row)
        made = settings.training(self.row, self.size.scale, seed=self.seed, steps=self.size.steps)
        method = [] if self.row.method == configs.LDLM else ["--method", self.row.method]
        words = ["train", *method, "--preset", made.preset, "--features", features.output, *options(made.changes)]
        space = made.config.model.space if isinstance(made.config, configs.TrainConfig) else self.row.method
        output = named("runs", space, _named_by(made.config), features.output)
        job = Job(
            "train",
            (*words, *self._device(), "--output", output),
            output,
            (features.output,),
            settings=made.config,
            run=self,
        )
        return [*before, features, job]

    def _decoder(self, run: Job) -> Job | None:
        """The decoder that the row trains afterwards; None if it draws with D_h and D_w."""
        config = settings.decoder(self.row, self.size.scale, seed=self.seed, steps=self.size.steps)
        if config is None:
            return None
        chosen = changed(config, FinetuneConfig()) | {"layers": config.layers}
        name = f"layers-{config.layers}"
        if config != _first_decoder(config, run.settings, tiny=self.tiny):
            name = f"{name}-{files.sha256_json(chosen)[:8]}"
            chosen |= {"name": name}
        words = ("finetune-decoder", "--run", run.output, "--features", run.needs[0], *flags(chosen), *self._device())
        place = f"{run.output}/decoders/{name}"
        return Job("decoder", words, place, (run.output, run.needs[0]), settings=config, run=self)

    def of_texts(self) -> RowPlan:
        """Texts drawn from the row's model at each budget, and their scores."""
        real = self.reference()  # first: a store with too few real texts is found out before hours of training
        *before, run = self.trained()
        run = replace(run, needs=(*run.needs, real[-1].output))
        decoder = self._decoder(run)
        jobs = [*real, *before, run, *([decoder] if decoder else []), *self._scorer()]
        budgets = self.exhibit.budgets_at(self.size.scale) or (None,)
        scores, drawn = {}, {}
        for budget in budgets:
            sampled = self._samples(run, decoder, budget)
            judged = self._evaluate([sample.output for sample in sampled], real[-1].output)
            jobs += [*sampled, judged]
            scores[budget], drawn[budget] = judged.mark, sampled[0].mark
        return RowPlan(self.row, self.seed, tuple(jobs), run.output, scores, drawn)

    def _samples(self, run: Job, decoder: Job | None, budget: int | None) -> list[Job]:
        """Sets of texts from a run at a budget, one for each sampling seed."""
        evaluations = budget or (settings.TINY_EVALUATIONS if self.tiny else self.exhibit.evaluations)
        config = settings.sampling(self.row, self.size.scale, evaluations, self.texts, 0)
        words = ["sample", "--run", run.output]
        given = {**self.row.stages.get("sampler", {}), **self.row.tiny.stages.get("sampler", {})}
        if self.row.method == configs.LDLM:
            words += ["--sampler", "paper", "--decoder", "joint" if decoder is None else decoder.output.split("/")[-1]]
            given = {**settings.SAMPLER, **given}
        else:
            words += ["--sampler", config.sampler.name]
        own = {name: getattr(config.sampler, name) for name in ("steps", *given) if name != "name"}
        words += [*flags({**own, "num_samples": self.texts}), *self._batch()]
        label = f"{run.output.split('/')[-1].split('-')[0]}-{evaluations}"
        place = named("texts", label, *words)
        needs = (run.output, *([decoder.output] if decoder else []))
        jobs = []
        for seed in range(self.size.draws):
            output, keeps = f"{place}/seed-{seed}.jsonl", f"drawn{place.removeprefix('texts')}/seed-{seed}.json"
            called = (*words, "--seed", str(seed), *self._device(), "--output", output)
            jobs.append(Job("sample", called, output, needs, keeps, settings=config, run=self))
        return jobs

    def _batch(self) -> list[str]:
        """Table 3 draws all its texts in one batch, to time it."""
        return ["--batch-size", str(self.exhibit.texts)] if "sample_seconds" in self.exhibit.columns else []

    def _evaluate(self, texts: Sequence[str], real: str) -> Job:
        spread = ["--seeds"] if len(texts) > 1 else []
        mauve = ["--mauve"] if self.size.mauve else []
        words = ["evaluate", *texts, *spread, "--reference", real, *mauve, "--scorer", self.scorer]
        words += ["--boundaries", "eos"]
        keeps = named("scores", texts[0].split("/")[1].rsplit("-", 1)[0], *words, suffix=".json")
        needs, called = (*texts, real, *([self.scorer] if self.tiny else [])), (*words, *self._device())
        return Job("evaluate", called, keeps, needs, keeps, settings=len(texts) * self.texts, run=self)

    def real(self) -> RowPlan:
        """Scores of real texts."""
        real = self.reference()
        words = ("evaluate", real[-1].output, "--scorer", self.scorer, "--boundaries", "eos")
        keeps = named("scores", "real", *words, suffix=".json")
        needs, called = (real[-1].output, *([self.scorer] if self.tiny else [])), (*words, *self._device())
        job = Job("evaluate", called, keeps, needs, keeps, settings=self.texts, run=self)
        return RowPlan(self.row, self.seed, (*real, *self._scorer(), job), scores={None: keeps})

    def of_paths(self) -> RowPlan:
        """Paths between latents of held-out texts (Figure 3, left, and Figure 4, right)."""
        before = self.trained()
        run = before[-1]
        pairs = TINY_PAIRS if self.tiny else PAIRS
        pairs = min(pairs, self.size.texts or pairs)
        words = ["interpolate", "--run", run.output, "--features", run.needs[0], "--decoder", "joint"]
        words += ["--pairs", str(pairs), "--points", str(POINTS), "--scorer", self.scorer]
        output = named("paths", run.output.split("/")[-1].split("-")[0], *words)
        config = InterpolateConfig(pairs=pairs, points=POINTS)
        needs = (run.output, run.needs[0], *([self.scorer] if self.tiny else []))
        called = (*words, *self._device(), "--output", output)
        job = Job("interpolate", called, output, needs, settings=config, run=self)
        jobs = (*before, *self._scorer(), job)
        return RowPlan(self.row, self.seed, jobs, run.output, paths=output)

    def of_times(self) -> RowPlan:
        """The training, and one set of texts, both timed and not scored (Table 3)."""
        before = self.trained()
        run = before[-1]
        decoder = self._decoder(run)
        sampled = self._samples(run, decoder, None)[0]
        jobs = (*before, *([decoder] if decoder else []), sampled)
        return RowPlan(self.row, self.seed, jobs, run.output, drawn={None: sampled.mark})

    def of_training(self) -> RowPlan:
        """The training alone."""
        jobs = self.trained()
        return RowPlan(self.row, self.seed, tuple(jobs), jobs[-1].output)


def held_out_rows(jobs: Sequence[Job]) -> int:
    """The most held-out rows that a job reads: a row for each real text, and two for the ends of each path."""
    texts = [job.settings for job in jobs if job.kind == "reference"]
    return max([0, *texts, *(2 * job.settings.pairs for job in jobs if job.kind == "interpolate")])


def _named_by(config: configs.AnyTrainConfig) -> dict[str, Any]:
    """The settings that name a training, of which `NEWER` ones count only if they change something."""
    found = configs.to_dict(config)
    for (section, name), nothing in NEWER.items():
        if section in found and found[section][name] == nothing:
            del found[section][name]
    return found


def _first_decoder(config: FinetuneConfig, run: configs.TrainConfig, *, tiny: bool) -> FinetuneConfig:
    """The decoder of the first tables with as many layers, which was trained without a digest and keeps its name."""
    given: dict[str, Any]
    if tiny:
        given = {"steps": max(1, round(0.4 * run.steps)), "save_every": max(1, run.steps // 10)}
    elif run.model.token_decoder.mode == "deferred":  # Table 3
        given = {}
    else:  # Table 5
        given = {"steps": 200_000, "batch_size": 512, "sigma_dec": 3.0}
    return FinetuneConfig(layers=config.layers, seed=config.seed, **given)
