"""The model, its recipe and its reverse process, as settings, and the presets.

The defaults are the paper's ("How to Train Your Latent Diffusion Language Model Jointly With the Latent Space",
Sections 4-6 and Appendix C). Where the paper is silent, SPEC's decision is the default, and a setting of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ldlm.config.fields import setting
from ldlm.errors import InputError

# ----------------------------------------------------------------------------------------------------------------------
# The model and its objective


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Latent encoder E_z and latent decoder D_h (Section 4.1, Appendix C)."""

    kind: Literal["resampler", "self_attention"] = setting(
        "resampler", "Perceiver Resampler, or bidirectional blocks over h (Table 7)"
    )
    layers: int = setting(6, "layers of E_z and of D_h, each", low=1)
    width: int = setting(768, "model width of both", low=1)
    heads: int = setting(12, "attention heads", low=1)
    num_latents: int | None = setting(None, "latent vectors N; none means one per token, N = L", low=1)
    latent_dim: int | None = setting(None, "width of a latent; none means the width of h, as in the paper", low=1)
    position_std: float = setting(0.02, "standard deviation of the positions at initialisation", above=0)
    aligned: bool = setting(
        False, "the resampler starts with latent i attending to input i, which needs N = L and helps short runs"
    )
    output_norm: bool = setting(False, "RMSNorm on E_z's output; off, because it would fix |z|")


@dataclass(frozen=True, kw_only=True)
class DenoiserSizes:
    """Sizes of the network that denoises, in LDLM and in its rivals."""

    layers: int = setting(12, "DiT blocks", low=1)
    width: int = setting(768, "model width, and the width of the adaLN condition", low=1)
    heads: int = setting(12, "attention heads", low=1)
    time_dim: int = setting(256, "width of the sinusoidal time embedding", low=2)


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(DenoiserSizes):
    """The diffusion transformer (Appendix C; Peebles & Xie, 2023)."""

    positions: Literal["sincos", "normal", "rotary"] = setting(
        "sincos",
        "learned positions at initialisation: sincos, sines and cosines of standard deviation 0.7, which DiT keeps "
        "fixed (Peebles & Xie, 2023); normal, random of 0.02, as in runs of recipe.edition 1 and 2; rotary, those of "
        "sincos, and queries and keys rotated by position as well (Su et al., 2021), which the paper does not do",
    )


