"""Every stage on real English text, small enough for two cores and about ten minutes.

It demonstrates the pipeline and shows that it learns, not the paper's quality. The text is split into three parts: the
encoder and the LDLM train on one, the scorer on another, and the third is held out, so that scorer and model have no
training text in common. Each step is a stage of its own with its own artefact, and resumes by itself.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldlm import artifact, config, files, runtime
from ldlm.artifact import Artifact
from ldlm.config import (
    EvaluateConfig,
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
from ldlm.evaluation import metrics, samples
from ldlm.evaluation.scorer import Scorer
from ldlm.features import builtin_text, textfiles
from ldlm.features.documents import whole
from ldlm.features.encoder import FrozenEncoder
from ldlm.features.store import FeatureStore
from ldlm.hub import load_tokenizer
from ldlm.pages import plots
from ldlm.progress import SILENT, Progress
from ldlm.stages import (
    evaluate,
    extract_features,
    features,
    finetune_decoder,
    interpolate,
    pretrain_encoder,
    report,
    sample,
    trace,
    train,
)

SEQ_LEN = 64
TEXTS = 256
HELD_OUT_SHARE, SCORER_SHARE = 0.06, 0.36
DOCUMENTS = 60_000  # at most; more would not be read in ten minutes
FEWEST_CHARACTERS, FEWEST_DOCUMENTS = 500_000, 50
SAMPLER = SamplerConfig(temperature=0.5)
DECODER = "layers-2"  # Appendix B.2's; `joint` rebuilds more held-out tokens here, and its samples read worse


@dataclass(frozen=True)
class Plan:
    """The configuration and the output of every stage."""

    config: QuickstartConfig
    out: Path

    def part(self, name: str) -> str:
        """File of one part of the text; JSON lines, since a document may have line ends."""
        old = self.out / "text" / f"{name}.txt"  # of a folder that an early version began
        return str(old if old.exists() else old.with_suffix(".jsonl"))

    @property
    def run_path(self) -> Path:
        return self.out / "run"

    @property
    def texts(self) -> dict[str, Path]:
        """Files of the sets of texts that are evaluated, by name."""
        return {
            "real text": self.out / "real.jsonl",
            "samples": self.run_path / "samples.jsonl",
            "unigram text": self.out / "unigram.jsonl",
        }

    @property
    def encoder_name(self) -> str:
        return self.config.encoder or str(self.out / "encoder")

    @property
    def scorer_name(self) -> str:
        return self.config.scorer or str(self.out / "scorer")

    @property
    def encoder(self) -> PretrainConfig:
        return PretrainConfig(
            data=(self.part("train"),), vocab_size=2048, positions=SEQ_LEN, steps=450, **self._common()
        )

    @property
    def scorer(self) -> PretrainConfig:
        return PretrainConfig(
            data=(self.part("scorer"),), tokenizer=self.encoder_name, positions=SEQ_LEN, steps=450, **self._common()
        )

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
        return config.from_dict(TrainConfig, {**config.PRESETS["tiny"].overrides, **self._common()})

    @property
    def finetune(self) -> FinetuneConfig:
        return FinetuneConfig(layers=2, steps=250, **self._common())

    @property
    def sample(self) -> SampleConfig:
        return SampleConfig(num_samples=TEXTS, decoder=DECODER, sampler=SAMPLER, **self._common())

    def interpolate(self, store: FeatureStore) -> InterpolateConfig:
        pairs = min(64, store.held_out().rows // 2)
        return InterpolateConfig(pairs=pairs, points=11, decoder=DECODER, scorer=self.scorer_name, **self._common())

    @property
    def evaluate(self) -> EvaluateConfig:
        return EvaluateConfig(scorer=self.scorer_name, **self._common())

    def _common(self) -> dict[str, Any]:
        return {"seed": self.config.seed, "device": self.config.device}


def plan(quickstart: QuickstartConfig) -> dict[str, Any]:
    """Plan of the quickstart: each stage with its size."""
    steps = Plan(quickstart, Path("OUTPUT"))
    return {
        "text": quickstart.text or "English prose that ships with Python and the installed dependencies",
        "encoder": quickstart.encoder or f"GPT-2, {steps.encoder.layers} layers, {steps.encoder.steps} steps",
        "scorer": quickstart.scorer or f"GPT-2, {steps.scorer.layers} layers, {steps.scorer.steps} steps",
        "train": f"preset tiny, {steps.train.steps} steps of {steps.train.batch_size} rows of {SEQ_LEN} tokens",
        "decoder": f"{steps.finetune.layers} layers, {steps.finetune.steps} steps",
        "sample": f"{TEXTS} texts, {SAMPLER.steps} steps",
    }


def run(quickstart: QuickstartConfig, out: Path, *, overwrite: bool = False, progress: Progress = SILENT) -> Artifact:
    """Run every stage into `out`; its manifest holds the table."""
    runtime.device(quickstart.device)
    source = {} if quickstart.text is None else {"text": textfiles.fingerprints([quickstart.text])[quickstart.text]}
    reads = [] if quickstart.text is None else [quickstart.text]
    result = artifact.begin(out, "quickstart", quickstart, source, overwrite=overwrite, reads=reads)
    if result.complete:
        progress.note(f"{out} is complete; nothing to do")
        return result
    steps = Plan(quickstart, out)
    begun = result if (out / "text" / "corpus.json").exists() else replace(result, state="new")
    with begun.or_nothing():  # bad input removes the folder, also an interrupted one that has no text yet
        _check_models(quickstart)
        corpus = _write_corpus(quickstart, out, progress)

    trained, decoder = _train_and_draw(steps, progress)
    rows = _evaluate(steps, progress)
    report.run(steps.run_path)
    plots.comparison(out / "comparison.png", rows)
    drawn = files.read_jsonl(steps.texts["samples"])
    summary = {
        "corpus": corpus,
        "held_out": trained.manifest["held_out"],
        "decoder": {key: decoder.manifest[key] for key in ("name", "parameters", "replaces", "held_out")},
        "drawn_with": samples.record(steps.texts["samples"])["decoder"],
        "texts": rows,
        "copied_8grams": _copied(steps),
        "parameters": trained.manifest["parameters"],
        "first_samples": [row["text"] for row, _ in zip(drawn, range(3), strict=False)],
    }
    files.write_json(out / "evaluation.json", rows)
    files.write_atomic(out / "SUMMARY.md", summary_markdown(summary))
    return result.finish(**summary)


def _train_and_draw(steps: Plan, progress: Progress) -> tuple[Artifact, Artifact]:
    """Run all stages up to the evaluation; returns the run and its decoder."""
    run, store = steps.run_path, steps.out / "features"
    if steps.config.encoder is None:
        progress.note("1 of 7: pretrain an encoder")
        pretrain_encoder.run(steps.encoder, steps.out / "encoder", progress=progress)
    if steps.config.scorer is None:
        progress.note("2 of 7: pretrain a scorer, on other text")
        pretrain_encoder.run(steps.scorer, steps.out / "scorer", progress=progress)
    progress.note("3 of 7: extract features")
    extract_features.run(steps.features, store, progress=progress)
    progress.note("4 of 7: train encoder, denoiser and decoders jointly")
    trained = train.run(steps.train, store, run, progress=progress)
    progress.note("5 of 7: fine-tune a decoder that reads the latents directly")
    decoder = finetune_decoder.run(steps.finetune, run, store, progress=progress)
    progress.note("6 of 7: sample")
    sample.run(steps.sample, run, steps.texts["samples"], progress=progress)
    trace.run(steps.sample, run, run / "trace", progress=progress)
    progress.note("7 of 7: interpolate and evaluate")
    interpolate.run(steps.interpolate(FeatureStore(store)), run, store, run / "interpolation", progress=progress)
    return trained, decoder


def _evaluate(steps: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Scores of the samples and of the two reference sets, with their names, as JSON."""
    _write_references(steps)
    scores = evaluate.run(steps.evaluate, list(steps.texts.values()), progress=progress)
    return [{"name": name, **one.to_json()} for name, one in zip(steps.texts, scores, strict=True)]


