"""Planned time and space of extractions of OpenWebText and of 250e9 tokens, by number of workers.

Each is what `ldlm extract-features --dry-run --tokens N --workers W --rate R` says, for an encoder of GPT-2's size (12
blocks of width 768 with random weights, whose third-to-last layer gives the states) and rows of 1,024 tokens: at a rate
of 100,000 tokens per second, to be scaled to that of one's GPU, and at the rate that a dry run measures here. The rate
of the tokenizer is measured once, on all cores of this machine, and each worker is assumed to have as many cores.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks import packing
from ldlm.cli import show
from ldlm.config import ExtractConfig, LaunchConfig
from ldlm.features import corpus, textfiles
from ldlm.features.shards import SPLITS
from ldlm.files import amount
from ldlm.hub import load_tokenizer
from ldlm.stages import extract_features

TEXTS = {"OpenWebText": 9_000_000_000, "250e9 tokens": 250_000_000_000}
WORKERS = (1, 8, 64, 512)
RATE = 100_000.0  # tokens per second
BYTES, SEQ_LEN, LAYERS, WIDTH, HEADS = 2**20, 1024, 12, 768, 12
BATCH = 2  # rows per pass, few enough to measure a rate within a minute on a CPU


def run(folder: Path) -> dict[str, Any]:
    """Measure the rate of this machine, and plan; files are made below `folder`."""
    path = folder / "text.txt"
    path.write_text(packing.prose(BYTES), encoding="utf-8")
    os.environ[packing.helpers.OWN_THREADS] = "true"
    encoder = _encoder(folder / "encoder", path)
    config = ExtractConfig(encoder=str(encoder), data=(str(path),), seq_len=SEQ_LEN, batch_size=BATCH)
    tokenizer = load_tokenizer(str(encoder))
    counts = {split: corpus.count_rows(config, tokenizer, split) for split in SPLITS}
    here = extract_features.plan(config, counts=counts)["tokens_per_second"]
    plans = []
    for text, tokens in TEXTS.items():
        for workers in WORKERS:
            hours = {}
            for rate in (RATE, float(here)):
                launch = LaunchConfig(tokens=tokens, workers=workers, rate=rate)
                plan = extract_features.plan(config, launch=launch, counts=counts)
                hours[str(round(rate))] = plan["hours"]
            plans.append({"text": text, **plan, "hours": hours})
    packed = counts["train"].packed * SEQ_LEN / counts["train"].seconds
    return {
        "tokens_per_second": here,
        "packing_tokens_per_second": packed,
        "seq_len": SEQ_LEN,
        "width": WIDTH,
        "plans": plans,
    }


def _encoder(folder: Path, text: Path) -> Path:
    """A folder with a GPT-2 with random weights, and a tokenizer of its kind made from the text."""
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    tokenizer = packing.byte_level_tokenizer(list(textfiles.file_documents([text])))
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(folder)
    sizes: dict[str, Any] = {"n_positions": SEQ_LEN, "n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS}
    sizes |= dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.token_to_id(end))
    GPT2Model(GPT2Config(vocab_size=packing.VOCABULARY, **sizes)).save_pretrained(folder)
    return folder


def report(figures: dict[str, Any]) -> str:
    """The plans as text."""
    plans, here = figures["plans"], figures["tokens_per_second"]
    packed = round(figures["packing_tokens_per_second"])
    rates = list(plans[0]["hours"])
    space = [
        (text, one["tokens"], one["shards"], *(amount(one["bytes"][name]) for name in ("fp16", "int8-token")))
        for text, one in {plan["text"]: plan for plan in plans}.items()
    ]
    spool = [amount(one["spool_bytes"]) for one in {plan["text"]: plan for plan in plans}.values()]
    times = [(plan["text"], plan["workers"], *(plan["hours"][rate] for rate in rates)) for plan in plans]
    return "\n".join(
        [
            f"rows of {figures['seq_len']:,} tokens, states of {figures['width']}; before compression",
            "",
            show.table(
                ("text", "tokens", "shards", "fp16", "int8-token", "spool"),
                [(*row, spooled) for row, spooled in zip(space, spool, strict=True)],
            ),
            "",
            f"a machine's cores tokenise {packed:,} tokens per second, measured once here, where an encoder makes",
            f"{here:,}, beside what else runs; each worker is taken to have a machine's cores",
            "",
            "hours, where a worker's encoder makes so many tokens per second",
            "",
            show.table(("text", "workers", *(f"at {int(rate):,}/s" for rate in rates)), times),
        ]
    )
