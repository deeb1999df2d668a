"""Every setting of every stage, as frozen dataclasses: the default, the help text and the bounds stand once, here.

The defaults are the paper's ("How to Train Your Latent Diffusion Language Model Jointly With the Latent Space",
Sections 4-6 and Appendix C); where the paper is silent SPEC's decision is the default and a setting of its own. This
module is standard library only, so that `ldlm --help` stays instant.

`from_dict` is the only way in from outside (YAML, `--set`, checkpoints): it is strict about names, types and bounds.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ldlm.errors import InputError

T = TypeVar("T")


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    identity: bool = True,
    none: str = "none",
    flags: bool = False,
    metavar: str | None = None,
    before: Any = None,
) -> Any:
    """A dataclass field with its help text and bounds (`low` and `high` inclusive, `above` and `below` exclusive).

    `identity=False` marks what may change between a run and its resumption (where it computes, how often it reports).
    `none` is how a user spells None. `flags` gives the fields of a nested dataclass flags of their own. `metavar`
    stands for a value in the help where its type says too little. `before` is what applied before there was the
    setting: what an artefact's configuration without it means.
    """
    metadata = {
        "help": help, "low": low, "high": high, "above": above, "below": below,
        "identity": identity, "none": none, "flags": flags, "metavar": metavar, "before": before,
    }  # fmt: skip
    if dataclasses.is_dataclass(default):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)


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
    position_std: float = setting(0.02, "initial spread of the positions", above=0)
    aligned: bool = setting(False, "resampler starts with latent i reading input i (needs N = L); short runs want it")
    output_norm: bool = setting(False, "RMSNorm on E_z's output; it would pin |z|, so it is off")


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """The diffusion transformer (Appendix C; Peebles & Xie, 2023)."""

    layers: int = setting(12, "DiT blocks", low=1)
    width: int = setting(768, "model width, and the width of the adaLN condition", low=1)
    heads: int = setting(12, "attention heads", low=1)
    time_dim: int = setting(256, "width of the sinusoidal time embedding", low=2)


@dataclass(frozen=True, kw_only=True)
class TokenDecoderConfig:
    """Token decoder D_w (Appendix C)."""

    mode: Literal["joint", "deferred"] = setting(
        "joint", "train D_w with the rest, or leave it to finetune-decoder (the paper's Table 3)"
    )
    layers: int = setting(3, "bidirectional blocks before the vocabulary head; 0 is a linear head", low=0)
    heads: int = setting(12, "attention heads", low=1)
    mlp_ratio: int = setting(4, "inner width of the SwiGLU, in multiples of the model width", low=1)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The four trainable parts, and the space that the denoiser works in."""

    space: Literal["ldlm", "tencdm", "cosmos", "embedding", "scratch"] = setting(
        "ldlm",
        "latent space (Table 2): latents trained jointly; h itself; latents of an autoencoder trained before; the "
        "encoder's token embeddings; token embeddings from scratch. Latents are taken as they are, not normalised",
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
        "simple", "weight of L_diff over t: 1, or Eq. 22 over p(u), whose terms are weighed as in Eq. 23"
    )
    elbo_t_min: float = setting(0.05, "smallest t that counts under elbo, whose weight diverges at 0", above=0, high=1)
    self_conditioning: float = setting(0.5, "probability of a self-conditioned step", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """What makes joint training work (Section 5)."""

    edition: int = setting(
        2,
        "what the settings mean: 2, or 1 as in runs of earlier versions, whose config.yaml names none and which keep "
        "it: decoder_noise is σ_dec in every space, cosmos.steps are part of steps and leave the autoencoder at its "
        "last weights, and loss_reduction holds for squared errors alone, under elbo too",
        low=1,
        high=2,
        before=1,
    )
    reconstruction: Literal["mse", "ce", "ce+mse"] = setting(
        "mse",
        "what shapes the latents; the CE variants drop the stop-gradient (Table 1); in model.space=cosmos the default "
        "is ce+mse, as its autoencoder learns tokens and states together (Meshchaninov et al., 2025)",
    )
    warmup_steps: int = setting(50_000, "S_wu, diffusion-to-encoder warm-up (Eq. 28-30)", low=0)
    warmup_k: float = setting(10.0, "k, steepness of the warm-up", above=0, high=100)
    warmup_c: float = setting(0.8, "c, midpoint of the warm-up as a share of S_wu", low=0, high=1)
    gamma_min: float = setting(0.0, "γ at step 0", low=0, high=1)
    decoder_noise: Literal["published", "additive", "diffused"] = setting(
        "published",
        "what the decoders read in training: additive, z_0 + sigma_dec·ε; diffused, z_t at t up to t_dec; published, "
        "what the method of model.space does: ldlm additive with σ_dec (Section 5.4), tencdm diffused with t up to "
        "0.15 (Shabalin et al., 2025; σ = 0.2 is their alternative), embedding additive with σ = 0.01 (Strudel et al., "
        "2022), scratch additive with σ = 0.12 (Li et al., 2022), cosmos the noise, masks and dropout of cosmos.* "
        "(Meshchaninov et al., 2025), which its autoencoder has in any case",
    )
    sigma_dec: float = setting(
        3.0, "σ_dec, standard deviation of the decoder noise: in space ldlm, and in all when it is additive", low=0
    )
    t_dec: float = setting(0.15, "largest t of diffused decoder noise", above=0, high=1)
    loss_reduction: Literal["mean", "sum"] = setting(
        "mean",
        "terms of the loss: sum, each summed over a row as in Eq. 23, nats per text; mean, with simple weighting each "
        "over its own elements, and with elbo those sums over the tokens of a row, nats per token",
    )


@dataclass(frozen=True)
class DecoderNoise:
    """How a decoder's input is made of z_0 in training: a kind, and σ_dec or the largest t."""

    kind: Literal["additive", "diffused", "smoothed"]
    size: float = 0.0

    def __str__(self) -> str:
        return {"additive": f"σ_dec {self.size:g}", "diffused": f"t ≤ {self.size:g}"}.get(self.kind, "cosmos")


# Defaults of a latent space where they are not LDLM's.
OF_SPACE: dict[str, dict[str, Any]] = {"cosmos": {"recipe": {"reconstruction": "ce+mse"}}}
PUBLISHED_NOISE = {
    "tencdm": DecoderNoise("diffused", 0.15),
    "embedding": DecoderNoise("additive", 0.01),
    "scratch": DecoderNoise("additive", 0.12),
    "cosmos": DecoderNoise("smoothed"),
}


def decoder_noise(space: str, recipe: RecipeConfig) -> DecoderNoise:
    """The decoder noise that `recipe.decoder_noise` stands for in a latent space (SPEC 13.5)."""
    if recipe.decoder_noise == "diffused":
        return DecoderNoise("diffused", recipe.t_dec)
    published = recipe.decoder_noise == "published" and recipe.edition > 1
    return PUBLISHED_NOISE.get(space, additive(recipe)) if published else additive(recipe)


def additive(recipe: RecipeConfig) -> DecoderNoise:
    """z_0 + σ_dec·ε."""
    return DecoderNoise("additive", recipe.sigma_dec)


@dataclass(frozen=True, kw_only=True)
class CosmosConfig:
    """The first phase of space=cosmos: a smoothed autoencoder (Meshchaninov et al., 2025), then frozen."""

    steps: int = setting(100_000, "steps of the autoencoder, before those of the denoiser, which are `steps`", low=1)
    mask: float = setting(0.3, "share of tokens whose h is masked", low=0, below=1)
    noise: float = setting(0.7, "standard deviation of the noise on h", low=0)
    dropout: float = setting(0.4, "share of latent features that are dropped", low=0, below=1)


@dataclass(frozen=True, kw_only=True)
class TimestepConfig:
    """Timestep sampling (Section 5.3, Eq. 5)."""

    kind: Literal["adaptive", "uniform"] = setting("adaptive", "adaptive (Eq. 5) or uniform")
    bins: int = setting(100, "equal bins of [0, 1]", low=2)
    ema_decay: float = setting(0.99, "decay per step of the loss average at each bin edge, drawn or not", low=0, high=1)
    refresh_steps: int = setting(5_000, "steps between updates of the bin probabilities", low=1)
    floor: float = setting(1e-3, "smallest bin probability, as a share of the uniform 1/bins", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and the weight average (Appendix C)."""

    lr: float = setting(3e-4, "learning rate after the warm-up", above=0)
    lr_start: float = setting(1e-8, "learning rate at step 0", low=0)
    lr_warmup_steps: int = setting(5_000, "steps of linear learning-rate warm-up", low=0)
    lr_decay: Literal["constant", "cosine"] = setting("constant", "after the warm-up: constant, or cosine to zero")
    weight_decay: float = setting(0.01, "AdamW weight decay", low=0)
    beta1: float = setting(0.9, "AdamW β1", low=0, below=1)
    beta2: float = setting(0.98, "AdamW β2", low=0, below=1)
    eps: float = setting(1e-8, "AdamW ε", above=0)
    clip_norm: float = setting(1.0, "global gradient norm is clipped to this", above=0)
    ema_decay: float = setting(0.9999, "decay of the weight average, ramped by (1+n)/(10+n)", low=0, high=1)


Solver = Literal["euler-maruyama", "ddim", "heun", "dpm++2m", "dpm++2m-sde"]
Grid = Literal["time", "learned", "log-snr"]
Final = Literal["mean", "x0"]
# Of `SamplerConfig`, at any number of steps.
PAPERS_SAMPLER: Any = {"solver": "euler-maruyama", "grid": "time", "guidance": 1.0, "t_min": 0.05}
SAMPLERS: dict[str, dict[str, Any]] = {"paper": {**PAPERS_SAMPLER, "steps": 128, "final": "mean"}}  # by --sampler


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """The reverse process (SPEC 8).

    The defaults keep the standard deviation of Gaussian data within 3 % (SPEC 13.4, docs/sampling.md).
    """

    steps: int = setting(32, "solver steps, one evaluation each; heun takes two, and guidance twice as many", low=1)
    solver: Solver = setting("dpm++2m-sde", "how the reverse process is solved; euler-maruyama is the paper's")
    grid: Grid = setting(
        "learned", "equal steps in the learned F(t) of adaptive timesteps, in time t, the paper's, or in ln(α²/σ²)"
    )
    guidance: float = setting(
        1.0, "w of self-conditioning guidance, ẑ = ẑ_∅ + w(ẑ_sc − ẑ_∅); 1 is off", low=0, high=100
    )
    eta: float = setting(0.0, "η of ddim: 0 is the ODE, 1 ancestral sampling", low=0, high=1)
    t_min: float = setting(0.005, "where the grid ends; the paper's sampler ends at 0.05", above=0, high=0.9)
    beta_clip: float = setting(0.95, "euler-maruyama clips t to this, inside β only", above=0, high=0.9999)
    final: Final = setting("x0", "return the last step's noise-free mean, or the last estimate of z_0")
    temperature: float = setting(0.0, "draw tokens at this temperature; 0 takes the most likely", low=0)


# ----------------------------------------------------------------------------------------------------------------------
# Presets: what each changes against the defaults, and the sizes it is meant for


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
                "denoiser": {"layers": 3, "width": 128, "heads": 4, "time_dim": 128},
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


# ----------------------------------------------------------------------------------------------------------------------
# From outside and back


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of `config`, tuples as lists: what goes into YAML and JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return list(value) if isinstance(value, tuple) else value

    return plain(config)


def from_dict(cls: type[T], data: Mapping[str, Any], prefix: str = "") -> T:
    """Build `cls` from a nested dict; missing keys take their defaults.

    Raises `InputError`, naming the dotted key, for an unknown key, a wrong type, a number that is not finite and a
    value out of bounds. A class whose defaults depend on other settings adds them in its `with_defaults(data)`.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{prefix.rstrip('.') or 'the configuration'} must be a mapping of settings, not {data!r}")
    data = getattr(cls, "with_defaults", dict)(data)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in data.items():
        if key not in fields:
            raise InputError(f"unknown setting {prefix}{key}{_suggestion(str(key), fields)}")
        values[key] = _parse(hints[key], value, f"{prefix}{key}", fields[key].metadata)
    return cls(**values)


def from_stored(cls: type[T], data: Mapping[str, Any]) -> T:
    """`from_dict` of what an artefact holds: a setting that it is older than has the value that applied before."""
    return from_dict(cls, merge(_before(cls), data))


def _before(cls: type) -> dict[str, Any]:
    """The settings of a dataclass, nested, that stand for something else where they are missing in an artefact."""
    found, hints = {}, typing.get_type_hints(cls)
    for one in dataclasses.fields(cls):
        nested = dataclasses.is_dataclass(hints[one.name])
        value = _before(hints[one.name]) or None if nested else one.metadata.get("before")
        if value is not None:
            found[one.name] = value
    return found


def merge(base: Mapping[str, Any], *overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts merged left to right; the last one wins."""
    merged = dict(base)
    for override in overrides:
        for key, value in override.items():
            nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = merge(merged[key], value) if nested else value
    return merged


def assignments(pairs: Iterable[str]) -> dict[str, Any]:
    """The nested dict that `("model.denoiser.layers=3", …)` describes; values stay strings until `from_dict`."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--set takes KEY=VALUE, for example recipe.sigma_dec=2, and not {pair!r}")
        nested: Any = value
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        result = merge(result, nested)
    return result


def identity(config: Any) -> dict[str, Any]:
    """The settings that make a run what it is: everything but the fields marked `identity=False`."""
    result = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if not f.metadata.get("identity", True):
            continue
        result[f.name] = identity(value) if dataclasses.is_dataclass(value) else to_dict_value(value)
    return result


def to_dict_value(value: Any) -> Any:
    """A leaf as YAML and JSON hold it."""
    return list(value) if isinstance(value, tuple) else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines "key: old -> new" for every leaf in which two nested dicts differ."""
    lines = []
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def _suggestion(key: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _parse(hint: Any, value: Any, key: str, metadata: Mapping[str, Any]) -> Any:
    """`value` as the type `hint`, checked against the bounds in `metadata`."""
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, f"{key}.")  # type: ignore[arg-type]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (inner,) = (arm for arm in typing.get_args(hint) if arm is not type(None))
        if value is None or value in ("none", metadata.get("none")):
            return None
        return _parse(inner, value, key, metadata)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value is None or isinstance(value, bool):  # as YAML reads null, and on, off, yes and no
            value = next((word for word in _WORDS[value] if word in choices), value)
        if value not in choices:
            raise InputError(f"{key} is one of {', '.join(choices)}, not {value!r}")
        return value
    if typing.get_origin(hint) is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise InputError(f"{key} takes a list, not {value!r}")
        return tuple(_parse(typing.get_args(hint)[0], item, key, metadata) for item in items)
    return _bounded(_scalar(hint, value, key), key, metadata)


def _scalar(hint: type, value: Any, key: str) -> Any:
    wrong = InputError(f"{key} takes {_NAMES[hint]}, not {value!r}")
    if hint is bool:
        flag = next((flag for flag, words in _WORDS.items() if str(value).lower() in words), None)
        if isinstance(value, str) and flag is not None:
            return flag
        if not isinstance(value, bool):
            raise wrong
        return value
    if hint is str:
        if not isinstance(value, str):
            raise InputError(f"{key} takes {_NAMES[hint]}, not {value!r}; in a YAML file, put it in quotes")
        return value
    # YAML reads 3e-4 as a string, and --set gives strings: numbers are parsed to the field's type here.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise wrong
    try:
        number = float(value)
        if not math.isfinite(number):
            raise InputError(f"{key} must be a finite number, not {value!r}")
        if hint is float:
            return number
        whole = int(value) if isinstance(value, (int, str)) and not isinstance(value, float) else int(number)
    except InputError:
        raise
    except (ValueError, OverflowError):
        raise wrong from None
    if whole != number:
        raise wrong
    return whole


_WORDS: dict[bool | None, tuple[str, ...]] = {
    True: ("on", "yes", "true"), False: ("off", "no", "false"), None: ("none",)
}  # fmt: skip
_NAMES = {bool: "true or false", str: "a string", int: "a whole number", float: "a number"}


def _bounded(value: Any, key: str, metadata: Mapping[str, Any]) -> Any:
    low, high, above, below = (metadata.get(name) for name in ("low", "high", "above", "below"))
    if low is not None and value < low:
        raise InputError(f"{key} must be at least {low}, not {value}")
    if above is not None and value <= above:
        raise InputError(f"{key} must be more than {above}, not {value}")
    if below is not None and value >= below:
        raise InputError(f"{key} must be less than {below}, not {value}")
    if high is not None and value > high:
        raise InputError(f"{key} must be at most {high}, not {value}")
    return value
