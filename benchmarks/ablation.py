"""Arms of Table 1 at a size for small machines: the part of the paper's ordering that shows up there.

    ldlm quickstart --output quickstart --text python
    python -m benchmarks.ablation --scale small --quickstart quickstart --work ablation --output benchmarks/results

Features, scorer and reference texts are those of a finished quickstart. Every arm differs from the first in one
setting, has the same steps, and is trained once per seed; the token encoders of Table 1 (EMB, EMB_θ) need stores of
their own and are not among them. The same command goes on where it was interrupted, and several may work on different
`--seeds` or `--arms` at once. A difference between arms that is smaller than the spread between seeds is no finding,
and the table says so. A low perplexity counts for nothing where the entropy is low as well: that is collapse.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.__main__ import hardware
from ldlm import artifact, config, files, memory
from ldlm.cli import show
from ldlm.config import SAMPLERS, EvaluateConfig, SampleConfig, SamplerConfig, TrainConfig
from ldlm.stages import evaluate, sample, train
from ldlm.training.log import MetricsFile

BASE = "LDLM"
FIGURES = ("gen_ppl", "entropy", "diversity", "token_accuracy_clean", "latent_std")


@dataclass(frozen=True)
class Arm:
    """One arm of the ablation, and its row in Table 1."""

    overrides: Mapping[str, Any]  # settings that the arm changes
    paper: tuple[float, float]  # the paper's perplexity and entropy of this row
    papers_base: tuple[float, float] = (98.5, 4.23)  # and of the row that it is compared with


ARMS = {
    BASE: Arm({}, (98.5, 4.23)),
    "CE": Arm({"recipe": {"reconstruction": "ce"}}, (156.3, 4.21)),
    "CE + MSE": Arm({"recipe": {"reconstruction": "ce+mse"}}, (124.8, 4.25)),
    # In the paper both rows of this pair have uniform timesteps; here the arm keeps the adaptive ones.
    "no warm-up": Arm({"recipe": {"warmup_steps": 0}}, (403.1, 3.11), papers_base=(171.9, 4.24)),
    "uniform timesteps": Arm({"timesteps": {"kind": "uniform"}}, (171.9, 4.24)),
    "σ_dec = 0.1": Arm({"recipe": {"sigma_dec": 0.1}}, (702.2, 3.58)),
}


@dataclass(frozen=True)
class Scale:
    """Size of each run."""

    steps: int
    texts: int


# Two runs at a time on two otherwise idle cores, one thread each (OMP_NUM_THREADS=1): twenty minutes a run.
SCALES = {"small": Scale(steps=3000, texts=256)}


def settings(arm: Arm, steps: int, seed: int) -> TrainConfig:
    """The tiny preset with a warm-up over the first two fifths, and what the arm changes."""
    warmup = {"recipe": {"warmup_steps": steps * 2 // 5}, "timesteps": {"refresh_steps": max(1, steps // 10)}}
    rhythm = {"steps": steps, "seed": seed, "save_every": max(1, steps // 10), "eval_every": max(1, steps // 5)}
    data = config.merge(config.PRESETS["tiny"].overrides, warmup, rhythm, dict(arm.overrides))
    return config.from_dict(TrainConfig, data)


def drawn_by(name: str, seed: int, work: Path) -> Path:
    """The texts of an arm with a seed; its run lies beside them."""
    return work / f"{name.replace(' ', '-')}-seed-{seed}.jsonl"


def measure(name: str, arm: Arm, seed: int, steps: int, texts: int, quickstart: Path, work: Path) -> dict[str, float]:
    """Train one arm with one seed, draw texts, and score them."""
    drawn = drawn_by(name, seed, work)
    run = drawn.with_suffix("")
    made = train.run(settings(arm, steps, seed), quickstart / "features", run, progress=show.Terminal())
    sampler = SamplerConfig(temperature=0.5, **SAMPLERS["paper"])
    sample.run(SampleConfig(num_samples=texts, sampler=sampler, seed=seed), run, drawn, progress=show.Terminal())
    scored = scores(drawn, quickstart, beside=_references(quickstart).values())
    held_out = {key: made.manifest["held_out"][key] for key in ("token_accuracy_clean", "latent_std")}
    return {**scored, **held_out, "minutes": minutes(run)}


def minutes(run: Path) -> float:
    """Minutes that the steps of a run took, without evaluations; time in which the process was halted counts."""
    rows = config.PRESETS["tiny"].overrides["batch_size"]
    total, before = 0.0, 0
    for line in MetricsFile(run / "metrics.jsonl").read():
        if line["kind"] == "train":
            total += (line["step"] - before) * rows / line["timing"]["rows_per_second"]
            before = line["step"]
    return total / 60


def _references(quickstart: Path) -> dict[str, Path]:
    return {name: quickstart / f"{name}.jsonl" for name in ("real", "unigram")}


def scores(texts: Path, quickstart: Path, *, beside: Iterable[Path]) -> dict[str, Any]:
    """Perplexity, entropy and diversity under the quickstart's scorer, which saw other text.

    Diversity is that of as many texts as the smallest of these files has; no perplexity where nothing can be scored.
    """
    length = artifact.open_artifact(quickstart / "features", "features").manifest["shapes"]["seq_len"]
    found, *_ = evaluate.run(EvaluateConfig(scorer=str(quickstart / "scorer"), max_tokens=length), [texts, *beside])
    return found.scores.pick("gen_ppl", "entropy", "diversity")


def run(quickstart: Path, work: Path, *, arms: Sequence[str], seeds: Sequence[int], steps: int, texts: int) -> dict:
    """Every arm with every seed; the figures of each."""
    if artifact.open_artifact(quickstart, "quickstart").manifest.get("source") == "stories":
        sys.exit(f"Error: {quickstart} is on stories and has no scorer; make one with `ldlm quickstart`")
    work.mkdir(parents=True, exist_ok=True)
    found = {name: [measure(name, ARMS[name], seed, steps, texts, quickstart, work) for seed in seeds] for name in arms}
    real = _references(quickstart)
    beside = [*real.values(), drawn_by(arms[0], seeds[0], work)]
    references = {name: scores(path, quickstart, beside=beside) for name, path in real.items()}
    return {"steps": steps, "texts": texts, "seeds": list(seeds), "arms": found, "references": references}


def report(figures: Mapping[str, Any]) -> str:
    """The table, with the paper's figures beside it, and which differences exceed the spread between seeds."""
    rows = []
    for name, runs in figures["arms"].items():
        cells = [_spread([one[key] for one in runs]) for key in FIGURES]
        rows.append((name, *cells, *ARMS[name].paper))
    for name, one in figures["references"].items():
        rows.append((f"{name} text", *(show.value(one[key]) for key in FIGURES[:3]), "", "", "", ""))
    head = ("arm", "gen. ppl", "entropy", "diversity", "tokens rebuilt", "latent std", "paper: ppl", "entropy")
    seeds, took = len(figures["seeds"]), [one["minutes"] for runs in figures["arms"].values() for one in runs]
    lines = [
        f"{figures['steps']:,} steps of the tiny preset (σ_dec = 2, warm-up over the first two fifths), {seeds} seeds, "
        f"{figures['texts']} texts",
        "each, by the paper's sampler with 128 evaluations, temperature 0.5. Perplexity by protocol mdlm",
        "under the quickstart's scorer, which saw other text; mean ± half the range over seeds. A run's steps took",
        f"{min(took):.0f} to {max(took):.0f} minutes. The paper's rows are",
        "of σ_dec = 1 but for that of σ_dec = 0.1, and its warm-up rows are without adaptive timesteps.",
        "",
        show.table(head, rows),
        "",
        *_verdicts(figures["arms"]),
    ]
    return "\n".join(lines)


