"""Trials of the tiny preset: with which settings does a model trained for minutes draw texts that read like its source?

    python -m benchmarks recipe prepare --work recipe
    python -m benchmarks recipe run --work recipe --steps 400 --trials "as before" "sincos" "sincos, σ_dec 1.2"
    python -m benchmarks recipe states --work recipe
    python -m benchmarks recipe encoders --work recipe --output benchmarks/results
    python -m benchmarks recipe report --work recipe --output benchmarks/results

The source is `ldlm stories`, whose texts are judged exactly; `--novels DIR` takes the encoder, scorer and features of a
finished `python -m benchmarks comparison`. A trial is the preset as it was before the trials (`BEFORE`) with named
changes (`CHANGES`), which are applied from left to right. `run` resumes where it was interrupted; `report` writes down
all results there are, good and bad. `encoders` trains the encoder with each `init` of `ldlm pretrain-encoder`, and says
how far its states tell tokens apart.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModel

from benchmarks.records import keep
from ldlm import config, files, memory
from ldlm.cli import show
from ldlm.config import (
    EvaluateConfig,
    ExtractConfig,
    PretrainConfig,
    SampleConfig,
    SamplerConfig,
    StoriesConfig,
    TrainConfig,
)
from ldlm.errors import InputError
from ldlm.features.store import FeatureStore
from ldlm.hub import load_model
from ldlm.stages import evaluate, extract_features, pretrain_encoder, sample, stories, train

IDENTITY_ROWS = 750
Init = Literal["width", "published"]
INITS: tuple[Init, ...] = ("published", "width")
SEQ_LEN, DOCUMENTS, HELD_OUT, ENCODER_STEPS = 64, 20_000, 1_000, 400
TEXTS = 100
STATES = "states.json"
STORIES, NOVELS = "stories", "novels"
BASE = "as before"

# Preset `tiny` before these trials. The settings in SHARES are shares of the steps, so that runs of any length compare.
SHARES = (("recipe", "warmup_steps"), ("timesteps", "refresh_steps"), ("optimizer", "lr_warmup_steps"))
BEFORE: dict[str, Any] = {
    "batch_size": 32,
    "model": {
        "autoencoder": {"layers": 1, "width": 128, "heads": 4, "position_std": 1.0, "aligned": True},
        "denoiser": {"layers": 3, "width": 128, "heads": 4, "time_dim": 128, "positions": "normal"},
        "token_decoder": {"layers": 1, "heads": 4},
    },
    "recipe": {"warmup_steps": 0.4, "sigma_dec": 2.0},
    "timesteps": {"refresh_steps": 0.1, "bins": 20, "ema_decay": 0.9, "floor": 0.2},
    "optimizer": {"lr": 3e-3, "lr_warmup_steps": 0.05, "lr_decay": "cosine"},
    "log_every": 10,
    "eval_every": 10**6,
    "eval_rows": 256,
    "save_every": 100,
    "device": "cpu",
}


@dataclass(frozen=True)
class Change:
    """A change to the preset: settings of training, settings of sampling, and the layer of the encoder."""

    train: Mapping[str, Any]
    sampler: Mapping[str, Any] | None = None
    layer: int | None = None


CHANGES = {
    "sincos": Change({"model": {"denoiser": {"positions": "sincos"}}}),
    "rotary": Change({"model": {"denoiser": {"positions": "rotary"}}}),
    "σ_dec 0.5": Change({"recipe": {"sigma_dec": 0.5}}),
    "σ_dec 0.8": Change({"recipe": {"sigma_dec": 0.8}}),
    "σ_dec 1.2": Change({"recipe": {"sigma_dec": 1.2}}),
    "C = 16": Change({"model": {"autoencoder": {"latent_dim": 16}}}),
    "C = 32": Change({"model": {"autoencoder": {"latent_dim": 32}}}),
    "C = 64": Change({"model": {"autoencoder": {"latent_dim": 64}}}),
    "C = 256": Change({"model": {"autoencoder": {"latent_dim": 256}}}),
    "lr 1e-3": Change({"optimizer": {"lr": 1e-3}}),
    "lr 2e-3": Change({"optimizer": {"lr": 2e-3}}),
    "lr 1.2e-2": Change({"optimizer": {"lr": 1.2e-2}}),
    "lr 6e-3": Change({"optimizer": {"lr": 6e-3}}),
    "warm-up 0.1": Change({"recipe": {"warmup_steps": 0.1}}),
    "warm-up 0.8": Change({"recipe": {"warmup_steps": 0.8}}),
    "gradients of CE": Change({"recipe": {"reconstruction": "ce+mse"}}),
    "layer -4": Change({}, layer=-4),
    "layer -5": Change({}, layer=-5),
    "D_w of 0 blocks": Change({"model": {"token_decoder": {"layers": 0}}}),
    "D_w of 2 blocks": Change({"model": {"token_decoder": {"layers": 2}}}),
    "resampler positions 0.3": Change({"model": {"autoencoder": {"position_std": 0.3}}}),
    "resampler positions 2": Change({"model": {"autoencoder": {"position_std": 2.0}}}),
    "resampler of 1 head": Change({"model": {"autoencoder": {"heads": 1}}}),
    "resampler of 2 heads": Change({"model": {"autoencoder": {"heads": 2}}}),
    "self-conditioning 0.9": Change({"diffusion": {"self_conditioning": 0.9}}),
    "no self-conditioning": Change({"diffusion": {"self_conditioning": 0.0}}),
    "self-conditioning noise 0.5": Change({"diffusion": {"self_conditioning_noise": 0.5}}),
    "Muon": Change({"optimizer": {"kind": "muon"}}),
    "EMA 0.98": Change({"optimizer": {"ema_decay": 0.98}}),
    "uniform t": Change({"timesteps": {"kind": "uniform"}}),
    "DiT of 4 blocks": Change({"model": {"denoiser": {"layers": 4}}}),
    "DiT of width 192": Change({"model": {"denoiser": {"width": 192, "heads": 6}}}),
    "batch 16": Change({"batch_size": 16}),
    "batch 64": Change({"batch_size": 64}),
    "128 sampling steps": Change({}, sampler={"steps": 128}),
    "paper's sampler": Change({}, sampler=config.SAMPLERS["paper"]),
}


@dataclass(frozen=True)
class Trial:
    """Combined changes, in a run with a number of steps and a seed."""

    name: str
    steps: int
    seed: int

    @property
    def changes(self) -> list[Change]:
        """The named changes; for an unknown name, `InputError` lists those that exist."""
        names = [] if self.name == BASE else self.name.split(", ")
        for name in names:
            if name not in CHANGES:
                raise InputError(f"there is no change {name!r}; combine, with commas: {'; '.join(CHANGES)}")
        return [CHANGES[name] for name in names]

    @property
    def layer(self) -> int:
        """Layer of the encoder whose hidden states are used."""
        return [ExtractConfig().layer, *(one.layer for one in self.changes if one.layer is not None)][-1]

    @property
    def train(self) -> TrainConfig:
        """Settings of the training."""
        data = config.merge(BEFORE, *(one.train for one in self.changes))
        for room, name in SHARES:
            data = config.merge(data, {room: {name: max(1, round(data[room][name] * self.steps))}})
        return config.from_dict(TrainConfig, {**data, "steps": self.steps, "seed": self.seed})

    @property
    def sampler(self) -> SamplerConfig:
        """Settings of sampling; the most likely tokens are taken."""
        return config.from_dict(SamplerConfig, config.merge(*({}, *(one.sampler or {} for one in self.changes))))

    @property
    def run(self) -> str:
        """The folder of the run, shared by trials that differ only in sampling."""
        names = [name for name in self.name.split(", ") if name == BASE or CHANGES[name].sampler is None]
        return f"{', '.join(names) or BASE}; {self.steps} steps; seed {self.seed}".replace("/", "-")


@dataclass(frozen=True)
class Bench:
    """The folder of all trials on a source, with the encoder and scorer of that source."""

    work: Path
    novels: Path | None

    @property
    def source(self) -> str:
        """Name of the source."""
        return NOVELS if self.novels else STORIES

    @property
    def folder(self) -> Path:
        """Folder of the trials."""
        return self.work / self.source

    @property
    def encoder(self) -> Path:
        """The frozen encoder."""
        return (self.novels or self.folder) / "encoder"

    @property
    def scorer(self) -> Path:
        """The causal model that scores texts; for stories it is the encoder, since the source judges them as well."""
        return self.novels / "scorer" if self.novels else self.encoder

    def prepare(self, init: Init, steps: int = ENCODER_STEPS) -> None:
        """Make stories, their encoder and its features; nothing for novels."""
        if self.novels is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            text, tokenizer = self.folder / "stories.txt", self.folder / "tokenizer"
            stories.run(StoriesConfig(documents=DOCUMENTS), text, tokenizer, progress=show.Terminal())
            pretrain_encoder.run(self.pretraining(init, steps), self.encoder, progress=show.Terminal())
            self.features(ExtractConfig().layer)

    def pretraining(self, init: Init, steps: int = ENCODER_STEPS) -> PretrainConfig:
        """Settings of an encoder of stories."""
        text, tokenizer = str(self.folder / "stories.txt"), str(self.folder / "tokenizer")
        return PretrainConfig(
            data=(text,), tokenizer=tokenizer, positions=SEQ_LEN, steps=steps, init=init, device="cpu"
        )

    def features(self, layer: int) -> Path:
        """The store of a layer's states, made if it is missing."""
        if self.novels and layer == ExtractConfig().layer:
            return self.novels / "features"
        if self.novels:
            text = self.novels / "text"
            made = ExtractConfig(
                data=(str(text / "train.jsonl"),), validation_data=(str(text / "held-out.jsonl"),), validation_docs=0
            )
        else:
            made = ExtractConfig(data=(str(self.folder / "stories.txt"),), validation_docs=HELD_OUT)
        made = replace(made, encoder=str(self.encoder), layer=layer, seq_len=SEQ_LEN, device="cpu")
        out = self.folder / f"features{layer}"
        extract_features.run(made, out, progress=show.Terminal())
        return out

    def identities(self) -> list[float]:
        """Shares of tokens that the encoder's states tell apart, by layer, beginning with the embeddings.

        A share is that of held-out tokens whose normalised state is nearer to the mean state of their token in other
        rows than to that of any other token.
        """
        return self._identities(self.encoder)

    def encoders(self) -> str:
        """A table of the encoders that each `init` leads to: loss, and tokens that their states tell apart."""
        rows = []
        for init in INITS:
            out = self.folder / "encoders" / init
            made = pretrain_encoder.run(self.pretraining(init), out, progress=show.Terminal())
            rows.append((init, show.value(made.manifest["final_loss"]), *map(show.value, self._identities(out))))
        layers = (f"block {number + 1}" for number in range(len(rows[0]) - 3))
        return show.table(("init", "loss", "embeddings", *layers), rows)

    def _identities(self, encoder: Path) -> list[float]:
        model, _ = load_model(AutoModel, str(encoder))
        store = FeatureStore(self.features(ExtractConfig().layer))
        rows_RL = torch.from_numpy(store.split("train").tokens[:IDENTITY_ROWS]).long()
        with torch.no_grad():
            made = model.eval()(rows_RL, output_hidden_states=True).hidden_states
        return [_told_apart(hidden_RLD, rows_RL, store.shapes.vocab_size) for hidden_RLD in made]

    # ------------------------------------------------------------------------------------------------------------------

    def measure(self, trial: Trial) -> dict[str, Any]:
        """Train a trial, draw from it and judge the texts; results that exist already are read."""
        record = self.folder / "trials" / f"{trial.name}; {trial.steps} steps; seed {trial.seed}.json".replace("/", "-")
        asked = {"train": config.to_dict(trial.train), "sampler": config.to_dict(trial.sampler), "layer": trial.layer}
        asked["texts"] = TEXTS
        if record.exists() and _in_todays_terms((found := files.read_json(record))["settings"]) == asked:
            return found
        figures = {**self._trained(trial), **self._drawn(trial, record.with_suffix(".jsonl"))}
        own = {"source": self.source, "trial": trial.name, "steps": trial.steps, "seed": trial.seed}
        found = {**own, "figures": figures, "settings": asked}
        files.write_json(record, found)
        return found

    def spent(self, trial: Trial) -> Path:
        """The record of a run's CPU seconds."""
        return self.folder / "runs" / f"{trial.run}.cpu.json"

    def _trained(self, trial: Trial) -> dict[str, Any]:
        """Held-out figures of the run, and its CPU seconds, which are unknown for an interrupted run."""
        out = self.folder / "runs" / trial.run
        spent = self.spent(trial)
        begun, started = (out / "config.yaml").exists(), time.process_time()
        made = train.run(trial.train, self.features(trial.layer), out, progress=show.Terminal())
        if not begun:
            files.write_json(spent, {"cpu_seconds": time.process_time() - started})
        keys = ("l_diff", "l_diff_mean", "l_h", "token_accuracy_clean", "latent_std")
        held_out = {key: made.manifest["held_out"][key] for key in keys}
        return {**held_out, "cpu_seconds": files.read_json(spent)["cpu_seconds"] if spent.exists() else None}

    def _drawn(self, trial: Trial, texts: Path) -> dict[str, Any]:
        """Scores of texts from the run; for stories, also their validity."""
        settings = SampleConfig(num_samples=TEXTS, sampler=trial.sampler, seed=trial.seed, device="cpu")
        sample.run(settings, self.folder / "runs" / trial.run, texts, overwrite=True, progress=show.Terminal())
        judge = EvaluateConfig(scorer=str(self.scorer), max_tokens=SEQ_LEN, device="cpu")
        (scored,) = evaluate.run(judge, [texts])
        found = scored.scores.pick("gen_ppl", "entropy", "diversity")
        if self.source == NOVELS:
            return found
        (judged,) = evaluate.by_source(judge, [texts])
        keys = ("sentences", "sentences_valid", "stories", "stories_valid", "coverage", "intervals")
        judged_json = judged.to_json()
        return {**found, **{key: judged_json[key] for key in keys}, "real_entropy": judged_json["real"]["entropy"]}


