"""The metrics against counts made by hand, and perplexity against one text at a time without batches or padding."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ldlm.errors import InputError
from ldlm.metrics import (
    Scorer,
    TextScores,
    bootstrap,
    copied_share,
    decode_tokens,
    diversity,
    entropies,
    mdlm_mask,
    ngrams,
    score,
)

WORDS = ["the", "a", "cat", "dog", "mat", "rat", "sat", "ran", "on", "by"]
EOS = "<|endoftext|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random GPT-2 of two layers whose tokens are words, in a transformers folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("scorer")
    vocab = {word: i for i, word in enumerate([EOS, "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, bos_token=EOS, unk_token="[UNK]")
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(vocab), n_positions=12, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        initializer_range=1.0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scorer(folder) -> Scorer:
    return Scorer(str(folder), torch.device("cpu"))


# The mdlm mask


@pytest.mark.parametrize(
    ("ids", "counted"),
    [
        ([5, 6, 7], [1, 1]),  # no EOS: all but the first token
        ([5, 0, 6], [1, 1]),  # the first EOS counts, and so does what follows it
        ([5, 0, 6, 0, 7, 0], [1, 1, 0, 1, 0]),  # later ones do not
        ([0, 5, 6], [1, 1]),  # an EOS at the start is the first one
        ([0, 5, 0, 6], [1, 0, 1]),
        ([0, 0, 0], [0, 0]),
        ([5], []),
        ([0], []),
        ([], []),
    ],
)
def test_the_mask_counts_an_eos_up_to_the_first_one(ids, counted):
    assert mdlm_mask(ids, eos=0).astype(int).tolist() == counted


def test_a_scorer_without_an_eos_counts_every_token_but_the_first():
    assert mdlm_mask([0, 5, 0, 6], eos=None).tolist() == [True] * 3


# Generative perplexity

TEXTS = [
    "the cat sat on the mat",
    f"{EOS} a dog ran {EOS} the rat sat {EOS}",
    "the",
    "",
    f"dog {EOS} {EOS} {EOS} by",
    " ".join(WORDS * 3),  # longer than max_tokens
    "zebra the zebra",  # unknown words
]


def by_hand(folder: Path, texts: list[str], max_tokens: int) -> tuple[float, int]:
    """(perplexity, tokens) with one unpadded text at a time and plain Python for the protocol."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder).double().eval()
    ids_of = {word: i for i, word in enumerate([EOS, "[UNK]", *WORDS])}
    total, count = 0.0, 0
    for text in texts:
        ids = [ids_of.get(word, 1) for word in text.split()][:max_tokens]
        eos_seen = 0
        for i, token in enumerate(ids):
            eos_seen += token == 0
            if i == 0 or (token == 0 and eos_seen > 1):
                continue
            with torch.no_grad():
                logits = model(torch.tensor([ids[:i]])).logits[0, -1].numpy()
            total += math.log(np.exp(logits).sum()) - logits[token]
            count += 1
    return math.exp(total / count), count


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_perplexity_equals_that_of_one_text_at_a_time(folder, scorer, batch_size):
    expected, count = by_hand(folder, TEXTS, 12)
    got = score(TEXTS, scorer, max_tokens=12, batch_size=batch_size)
    assert got.perplexity() == pytest.approx(expected, rel=1e-5)
    assert got.count_T.tolist() == [5, 6, 2, 11, 2]
    assert count == got.count_T.sum()


def test_perplexity_is_of_the_corpus_and_not_the_mean_of_the_texts(scorer):
    each = [score([text], scorer, max_tokens=12).perplexity() for text in (TEXTS[0], TEXTS[5])]
    both = score([TEXTS[0], TEXTS[5]], scorer, max_tokens=12).perplexity()
    assert math.log(both) == pytest.approx((5 * math.log(each[0]) + 11 * math.log(each[1])) / 16, rel=1e-6)
    assert both != pytest.approx(sum(each) / 2, rel=1e-3)


def test_texts_are_cut_at_max_tokens(folder, scorer):
    expected, count = by_hand(folder, TEXTS, 4)
    got = score(TEXTS, scorer, max_tokens=4)
    assert got.perplexity() == pytest.approx(expected, rel=1e-5)
    assert got.count_T.tolist() == [3, 3, 1, 3, 2]
    assert count == got.count_T.sum()


def test_the_likelihood_of_each_token_keeps_its_place(scorer):
    """Long and short rows come back in the order in which they went in."""
    rows = scorer.tokens(TEXTS, 12)
    together = scorer.token_nll(rows, batch_size=4)
    assert [len(nll) for nll in together] == [5, 8, 0, 0, 4, 11, 2]
    for row, nll in zip(rows, together, strict=True):
        alone = scorer.token_nll([row], batch_size=1)[0]
        assert nll.tolist() == pytest.approx(alone.tolist(), rel=1e-5, abs=1e-6)


