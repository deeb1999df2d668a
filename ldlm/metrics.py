"""Metrics of generated text: generative perplexity, entropy, n-gram diversity (SPEC 9, Section 6 "Metrics", E).

Perplexity alone rewards collapse: report it with entropy and diversity.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldlm.encoder import check_whole, load_model, load_tokenizer
from ldlm.errors import InputError

LOGITS_AT_ONCE = 2**27  # elements; bounds the memory of a scorer pass


class Scorer:
    """A causal language model that scores texts."""

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoModelForCausalLM

        self.name, self.device = name, device
        self.tokenizer = load_tokenizer(name)
        self.model, made_up = load_model(AutoModelForCausalLM, name)
        check_whole(self.model, made_up, name)
        self.model.eval().requires_grad_(False).to(device)
        config = self.model.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self.positions: int | None = getattr(config, "max_position_embeddings", None)

        self._check_causal()

    @torch.no_grad()
    def _check_causal(self) -> None:
        """`InputError` when the model looks ahead: BERT answers too, and its perplexity means nothing."""
        tokens_BL = torch.tensor([[0, 1, 2], [0, 1, 3]], device=self.device)  # that differ in the last token only
        logits_BLV = self.model(input_ids=tokens_BL).logits[:, :2]
        if not torch.allclose(logits_BLV[0], logits_BLV[1], rtol=1e-3, atol=1e-3):
            raise InputError(f"the scorer {self.name} is no causal model: its predictions depend on what comes after")

    def check_length(self, max_tokens: int) -> None:
        """`InputError` when texts of `max_tokens` tokens are longer than the scorer's positions."""
        if self.positions is not None and max_tokens > self.positions:
            raise InputError(
                f"--max-tokens {max_tokens} is longer than the {self.positions} positions of the scorer {self.name}; "
                f"use at most {self.positions}"
            )

    def tokens(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Token ids as the texts spell them, special tokens included, cut at `max_tokens`."""
        if not texts:
            return []
        return [
            ids[:max_tokens]
            for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        ]

    @torch.no_grad()
    def token_nll(
        self, rows: Sequence[Sequence[int]], batch_size: int, advance: Callable[[int], None] = lambda count: None
    ) -> list[np.ndarray]:
        """−ln p(token | the ones before) for every token of each row but its first; float32 (len − 1,) each."""
        result: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
        by_length = sorted((i for i, row in enumerate(rows) if len(row) > 1), key=lambda i: len(rows[i]), reverse=True)
        start = 0
        while start < len(by_length):
            longest = len(rows[by_length[start]])
            size = max(1, min(batch_size, LOGITS_AT_ONCE // (longest * self.vocab_size)))
            chosen = by_length[start : start + size]
            # Padding stands to the right of everything that is scored, where a causal model can't see it.
            padded = torch.zeros(len(chosen), longest, dtype=torch.int64)
            for place, i in enumerate(chosen):
                padded[place, : len(rows[i])] = torch.tensor(rows[i])
            logits_BLV = self.model(input_ids=padded.to(self.device)).logits
            for place, i in enumerate(chosen):
                length = len(rows[i])
                nll = F.cross_entropy(
                    logits_BLV[place, : length - 1].float(), padded[place, 1:length].to(self.device), reduction="none"
                )
                result[i] = nll.cpu().numpy()
            advance(len(chosen))
            start += size
        return result


def mdlm_mask(ids: Sequence[int], eos: int | None) -> np.ndarray:
    """Which of a row's tokens the `mdlm` protocol counts (len − 1,), the first being unscored: all but a second EOS.

    An EOS counts until the first one has been seen, which may be the unscored first token.
    """
    tokens = np.asarray(ids)
    is_eos = tokens == eos
    first_segment = np.cumsum(is_eos) == 1
    return (~is_eos | (first_segment & is_eos))[1:]


@dataclass(frozen=True)
class TextScores:
    """What a scorer makes of each text that has something to score: summed NLL in nats, and tokens counted."""

    nll_T: np.ndarray
    count_T: np.ndarray

    def perplexity(self, chosen: np.ndarray | slice = slice(None)) -> float:
        """Corpus perplexity exp(ΣNLL / ΣN) of the chosen texts."""
        return math.exp(self.nll_T[chosen].sum() / self.count_T[chosen].sum())


def score(
    texts: Sequence[str],
    scorer: Scorer,
    *,
    max_tokens: int,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda count: None,
) -> TextScores:
    """Protocol `mdlm`: texts as the scorer spells them, cut at `max_tokens` (Sahoo et al., 2024; SPEC 9).

    `InputError` when no text has a second token.
    """
    rows = scorer.tokens(texts, max_tokens)
    masks = [mdlm_mask(ids, scorer.tokenizer.eos_token_id) for ids in rows]
    nlls = scorer.token_nll(rows, batch_size, advance)
    count_T = np.array([mask.sum() for mask in masks], np.int64)
    nll_T = np.array([nll[mask].sum(dtype=np.float64) for nll, mask in zip(nlls, masks, strict=True)])
    if not count_T.any():
        raise InputError("there is nothing to score: no text has a second token that is not the end-of-text token")
    return TextScores(nll_T[count_T > 0], count_T[count_T > 0])


def bootstrap(statistic: Callable[[np.ndarray], float], texts: int, *, resamples: int, seed: int) -> list[float]:
    """Percentile interval [low, high] at 95 % of `statistic(rows)`, rows being texts drawn with replacement.

    One text gives its own value twice: nothing is known of how texts differ. Diversity has no such interval, since a
    text that is drawn twice repeats all its n-grams.
    """
    draw = np.random.default_rng(seed)
    values = [statistic(draw.integers(texts, size=texts)) for _ in range(resamples)]
    return np.quantile(values, [0.025, 0.975]).tolist()


def entropies(rows: Iterable[Sequence[int]]) -> np.ndarray:
    """Entropy of each text's token counts, in nats, (texts,); an empty text has entropy 0."""
    values = []
    for row in rows:
        counts = np.unique(np.asarray(row), return_counts=True)[1]
        p = counts / counts.sum()
        values.append(float(-(p * np.log(p)).sum()) if len(counts) else 0.0)
    return np.array(values)


def diversity(rows: Sequence[Sequence[int]]) -> float:
    """Π_{n=2..4} unique n-grams / n-grams over the corpus (Su et al., 2022); n-grams never cross texts.

    Falls with the number of texts: compare at the same number. 0 when there are no 4-grams.
    """
    product = 1.0
    for n in (2, 3, 4):
        grams = Counter(gram for row in rows for gram in ngrams(row, n))
        total = grams.total()
        product *= len(grams) / total if total else 0.0
    return product


def ngrams(row: Sequence[int], n: int) -> Iterable[tuple[int, ...]]:
    """The n-grams of one text."""
    return zip(*(row[i:] for i in range(n)), strict=False)


def copied_share(rows: Iterable[Sequence[int]], training: Iterable[Sequence[int]], n: int = 8) -> float:
    """Share of the rows' n-grams that stand in the training rows: how much is copied rather than composed."""
    wanted = Counter(gram for row in rows for gram in ngrams(row, n))
    if not wanted:
        return 0.0
    found = {gram for row in training for gram in ngrams(row, n) if gram in wanted}
    return sum(wanted[gram] for gram in found) / wanted.total()


def decode_tokens(tokenizer: Any, tokens_BL: Tensor | np.ndarray) -> list[str]:
    """Texts with special tokens kept, as the protocols want them."""
    return tokenizer.batch_decode(tokens_BL.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