def _check_models(quickstart: QuickstartConfig) -> None:
    """Load the models that the user names, so that a bad name is found now and not after ten minutes."""
    if quickstart.encoder is not None:
        encoder = FrozenEncoder(quickstart.encoder, seq_len=SEQ_LEN)
        encoder.check_tokenizer(load_tokenizer(quickstart.encoder))
    if quickstart.scorer is not None:
        Scorer(quickstart.scorer, torch.device("cpu"))


# ----------------------------------------------------------------------------------------------------------------------
# Text


def _write_corpus(quickstart: QuickstartConfig, out: Path, progress: Progress) -> dict[str, Any]:
    """Write the three parts, one document per line; returns their sizes and the hash of all documents."""
    record = out / "text" / "corpus.json"
    if record.exists():
        return files.read_json(record)
    if quickstart.text is None:
        progress.note("collecting English prose from Python's documentation and the installed packages")
        documents = builtin_text.documents()
    else:
        for remark in textfiles.remarks([quickstart.text], quickstart.text_column):
            progress.note(remark)
        found = textfiles.file_documents([quickstart.text], quickstart.text_column)
        documents = list(dict.fromkeys(whole(found)))
    random.Random(quickstart.seed).shuffle(documents)
    documents = documents[:DOCUMENTS]
    first, second = (int(len(documents) * share) for share in (HELD_OUT_SHARE, HELD_OUT_SHARE + SCORER_SHARE))
    parts = {"held-out": documents[:first], "scorer": documents[first:second], "train": documents[second:]}
    characters = sum(map(len, documents))
    if len(documents) < FEWEST_DOCUMENTS or characters < FEWEST_CHARACTERS:
        raise InputError(
            f"{quickstart.text} holds {characters:,} characters in {len(documents):,} documents; a "
            f"quickstart needs {FEWEST_CHARACTERS:,} in {FEWEST_DOCUMENTS}, to split into three parts"
        )
    (out / "text").mkdir(exist_ok=True)
    for name, part in parts.items():
        files.write_atomic(out / "text" / f"{name}.jsonl", files.dump_jsonl({"text": document} for document in part))
    described = {
        "source": quickstart.text or "Python's documentation and the docstrings of installed packages",
        "documents": {name: len(part) for name, part in parts.items()},
        "characters": characters,
        "sha256": hashlib.sha256("\n".join(documents).encode()).hexdigest(),
    }
    files.write_json(record, described)
    return described


