"""A table or figure as jobs: the stages of every row, and which of them rows have in common.

At `--scale paper` text comes from the hub and the scorer is GPT-2 Large. At `--scale tiny` one text is split into parts
for models, for the scorer and held out, and encoder and scorer are pretrained on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ldlm import config as configs
from ldlm.config import ExtractConfig, FinetuneConfig, InterpolateConfig, PretrainConfig
from ldlm.paper import settings
from ldlm.paper.exhibits import Exhibit, Group
from ldlm.paper.jobs import Job, changed, flags, named, options, unique
from ldlm.paper.rows import Row
from ldlm.paper.settings import PAPER, TINY

PARTS = {name: f"text/{name}.jsonl" for name in ("train", "scorer", "held-out")}
TEXT = "text/text.json"
PAIRS, TINY_PAIRS, POINTS = 1_000, 128, 11


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything is; None means what the scale has."""

    scale: str
    seeds: int = 1  # of training
    steps: int | None = None  # of every training, at the tiny scale
    texts: int | None = None
    sampling_seeds: int | None = None
    mauve: bool = False
    device: str = "auto"

    @property
    def draws(self) -> int:
        """Sets of texts that are drawn from each run."""
        return self.sampling_seeds or (settings.SAMPLING_SEEDS if self.scale == PAPER else settings.TINY_SAMPLING_SEEDS)


@dataclass(frozen=True)
class Measured:
    """The jobs of a row with a seed, and where its figures are."""

    row: Row
    seed: int
    jobs: tuple[Job, ...]
    run: str | None = None  # of the training
    scores: dict[int | None, str] = field(default_factory=dict)  # files of scores, by budget
    drawn: dict[int | None, str] = field(default_factory=dict)  # results of `sample`, of the first sampling seed
    paths: str | None = None  # of the interpolation


@dataclass(frozen=True)
class Plan:
    """The plan of a table or figure."""

    exhibit: Exhibit
    size: Size
    chosen: tuple[str, ...]  # keys of rows

    @cached_property
    def rows(self) -> list[Measured]:
        """Every row with every seed, in the order of the exhibit; seeds come one after the other."""
        found = []
        for seed in range(self.size.seeds):
            for group in self.exhibit.at(self.size.scale):
                for row in group.rows:
                    if row.key in self.chosen and not (row.real and seed):
                        found.append(self._row(group, row, seed))
        return found

    @property
    def jobs(self) -> list[Job]:
        """All jobs, each once, so that a job comes after those that it needs."""
        return unique(job for row in self.rows for job in row.jobs)

    def _row(self, group: Group, row: Row, seed: int) -> Measured:
        stages = Stages(self.exhibit, self.size, row, seed)
        if group.measures == "schedule":
            return Measured(row, seed, ())
        if row.real:
            return stages.real()
        return {
            "texts": stages.of_texts,
            "times": stages.of_texts,
            "paths": stages.of_paths,
            "training": stages.of_training,
        }[group.measures]()


