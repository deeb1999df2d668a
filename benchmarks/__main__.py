"""`python -m benchmarks`: measure this machine, print the tables; with --output, keep them with hardware and date.

Speed, within ten minutes on two cores; `python -m benchmarks store` holds the feature store against its aims, and
`python -m benchmarks streaming` the reading of one in an object store that answers late, in minutes, and
`python -m benchmarks packing` the packing of text into rows against the bare tokenizer, in minutes, and
`python -m benchmarks leases` what leases cost, and a thousand simulated workers that die and stall, and
`python -m benchmarks plans` says what extractions of OpenWebText and more take, in minutes, and
`python -m benchmarks workers` compares an extraction by two processes with one's, in minutes, and
`python -m benchmarks window` windows of rows against fully shuffled ones, and
`python -m benchmarks samplers` the width of what every solver draws against that of the data, in seconds, and
`python -m benchmarks loaded` a training step alone and beside other work, in five minutes, and
`python -m benchmarks rivals` LDLM beside MDLM, ReMDM, Duo, CANDI and FLM, as the paper's Table 3 has it, in ten.

`python -m benchmarks comparison` trains LDLM and its rivals on one text and compares what they draw, in many hours, and
`python -m benchmarks stories-frontier` does so on stories whose law is known.

`python -m benchmarks recipe` trains variants of the tiny preset and judges what they draw, some minutes each, and
`python -m benchmarks prompts` a model that continues texts, whose continuations it holds against real ones, and
`python -m benchmarks distill` distils a run to few evaluations and holds its students against it.

`python -m benchmarks gpu` measures everything on a machine with a GPU in the minutes that it is given, and
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
)  # modules, imported when their turn comes: the store's takes zarr and more


PROGRAMS = {
    "comparison": "benchmarks.comparison.runner",
    "stories-frontier": "benchmarks.comparison.stories",
    "gpu": "benchmarks.gpu.runner",
    "recipe": "benchmarks.recipe",
    "prompts": "benchmarks.prompts",
    "distill": "benchmarks.distill",
    "wheels": "benchmarks.gpu.wheels",
}  # with arguments of their own


def main() -> None:
    """Run the program that is named, or the parts that are, or the first of them."""
    if (program := PROGRAMS.get(sys.argv[1] if len(sys.argv) > 1 else "")) is not None:
        importlib.import_module(program).main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"of {', '.join(PARTS)}; default {PARTS[0]}")
    parser.add_argument("--output", type=Path, help="folder for NAME.json and NAME.txt")
    chosen = parser.parse_args()
    memory.keep_freed()  # as the commands do
    waiting.bound_spinning()
    import torch  # which reads how to wait

    for name in chosen.parts or PARTS[:1]:
        found = part(name)
        if isinstance(found, str):
            print(f"{name}: skipped, {found} is not installed\n")
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            figures = found.run(Path(folder))
        seconds = round(time.perf_counter() - started)
        record = {"date": datetime.date.today().isoformat(), "hardware": hardware(), "versions": library_versions()}
        record["seconds"] = seconds
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


def hardware() -> str:
    """The GPU, or the processor and the number of its cores that may be used."""
    from ldlm import runtime

    return runtime.hardware()


if __name__ == "__main__":
    main()