@dataclass(frozen=True, kw_only=True)
class TokenDecoderConfig:
    """Token decoder D_w (Appendix C)."""

    mode: Literal["joint", "deferred"] = setting(
        "joint", "joint trains D_w with the rest; deferred leaves it to finetune-decoder (Table 3)"
    )
    layers: int = setting(3, "bidirectional blocks before the vocabulary head; 0 is a linear head", low=0)
    heads: int = setting(12, "attention heads", low=1)
    mlp_ratio: int = setting(4, "inner width of the SwiGLU, in multiples of the model width", low=1)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The four trainable parts, and the space that the denoiser works in."""

    space: Literal["ldlm", "tencdm", "cosmos", "embedding", "scratch"] = setting(
        "ldlm",
        "latent space (Table 2): ldlm, latents trained jointly; tencdm, h itself; cosmos, latents of an autoencoder "
        "trained first; embedding, the encoder's token embeddings; scratch, token embeddings trained from scratch. "
        "Latents are not normalised",
    )
    condition: Literal["none", "prefix"] = setting(
        "none",
        "what the denoiser sees beside noisy latents: none, as in the paper; prefix, the states of a text's first k "
        "tokens, so that `ldlm sample --prompt` can continue texts",
    )
    autoencoder: AutoencoderConfig = setting(AutoencoderConfig(), "E_z and D_h")
    denoiser: DenoiserConfig = setting(DenoiserConfig(), "the DiT")
    token_decoder: TokenDecoderConfig = setting(TokenDecoderConfig(), "D_w")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Forward process and denoising loss (Section 3, Appendix C)."""

    schedule: Literal["tangent", "cosine", "linear"] = setting("tangent", "noise schedule; linear is linear in ᾱ")
    d: float = setting(3.0, "shape of the tangent schedule", above=0)
    t_min: float = setting(1e-5, "smallest timestep drawn in training", low=0, high=0.5)
    weighting: Literal["simple", "elbo"] = setting(
        "simple",
        "weight of L_diff over t: simple is 1; elbo is Eq. 22 divided by the density of t, with the terms of Eq. 23 "
        "in nats per token: the integral of `ldlm likelihood`",
    )
    elbo_t_min: float | None = setting(
        None,
        "t below which elbo's weight is 0; none means t*, where σ/α is the size of the decoders' noise",
        above=0,
        high=1,
        before=0.05,
    )
    self_conditioning: float = setting(0.5, "probability that a step is self-conditioned", low=0, high=1)
    self_conditioning_noise: float = setting(
        0.0, "noise on ẑ_prev in training, as a multiple of each row's root mean square of ẑ_prev", low=0
    )

    @property
    def self_conditioned(self) -> bool:
        """Whether the denoiser learns to read ẑ_prev; if not, it is given zeros wherever it is used."""
        return self.self_conditioning > 0


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """The recipe that makes joint training work (Section 5)."""

    edition: int = setting(
        4,
        "version of the recipe's meaning; runs keep the one they began with. 1, also if config.yaml has none: "
        "decoder_noise is σ_dec in every space, cosmos.steps are part of steps and the autoencoder keeps its last "
        "weights instead of their average, and loss_reduction applies to squared errors only, also under elbo. 2: "
        "under elbo, too, loss_reduction chooses between nats per text and per token. Up to 2: "
        "model.denoiser.positions are normal by default. Up to 3: they are not rotary in preset tiny",
        low=1,
        high=4,
        before=1,
    )
    reconstruction: Literal["mse", "ce", "ce+mse"] = setting(
        "mse",
        "loss that shapes the latents; ce and ce+mse drop the stop-gradient (Table 1); model.space=cosmos has ce+mse "
        "by default, as its autoencoder learns tokens and states together (Meshchaninov et al., 2025)",
    )
    warmup_steps: int = setting(50_000, "S_wu, diffusion-to-encoder warm-up (Eq. 28-30)", low=0)
    warmup_k: float = setting(10.0, "k, steepness of the warm-up", low=1e-6, high=100)  # less is lost in rounding
    warmup_c: float = setting(0.8, "c, midpoint of the warm-up as a share of S_wu", low=0, high=1)
    gamma_min: float = setting(0.0, "γ at step 0", low=0, high=1)
    decoder_noise: Literal["published", "additive", "diffused"] = setting(
        "published",
        "noise on the decoders' input in training: additive, z_0 + sigma_dec·ε; diffused, z_t with t up to t_dec; "
        "published, as in the method of model.space: ldlm additive with σ_dec (Section 5.4), tencdm diffused with "
        "t up to 0.15 (Shabalin et al., 2025; σ = 0.2 is their alternative), embedding additive with σ = 0.01 "
        "(Strudel et al., 2022), scratch additive with σ = 0.12 (Li et al., 2022), cosmos the noise, masks and dropout "
        "of cosmos.* (Meshchaninov et al., 2025), which its autoencoder always has",
    )
    sigma_dec: float = setting(
        3.0, "σ_dec, standard deviation of additive decoder noise, and of published noise in space ldlm", low=0
    )
    t_dec: float = setting(0.15, "largest t of diffused decoder noise", above=0, high=1)
    loss_reduction: Literal["mean", "sum"] = setting(
        "mean",
        "reduction of each term of the loss under weighting=simple: mean, over the term's own elements; sum, over a "
        "row. Under elbo it is always the sum over a row divided by its tokens",
    )


@dataclass(frozen=True)
class DecoderNoise:
    """Noise on a decoder's input in training; `size` is σ_dec for additive noise, the largest t for diffused noise."""

    kind: Literal["additive", "diffused", "smoothed"]
    size: float = 0.0

    def __str__(self) -> str:
        return {"additive": f"σ_dec {self.size:g}", "diffused": f"t ≤ {self.size:g}"}.get(self.kind, "cosmos")


