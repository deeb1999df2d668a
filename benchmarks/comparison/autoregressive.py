"""Texts from an autoregressive GPT-2, a token at a time from the model's own distribution, and its held-out loss."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from ldlm import files, noise
from ldlm.evaluation import metrics, samples
from ldlm.features.store import FeatureStore
from ldlm.hub import load_model, load_tokenizer
from ldlm.sampling.generation import text_seeds


@torch.no_grad()
def draw(model: Any, start: int, seq_len: int, seeds_B: Tensor) -> Tensor:
    """Tokens (B, L) int64 at temperature 1, each row beginning with `start`; a text depends only on its seed."""
    tokens_BL = torch.full((len(seeds_B), 1), start)
    cache = DynamicCache()
    while tokens_BL.shape[1] < seq_len:
        logits_BV = model(tokens_BL[:, -1:], past_key_values=cache).logits[:, -1]
        below_BV = logits_BV.double().softmax(-1).cumsum(-1)
        u_B1 = noise.uniform(seeds_B, "autoregressive", tokens_BL.shape[1], torch.zeros_like(seeds_B), (1,))
        drawn_B1 = torch.searchsorted(below_BV, u_B1 * below_BV[:, -1:], right=True)
        tokens_BL = torch.cat([tokens_BL, drawn_B1.clamp(max=below_BV.shape[1] - 1)], dim=1)
    return tokens_BL


@torch.no_grad()
def held_out_loss(model: Any, rows_RL: Tensor) -> float:
    """Negative log-likelihood of rows in nats per token; the first token is always the same and costs nothing."""
    losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in rows_RL.split(64)]
    length = rows_RL.shape[1]
    return sum(losses) / len(rows_RL) * (length - 1) / length


def write(folder: Path, store: Path, texts: int, seed: int, out: Path) -> dict[str, Any]:
    """Write texts from the model in `folder` to `out`; return seconds, evaluations per text, and held-out loss."""
    (network, _), tokenizer = load_model(AutoModelForCausalLM, str(folder)), load_tokenizer(str(folder))
    model = network.eval()
    held_out = FeatureStore(store).held_out()
    seq_len = held_out.tokens.shape[1]
    seeds_B = text_seeds(seed, 0, texts)
    started, cpu = time.perf_counter(), time.process_time()
    tokens_BL = torch.cat([draw(model, tokenizer.bos_token_id, seq_len, part) for part in seeds_B.split(100)])
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    rows = samples.rows(metrics.decode_tokens(tokenizer, tokens_BL), tokens_BL.tolist(), seeds_B.tolist())
    samples.write_record(out, "texts", samples.record_of(tokenizer, clean_up=False))
    files.write_atomic(out, files.dump_jsonl(rows))
    loss = held_out_loss(model, torch.from_numpy(held_out.tokens[:]).long())
    return {**spent, "evaluations": seq_len - 1, "held_out_loss": loss}