def _write_references(steps: Plan) -> None:
    """Write the reference sets: held-out text, and unigram text drawn from the training tokens' frequencies."""
    features_path = steps.out / "features"
    store = FeatureStore(features_path)
    features.texts(features_path, min(TEXTS, store.held_out().rows), steps.texts["real text"])
    train_tokens = store.split("train").tokens[:]
    unigram = np.repeat(train_tokens[:1], TEXTS, axis=0)  # first and last token of a row
    drawn = np.random.default_rng(steps.config.seed).choice(train_tokens[:, 1:-1].ravel(), (TEXTS, SEQ_LEN - 2))
    unigram[:, 1:-1] = drawn
    tokenizer, out = load_tokenizer(str(store.tokenizer_path)), steps.texts["unigram text"]
    rows = samples.rows(metrics.decode_tokens(tokenizer, unigram), unigram.tolist(), range(TEXTS))
    samples.write_record(out, "texts", samples.record_of(tokenizer, clean_up=False))
    files.write_atomic(out, files.dump_jsonl(rows))


def _copied(steps: Plan) -> dict[str, float]:
    """Share of the 8-grams of samples and of held-out text that occur in the training rows."""
    training = FeatureStore(steps.out / "features").split("train").tokens[:].tolist()
    sets = {"samples": steps.texts["samples"], "real": steps.texts["real text"]}
    return {name: metrics.copied_share(samples.read(path).tokens or [], training) for name, path in sets.items()}


# ----------------------------------------------------------------------------------------------------------------------
# Summary


