"""Metrics of generated text: generative perplexity, entropy, n-gram diversity (SPEC 9; Section 6, Appendix E).

Perplexity alone rewards collapse: report it with entropy and diversity.

Shape letters: CONTRIBUTING.md; T is texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ldlm.errors import InputError
from ldlm.evaluation.samples import Row
from ldlm.evaluation.scorecache import ScoreCache
from ldlm.evaluation.scorer import Scorer

LARGEST_NLL = 700.0  # nats per token; exp of more than 709 is infinite

# ----------------------------------------------------------------------------------------------------------------------
# Generative perplexity: the tokens that a protocol counts, and its average over texts


def mdlm_mask(ids: Row, eos: int | None) -> np.ndarray:
    """Mask (len − 1,) of the tokens that protocol `mdlm` counts: not the first token, and only the first EOS.

    Text after an EOS counts. If the text begins with an EOS, that is its first EOS, so no EOS counts.
    """
    tokens = np.asarray(ids)
    is_eos = tokens == eos
    is_first_eos = is_eos & (np.cumsum(is_eos) == 1)
    return (~is_eos | is_first_eos)[1:]


def every_token(ids: Row, eos: int | None) -> np.ndarray:
    """Mask (len − 1,) of all tokens but the first, which is the start token."""
    return np.ones(max(0, len(ids) - 1), bool)


def corpus_perplexity(nll_T: np.ndarray, count_T: np.ndarray) -> float:
    """exp(ΣNLL / ΣN) over the corpus: a long text weighs more than a short one."""
    return float(np.exp(nll_T.sum() / count_T.sum()))


def mean_perplexity(nll_T: np.ndarray, count_T: np.ndarray) -> float:
    """Mean over texts of exp(NLL / N): one very unlikely text may outweigh all others."""
    return float(np.exp(nll_T / count_T).mean())


def trimmed_perplexity(nll_T: np.ndarray, count_T: np.ndarray) -> float:
    """Mean over texts of exp(NLL / N) without the lowest and the highest 5 %, as in COSMOS's evaluator.

    Of T perplexities in ascending order it takes those from ⌊0.05 T⌋ up to but excluding ⌊0.95 T⌋: 57 of 64. A single
    text is kept.
    """
    texts = len(nll_T)
    low, high = int(0.05 * texts), max(1, int(0.95 * texts))
    return float(np.sort(np.exp(nll_T / count_T))[low:high].mean())


@dataclass(frozen=True)
class Protocol:
    """A definition of generative perplexity. Texts without a counted token take no part in it."""

    start_token: bool  # put before every text, within `max_tokens`; without it, a text's first token is not scored
    counted: Callable[[Row, int | None], np.ndarray]  # tokens of a text, EOS → mask of those that count
    summary: Callable[[np.ndarray, np.ndarray], float]  # nll_T, count_T → perplexity


PROTOCOLS = {
    # Sahoo et al., 2024, and the paper: the text as decoded, special tokens kept; nothing is added.
    "mdlm": Protocol(start_token=False, counted=mdlm_mask, summary=corpus_perplexity),
    # The metric "perplexity" of Hugging Face's evaluate, with its default add_start_token and max_length = max_tokens.
    "hf": Protocol(start_token=True, counted=every_token, summary=mean_perplexity),
    # Meshchaninov et al., 2025: the perplexities of that metric, trimmed at each end.
    "cosmos": Protocol(start_token=True, counted=every_token, summary=trimmed_perplexity),
}


@dataclass(frozen=True)
class TextScores:
    """Likelihoods of the texts that have a token to score."""

    nll_T: np.ndarray  # nats, summed over a text's counted tokens
    count_T: np.ndarray  # counted tokens
    protocol: str = "mdlm"

    def perplexity(self, chosen: np.ndarray | slice = slice(None)) -> float:
        """The protocol's perplexity of the chosen texts."""
        return PROTOCOLS[self.protocol].summary(self.nll_T[chosen], self.count_T[chosen])


class NothingToScore(InputError):
    """No text has a token that the protocol counts: the texts have no perplexity."""

    def __init__(self, protocol: str) -> None:
        first = "token" if PROTOCOLS[protocol].start_token else "second token that is not the end-of-text token"
        super().__init__(f"there is nothing to score: no text has a {first}")


