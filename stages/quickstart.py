"""Every stage on text of one source, small enough for two cores and about ten minutes.

It demonstrates the pipeline and shows that it learns; it does not reach the paper's quality. Each step is a stage with
its own artefact, and resumes by itself. What depends on the text is in `sources`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ldlm import artifact, config, files, runtime
from ldlm.artifact import Artifact
from ldlm.config import (
    ExtractConfig,
    FinetuneConfig,
    InterpolateConfig,
    PretrainConfig,
    QuickstartConfig,
    SampleConfig,
    SamplerConfig,
    TrainConfig,
)
from ldlm.errors import InputError
from ldlm.evaluation import samples
from ldlm.evaluation.scorer import Scorer
from ldlm.features import digests, textfiles
from ldlm.features.digests import Seen
from ldlm.features.encoder import FrozenEncoder
from ldlm.features.store import FeatureStore
from ldlm.hub import load_tokenizer
from ldlm.location import local
from ldlm.progress import SILENT, Progress
from ldlm.stages import (
    extract_features,
    finetune_decoder,
    interpolate,
    pretrain_encoder,
    report,
    sample,
    trace,
    train,
)
from ldlm.stages.source_stories import Stories
from ldlm.stages.source_text import RealText
from ldlm.stages.sources import Claims, Judged, QuickstartText

SEQ_LEN = 64
VOCABULARY = 2_048  # size for a tokenizer that is trained with the encoder
EARLIER = {"solver": "dpm++2m-sde", "steps": 32, "temperature": 0.5}  # sampler of quickstarts that do not record theirs


def named(text: str) -> QuickstartText:
    """The source that `--text` names: stories, python, or a file."""
    return Stories() if text == Stories.name else RealText(None if text == "python" else text)


def of(summary: Mapping[str, Any]) -> QuickstartText:
    """The source of a finished quickstart; those of earlier versions, which do not name it, had real text."""
    return Stories() if summary.get("source") == Stories.name else RealText(None)


def _check_column(config: QuickstartConfig) -> None:
    """`InputError` for a field where there is no file that could have it."""
    if config.text_column != QuickstartConfig().text_column and not named(config.text).files:
        raise InputError(
            f"--text-column names the field of a file that holds the text, and --text {config.text} is none; leave "
            f"--text-column out"
        )


@dataclass(frozen=True)
class Plan:
    """The configuration and the output path of every stage."""

    config: QuickstartConfig
    out: Path

    @cached_property
    def source(self) -> QuickstartText:
        """The source of the texts."""
        return named(self.config.text)

    def part(self, name: str) -> str:
        """File of one part of the text; JSON lines, since a document may have line breaks."""
        old = self.out / "text" / f"{name}.txt"  # in a folder that an early version began
        return str(old if old.exists() else old.with_suffix(".jsonl"))

    @property
    def run_path(self) -> Path:
        return self.out / "run"

    @property
    def words(self) -> Path:
        """Folder of the text's own tokenizer."""
        return self.out / "text" / "tokenizer"

    @property
    def judged(self) -> Judged:
        """The samples that the source judges."""
        return Judged(self.out, self.source.sizes.texts, self.scorer_name, self.config.seed, self.config.device)

    @property
    def encoder_name(self) -> str:
        return self.config.encoder or str(self.out / "encoder")

    @property
    def scorer_name(self) -> str:
        return self.config.scorer or str(self.out / ("scorer" if self.trains_scorer else "encoder"))

    @property
    def trains_scorer(self) -> bool:
        """Whether a scorer is pretrained: none is named, and our own encoder does not serve as one."""
        own = self.source.encoder_scores and self.config.encoder is None
        return self.config.scorer is None and not own

    @property
    def encoder(self) -> PretrainConfig:
        return self._pretrained("train", str(self.words) if self.source.has_tokenizer else None)

    @property
    def scorer(self) -> PretrainConfig:
        return self._pretrained(self.source.scorer_part, self.encoder_name)

    def _pretrained(self, part: str, tokenizer: str | None) -> PretrainConfig:
        vocabulary = {"vocab_size": VOCABULARY} if tokenizer is None else {"tokenizer": tokenizer}
        sizes: dict[str, Any] = {"steps": self.source.sizes.encoder_steps, "init": self.source.sizes.init}
        return PretrainConfig(data=(self.part(part),), positions=SEQ_LEN, **sizes, **vocabulary, **self._common())

    @property
    def features(self) -> ExtractConfig:
        return ExtractConfig(
            encoder=self.encoder_name,
            data=(self.part("train"),),
            validation_data=(self.part("held-out"),),
            seq_len=SEQ_LEN,
            **self._common(),
        )

    @property
    def train(self) -> TrainConfig:
        settings = config.merge(config.PRESETS["tiny"].overrides, self.source.sizes.preset)
        return config.from_dict(TrainConfig, {**settings, **self._common()})

    @property
    def finetune(self) -> FinetuneConfig:
        return FinetuneConfig(layers=2, steps=self.source.sizes.decoder_steps, **self._common())

    @property
    def sampler(self) -> SamplerConfig:
        return SamplerConfig(temperature=self.source.sizes.temperature)

    @property
    def sample(self) -> SampleConfig:
        sizes = self.source.sizes
        return SampleConfig(num_samples=sizes.texts, decoder=sizes.decoder, sampler=self.sampler, **self._common())

    def interpolate(self, store: FeatureStore) -> InterpolateConfig:
        pairs, decoder = min(64, store.held_out().rows // 2), self.source.sizes.decoder
        return InterpolateConfig(pairs=pairs, points=11, decoder=decoder, scorer=self.scorer_name, **self._common())

    def _common(self) -> dict[str, Any]:
        return {"seed": self.config.seed, "device": self.config.device}


def plan(quickstart: QuickstartConfig) -> dict[str, Any]:
    """Plan of the quickstart: each stage with its size."""
    _check_column(quickstart)
    steps = Plan(quickstart, Path("OUTPUT"))
    scorer = (
        f"GPT-2, {steps.scorer.layers} layers, {steps.scorer.steps} steps" if steps.trains_scorer else "the encoder"
    )
    return {
        "text": steps.source.described,
        "encoder": quickstart.encoder or f"GPT-2, {steps.encoder.layers} layers, {steps.encoder.steps} steps",
        "scorer": quickstart.scorer or scorer,
        "train": f"preset tiny, {steps.train.steps} steps of {steps.train.batch_size} rows of {SEQ_LEN} tokens",
        "decoder": f"{steps.finetune.layers} layers, {steps.finetune.steps} steps",
        "sample": f"{steps.sample.num_samples} texts, {steps.sampler.steps} steps",
    }


def run(quickstart: QuickstartConfig, out: Path, *, overwrite: bool = False, progress: Progress = SILENT) -> Artifact:
    """Run every stage into `out`; its manifest holds the table."""
    runtime.device(quickstart.device)
    _check_column(quickstart)
    text = named(quickstart.text).files
    seen = textfiles.seen(text)
    inputs = {"text": seen[text[0]].sha256} if text else {}
    reads = local(*text, quickstart.encoder, quickstart.scorer)
    if overwrite:  # what is refused is found before anything is deleted
        artifact.check_overwrite(out, "quickstart", reads)
        _check_models(quickstart)
        if text:
            with digests.as_hashed(seen):
                named(quickstart.text).parts(quickstart, SILENT)
    with artifact.working(out, "quickstart", quickstart, inputs, overwrite=overwrite, reads=reads) as result:
        if result.complete:
            progress.note(f"{out} is complete; nothing to do")
            return result
        steps = Plan(quickstart, _as_begun(out))
        begun = result if (out / "text" / "corpus.json").exists() else replace(result, state="new")
        # Bad input removes the folder, even of an interrupted quickstart, if it has no text yet.
        with begun.or_nothing():
            if not overwrite:
                _check_models(quickstart)
            corpus = _write_corpus(steps, seen, progress)

        trained, decoder, judged = _run_stages(steps, progress)
        report.run(steps.run_path)
        texts = steps.judged.samples
        summary = {
            "source": steps.source.name,
            "corpus": corpus,
            "held_out": trained.manifest["held_out"],
            "decoder": {key: decoder.manifest[key] for key in ("name", "parameters", "replaces", "held_out")},
            "drawn_with": samples.record(texts)["decoder"],
            "drawn_by": {key: getattr(steps.sampler, key) for key in ("solver", "steps", "temperature")},
            **judged,
            "parameters": trained.manifest["parameters"],
            "first_samples": [row["text"] for row, _ in zip(files.read_jsonl(texts), range(3), strict=False)],
        }
        files.write_json(out / "evaluation.json", next(iter(judged.values())))
        files.write_atomic(out / "SUMMARY.md", summary_markdown(summary))
        return result.finish(**summary)


def _as_begun(out: Path) -> Path:
    """`out` as the first call named it, since its parts have recorded that path; `InputError` if it leads elsewhere."""
    for part in ("encoder", "scorer", "features"):
        if (settings := out / part / "config.yaml").is_file():
            begun = Path(files.read_yaml(settings)["data"][0]).parents[1]
            if begun.resolve() != out.resolve():
                raise InputError(
                    f"{out} was begun as {begun}, a path that its parts have recorded and that leads elsewhere from "
                    f"here; move it back, or run the command where it was begun"
                )
            return begun
    return out


def _run_stages(steps: Plan, progress: Progress) -> tuple[Artifact, Artifact, dict[str, Any]]:
    """Run all stages; returns the run, its decoder, and the source's judgement of the samples."""
    out, run, store, drawn = steps.out, steps.run_path, steps.out / "features", steps.judged.samples
    trains_encoder = steps.config.encoder is None
    numbers, last = count(1), 5 + trains_encoder + steps.trains_scorer

    def say(stage: str) -> None:
        progress.note(f"{next(numbers)} of {last}: {stage}")

    if trains_encoder:
        say("pretrain an encoder")
        pretrain_encoder.run(steps.encoder, out / "encoder", progress=progress)
    if steps.trains_scorer:
        say("pretrain a scorer, on other text")
        pretrain_encoder.run(steps.scorer, out / "scorer", progress=progress)
    say("extract features")
    extract_features.run(steps.features, store, progress=progress)
    say("train encoder, denoiser and decoders jointly")
    trained = train.run(steps.train, store, run, progress=progress)
    say("fine-tune a decoder that reads the latents directly")
    decoder = finetune_decoder.run(steps.finetune, run, store, progress=progress)
    say("sample")
    sample.run(steps.sample, run, drawn, progress=progress)
    trace.run(steps.sample, run, run / "trace", progress=progress)
    say("interpolate and evaluate")
    interpolate.run(steps.interpolate(FeatureStore(store)), run, store, run / "interpolation", progress=progress)
    return trained, decoder, steps.source.judge(steps.judged, progress)


def _check_models(quickstart: QuickstartConfig) -> None:
    """Load the models that the user names, so that a bad name is found now and not after ten minutes."""
    if quickstart.encoder is not None:
        encoder = FrozenEncoder(quickstart.encoder, seq_len=SEQ_LEN)
        encoder.check_tokenizer(load_tokenizer(quickstart.encoder))
    if quickstart.scorer is not None:
        Scorer(quickstart.scorer, torch.device("cpu"))


def _write_corpus(steps: Plan, seen: Mapping[str, Seen], progress: Progress) -> dict[str, Any]:
    """Write the text's own tokenizer, if it has one, and its parts; returns their sizes and the hash of all.

    `Unreadable` for a file that has changed since it was `seen`.
    """
    folder = steps.out / "text"
    record = folder / "corpus.json"
    if record.exists():
        return files.read_json(record)
    with digests.as_hashed(seen):
        parts = steps.source.parts(steps.config, progress)
    folder.mkdir(exist_ok=True)
    steps.source.write_tokenizer(steps.words)
    for name, part in parts.items():
        files.write_atomic(folder / f"{name}.jsonl", files.dump_jsonl({"text": document} for document in part))
    documents = [document for part in parts.values() for document in part]
    described = {
        "source": steps.source.described,
        "documents": {name: len(part) for name, part in parts.items()},
        "characters": sum(map(len, documents)),
        "sha256": hashlib.sha256("\n".join(documents).encode()).hexdigest(),
    }
    files.write_json(record, described)
    return described


# ----------------------------------------------------------------------------------------------------------------------
# Summary


def claims(summary: Mapping[str, Any]) -> Claims:
    """Claims that a working pipeline meets, and whether this one does."""
    held_out = summary["held_out"]
    told = f"denoising beats predicting the mean: {held_out['l_diff']:.3f} against {held_out['l_diff_mean']:.3f}"
    return [*of(summary).claims(summary), (told, held_out["l_diff"] < held_out["l_diff_mean"])]


def summary_text(summary: Mapping[str, Any]) -> str:
    """The table that a quickstart prints at its end."""
    source, held_out, decoder = of(summary), summary["held_out"], summary["decoder"]
    small = decoder["held_out"]
    drawn_by = summary.get("drawn_by") or EARLIER
    figures = {
        "sampler": f"{drawn_by['solver']}, {drawn_by['steps']} steps; decoder "
        f"{summary.get('drawn_with', decoder['name'])}, temperature {drawn_by['temperature']}",
        "tokens rebuilt by D_h, D_w": f"{held_out['token_accuracy_clean']:.1%} clean, "
        f"{held_out['token_accuracy']:.1%} under σ_dec noise",
        f"tokens rebuilt by {decoder['name']}": f"{small['token_accuracy_clean']:.1%} clean, "
        f"{small['token_accuracy']:.1%} under noise; {decoder['parameters']:,} parameters, not {decoder['replaces']:,}",
        "L_diff": f"{held_out['l_diff']:.3f}; predicting the mean latent gives {held_out['l_diff_mean']:.3f}",
        "latent std": f"{held_out['latent_std']:.2f} per coordinate",
        **source.more(summary),
    }
    lines = [*source.table(summary), "", "How they were drawn, and held-out figures", ""]
    lines += [f"  {name:<28}{figure}" for name, figure in figures.items()]
    lines += ["", *(f"  {'yes' if passed else 'NO '}  {claim}" for claim, passed in claims(summary))]
    if shown := source.shown(summary):
        lines += ["", *shown]
    if "output" in summary:
        lines += [
            "",
            "A demonstration of the pipeline on two cores, not the paper's quality.",
            f"Open {summary['output']}/run/report.html, and beside it trace/trace.html: a text on its way from noise.",
        ]
    return "\n".join(lines)


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """SUMMARY.md: the table with plots and samples."""
    corpus = summary["corpus"]
    table = summary_text(summary)
    return f"""# LDLM quickstart

A demonstration of the pipeline on a small machine, not the paper's quality. Trained on {corpus["documents"]["train"]:,}
documents of {corpus["source"]} (corpus sha256 `{corpus["sha256"][:16]}…`);
the model has {sum(summary["parameters"].values()):,} trainable parameters.

```
{table}
```

![the samples beside the text](comparison.png)

![training](run/plots/training.png)

![interpolation](run/interpolation/interpolation.png)

![a text on its way from noise](run/trace/trace.gif)

{of(summary).shown_markdown(summary)}
"""
