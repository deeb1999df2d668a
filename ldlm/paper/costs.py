"""Costs of a table or figure: tokens, FLOPs, disk, and hours on a given card, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ldlm import config as configs
from ldlm.config import LDLM, AnyTrainConfig, ExtractConfig, SamplerConfig, Shapes, TrainConfig
from ldlm.errors import InputError
from ldlm.paper import settings
from ldlm.paper.jobs import KINDS, Job
from ldlm.paper.settings import TINY

UTILISATION = 0.35  # assumed share of a GPU's peak rate of matrix products
CORE = "cpu"


@dataclass(frozen=True)
class Card:
    """A device: FLOP/s reached in practice, memory in GB, and seconds that a command takes to start."""

    flops: float
    memory: int
    start: float = 20.0


def _gpu(teraflops: float, memory: int) -> Card:
    return Card(UTILISATION * teraflops * 1e12, memory)


# For GPUs, the dense bf16 TFLOP/s that their maker publishes. For a core, the FLOP/s are an assumption; what a run
# really took is in its `commands.jsonl`.
CARDS = {
    CORE: Card(40e9, 8, start=6.0),
    "A100-40GB": _gpu(312, 40),
    "A100-80GB": _gpu(312, 80),
    "H100": _gpu(989, 80),
    "H200": _gpu(989, 141),
    "L40S": _gpu(362, 48),
    "RTX-4090": _gpu(165, 24),
}
SCORER_PARAMETERS = 774e6  # of gpt2-large
TINY_TOKENS = 1.5e6  # of the training text, about, if the text is long enough to be cut


def card(name: str) -> Card:
    """The device of that name; `InputError` lists the names."""
    if name not in CARDS:
        raise InputError(f"there is no card {name!r}; choose one of {', '.join(CARDS)}")
    return CARDS[name]


@dataclass(frozen=True)
class Cost:
    """Tokens processed, FLOPs, and bytes left on disk."""

    tokens: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0


def of_jobs(
    jobs: Iterable[Job], scale: str, name: str, devices: int, advance: Callable[[int], None] = lambda count: None
) -> dict[str, Any]:
    """Cost of jobs by stage and in total, as JSON. Hours are device hours over `devices`: the jobs may be spread.

    `advance` is called after each job, since counting a training takes a second.
    """
    device = card(name)
    stages: list[dict[str, Any]] = []
    jobs = list(jobs)
    for kind in KINDS:
        own = [job for job in jobs if job.kind == kind]
        if own and kind != "text":
            costs = []
            for job in own:
                costs.append(of_job(job, scale))
                advance(1)
            stages.append(_row(kind, len(own), Cost(*(sum(getattr(c, f) for c in costs) for f in FIELDS)), device))
    total = {key: sum(stage[key] for stage in stages) for key in ("count", *FIELDS, "device_hours")}
    return {
        "stages": stages,
        "total": total,
        "device_name": name,
        "devices": devices,
        "flops_per_second": device.flops,
        "hours": total["device_hours"] / devices,
    }


FIELDS = ("tokens", "flops", "bytes")


def _row(kind: str, count: int, cost: Cost, device: Card) -> dict[str, Any]:
    hours = (cost.flops / device.flops + count * device.start) / 3600
    figures = {name: round(getattr(cost, name)) for name in FIELDS}
    return {"stage": kind, "count": count, **figures, "device_hours": hours}


def of_job(job: Job, scale: str) -> Cost:
    """Cost of one job."""
    return COUNTS[job.kind](job, scale)


def _pretrained(job: Job, scale: str) -> Cost:
    one = job.settings
    tokens = one.steps * one.batch_size * one.positions
    return Cost(tokens, 6 * _small(one) * tokens, 4 * _small(one))


def _small(one: Any) -> float:
    return 12 * one.layers * one.width**2 + one.vocab_size * one.width


def _features(job: Job, scale: str) -> Cost:
    one = job.settings
    tokens = TINY_TOKENS if scale == TINY else settings.TOKENS[one.dataset]
    if one.kind == "scratch":
        return Cost(tokens, 0, 4 * tokens)
    stored = one.codec != "online"
    _, width = _encoder_sizes(scale)
    passed = tokens if stored else min(tokens, 2e6)  # an online store needs only the statistics
    return Cost(passed, _encoder(one, scale) * passed, tokens * (4 + 2 * width * stored))


def _encoder_sizes(scale: str) -> tuple[int, int]:
    """Blocks and width of the encoder: those of gpt2 and bert-base-uncased are the same."""
    return (settings.ENCODER["layers"], settings.ENCODER["width"]) if scale == TINY else (12, 768)


def _encoder(store: ExtractConfig, scale: str) -> float:
    """FLOPs of the frozen encoder per token: of the blocks below the layer that is taken, and none for embeddings."""
    blocks, width = _encoder_sizes(scale)
    run = blocks + 1 + store.layer if store.kind == "hidden" else 0
    return run * (2 * 12 * width**2 + 4 * store.seq_len * width)  # matrices, and attention of each token to all


def _online(job: Job, scale: str) -> float:
    """FLOPs per token of making the states in the step; none if the store has them, or the model has embeddings."""
    store = settings.store(job.run.row, scale)
    return _encoder(store, scale) if store.codec == "online" else 0


def _trained(job: Job, scale: str) -> Cost:
    config: AnyTrainConfig = job.settings
    shapes = job.run.shapes
    flops, parameters, steps = _training(config, shapes, settings.store(job.run.row, scale).kind)
    tokens = steps * config.batch_size * shapes.seq_len
    online = _online(job, scale) * tokens if isinstance(config, TrainConfig) else 0
    return Cost(tokens, flops * config.batch_size * shapes.seq_len + online, 16 * parameters * config.keep)


@cache
def _training(config: AnyTrainConfig, shapes: Shapes, kind: str) -> tuple[float, int, int]:
    """FLOPs of a whole training per token of a step; parameters; steps."""
    from ldlm.baselines.registry import training_method

    method = training_method(config)
    phases = method.phase_steps()
    flops = sum(method.flops_per_token(shapes, phase, kind) * steps for phase, steps in phases.items())
    return flops, sum(method.parameters(method.network(shapes, kind)).values()), sum(phases.values())


def _tuned(job: Job, scale: str) -> Cost:
    one, shapes = job.settings, job.run.shapes
    batch = one.batch_size or configs.from_dict(TrainConfig, configs.preset(TINY).overrides).batch_size
    tokens = one.steps * batch * shapes.seq_len
    # A block with SwiGLU: attention 4 D², MLP 3·4 D²; and the head.
    decoder = 16 * one.layers * shapes.hidden_dim**2 + shapes.vocab_size * shapes.hidden_dim
    model = settings.training(job.run.row, scale, steps=job.run.size.steps).config.model
    frozen = _online(job, scale) + _latent_encoder(model, shapes) / shapes.seq_len
    return Cost(tokens, (frozen + 6 * decoder) * tokens, 16 * decoder * one.keep)


def _sampled(job: Job, scale: str) -> Cost:
    from ldlm.sampling.solvers import evaluations_per_step

    one, shapes = job.settings, job.run.shapes
    tokens = one.num_samples * shapes.seq_len
    per_step = evaluations_per_step(one.sampler) if isinstance(one.sampler, SamplerConfig) else 1
    evaluations = one.sampler.steps * per_step + (job.run.row.method in settings.CHAINS)
    return Cost(tokens, evaluations * one.num_samples * _evaluation(job, scale), 12 * tokens)


def _evaluation(job: Job, scale: str) -> float:
    """FLOPs of one evaluation of the denoiser on one text; for a rival, a third of those of a training step."""
    run = job.run
    config = settings.training(run.row, scale, steps=run.size.steps).config
    if run.row.method == LDLM:
        return _denoiser(config.model, run.shapes)
    flops, _, steps = _training(config, run.shapes, settings.store(run.row, scale).kind)
    return flops / steps / 3 * run.shapes.seq_len


@cache
def _latent_encoder(model: Any, shapes: Shapes) -> int:
    from ldlm.training import cost

    return cost.latent_encoder_flops(model, shapes)


@cache
def _denoiser(model: Any, shapes: Shapes) -> int:
    from ldlm.training import cost

    return cost.denoiser_flops(model, shapes)


def _scored(job: Job, scale: str) -> Cost:
    texts = job.settings if isinstance(job.settings, int) else job.settings.pairs * (job.settings.points + 1)
    if "--mauve" in job.words:  # the features of all texts, and those of as many real ones as a set has
        texts += texts + job.run.texts
    tokens = texts * job.run.shapes.seq_len
    sizes = configs.PretrainConfig(**settings.SCORER, vocab_size=settings.VOCABULARY)
    scorer = SCORER_PARAMETERS if scale != TINY else _small(sizes)
    return Cost(tokens, 2 * scorer * tokens, 10_000)


COUNTS: Mapping[str, Callable[[Job, str], Cost]] = {
    "text": lambda job, scale: Cost(),
    "encoder": _pretrained,
    "scorer": _pretrained,
    "features": _features,
    "reference": lambda job, scale: Cost(bytes=job.settings * 1_000),
    "train": _trained,
    "decoder": _tuned,
    "sample": _sampled,
    "evaluate": _scored,
    "interpolate": _scored,
}