# Defaults of other latent spaces than LDLM's, and of earlier editions of the recipe.
OF_SPACE: dict[str, dict[str, Any]] = {"cosmos": {"recipe": {"reconstruction": "ce+mse"}}}
OF_EARLIER_EDITIONS: dict[str, Any] = {"model": {"denoiser": {"positions": "normal"}}}
POSITIONS_NOW = ("sincos", "rotary")  # by default, and in preset tiny; runs of earlier editions have others
PUBLISHED_NOISE = {
    "tencdm": DecoderNoise("diffused", 0.15),
    "embedding": DecoderNoise("additive", 0.01),
    "scratch": DecoderNoise("additive", 0.12),
    "cosmos": DecoderNoise("smoothed"),
}


def decoder_noise(space: str, recipe: RecipeConfig) -> DecoderNoise:
    """Decoder noise of a latent space under `recipe.decoder_noise` (SPEC 13.5)."""
    if recipe.decoder_noise == "diffused":
        return DecoderNoise("diffused", recipe.t_dec)
    published = recipe.decoder_noise == "published" and recipe.edition > 1
    return PUBLISHED_NOISE.get(space, additive(recipe)) if published else additive(recipe)


def additive(recipe: RecipeConfig) -> DecoderNoise:
    """Additive noise z_0 + σ_dec·ε, with the recipe's σ_dec (Section 5.4)."""
    return DecoderNoise("additive", recipe.sigma_dec)


@dataclass(frozen=True, kw_only=True)
class CosmosConfig:
    """The first phase of space=cosmos: a smoothed autoencoder (Meshchaninov et al., 2025), then frozen."""

    steps: int = setting(100_000, "steps of the autoencoder, before `steps` of the denoiser", low=1)
    mask: float = setting(0.3, "share of tokens whose h is masked", low=0, below=1)
    noise: float = setting(0.7, "standard deviation of the noise on h", low=0)
    dropout: float = setting(0.4, "share of latent features that are dropped", low=0, below=1)