@dataclass(frozen=True)
class Stages:
    """The stages of one row with one seed."""

    exhibit: Exhibit
    size: Size
    row: Row
    seed: int

    @property
    def tiny(self) -> bool:
        return self.size.scale == TINY

    # ------------------------------------------------------------------------------------------------------------------
    # What rows share

    def _pretrained(self, name: str) -> list[Job]:
        """At the tiny scale an encoder or the scorer, by name, after the text and the tokenizer that it needs."""
        if not self.tiny:
            return []
        text = Job("text", (), TEXT)
        part = PARTS["scorer" if name == "scorer" else "train"]
        sizes = settings.SCORER if name == "scorer" else settings.ENCODER
        config = PretrainConfig(**sizes, positions=self.shapes.seq_len, vocab_size=settings.VOCABULARY)
        words = ["pretrain-encoder", "--data", part, *flags({**sizes, "positions": config.positions})]
        before, needs = [text], [TEXT]
        if name == "scorer":  # with the tokenizer of GPT-2's rows
            before, needs = self._pretrained("encoder-gpt2"), [TEXT, "encoder-gpt2"]
            words += ["--tokenizer", "encoder-gpt2"]
        else:
            words += ["--vocab-size", str(settings.VOCABULARY), "--arch", name.removeprefix("encoder-")]
        kind = "scorer" if name == "scorer" else "encoder"
        words += [*self._device(), "--output", name]
        return [*before, Job(kind, tuple(words), name, tuple(needs), settings=config)]

    @property
    def scorer(self) -> str:
        """The scorer's name, or its folder."""
        return "scorer" if self.tiny else "gpt2-large"

    @property
    def shapes(self) -> configs.Shapes:
        """Sizes of the features."""
        return settings.shapes(self.row, self.size.scale)

    def features(self) -> Job:
        """The features of the row."""
        config = settings.store(self.row, self.size.scale)
        return self._store(config)

    def _store(self, config: ExtractConfig) -> Job:
        words = ["extract-features", *flags(changed(config, ExtractConfig()) | {"encoder": config.encoder})]
        needs: tuple[str, ...] = ()
        if self.tiny:
            words += ["--data", PARTS["train"], "--validation-data", PARTS["held-out"]]
            needs = (TEXT, config.encoder)
        label = f"{config.encoder.removeprefix('encoder-').split('-')[0]}-{config.kind}"
        label += f"{config.layer}" if config.kind == "hidden" else ""
        output = named("features", label, *words)
        return Job("features", (*words, *self._device(), "--output", output), output, needs, settings=config)

    def _before_features(self) -> list[Job]:
        return self._pretrained(settings.encoder(self.row, self.size.scale))

    def reference(self) -> list[Job]:
        """Real texts, as the rows of GPT-2's tokenizer have them, after what they come from."""
        own = settings.store(replace(self.row, stages={}), self.size.scale)
        store = self._store(own)
        label = "tiny" if self.tiny else self.row.preset
        output = named("real", label, store.output, self.texts, suffix=".jsonl")
        words = ("features", "texts", store.output, "--rows", str(self.texts), "--output", output)
        real = Job("reference", words, output, (store.output,), settings=self.texts)
        return [*self._pretrained("encoder-gpt2"), store, real]

    @property
    def texts(self) -> int:
        """Texts of each sampling seed."""
        return self.size.texts or (self.exhibit.texts if not self.tiny else settings.TINY_TEXTS)

    def _device(self) -> list[str]:
        return [] if self.size.device == "auto" else ["--device", self.size.device]

    # ------------------------------------------------------------------------------------------------------------------
    # A run, and what is measured of it

    def trained(self) -> list[Job]:
        """The training of the row, after what it reads."""
        features = self.features()
        made = settings.training(self.row, self.size.scale, seed=self.seed, steps=self.size.steps)
        method = [] if self.row.method == configs.LDLM else ["--method", self.row.method]
        words = ["train", *method, "--preset", made.preset, "--features", features.output, *options(made.changes)]
        space = made.config.model.space if isinstance(made.config, configs.TrainConfig) else self.row.method
        output = named("runs", space, configs.to_dict(made.config), features.output)
        job = Job(
            "train",
            (*words, *self._device(), "--output", output),
            output,
            (features.output,),
            settings=made.config,
            run=self,
        )
        return [*self._before_features(), features, job]

    def _decoder(self, run: Job) -> Job | None:
        """The decoder that the row trains afterwards; None where it draws with D_h and D_w."""
        config = settings.decoder(self.row, self.size.scale, seed=self.seed, steps=self.size.steps)
        if config is None:
            return None
        chosen = changed(config, FinetuneConfig()) | {"layers": config.layers}
        words = ("finetune-decoder", "--run", run.output, "--features", run.needs[0], *flags(chosen), *self._device())
        place = f"{run.output}/decoders/layers-{config.layers}"
        return Job("decoder", words, place, (run.output,), settings=config, run=self)

    def of_texts(self) -> Measured:
        """Texts drawn from the row at each budget, and their scores."""
        before = self.trained()
        run = before[-1]
        decoder = self._decoder(run)
        jobs = [*before, *([decoder] if decoder else [])]
        real = self.reference()
        jobs += [*real, *self._pretrained("scorer")]
        budgets = self.exhibit.budgets_at(self.size.scale) or (None,)
        scores, drawn = {}, {}
        for budget in budgets:
            sampled = [self._sample(run, decoder, budget, seed) for seed in range(self.size.draws)]
            judged = self._evaluate([sample.output for sample in sampled], real[-1].output)
            jobs += [*sampled, judged]
            scores[budget], drawn[budget] = judged.mark, sampled[0].mark
        return Measured(self.row, self.seed, tuple(jobs), run.output, scores, drawn)

    def _sample(self, run: Job, decoder: Job | None, budget: int | None, seed: int) -> Job:
        evaluations = budget or (settings.TINY_EVALUATIONS if self.tiny else self.exhibit.evaluations)
        config = settings.sampling(self.row, self.size.scale, evaluations, self.texts, seed)
        words = ["sample", "--run", run.output]
        if self.row.method == configs.LDLM:
            words += ["--sampler", "paper", "--decoder", "joint" if decoder is None else decoder.output.split("/")[-1]]
            own = {name: getattr(config.sampler, name) for name in ("steps", "final", "temperature")}
        else:
            given = {**self.row.stages.get("sampler", {}), **self.row.tiny.stages.get("sampler", {})}
            words += ["--sampler", config.sampler.name]
            own = {name: getattr(config.sampler, name) for name in ("steps", *given) if name != "name"}
        words += [*flags({**own, "num_samples": self.texts}), *self._batch()]
        label = f"{run.output.split('/')[-1].split('-')[0]}-{evaluations}"
        place = named("texts", label, *words)
        output, keeps = f"{place}/seed-{seed}.jsonl", f"drawn{place.removeprefix('texts')}/seed-{seed}.json"
        words += ["--seed", str(seed), *self._device(), "--output", output]
        needs = (run.output, *([decoder.output] if decoder else []))
        return Job("sample", tuple(words), output, needs, keeps, settings=config, run=self)

    def _batch(self) -> list[str]:
        """Table 3 times batches of as many texts as it draws."""
        return ["--batch-size", str(self.exhibit.texts)] if "sample_seconds" in self.exhibit.columns else []

    def _evaluate(self, texts: Sequence[str], real: str) -> Job:
        spread = ["--seeds"] if len(texts) > 1 else []
        mauve = ["--mauve"] if self.size.mauve else []
        words = ["evaluate", *texts, *spread, "--reference", real, *mauve, "--scorer", self.scorer]
        words += ["--boundaries", "eos", *self._device()]
        keeps = named("scores", texts[0].split("/")[1].rsplit("-", 1)[0], *words, suffix=".json")
        needs = (*texts, real, *(["scorer"] if self.tiny else []))
        return Job("evaluate", tuple(words), keeps, needs, keeps, settings=len(texts) * self.texts, run=self)

    def real(self) -> Measured:
        """Scores of real texts."""
        real = self.reference()
        words = ("evaluate", real[-1].output, "--scorer", self.scorer, "--boundaries", "eos", *self._device())
        keeps = named("scores", "real", *words, suffix=".json")
        needs = (real[-1].output, *(["scorer"] if self.tiny else []))
        job = Job("evaluate", words, keeps, needs, keeps, settings=self.texts, run=self)
        return Measured(self.row, self.seed, (*real, *self._pretrained("scorer"), job), scores={None: keeps})

    def of_paths(self) -> Measured:
        """Paths between latents of held-out texts (Figure 3, left, and Figure 4, right)."""
        before = self.trained()
        run = before[-1]
        pairs = TINY_PAIRS if self.tiny else PAIRS
        pairs = min(pairs, self.size.texts or pairs)
        words = ["interpolate", "--run", run.output, "--features", run.needs[0], "--decoder", "joint"]
        words += ["--pairs", str(pairs), "--points", str(POINTS), "--scorer", self.scorer, *self._device()]
        output = named("paths", run.output.split("/")[-1].split("-")[0], *words)
        config = InterpolateConfig(pairs=pairs, points=POINTS)
        needs = (run.output, run.needs[0], *(["scorer"] if self.tiny else []))
        job = Job("interpolate", (*words, "--output", output), output, needs, settings=config, run=self)
        jobs = (*before, *self._pretrained("scorer"), job)
        return Measured(self.row, self.seed, jobs, run.output, paths=output)

    def of_training(self) -> Measured:
        """The training alone."""
        jobs = self.trained()
        return Measured(self.row, self.seed, tuple(jobs), jobs[-1].output)