def score(
    texts: Sequence[str],
    scorer: Scorer,
    protocol: str = "mdlm",
    *,
    max_tokens: int,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda count: None,
    cache: ScoreCache | None = None,
) -> TextScores:
    """Likelihoods of texts under the scorer, cut at `max_tokens` of its tokens, by one of `PROTOCOLS` (SPEC 9).

    `NothingToScore` if no text has a token that counts. `InputError` if the protocol needs a start token that the
    tokenizer lacks, or if a perplexity would not be finite.
    """
    rules = PROTOCOLS[protocol]
    rows = scorer.tokens(texts, max_tokens - rules.start_token)
    if rules.start_token:
        start = _start_token(scorer, protocol)
        rows = [np.concatenate([start, row]) for row in rows]
    masks = [rules.counted(ids, scorer.eos_id) for ids in rows]
    nlls = scorer.token_nll(rows, batch_size, advance, cache)
    count_T = np.array([mask.sum() for mask in masks], np.int64)
    nll_T = np.array([nll[mask].sum(dtype=np.float64) for nll, mask in zip(nlls, masks, strict=True)])
    if not count_T.any():
        raise NothingToScore(protocol)
    found = TextScores(nll_T[count_T > 0], count_T[count_T > 0], protocol)
    if not (found.nll_T <= LARGEST_NLL * found.count_T).all():  # NaN included
        raise InputError(
            f"the scorer {scorer.name} finds a text so unlikely that its perplexity is not finite; its weights "
            "are damaged, or it was not trained: choose another --scorer"
        )
    return found


def _start_token(scorer: Scorer, protocol: str) -> np.ndarray:
    token = scorer.tokenizer.bos_token_id
    if token is None:
        raise InputError(
            f"the tokenizer of {scorer.name} has no start token, which --protocol {protocol} puts before every text; "
            "use --protocol mdlm"
        )
    return np.array([token], np.int32)


# ----------------------------------------------------------------------------------------------------------------------
# Intervals, entropy, diversity, copying


def bootstrap(statistic: Callable[[np.ndarray], float], texts: int, *, resamples: int, seed: int) -> list[float] | None:
    """95 % bootstrap interval [low, high] of a statistic, by percentiles; None for fewer than two texts.

    `statistic` takes the indices of texts drawn with replacement; draws for which it is NaN, since it says nothing of
    them, are left out. A single text says nothing of how others differ. Diversity has no such interval, since a text
    drawn twice repeats all its n-grams.
    """
    if texts < 2:
        return None
    draw = np.random.default_rng(seed)
    values = [statistic(draw.integers(texts, size=texts)) for _ in range(resamples)]
    return np.nanquantile(values, [0.025, 0.975]).tolist()


def entropies(rows: Iterable[Row]) -> np.ndarray:
    """Entropy −Σ p ln p of each text's token frequencies (T,), in nats (Appendix E); 0 for an empty text."""
    values = []
    for row in rows:
        counts = np.unique(np.asarray(row), return_counts=True)[1]
        p = counts / counts.sum()
        values.append(float(-(p * np.log(p)).sum()) if len(counts) else 0.0)
    return np.array(values)


def diversity(rows: Sequence[Row]) -> float:
    """Π_{n=2..4} unique n-grams / n-grams over the corpus (Appendix E; Su et al., 2022); n-grams never cross texts.

    It falls with the number of texts: compare sets of equal size. 0 if there are no 4-grams.
    """
    tokens = np.concatenate([np.zeros(0, np.int64), *(np.asarray(row, np.int64) for row in rows)])
    left = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(row), 0, -1) for row in rows)])  # tokens to text end
    vocabulary, tokens = np.unique(tokens, return_inverse=True)
    product, gram = 1.0, tokens.copy()  # number of the n-gram that begins at each place
    for n in (2, 3, 4):
        begins = np.flatnonzero(left >= n)
        if not len(begins):
            return 0.0
        unique, numbers = np.unique(gram[begins] * len(vocabulary) + tokens[begins + n - 1], return_inverse=True)
        gram[begins] = numbers
        product *= len(unique) / len(begins)
    return product


def ngrams(row: Row, n: int) -> Iterable[tuple[int, ...]]:
    """The n-grams of one text."""
    return zip(*(row[i:] for i in range(n)), strict=False)


def copied_shares(sets: Sequence[Iterable[Row]], training: Iterable[Row], n: int = 8) -> list[float]:
    """Share of each set's n-grams that occur in the training rows, which are read once; 0 for a set without n-grams."""
    wanted = [Counter(gram for row in rows for gram in ngrams(row, n)) for rows in sets]
    every = set().union(*wanted)
    found = {gram for row in training for gram in ngrams(row, n) if gram in every}
    return [sum(counts[gram] for gram in found) / counts.total() if counts else 0.0 for counts in wanted]


def decode_tokens(tokenizer: Any, tokens_BL: Tensor | np.ndarray, *, clean_up: bool = False) -> list[str]:
    """Texts of token rows, special tokens included, as the perplexity protocols need them.

    `clean_up` is transformers' clean_up_tokenization_spaces, which removes the spaces of a word-piece tokenizer before
    punctuation.
    """
    return tokenizer.batch_decode(tokens_BL.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=clean_up)
