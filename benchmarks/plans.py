"""Planned time and space of extractions of OpenWebText and of 250e9 tokens, by number of workers.

Each is what `ldlm extract-features --dry-run --tokens N --workers W --rate R` says, with an encoder of GPT-2's size
(random weights, 12 blocks of width 768 with the third-to-last layer's states taken), rows of 1,024 tokens, and the rate
that the first dry run measured on this machine. Hours are in proportion to that rate: give `--rate` that of your GPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks import packing
from ldlm.cli import show
from ldlm.config import ExtractConfig, LaunchConfig
from ldlm.features import textfiles
from ldlm.files import amount
from ldlm.stages import extract_features

TEXTS = {"OpenWebText": 9_000_000_000, "250e9 tokens": 250_000_000_000}
WORKERS = (1, 8, 64, 512)
BYTES, SEQ_LEN, LAYERS, WIDTH, HEADS = 2**20, 1024, 12, 768, 12


def run(folder: Path) -> dict[str, Any]:
    """Measure a worker's rate, and plan; files are made below `folder`."""
    path = folder / "text.txt"
    path.write_text(packing.prose(BYTES), encoding="utf-8")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    config = ExtractConfig(encoder=str(_encoder(folder / "encoder", path)), data=(str(path),), seq_len=SEQ_LEN)
    rate = float(extract_features.plan(config)["tokens_per_second"])
    rows = []
    for text, tokens in TEXTS.items():
        for workers in WORKERS:
            launch = LaunchConfig(tokens=tokens, workers=workers, rate=rate)
            rows.append({"text": text, **extract_features.plan(config, launch=launch)})
    return {"tokens_per_second": rate, "seq_len": SEQ_LEN, "width": WIDTH, "plans": rows}


def _encoder(folder: Path, text: Path) -> Path:
    """A folder with a GPT-2 of random weights and a tokenizer of its kind, made of the text."""
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    tokenizer = packing.byte_level_tokenizer(list(textfiles.file_documents([text])))
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(folder)
    sizes = {"n_positions": SEQ_LEN, "n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS}
    GPT2Model(GPT2Config(vocab_size=max(packing.VOCABULARY, tokenizer.get_vocab_size()), **sizes)).save_pretrained(
        folder
    )
    return folder


def report(figures: dict[str, Any]) -> str:
    """The plans as text."""
    cells = [
        (
            plan["text"],
            plan["workers"],
            plan["shards"],
            amount(plan["bytes"]["fp16"]),
            amount(plan["bytes"]["int8-token"]),
            amount(plan["spool_bytes"]),
            plan["hours"],
            plan["hours"] / 24,
        )
        for plan in figures["plans"]
    ]
    return "\n".join(
        [
            f"rows of {figures['seq_len']:,} tokens, states of {figures['width']}; a worker is a machine like this, "
            f"{figures['tokens_per_second']:,.0f} tokens/s of the encoder",
            "",
            show.table(("text", "workers", "shards", "fp16", "int8-token", "spool", "hours", "days"), cells),
        ]
    )