def _in_todays_terms(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial, with those that came later as they were then."""
    return {**settings, "train": config.to_dict(config.from_stored(TrainConfig, settings["train"]))}


def _told_apart(hidden_RLD: Tensor, tokens_RL: Tensor, vocab: int) -> float:
    """Share of tokens in the last fifth of the rows whose state is nearest to their token's mean in the other rows."""
    first, width = len(tokens_RL) * 4 // 5, hidden_RLD.shape[-1]
    known_PD, tokens_P = hidden_RLD[:first].reshape(-1, width), tokens_RL[:first].flatten()
    mean_D, std_D = known_PD.mean(0), known_PD.std(0)
    sums_VD = torch.zeros(vocab, width).index_add_(0, tokens_P, (known_PD - mean_D) / std_D)
    counts_V = torch.bincount(tokens_P, minlength=vocab)
    means_VD = torch.where(counts_V[:, None] > 0, sums_VD / counts_V[:, None], torch.inf)
    held_out_PD = (hidden_RLD[first:].reshape(-1, width) - mean_D) / std_D
    nearest_P = torch.cdist(held_out_PD, means_VD).nan_to_num(torch.inf).argmin(-1)
    return (nearest_P == tokens_RL[first:].flatten()).float().mean().item()


# ----------------------------------------------------------------------------------------------------------------------
# The table

COLUMNS = {
    "l_diff": "L_diff",
    "l_diff_mean": "of the mean",
    "l_h": "L_h",
    "token_accuracy_clean": "tokens rebuilt",
    "latent_std": "latent std",
    "gen_ppl": "gen. ppl",
    "entropy": "entropy",
    "sentences_valid": "sentences valid",
    "stories_valid": "stories valid",
    "coverage": "coverage",
    "cpu_seconds": "CPU s",
}


def collect(work: Path) -> list[dict[str, Any]]:
    """All finished trials, grouped by source and number of steps, those with fewer changes first."""
    paths = sorted(work.glob("*/trials/*.json"), key=lambda path: path.stat().st_mtime)
    found = [files.read_json(path) for path in paths if not path.name.endswith(".meta.json")]
    return sorted(
        found, key=lambda one: (one["source"] != STORIES, one["steps"], one["trial"] != BASE, one["trial"].count(","))
    )


def report(found: Sequence[Mapping[str, Any]]) -> str:
    """A table for each source and number of steps: means over seeds, with half their range if there are several."""
    parts = []
    for source, steps in dict.fromkeys((one["source"], one["steps"]) for one in found):
        here = [one for one in found if (one["source"], one["steps"]) == (source, steps)]
        keys = [key for key in COLUMNS if any(key in one["figures"] for one in here)]
        rows = []
        for name in dict.fromkeys(one["trial"] for one in here):
            runs = [one["figures"] for one in here if one["trial"] == name]
            rows.append((name, str(len(runs)), *(_cell([one.get(key) for one in runs]) for key in keys)))
        head = ("trial", "seeds", *(COLUMNS[key] for key in keys))
        parts.append(f"{source}, {steps:,} steps\n\n{show.table(head, rows)}")
    return "\n\n".join(parts)


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    half = (max(known) - min(known)) / 2
    return show.value(statistics.mean(known)) + (f" ± {show.value(half)}" if len(known) > 1 else "")


def trials(chosen: argparse.Namespace) -> Iterator[Trial]:
    """The requested trials, seed by seed."""
    for seed in chosen.seeds:
        for name in chosen.trials:
            yield Trial(name, chosen.steps, seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, run or report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks recipe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("prepare", "run", "states", "encoders", "report"))
    parser.add_argument("--work", type=Path, required=True, help="folder of stories, encoder, runs and texts")
    parser.add_argument("--novels", type=Path, help="a comparison's folder: use its text instead of stories")
    parser.add_argument("--init", choices=INITS, default="width", help="the encoder's initial weights")
    parser.add_argument("--encoder-steps", type=int, default=ENCODER_STEPS)
    parser.add_argument("--trials", nargs="+", default=[BASE], metavar="CHANGES", help="changes, joined by commas")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, help="folder for the table and its JSON")
    chosen = parser.parse_args(arguments)
    memory.keep_freed()  # as the commands do
    bench = Bench(chosen.work.absolute(), chosen.novels and chosen.novels.absolute())
    try:
        if chosen.what == "prepare":
            bench.prepare(chosen.init, chosen.encoder_steps)
        if chosen.what == "run":
            for trial in trials(chosen):
                bench.measure(trial)
                print(report(collect(bench.work)), flush=True)
        if chosen.what == "states":
            shares = dict(zip(("embeddings", *(f"block {n}" for n in range(1, 99))), bench.identities(), strict=False))
            files.write_json(bench.folder / STATES, shares)
            print(told_apart({bench.source: shares}))
        if chosen.what == "encoders":
            table = f"the encoder of stories, {ENCODER_STEPS} steps\n\n{bench.encoders()}"
            keep(table, "recipe-encoders", chosen.output)
    except InputError as error:
        sys.exit(f"Error: {error}")
    if chosen.what == "report":
        states = {path.parent.name: files.read_json(path) for path in sorted(bench.work.glob(f"*/{STATES}"))}
        write(collect(bench.work), states, chosen.output, bench.work.name)


def told_apart(states: Mapping[str, Mapping[str, float]]) -> str:
    """A table of the shares of tokens that states tell apart, by source and layer."""
    rows = [
        (f"{source}, {name}", show.value(share)) for source, found in states.items() for name, share in found.items()
    ]
    return show.table(("states of", "tokens told apart"), rows)


def write(
    found: Sequence[Mapping[str, Any]], states: Mapping[str, Mapping[str, float]], output: Path | None, name: str
) -> None:
    """Print the tables; keep them and the figures in `output`, under `name` and the date."""
    text = report(found)
    if states:
        text += f"\n\n{told_apart(states)}"
    keep(text, name, output, {"states": states, "trials": list(found)})
