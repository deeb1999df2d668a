"""One config per stage: every setting with its default, help and bounds.

The defaults are the paper's. Where the paper is silent, SPEC's decision is the default, and a setting of its own.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ldlm.config.fields import again, merge, setting
from ldlm.config.model import (
    OF_EARLIER_EDITIONS,
    OF_SPACE,
    POSITIONS_NOW,
    SAMPLERS,
    CosmosConfig,
    DiffusionConfig,
    Final,
    Grid,
    ModelConfig,
    OptimizerConfig,
    RecipeConfig,
    SamplerConfig,
    Solver,
    TimestepConfig,
)
from ldlm.config.prompts import PromptConfig
from ldlm.errors import InputError

SEED_HELP = "seed of every random choice"
TEXTS_PER_SEED = 1_000_000  # so that the texts of different seeds are different texts
MAX_SEED = 2**53 - 1  # what YAML, JSON and every generator hold exactly
TEXT_FILES = "text, JSON (an object per line, or an array) or parquet files; also .gz, .zst, .bz2 and .xz"
COLUMN_HELP = "field that holds the text in JSON and parquet files"
DEVICE_HELP = "cpu, cuda, cuda:N, or auto"
CLEAN_UP_HELP = "decode with the tokenizer's clean-up of spaces (clean_up_tokenization_spaces of transformers)"
Spelling = Literal["eos", "text", "drop"]
BOUNDARIES_HELP = (
    "how the scorer reads the model's BOS, EOS, CLS and SEP: eos, as its own end-of-text token; text, as they are "
    "written; drop, left out"
)
BOUNDARY_TOKENS_HELP = "strings like [CLS] that mark boundaries, for files without the record that `ldlm sample` writes"


Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Precision, attention kernel and compilation."""

    precision: Precision = setting(
        "auto",
        "precision of matrix products and attention; weights and losses are fp32; auto is bf16 on a GPU, else fp32",
    )
    attention: Literal["auto", "xformers", "sdpa"] = setting(
        "auto",
        "attention kernel in half precision; auto is xformers' on a GPU if it has one, else torch's, as in fp32",
        identity=False,
    )
    compile: Literal["auto", "on", "off"] = setting(
        "auto", "whether to torch.compile the networks; auto does on a GPU", identity=False
    )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """`ldlm pretrain-encoder`: a small GPT-2 or BERT with its own tokenizer, for machines without a model hub."""

    data: tuple[str, ...] = setting((), TEXT_FILES, metavar="FILE")
    text_column: str = setting("text", COLUMN_HELP)
    arch: Literal["gpt2", "bert"] = setting("gpt2", "architecture")
    tokenizer: str | None = setting(None, "folder or hub name of a tokenizer to use instead of training one")
    vocab_size: int = setting(4096, "size of the trained vocabulary", low=300)
    layers: int = setting(4, "transformer layers", low=1)
    width: int = setting(128, "hidden size", low=8)
    heads: int = setting(4, "attention heads", low=1)
    positions: int = setting(128, "longest row, in tokens", low=8)
    steps: int = setting(1_000, "training steps", low=1)
    batch_size: int = setting(32, "rows per step", low=1)
    lr: float = setting(2e-3, "peak learning rate; cosine decay to zero", above=0)
    init: Literal["published", "width"] = setting(
        "published", "GPT-2's initial weights: published, of std 0.02; width, of 1/√width, and 0.2 for tokens"
    )
    seed: int = setting(0, SEED_HELP, low=0, high=MAX_SEED)
    device: str = setting("auto", DEVICE_HELP, identity=False)


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """`ldlm extract-features`: text to a sealed store of normalised hidden states (SPEC 1, 2, 11)."""

    encoder: str = setting("gpt2", "hub name or folder of a transformers encoder or causal model")
    kind: Literal["hidden", "embedding", "scratch"] = setting(
        "hidden", "contextual states, token embeddings, or tokens only for embeddings trained from scratch (Table 1)"
    )
    layer: int = setting(-3, "index into hidden_states; -3 is the third-to-last")
    seq_len: int = setting(128, "tokens per row L, with BOS and EOS", low=3)
    data: tuple[str, ...] = setting((), TEXT_FILES, metavar="FILE")
    dataset: str | None = setting(None, "Hugging Face dataset, instead of --data")
    dataset_config: str | None = setting(None, "configuration of the dataset, if it has several")
    revision: str | None = setting(None, "commit, branch or tag of the dataset; its commit is recorded")
    split: str = setting("train", "split of the dataset")
    text_column: str = setting("text", "field that holds the text in JSON, parquet and datasets")
    validation_data: tuple[str, ...] = setting((), "files of held-out documents", metavar="FILE")
    validation_split: str | None = setting(None, "held-out split of the dataset")
    validation_docs: int = setting(0, "number of documents to hold out, from the end", low=0)
    detokenizer: Literal["none", "lm1b", "lm1b-clean"] = setting(
        "none",
        "undo the tokenisation of the One Billion Word benchmark: lm1b by MDLM's rules, for comparison with it; "
        "lm1b-clean also removes spaces that these leave, as in `4 % .`",
    )
    codec: Literal["fp16", "bf16", "int8-token", "fp32", "online"] = setting(
        "fp16", "how hidden states are stored; online stores none, and the encoder runs inside the training step"
    )
    compression: Literal["blosc", "zstd", "none"] = setting(
        "blosc",
        "lossless compression of the store: blosc is zstd after byte shuffling, smaller and faster to read than zstd, "
        "which stores of version 0.1 have",
    )
    max_channel_error: float = setting(
        0.1, "largest relative error of a channel at which int8-token is accepted", above=0, identity=False
    )
    stats_tokens: int | None = setting(
        2_000_000, "tokens over which mean and standard deviation are taken, or all", low=1, none="all"
    )
    shard_rows: int = setting(1024, "rows per shard, the unit of work", low=1)
    batch_size: int = setting(32, "rows per encoder pass", low=1)
    precision: Precision = setting(
        "auto",
        "precision of the encoder; auto is that of a store already begun, or else bf16 on a GPU and fp32 elsewhere",
    )
    seed: int = setting(0, SEED_HELP, low=0, high=MAX_SEED)
    device: str = setting("auto", DEVICE_HELP, identity=False)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """`ldlm train`: joint training of E_z, D_h, D_w and the denoiser."""

    steps: int = setting(
        1_000_000,
        "optimiser steps; with model.space=cosmos, those of the denoiser, after cosmos.steps of the autoencoder",
        low=1,
        identity=False,
    )
    batch_size: int = setting(512, "rows per step, over all processes", low=1)
    shuffle_rows: int | None = setting(
        None,
        "rows of the window within which rows are shuffled; it is filled with blocks of 16 from all over the text. "
        "auto is 2 GiB of the store's rows, at least 4 batches and at most all, or that of an output already begun",
        low=1,
        none="auto",
        before=512,
    )
    model: ModelConfig = setting(ModelConfig(), "sizes")
    diffusion: DiffusionConfig = setting(DiffusionConfig(), "forward process and loss")
    recipe: RecipeConfig = setting(RecipeConfig(), "the joint training recipe")
    cosmos: CosmosConfig = setting(CosmosConfig(), "the autoencoder of model.space=cosmos")
    timesteps: TimestepConfig = setting(TimestepConfig(), "timestep sampling")
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "the optimiser and the EMA")
    accumulate: int = setting(1, "gradient-accumulation micro-batches per step", low=1, identity=False)
    recompute: bool = setting(False, "recompute activations in the backward pass, which saves memory", identity=False)
    compute: ComputeConfig = setting(ComputeConfig(), "precision and kernels", flags=True)
    max_nonfinite: int = setting(
        10,
        "batches to skip, because their loss or gradient is not finite, before training stops",
        low=0,
        identity=False,
    )
    log_every: int = setting(50, "steps between lines of metrics.jsonl", low=1, identity=False)
    eval_every: int = setting(5_000, "steps between held-out evaluations", low=1, identity=False)
    eval_rows: int = setting(1_024, "held-out rows per evaluation", low=1, identity=False)
    save_every: int = setting(5_000, "steps between checkpoints", low=1, identity=False)
    keep: int = setting(2, "checkpoints kept", low=1, identity=False)
    plots: bool = setting(True, "draw plots/ when the training ends; `ldlm plot` does so at any time", identity=False)
    seed: int = setting(0, SEED_HELP, low=0, high=MAX_SEED)
    device: str = setting("auto", DEVICE_HELP, identity=False)

    @staticmethod
    def with_defaults(data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings merged over the defaults of their edition and latent space; in the first edition spaces had none."""
        model, recipe = data.get("model"), data.get("recipe")
        edition = str(recipe.get("edition")) if isinstance(recipe, Mapping) else ""
        space = model.get("space") if isinstance(model, Mapping) and edition != "1" else None
        earlier = OF_EARLIER_EDITIONS if edition in ("1", "2") else {}
        return merge(OF_SPACE.get(str(space), {}), earlier, data)


def autoencoder_steps(config: TrainConfig) -> int:
    """Optimiser steps of the autoencoder in space=cosmos, before the denoiser's; 0 in other spaces."""
    return config.cosmos.steps if config.model.space == "cosmos" else 0


def total_steps(config: TrainConfig) -> int:
    """Optimiser steps of a run in all; in the first edition `steps` already includes the autoencoder's."""
    return config.steps + (autoencoder_steps(config) if config.recipe.edition > 1 else 0)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """`ldlm finetune-decoder`: a decoder that reads the latents directly (Appendix B.2), with the run's optimiser."""

    layers: int = setting(2, "transformer blocks before the vocabulary head", low=0, high=6)
    checkpoint: str | None = setting(
        None, "checkpoint, like step-00005000; none means the newest intact one", identity=False
    )
    name: str | None = setting(None, "name of the decoder; none means layers-K")
    steps: int | None = setting(
        None, "optimiser steps; none means 2/5 of the run's, at most 200,000", low=1, identity=False
    )
    batch_size: int | None = setting(None, "rows per step, over all processes; none means the run's", low=1)
    shuffle_rows: int | None = again(TrainConfig, "shuffle_rows")
    sigma_dec: float | None = setting(
        None, "σ_dec of additive noise on the latents; none means the run's decoder noise", low=0
    )
    heads: int | None = setting(None, "attention heads; none means the run's token decoder's", low=1)
    compute: ComputeConfig = again(TrainConfig, "compute")
    lr: float | None = setting(None, "learning rate after the warm-up; none means the run's", above=0)
    accumulate: int | None = again(
        TrainConfig,
        "accumulate",
        None,
        help="gradient-accumulation micro-batches per step; none means 1 if the run has 1, else as few as have "
        "no more rows than its own",
    )
    max_nonfinite: int = again(TrainConfig, "max_nonfinite")
    log_every: int = again(TrainConfig, "log_every")
    eval_every: int = again(TrainConfig, "eval_every")
    eval_rows: int = again(TrainConfig, "eval_rows")
    save_every: int = again(TrainConfig, "save_every")
    keep: int = again(TrainConfig, "keep")
    seed: int = again(TrainConfig, "seed")
    device: str = again(TrainConfig, "device")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """`ldlm sample`: texts from noise."""

    num_samples: int = setting(64, "texts (per prompt); text i has seed 1,000,000 SEED + i", low=1, high=TEXTS_PER_SEED)
    sampler: SamplerConfig = setting(SamplerConfig(), "the reverse process", flags=True)
    prompting: PromptConfig = setting(PromptConfig(), "texts to continue", flags=True)
    decoder: str | None = setting(None, "decoder, or joint for D_h and D_w; none means the best on held-out rows")
    checkpoint: str | None = setting(None, "checkpoint, like step-00005000; none means the newest intact one")
    batch_size: int | None = setting(
        None, "texts per batch, or auto; it does not change the texts", low=1, identity=False, none="auto"
    )
    clean_up: bool = setting(False, CLEAN_UP_HELP)
    compute: ComputeConfig = again(TrainConfig, "compute")
    trace_text: int = setting(0, "number of the text that --trace shows, from 0", low=0, high=TEXTS_PER_SEED - 1)
    trace_frames: int = setting(24, "frames of --trace, evenly spaced over the steps", low=2, high=256)
    trace_times: tuple[float, ...] = setting(
        (), "times t of the frames of --trace, instead of evenly spaced ones; the end is always shown", low=0, high=1
    )
    seed: int = setting(0, SEED_HELP, low=0, high=MAX_SEED // TEXTS_PER_SEED)
    device: str = setting("auto", DEVICE_HELP, identity=False)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """`ldlm sweep`: quality against the number of evaluations (Tables 5, 8 and 9, Figure 1)."""

    budgets: tuple[int, ...] = setting(
        (8, 16, 32, 64, 128, 256, 1024),
        "evaluations of the denoiser per text; heun takes two a step, and guidance twice as many",
        low=1,
    )
    solvers: tuple[Solver, ...] = setting(typing.get_args(Solver), "solvers")
    grids: tuple[Grid, ...] = setting(typing.get_args(Grid), "time grids")
    guidances: tuple[float, ...] = setting((1.0, 1.5, 2.0), "w of self-conditioning guidance", low=0, high=100)
    finals: tuple[Final, ...] = setting(
        typing.get_args(Final), "what is decoded: mean, that of the last step; x0, the last ẑ_0"
    )
    t_min: float = setting(
        0.005, "last time of the grids; that of the paper's sampler is 0.05", above=0, high=0.9, before=0.05
    )
    temperatures: tuple[float, ...] = setting((0.0, 1.0), "temperatures of the decoder", low=0)
    decoders: tuple[str, ...] = setting(
        (), "decoders to compare (Table 5); none given means the default one", metavar="NAME"
    )
    checkpoint: str | None = again(SampleConfig, "checkpoint")
    screen_texts: int = setting(100, "texts for each combination", low=2, high=TEXTS_PER_SEED)
    texts: int = setting(1_000, "texts for each finalist", low=2, high=TEXTS_PER_SEED)
    clean_up: bool = setting(False, CLEAN_UP_HELP)
    boundaries: Spelling = setting("eos", BOUNDARIES_HELP)
    boundary_tokens: tuple[str, ...] = setting((), BOUNDARY_TOKENS_HELP, metavar="TEXT")
    entropy_slack: float = setting(
        0.02, "how far a finalist's entropy may be below that of the paper's sampler, in nats", low=0
    )
    scorer: str = setting("gpt2-large", "causal model that scores the texts")
    text_column: str = setting("text", COLUMN_HELP)
    batch_size: int | None = setting(
        None, "texts per batch, or auto; it does not change the texts", low=1, identity=False, none="auto"
    )
    compute: ComputeConfig = again(TrainConfig, "compute")
    seed: int = setting(0, SEED_HELP, low=0, high=MAX_SEED // TEXTS_PER_SEED)
    device: str = setting("auto", DEVICE_HELP, identity=False)


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig:
    """`ldlm interpolate`: how smooth the latent space is (Figure 3 left, Figure 4 right)."""

    pairs: int = setting(64, "random pairs of real texts", low=1)
    points: int = setting(11, "points on each path, ends included", low=2)
    path: Literal["linear", "spherical"] = setting(
        "linear", "linear, as in the paper; spherical, each latent vector along its great circle"
    )
    scorer: str = setting("gpt2-large", "causal model that scores the decoded texts")
    clean_up: bool = setting(False, CLEAN_UP_HELP)
    boundaries: Spelling = setting("eos", BOUNDARIES_HELP)
    decoder: str | None = setting(None, "decoder, or joint for D_h and D_w; none means the best on held-out rows")
    checkpoint: str | None = again(SampleConfig, "checkpoint")
    batch_size: int = setting(64, "texts per batch", low=1, identity=False)
    seed: int = setting(0, SEED_HELP, low=0, high=MAX_SEED)
    encoder: str | None = setting(
        None,
        "with --from and --to: the frozen encoder, if it has moved since extraction",
        identity=False,
        metavar="DIR",
    )
    device: str = setting("auto", DEVICE_HELP, identity=False)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`ldlm evaluate`: generative perplexity, entropy and diversity of anybody's texts (SPEC 9)."""

    source: Literal["stories"] | None = setting(
        None,
        "judge texts exactly, by the process that they should come from, that of `ldlm stories`, instead of a scorer",
        metavar="stories",
    )
    scorer: str = setting("gpt2-large", "causal model that scores the texts")
    protocol: Literal["mdlm", "hf", "cosmos"] = setting(
        "mdlm",
        "protocol of perplexity: mdlm, the paper's, over the corpus; hf, mean over texts after a start token; "
        "cosmos, that mean without 5 % at each end",
    )
    max_tokens: int | None = setting(
        None,
        "length in tokens at which texts are cut; none means the longest row of `tokens` in the files, else 1024, and "
        "at most what the scorer takes",
        low=2,
    )
    boundaries: Spelling = setting("eos", BOUNDARIES_HELP)
    boundary_tokens: tuple[str, ...] = setting((), BOUNDARY_TOKENS_HELP, metavar="TEXT")
    text_column: str = setting("text", COLUMN_HELP)
    batch_size: int = setting(16, "texts per scorer pass", low=1, identity=False)
    mauve_model: str | None = setting(None, "model whose hidden states MAUVE compares; none means the scorer")
    resamples: int = setting(1_000, "bootstrap resamples of the texts for each 95 % interval", low=100)
    seed: int = setting(0, "seed of the bootstrap draws", low=0, high=MAX_SEED)
    device: str = setting("auto", DEVICE_HELP, identity=False)


@dataclass(frozen=True, kw_only=True)
class StoriesConfig:
    """`ldlm stories`: little English stories of known distribution."""

    documents: int = setting(200_000, "stories to write", low=1)
    seed: int = setting(0, "seed of the stories; story number i of a seed is always the same", low=0, high=MAX_SEED)


def named_sampler(cls: type, name: str) -> dict[str, Any]:
    """Settings of a stage, such as `SampleConfig`, for the named sampler; `InputError` lists the names."""
    if name not in SAMPLERS:
        solver = f" (--solver {name} is one)" if name in typing.get_args(Solver) else ""
        raise InputError(
            f"there is no sampler {name!r}; choose {', '.join(SAMPLERS)}, or a --solver{solver} and a --grid"
        )
    sampler = SAMPLERS[name]
    if issubclass(cls, SweepConfig):
        return {f"{key}s": [sampler[key]] for key in ("solver", "grid", "guidance")}
    return {"sampler": sampler}


def taken_up(config: TrainConfig, stored: TrainConfig) -> TrainConfig:
    """The settings with which a run begun with `stored` resumes: its edition, and that edition's defaults."""
    if stored.recipe.edition == config.recipe.edition:
        return config
    recipe, diffusion, model = config.recipe, config.diffusion, config.model
    recipe = dataclasses.replace(recipe, edition=stored.recipe.edition)
    if diffusion.elbo_t_min is None:
        diffusion = dataclasses.replace(diffusion, elbo_t_min=stored.diffusion.elbo_t_min)
    if stored.recipe.edition == 1:
        new = OF_SPACE.get(model.space, {}).get("recipe", {})
        old = {name: getattr(stored.recipe, name) for name, value in new.items() if getattr(recipe, name) == value}
        recipe = dataclasses.replace(recipe, **old)
    if model.denoiser.positions in POSITIONS_NOW:
        denoiser = dataclasses.replace(model.denoiser, positions=stored.model.denoiser.positions)
        model = dataclasses.replace(model, denoiser=denoiser)
    return dataclasses.replace(config, recipe=recipe, diffusion=diffusion, model=model)
