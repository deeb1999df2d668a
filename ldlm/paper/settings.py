"""Settings of every stage of a row, at `--scale paper` and at `--scale tiny`.

Each is a preset and the row's changes to it. At the tiny scale the preset is `tiny` and everything that counts steps
keeps its share of them, so that rows keep their meaning when the preset changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldlm import config as configs
from ldlm.config import LDLM, AnyTrainConfig, ExtractConfig, FinetuneConfig, SampleConfig, Shapes, TrainConfig
from ldlm.paper.rows import Row

PAPER, TINY = SCALES = ("paper", "tiny")
# The texts of the presets: Section 6 and Appendix C, with the protocol of SPEC 1.
OPENWEBTEXT: dict[str, Any] = {"dataset": "Skylion007/openwebtext", "validation_docs": 100_000}
LM1B: dict[str, Any] = {"dataset": "billion-word-benchmark/lm1b", "validation_split": "test", "detokenizer": "lm1b"}
TEXTS = {"owt-1024": OPENWEBTEXT, "owt-128": OPENWEBTEXT, "owt-128-main": OPENWEBTEXT, "lm1b-128": LM1B}
TOKENS = {OPENWEBTEXT["dataset"]: 9e9, LM1B["dataset"]: 0.9e9}  # about, in GPT-2's tokens

SAMPLING_SEEDS = 5
SCORER_NAME = "gpt2-large"
# The paper's sampler, ending as Section 4.3 says: the estimate ẑ_0 is decoded, and tokens are drawn from D_w.
SAMPLER = {"final": "x0", "temperature": 1.0}

# Encoder and scorer of the tiny scale. The scorer is wider, and trained for longer and on text that no model sees.
VOCABULARY = 2_048
ENCODER: dict[str, Any] = {"layers": 4, "width": 128, "heads": 4, "steps": 1_000}
SCORER: dict[str, Any] = {"layers": 4, "width": 192, "heads": 6, "steps": 1_600}
TINY_SAMPLING_SEEDS, TINY_TEXTS, TINY_EVALUATIONS = 2, 250, 64
TINY_SAMPLER = {**SAMPLER, "temperature": 0.5}  # at 1 small models read like random words
CHAINS = ("mdlm", "duo")  # whose N steps take N + 1 evaluations: a last one removes the remaining noise
COSMOS_SHARE, DECODER_SHARE = 0.4, 0.4  # steps of COSMOS's autoencoder, and of a decoder, as shares of the run's steps


@dataclass(frozen=True)
class Training:
    """Settings of a training: the preset, the changes to it, and the resulting configuration."""

    preset: str
    changes: Mapping[str, Any]
    config: AnyTrainConfig


def preset(row: Row, scale: str) -> str:
    """The preset that a row starts from at a scale."""
    return row.preset if scale == PAPER else TINY


def shapes(row: Row, scale: str) -> Shapes:
    """Sizes of the features of a row."""
    found = configs.preset(preset(row, scale)).shapes
    if scale == TINY:
        return Shapes(found.seq_len, ENCODER["width"], VOCABULARY)
    if encoder(row) == "bert-base-uncased":
        return Shapes(found.seq_len, found.hidden_dim, 30_522)
    return found


def encoder(row: Row) -> str:
    """Encoder of a row at the paper's scale: gpt2 or bert-base-uncased."""
    return str(row.stages.get("store", {}).get("encoder", "gpt2"))


def architecture(row: Row) -> str:
    """Architecture of a row's encoder: gpt2 or bert."""
    return encoder(row).split("-")[0]


def store(row: Row, scale: str) -> ExtractConfig:
    """Settings of `extract-features` for the features of a row, without the encoder and files of the tiny scale."""
    text: dict[str, Any] = {}
    if scale == PAPER:
        kind = row.stages.get("store", {}).get("kind", "hidden")
        text = {**TEXTS[row.preset], **({} if kind == "scratch" else {"codec": "online"})}
    base = {"seq_len": shapes(row, scale).seq_len, **text}
    given = _stage(row, "store", scale)
    return configs.from_dict(ExtractConfig, {**base, **given, "encoder": encoder(row)})


