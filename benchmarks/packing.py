"""Packing a text into token rows by one or more processes, against the bare tokenizer on all cores.

The limit is batch encoding of the same documents by the library tokenizers, from memory: without reading, splitting,
keeping or storing anything. It runs with its own threads on all cores, and with one thread, since its threads may get
into each other's way, and that also without the tokens' places in the text, which packing does not ask for: packing by
N processes is compared with the fastest of its own threads and N times one thread.
Measured in turns, in processor and wall-clock seconds, since other work may share the machine. A byte-level tokenizer
of GPT-2's size is made from the text.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ldlm.cli import show
from ldlm.config import ExtractConfig
from ldlm.features import builtin_text, helpers, textfiles
from ldlm.features.packing import Ends, Packing

BYTES, PIECE, VOCABULARY, SEQ_LEN = 2**24, 2**20, 50_257, 1024
TURNS, AIM = 3, 0.9
BARE = {"bare": "its own threads", "bare_alone": "one thread", "bare_fast": "one thread, tokens alone"}
NOVELS = Path(__file__).parents[2] / "shared" / "data" / "novels.txt"  # real text, kept beside the repository


def run(folder: Path) -> dict[str, Any]:
    """Measure everything; files are made below `folder`."""
    path = folder / "text.txt"
    path.write_text(prose(BYTES), encoding="utf-8")
    documents = list(textfiles.file_documents([path]))
    tokenizer = byte_level_tokenizer(documents)
    counts = sorted({1, 2, helpers.workers()})
    work: dict[str, Callable[[Path], int]] = {
        "bare": partial(_bare, tokenizer.encode_batch, documents, True),
        "bare_alone": partial(_bare, tokenizer.encode_batch, documents, False),
        "bare_fast": partial(_bare, tokenizer.encode_batch_fast, documents, False),
    }
    work |= {str(count): partial(_packed, path, tokenizer, count) for count in counts}
    turns = [
        {name: _timed(partial(one, folder / f"{turn}-{name}")) for name, one in work.items()} for turn in range(TURNS)
    ]
    best = {name: {kind: min(turn[name][kind] for turn in turns) for kind in ("wall", "cpu")} for name in work}
    tokens = int(turns[0]["1"]["result"])
    rates = {name: {**one, "tokens_per_second": tokens / one["wall"]} for name, one in best.items()}
    threads, *alone = (rates[name]["tokens_per_second"] for name in BARE)
    limits = {n: max(threads, *(n * rate for rate in alone)) for n in counts}
    return {
        "text": prose_name(),
        "tokens": tokens,
        "bytes": path.stat().st_size,
        "cores": helpers.workers(),
        **{name: rates[name] for name in BARE},
        "workers": {
            n: {**rates[str(n)], "limit": limits[n], "ratio": rates[str(n)]["tokens_per_second"] / limits[n]}
            for n in counts
        },
        "turns": turns,
        "aim": AIM,
    }


def prose(size: int) -> str:
    """`size` characters of English: from novels if they are at hand, else from the prose that comes with Python."""
    whole = NOVELS.read_text(encoding="utf-8") if NOVELS.is_file() else "\n".join(builtin_text.documents())
    return (whole * (size // len(whole) + 1))[:size]


def prose_name() -> str:
    """The name of the text that `prose` returns."""
    return NOVELS.name if NOVELS.is_file() else "what comes with Python"


def byte_level_tokenizer(documents: list[str]) -> Tokenizer:
    """A byte-level tokenizer with GPT-2's number of tokens, or as many as the text yields."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(documents, trainer)
    return made


def _bare(encode: Callable[..., Any], documents: list[str], threads: bool, folder: Path) -> int:
    """The number of documents, encoded by the tokenizer's own threads or by this one; `folder` stays empty."""
    os.environ[helpers.OWN_THREADS] = "true" if threads else "false"
    for start in range(0, len(documents), 1000):
        encode(documents[start : start + 1000], add_special_tokens=False)
    return len(documents)


def _packed(path: Path, tokenizer: Tokenizer, workers: int, folder: Path) -> int:
    """Number of tokens in the rows that `workers` processes make, this one included."""
    os.environ[helpers.OWN_THREADS] = "false"
    config = ExtractConfig(data=(str(path),), seq_len=SEQ_LEN)
    packing = Packing(config, folder / "packed", folder / "claims", tokenizer, Ends(0, 0))
    (folder / "packed").mkdir(parents=True)
    planned = packing.plan(PIECE)
    packing.tokenize(planned, workers - 1)
    return packing.rows(planned)["train"].rows * SEQ_LEN


def _timed(work: Callable[[], int]) -> dict[str, float]:
    """Result, wall-clock seconds and processor seconds, child processes included."""

    def spent() -> float:
        used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(one.ru_utime + one.ru_stime for one in used)

    wall, cpu = time.perf_counter(), spent()
    result = work()
    return {"wall": time.perf_counter() - wall, "cpu": spent() - cpu, "result": result}


def report(figures: dict[str, Any]) -> str:
    """The figures as text."""
    named = [(f"bare tokenizer, {what}", figures[name]) for name, what in BARE.items()]
    named += [
        (f"packing by {count} process{'es' if int(count) > 1 else ''}", one)
        for count, one in figures["workers"].items()
    ]
    rows = [
        (name, round(one["tokens_per_second"]), round(one["cpu"], 1), f"{one['ratio']:.2f}" if "ratio" in one else "")
        for name, one in named
    ]
    return "\n".join(
        [
            f"packing {figures['bytes'] / 1e6:.0f} MB of {figures['text']} into token rows on {figures['cores']} "
            f"cores, against the bare tokenizer's batch encoding, by its own threads or one for each process, "
            f"whichever is fastest (aim {figures['aim']})",
            "",
            show.table(("", "tokens/s", "CPU seconds", "of the bare rate"), rows),
        ]
    )
