"""`python -m benchmarks`: measure this machine, print the tables; with --output, keep them with hardware and date.

By default it measures speed, within ten minutes on two cores;
`python -m benchmarks store` compares the feature store with its aims,
`python -m benchmarks streaming` measures reading from an object store that answers late, in minutes,
`python -m benchmarks packing` compares packing text into rows with the bare tokenizer, in minutes,
`python -m benchmarks leases` measures what leases cost, and simulates a thousand workers that die and stall,
`python -m benchmarks plans` says what extractions of OpenWebText and more take, in minutes,
`python -m benchmarks workers` compares extraction by two processes with extraction by one, in minutes,
`python -m benchmarks window` compares shuffle windows with full shuffling,
`python -m benchmarks samplers` compares the width of every solver's output with that of the data, in seconds,
`python -m benchmarks loaded` times a training step alone and beside other work, in five minutes, and
`python -m benchmarks rivals` times LDLM beside MDLM, ReMDM, Duo, CANDI and FLM, as in the paper's Table 3, in ten.

`python -m benchmarks comparison` trains LDLM and its rivals on one text and compares their texts, in many hours, and
`python -m benchmarks stories-frontier` does so on stories, whose distribution is known.

`python -m benchmarks recipe` trains variants of the tiny preset and judges their texts, some minutes each,
`python -m benchmarks prompts` compares the continuations of runs that continue texts with real ones,
`python -m benchmarks distill` distils a run to few evaluations and compares the students with it,
`python -m benchmarks renoise` draws with fresh noise in an interval of t and compares that with DDIM, and
`python -m benchmarks trainings` compares runs trained in several ways at few evaluations.

`python -m benchmarks gpu` measures everything on a machine with a GPU in a given number of minutes, and
`python -m benchmarks wheels` fetches what such a machine may lack; each has its own --help.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.parts import part
from ldlm import files, memory, waiting
from ldlm.versions import library_versions

PARTS = (
    "speed",
    "store",
    "streaming",
    "packing",
    "leases",
    "plans",
    "workers",
    "window",
    "samplers",
    "loaded",
    "rivals",
)  # modules, imported when their turn comes: the store's needs zarr and more


PROGRAMS = {
    "comparison": "benchmarks.comparison.runner",
    "stories-frontier": "benchmarks.comparison.stories",
    "gpu": "benchmarks.gpu.runner",
    "recipe": "benchmarks.recipe",
    "prompts": "benchmarks.prompts",
    "distill": "benchmarks.distill",
    "renoise": "benchmarks.renoise",
    "trainings": "benchmarks.trainings",
    "wheels": "benchmarks.gpu.wheels",
}  # with their own arguments


def main() -> None:
    """Run the named program, or the named parts, or by default the first part."""
    if (program := PROGRAMS.get(sys.argv[1] if len(sys.argv) > 1 else "")) is not None:
        importlib.import_module(program).main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"of {', '.join(PARTS)}; default {PARTS[0]}")
    parser.add_argument("--output", type=Path, help="folder for NAME.json and NAME.txt")
    chosen = parser.parse_args()
    if chosen.output is not None and chosen.output.exists() and not chosen.output.is_dir():
        parser.error(f"{chosen.output} is a file and the output is a folder; choose another --output")
    memory.keep_freed()  # as the commands do
    waiting.bound_spinning()
    import torch  # here, since on loading it reads how threads wait

    from ldlm import runtime

    for name in chosen.parts or PARTS[:1]:
        found = part(name)
        if isinstance(found, str):
            print(f"{name}: skipped, {found} is not installed\n")
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            figures = found.run(Path(folder))
        seconds = round(time.perf_counter() - started)
        record = {
            "date": datetime.date.today().isoformat(),
            "hardware": runtime.hardware(),
            "versions": library_versions(),
            "seconds": seconds,
        }
        head = f"{record['date']}, {record['hardware']}, torch {torch.__version__}"
        text = f"{head}\n\n{found.report(figures)}\n\nmeasured in {seconds} s\n"
        print(text)
        if chosen.output is not None:
            chosen.output.mkdir(parents=True, exist_ok=True)
            stem = f"{name}-{record['date']}-{'gpu' if torch.cuda.is_available() else 'cpu'}"
            (chosen.output / f"{stem}.txt").write_text(text)
            (chosen.output / f"{stem}.json").write_text(
                files.dump_json({**record, "figures": figures}), encoding="utf-8"
            )


if __name__ == "__main__":
    main()