def training(row: Row, scale: str, *, seed: int = 0, steps: int | None = None) -> Training:
    """Settings of `train` for a row. At the tiny scale, `steps` replaces the row's own number of steps."""
    name, cls = preset(row, scale), configs.training_class(row.method)
    changes = _stage(row, "train", scale)
    if scale == TINY:
        changes = configs.merge(row.stages.get("train", {}), _scaled(row, steps or row.tiny.steps))
        changes = configs.merge(changes, row.tiny.stages.get("train", {}))
    changes = {**changes, **({"seed": seed} if seed else {})}
    method = {} if row.method == LDLM else {"method": row.method}
    before = configs.merge(configs.preset_for(cls, name), method)
    made: AnyTrainConfig = configs.from_dict(cls, configs.merge(before, changes))
    return Training(name, _without(changes, configs.to_dict(configs.from_dict(cls, before))), made)


def _without(changes: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Changes without those already in `base`."""
    found = {}
    for name, value in changes.items():
        value = _without(value, base[name]) if isinstance(value, Mapping) else value
        if value not in ({}, base[name]):
            found[name] = value
    return found


def _scaled(row: Row, steps: int) -> dict[str, Any]:
    """Settings that count steps, as shares of `steps`; for LDLM also warm-up, timestep refresh and COSMOS's phase."""
    rhythm = {"steps": steps, "save_every": max(1, steps // 10), "eval_every": max(1, steps // 5)}
    if row.method != LDLM:
        return rhythm
    tiny = configs.from_dict(TrainConfig, configs.preset(TINY).overrides)
    share = tiny.recipe.warmup_steps / tiny.steps if row.tiny.warmup is None else row.tiny.warmup
    refresh = max(1, round(steps * tiny.timesteps.refresh_steps / tiny.steps))
    cosmos = row.stages.get("train", {}).get("model", {}).get("space") == "cosmos"
    return {
        **rhythm,
        "recipe": {"warmup_steps": round(share * steps)},
        "timesteps": {"refresh_steps": refresh},
        **({"cosmos": {"steps": max(1, round(COSMOS_SHARE * steps))}} if cosmos else {}),
    }


def decoder(row: Row, scale: str, *, seed: int = 0, steps: int | None = None) -> FinetuneConfig | None:
    """Settings of `finetune-decoder` for a row; None if it draws with D_h and D_w.

    At the tiny scale batch and noise are the run's, and the steps are a share of the run's.
    """
    given = row.stages.get("decoder")
    if given is None:
        return None
    if scale == TINY:
        run_steps = steps or row.tiny.steps
        given = {
            "layers": given["layers"],
            "steps": max(1, round(DECODER_SHARE * run_steps)),
            "save_every": max(1, run_steps // 10),
            **row.tiny.stages.get("decoder", {}),
        }
    return configs.from_dict(FinetuneConfig, {**given, "seed": seed})


def sampling(row: Row, scale: str, evaluations: int, texts: int, seed: int) -> Any:
    """Settings of `sample` for a row, to draw `texts` texts with at most `evaluations` evaluations each."""
    own = _stage(row, "sampler", scale)
    sizes = {"num_samples": texts, "seed": seed}
    if row.method == LDLM:
        end = SAMPLER if scale == PAPER else TINY_SAMPLER
        sampler = {**end, **own, "steps": evaluations}
        return configs.drawing_config(SampleConfig, LDLM, {**sizes, "sampler": sampler}, named="paper")
    given = {**sizes, "sampler": {**own, "steps": evaluations - (row.method in CHAINS)}}
    return configs.drawing_config(SampleConfig, row.method, given)


def _stage(row: Row, name: str, scale: str) -> dict[str, Any]:
    """A row's own settings of a stage, at the tiny scale merged with its settings for that scale."""
    own = dict(row.stages.get(name, {}))
    return own if scale == PAPER else configs.merge(own, row.tiny.stages.get(name, {}))
