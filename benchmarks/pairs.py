"""Two installations of ldlm, in turns: does a change cost speed, and do the texts stay the same?

    python -m benchmarks.pairs old/.venv/bin new/.venv/bin --quickstart quickstart --output benchmarks/results

Each turn trains, samples and streams with one and then the other, in alternating order, on the store and the run of a
finished quickstart. A machine that slows down does so for both, so the ratio of a turn says more than its seconds. Use
as idle a machine as possible.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ldlm import files
from ldlm.cli import show
from ldlm.runtime import hardware

LIMIT = 1.05  # of the old seconds
TURNS = 7
STEPS, WARM = 90, 20
TEXTS, BATCH = 128, 32

Measurement = tuple[float, str | None]  # seconds, and a digest of the output if it should be the same


def training(programs: Path, quickstart: Path, work: Path) -> Measurement:
    """Seconds per row of training the tiny preset, from the median of the logged rates after the first `WARM` steps."""
    evaluate = ("--eval-every", 10**6, "--save-every", 10**6, "--log-every", 10)
    settings = ("--preset", "tiny", "--steps", STEPS, *evaluate, "--set", "optimizer.lr_decay=constant")
    call(programs, "train", "--features", quickstart / "features", "--output", work / "run", *settings)
    lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [line["timing"]["rows_per_second"] for line in lines if line["kind"] == "train" and line["step"] > WARM]
    return 1 / statistics.median(rates), None


def sampling(programs: Path, quickstart: Path, work: Path) -> Measurement:
    """Seconds of `ldlm sample`, including its start; and the digest of the texts."""
    started = time.perf_counter()
    texts = work / "texts.jsonl"
    settings = ("--num-samples", TEXTS, "--batch-size", BATCH, "--output", texts)
    call(programs, "sample", "--run", quickstart / "run", *settings)
    return time.perf_counter() - started, hashlib.sha256(texts.read_bytes()).hexdigest()


def streaming(programs: Path, quickstart: Path, work: Path) -> Measurement:
    """Seconds per row of shuffled batches."""
    shown = call(programs, "features", "bench", quickstart / "features", "--batch-size", 64, "--json")
    return 1 / json.loads(shown)["rows_per_second"], None


MEASURES: dict[str, Callable[[Path, Path, Path], Measurement]] = {
    "training step": training,
    f"sampling {TEXTS} texts": sampling,
    "streaming": streaming,
}


def call(programs: Path, *arguments: object) -> str:
    """Standard output of an installation's `ldlm`; `CalledProcessError` if it fails."""
    command = [str(programs / "ldlm"), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def run(old: Path, new: Path, quickstart: Path, turns: int) -> list[dict[str, Any]]:
    """Measure everything in turns; a row for each measure."""
    found: dict[str, dict[Path, list[Measurement]]] = {name: {old: [], new: []} for name in MEASURES}
    for turn in range(turns):
        for name, measure in MEASURES.items():
            for programs in (old, new) if turn % 2 == 0 else (new, old):
                with tempfile.TemporaryDirectory() as work:
                    found[name][programs].append(measure(programs, quickstart, Path(work)))
    return [row(name, of[old], of[new]) for name, of in found.items()]


def row(name: str, old: Sequence[Measurement], new: Sequence[Measurement]) -> dict[str, Any]:
    """Medians of both, their ratios turn by turn with the median, and whether all outputs are the same."""
    digests = {digest for _, digest in (*old, *new)}
    ratios = [b / a for (a, _), (b, _) in zip(old, new, strict=True)]
    return {
        "measure": name,
        "old_seconds": statistics.median(seconds for seconds, _ in old),
        "new_seconds": statistics.median(seconds for seconds, _ in new),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "same": None if digests == {None} else len(digests) == 1,
    }


def report(figures: Sequence[dict[str, Any]]) -> str:
    """The table."""
    rows = []
    for one in figures:
        verdict = "within" if one["ratio"] <= LIMIT else "BEYOND"
        made = {None: "", True: "the same", False: "ANOTHER"}[one["same"]]
        times = (f"{one[key] * 1e3:,.3g}" for key in ("old_seconds", "new_seconds"))
        scatter = f"{min(one['ratios']):.2f}–{max(one['ratios']):.2f}"
        rows.append([one["measure"], *times, f"{one['ratio']:.3f}", scatter, f"{verdict} {LIMIT}", made])
    return show.table(["", "old, ms", "new, ms", "new/old", "of turns", "limit", "texts"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="bin folder of one installation")
    parser.add_argument("new", type=Path, help="bin folder of the other")
    parser.add_argument("--quickstart", type=Path, required=True, help="a finished quickstart, which both can open")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--output", type=Path, help="folder for the table and its JSON")
    chosen = parser.parse_args(arguments)
    figures = run(chosen.old, chosen.new, chosen.quickstart, chosen.turns)
    date = datetime.date.today().isoformat()
    versions = [call(programs, "--version").strip() for programs in (chosen.old, chosen.new)]
    text = f"{date}, {hardware()}, {chosen.turns} turns\nold: {versions[0]}\nnew: {versions[1]}\n\n{report(figures)}\n"
    print(text)
    if chosen.output is not None:
        chosen.output.mkdir(parents=True, exist_ok=True)
        record = {"date": date, "hardware": hardware(), "versions": versions, "figures": figures}
        (chosen.output / f"pairs-{date}.txt").write_text(text, encoding="utf-8")
        (chosen.output / f"pairs-{date}.json").write_text(files.dump_json(record), encoding="utf-8")


if __name__ == "__main__":
    main()