def _spread(values: Sequence[Any]) -> str:
    if None in values:
        return "-"
    return f"{show.value(float(np.mean(values)))} ± {show.value(float(np.ptp(values) / 2))}"


def _verdicts(arms: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Each arm against the first, in perplexity and entropy: apart only when no two seeds of them overlap."""
    lines = []
    for name, runs in arms.items():
        if name == BASE or BASE not in arms:
            continue
        mine, papers = {}, {}
        for place, (key, label) in enumerate((("gen_ppl", "perplexity"), ("entropy", "entropy"))):
            mine[label] = _compared([one[key] for one in runs], [one[key] for one in arms[BASE]])
            papers[label] = _compared([ARMS[name].paper[place]], [ARMS[name].papers_base[place]])
        said, theirs = (", ".join(f"{label} {word}" for label, word in one.items()) for one in (mine, papers))
        lines.append(f"  {name}: {said} than {BASE} (paper: {theirs})")
    return lines


def _compared(mine: Sequence[Any], theirs: Sequence[Any]) -> str:
    if None in mine or None in theirs:
        return "not told apart"
    if min(mine) > max(theirs):
        return "higher"
    return "lower" if max(mine) < min(theirs) else "not told apart"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, required=True, help="a finished quickstart on real text")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--scale", choices=list(SCALES), default="small", help="how large each run is")
    parser.add_argument("--steps", type=int, help="steps of a run; the scale's if not given")
    parser.add_argument("--texts", type=int, help="texts drawn from a run; the scale's if not given")
    parser.add_argument("--output", type=Path, help="folder for the table and its JSON")
    chosen = parser.parse_args(arguments)
    memory.keep_freed()  # as the commands do
    scale = SCALES[chosen.scale]
    steps, texts = chosen.steps or scale.steps, chosen.texts or scale.texts
    figures = run(chosen.quickstart, chosen.work, arms=chosen.arms, seeds=chosen.seeds, steps=steps, texts=texts)
    date = datetime.date.today().isoformat()
    text = f"{date}, {hardware()}\n\n{report(figures)}\n"
    print(text)
    if chosen.output is not None:
        chosen.output.mkdir(parents=True, exist_ok=True)
        record = {"date": date, "hardware": hardware(), "versions": artifact.versions(), "figures": figures}
        (chosen.output / f"ablation-{date}.txt").write_text(text)
        (chosen.output / f"ablation-{date}.json").write_text(files.dump_json(record), encoding="utf-8")


if __name__ == "__main__":
    main()