def test_progress_adds_up_to_the_texts_that_can_be_scored(scorer):
    seen = []
    score(TEXTS, scorer, max_tokens=12, batch_size=2, advance=seen.append)
    assert sum(seen) == 5
    assert max(seen) == 2


def test_no_text_with_two_tokens_is_one_clear_error(scorer):
    for texts in ([], ["", "the"], [f"{EOS} {EOS}"]):
        with pytest.raises(InputError, match="nothing to score"):
            score(texts, scorer, max_tokens=12)


def test_texts_longer_than_the_scorers_positions_are_refused(scorer):
    scorer.check_length(12)
    with pytest.raises(InputError, match="--max-tokens 13 is longer than the 12 positions of the scorer"):
        scorer.check_length(13)


def test_decoding_keeps_special_tokens_and_spells_what_the_scorer_reads(scorer):
    rows = np.array([[0, 2, 4, 0], [3, 3, 0, 5]])
    texts = decode_tokens(scorer.tokenizer, rows)
    assert texts == [f"{EOS} the cat {EOS}", f"a a {EOS} dog"]
    assert scorer.tokens(texts, 12) == rows.tolist()


# Bootstrap intervals


def test_an_interval_of_a_mean_is_that_of_the_central_limit_theorem():
    values = np.random.default_rng(3).normal(10, 2, 4_000)
    low, high = bootstrap(lambda chosen: values[chosen].mean(), len(values), resamples=1_000, seed=0)
    error = values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_an_interval_is_that_of_all_resamples_where_they_can_be_listed():
    """Two texts make four resamples: both twice, and each of them together with the other."""
    scores = TextScores(nll_T=np.array([2.0, 12.0]), count_T=np.array([2, 4]))
    low, high = bootstrap(scores.perplexity, 2, resamples=1_000, seed=0)
    assert (low, high) == pytest.approx((math.exp(2 / 2), math.exp(12 / 4)))
    assert scores.perplexity() == pytest.approx(math.exp(14 / 6))
    assert scores.perplexity(np.array([0, 0, 1])) == pytest.approx(math.exp(16 / 8))


def test_an_interval_depends_on_its_seed_alone():
    values = np.arange(50.0)

    def interval(seed):
        return bootstrap(lambda chosen: values[chosen].mean(), 50, resamples=200, seed=seed)

    assert interval(1) == interval(1) != interval(2)


def test_texts_with_nothing_to_score_take_no_part_in_resampling(scorer):
    found = score(["the", TEXTS[0], "", f"{EOS} {EOS}", TEXTS[5]], scorer, max_tokens=12)
    assert found.count_T.tolist() == [5, 11]


# Entropy, diversity, copying


def test_entropy_is_that_of_a_texts_token_counts_in_nats():
    half_and_quarters = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    found = entropies([[1, 2, 3, 4], [7, 7, 1, 2], [5, 5, 5], [1, 2], []])
    assert found.tolist() == pytest.approx([math.log(4), half_and_quarters, 0, math.log(2), 0], rel=1e-12)


def test_diversity_is_the_product_of_unique_shares_over_the_corpus():
    # bigrams 12 23 34 | 12 23 34 41: 4 of 7; trigrams 123 234 | 123 234 341: 3 of 5; 4-grams 1234 | 1234 2341: 2 of 3
    assert diversity([[1, 2, 3, 4], [1, 2, 3, 4, 1]]) == pytest.approx(4 / 7 * 3 / 5 * 2 / 3, rel=1e-12)
    assert diversity([[1, 2, 3, 4, 5]]) == 1


def test_ngrams_never_cross_texts():
    assert list(ngrams([1, 2, 3], 2)) == [(1, 2), (2, 3)]
    assert list(ngrams([1, 2], 3)) == []
    # Joined, the two rows would hold the pair (4, 1) too.
    assert diversity([[1, 2, 3, 4], [1, 2, 3, 4]]) == pytest.approx(1 / 8, rel=1e-12)
    assert diversity([[1, 2, 3]]) == 0  # no 4-grams


def test_the_copied_share_counts_ngrams_with_their_repetitions():
    training = [[9, 1, 2, 3, 9], [4, 5]]
    assert copied_share([[1, 2, 3, 4, 5]], training, n=2) == 3 / 4  # 12, 23, 45 of 12, 23, 34, 45
    assert copied_share([[1, 2, 1, 2]], training, n=2) == 2 / 3  # 12 twice, 21 never
    assert copied_share([[1, 2, 3], [7, 8, 9]], training, n=3) == 1 / 2
    assert copied_share([[3, 9, 4]], training, n=3) == 0  # only across training rows
    assert copied_share([[1, 2]], training, n=3) == 0
    assert copied_share(iter([list(range(8))]), iter([list(range(-1, 9))])) == 1  # 8 is the default