def verdicts(summary: dict[str, Any]) -> list[tuple[str, bool]]:
    """Claims that a working pipeline fulfils, and whether this one does."""
    real, drawn, unigram = (row for row in summary["texts"])
    held_out, most = summary["held_out"], unigram["gen_ppl"] / 3
    return [
        (
            f"perplexity at most a third of unigram text's: {_perplexity(drawn)} against {_perplexity(unigram)}",
            drawn["gen_ppl"] is not None and drawn["gen_ppl"] <= most,
        ),
        (
            f"entropy within 15 % of real text's: {drawn['entropy']:.2f} against {real['entropy']:.2f}",
            abs(drawn["entropy"] / real["entropy"] - 1) <= 0.15,
        ),
        (
            f"denoising beats predicting the mean: {held_out['l_diff']:.3f} against {held_out['l_diff_mean']:.3f}",
            held_out["l_diff"] < held_out["l_diff_mean"],
        ),
    ]


def _perplexity(row: dict[str, Any]) -> str:
    """A cell of the table; `none` where no text has a token to score."""
    return "none" if row["gen_ppl"] is None else f"{row['gen_ppl']:,.0f}"


def summary_text(summary: dict[str, Any]) -> str:
    """The table that a quickstart prints at its end."""
    held_out, decoder, copied = summary["held_out"], summary["decoder"], summary["copied_8grams"]
    small = decoder["held_out"]
    figures = {
        "sampler": f"{SAMPLER.solver}, {SAMPLER.steps} steps; decoder {summary.get('drawn_with', decoder['name'])}, "
        f"temperature {SAMPLER.temperature}",
        "tokens rebuilt by D_h, D_w": f"{held_out['token_accuracy_clean']:.1%} clean, "
        f"{held_out['token_accuracy']:.1%} under σ_dec noise",
        f"tokens rebuilt by {decoder['name']}": f"{small['token_accuracy_clean']:.1%} clean, "
        f"{small['token_accuracy']:.1%} under noise; {decoder['parameters']:,} parameters, not {decoder['replaces']:,}",
        "L_diff": f"{held_out['l_diff']:.3f}; predicting the mean latent gives {held_out['l_diff_mean']:.3f}",
        "latent std": f"{held_out['latent_std']:.2f} per coordinate",
        "copied 8-grams": f"{copied['samples']:.1%} of those in the samples occur in the training text, "
        f"{copied['real']:.1%} of those in held-out text",
    }
    lines = [
        "Texts, scored by a model trained on text that the LDLM never sees",
        "",
        f"  {'':<14}{'gen. ppl':>10}{'entropy':>10}{'diversity':>11}{'texts':>7}",
    ]
    for row in summary["texts"]:
        scores = f"{_perplexity(row):>10}{row['entropy']:>10.2f}{row['diversity']:>11.3f}{row['num_texts']:>7}"
        lines.append(f"  {row['name']:<14}{scores}")
    lines.append("  (good samples have a low perplexity, and the entropy and diversity of real text)")
    fewest = summary["texts"][0].get("diversity_texts")
    if fewest is not None and any(row["num_texts"] > fewest for row in summary["texts"]):
        lines.append(f"  (diversity of the first {fewest} texts of each, for it falls with their number)")
    lines += ["", "How they were drawn, and held-out figures", ""]
    lines += [f"  {name:<28}{figure}" for name, figure in figures.items()]
    lines += ["", *(f"  {'yes' if passed else 'NO '}  {claim}" for claim, passed in verdicts(summary))]
    if "output" in summary:
        lines += [
            "",
            "A demonstration of the pipeline on two cores, not the paper's quality.",
            f"Open {summary['output']}/run/report.html, and beside it trace/trace.html: a text on its way from noise.",
        ]
    return "\n".join(lines)


def summary_markdown(summary: dict[str, Any]) -> str:
    """SUMMARY.md: the table with plots and samples."""
    texts = "\n\n".join(f"> {line}" for line in summary["first_samples"])
    corpus = summary["corpus"]
    return f"""# LDLM quickstart

A demonstration of the pipeline on a small machine, not the paper's quality. Trained on {corpus["documents"]["train"]:,}
documents of {corpus["source"]} (corpus sha256 `{corpus["sha256"][:16]}…`);
the model has {sum(summary["parameters"].values()):,} trainable parameters.

```
{summary_text(summary)}
```

![perplexity, entropy and diversity](comparison.png)

![training](run/plots/training.png)

![interpolation](run/interpolation/interpolation.png)

![a text on its way from noise](run/trace/trace.gif)

## The first three samples

{texts}
"""