@dataclass(frozen=True, kw_only=True)
class TimestepConfig:
    """Timestep sampling (Section 5.3, Eq. 5)."""

    kind: Literal["adaptive", "uniform"] = setting("adaptive", "adaptive (Eq. 5) or uniform")
    bins: int = setting(100, "equal bins of [0, 1]", low=2)
    ema_decay: float = setting(0.99, "decay per step of the average loss at each bin edge", low=0, high=1)
    refresh_steps: int = setting(5_000, "steps between updates of the bin probabilities", low=1)
    floor: float = setting(1e-3, "smallest bin probability, as a share of the uniform 1/bins", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, with or without Muon, and the weight average (Appendix C)."""

    kind: Literal["adamw", "muon"] = setting(
        "adamw",
        "muon: Muon, with momentum 0.95, for the matrices of the blocks, AdamW for the rest; adamw is the paper's",
    )
    lr: float = setting(3e-4, "learning rate after the warm-up", above=0)
    lr_start: float = setting(1e-8, "learning rate at step 0", low=0)
    lr_warmup_steps: int = setting(5_000, "steps of linear learning-rate warm-up", low=0)
    lr_decay: Literal["constant", "cosine"] = setting("constant", "after the warm-up: constant, or cosine to zero")
    weight_decay: float = setting(0.01, "weight decay, decoupled from the gradient", low=0)
    beta1: float = setting(0.9, "AdamW β1", low=0, below=1)
    beta2: float = setting(0.98, "AdamW β2", low=0, below=1)
    eps: float = setting(1e-8, "AdamW ε", above=0)
    clip_norm: float = setting(1.0, "global gradient norm is clipped to this", above=0)
    ema_decay: float = setting(0.9999, "decay of the weight average, ramped by (1+n)/(10+n)", low=0, high=1)


Solver = Literal["euler-maruyama", "ddim", "heun", "dpm++2m", "dpm++2m-sde"]
Grid = Literal["time", "learned", "log-snr"]
Final = Literal["mean", "x0"]
# The paper's sampler, at any number of steps.
PAPERS_SAMPLER: Any = {"solver": "euler-maruyama", "grid": "time", "guidance": 1.0, "t_min": 0.05}
SAMPLERS: dict[str, dict[str, Any]] = {"paper": {**PAPERS_SAMPLER, "steps": 128, "final": "mean"}}  # by --sampler


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """The reverse process (SPEC 8).

    The defaults keep the standard deviation of Gaussian data within 3 % (SPEC 13.4, docs/sampling.md).
    """

    steps: int = setting(32, "solver steps, one evaluation each; heun takes two, and guidance twice as many", low=1)
    solver: Solver = setting("dpm++2m-sde", "solver of the reverse process; euler-maruyama is the paper's")
    grid: Grid | None = setting(
        None,
        "equal steps in: time, t, as in the paper; learned, F(t) of adaptive timesteps; log-snr, ln(α²/σ²); auto is "
        "learned, or log-snr where F(t) is t",
        none="auto",
    )
    guidance: float = setting(
        1.0, "w of self-conditioning guidance, ẑ = ẑ_∅ + w(ẑ_sc − ẑ_∅); 1 is off", low=0, high=100
    )
    eta: float = setting(0.0, "η of ddim: 0 is the ODE, 1 ancestral sampling", low=0, high=1)
    t_min: float = setting(0.005, "last time of the grid; the paper's sampler has 0.05", above=0, high=0.9)
    beta_clip: float = setting(0.95, "largest t inside β of euler-maruyama", above=0, high=0.9999)
    final: Final = setting("x0", "what is decoded: mean, the last step's noise-free mean; x0, the last ẑ_0")
    temperature: float = setting(0.0, "temperature at which tokens are drawn; 0 takes the most likely", low=0)


# ----------------------------------------------------------------------------------------------------------------------
# Presets: overrides of the defaults, and the feature sizes that they are meant for


@dataclass(frozen=True)
class Shapes:
    """Sizes that belong to the features: rows of L tokens, states of width D, V tokens in the vocabulary."""

    seq_len: int
    hidden_dim: int
    vocab_size: int


@dataclass(frozen=True)
class Preset:
    """A named set of overrides, and the feature sizes that it was made for."""

    help: str
    shapes: Shapes
    overrides: Mapping[str, Any]


GPT2_SMALL = {"hidden_dim": 768, "vocab_size": 50_257}

PRESETS: dict[str, Preset] = {
    "owt-1024": Preset(
        "OpenWebText, L=1024, the paper's main run",
        Shapes(seq_len=1024, **GPT2_SMALL),
        {"steps": 1_000_000, "recipe": {"warmup_steps": 50_000, "sigma_dec": 3.0}},
    ),
    "lm1b-128": Preset(
        "One Billion Words, L=128",
        Shapes(seq_len=128, **GPT2_SMALL),
        {"steps": 1_000_000, "recipe": {"warmup_steps": 25_000, "sigma_dec": 3.0}},
    ),
    "owt-128": Preset(
        "OpenWebText cropped to L=128, the ablations of Table 1",
        Shapes(seq_len=128, **GPT2_SMALL),
        {"steps": 500_000, "recipe": {"warmup_steps": 10_000, "sigma_dec": 1.0}},
    ),
    "owt-128-main": Preset(
        "OpenWebText cropped to L=128, Tables 2 and 4-7",
        Shapes(seq_len=128, **GPT2_SMALL),
        {"steps": 500_000, "recipe": {"warmup_steps": 10_000, "sigma_dec": 3.0}},
    ),
    "tiny": Preset(
        "two CPU cores and a few minutes",
        Shapes(seq_len=64, hidden_dim=128, vocab_size=4_096),
        {
            "steps": 1_000,
            "batch_size": 32,
            "model": {
                "autoencoder": {"layers": 1, "width": 128, "heads": 4, "position_std": 1.0, "aligned": True},
                "denoiser": {"layers": 3, "width": 128, "heads": 4, "time_dim": 128, "positions": "rotary"},
                "token_decoder": {"layers": 1, "heads": 4},
            },
            "recipe": {"warmup_steps": 400, "sigma_dec": 2.0},
            # few samples and a loss that falls fast: coarser bins, a shorter memory, and no bin left unvisited
            "timesteps": {"refresh_steps": 100, "bins": 20, "ema_decay": 0.9, "floor": 0.2},
            "optimizer": {"lr": 3e-3, "lr_warmup_steps": 50, "lr_decay": "cosine"},
            "log_every": 10,
            "eval_every": 250,
            "eval_rows": 256,
            "save_every": 250,
        },
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name; `InputError` lists the names."""
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
