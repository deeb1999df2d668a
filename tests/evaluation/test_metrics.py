"""The metrics against counts made by hand, and perplexity against one text at a time without batches or padding."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from ldlm.errors import InputError
from ldlm.evaluation.metrics import (
    PROTOCOLS,
    TextScores,
    bootstrap,
    copied_shares,
    decode_tokens,
    diversity,
    entropies,
    mdlm_mask,
    ngrams,
    score,
)
from ldlm.evaluation.scorer import Scorer

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


def test_the_last_states_of_many_texts_are_computed_in_batches_that_bound_their_memory(scorer, monkeypatch):
    passes = []
    forward = scorer.model.base_model.register_forward_hook(
        lambda model, arguments, found: passes.append(tuple(found.last_hidden_state.shape))
    )
    rows = [np.arange(1, 11, dtype=np.int32)] * 5
    together = scorer.last_states(rows, batch_size=100)
    monkeypatch.setattr("ldlm.evaluation.scorer.LOGITS_AT_ONCE", 2 * 10 * 16)  # elements of two texts, 16 wide
    apart = scorer.last_states(rows, batch_size=100)
    forward.remove()
    assert passes == [(5, 10, 16), (2, 10, 16), (2, 10, 16), (1, 10, 16)]
    assert apart == pytest.approx(together, rel=1e-5, abs=1e-6)


def test_progress_adds_up_to_the_texts_also_of_those_that_can_not_be_scored(scorer):
    seen = []
    score(TEXTS, scorer, max_tokens=12, batch_size=2, advance=seen.append)
    assert sum(seen) == len(TEXTS) == 7
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
    assert [row.tolist() for row in scorer.tokens(texts, 12)] == rows.tolist()


# The protocols, by hand: what a scorer of two words and <eos> gives (the table is in conftest.py)

# text: (product of the counted probabilities, tokens counted) under mdlm, and with a start token under hf and cosmos
BY_HAND = {
    "a b a": ((1 / 2 * 1 / 8, 2), (1 / 2 * 1 / 2 * 1 / 8, 3)),  # no EOS
    "a <eos> b": ((1 / 4 * 3 / 8, 2), (1 / 2 * 1 / 4 * 3 / 8, 3)),  # EOS inside: it counts, and what follows it
    "a <eos> b <eos> a": ((1 / 4 * 3 / 8 * 1 / 2, 3), (1 / 2 * 1 / 4 * 3 / 8 * 1 / 2 * 1 / 2, 5)),  # mdlm: no second
    "<eos> a <eos>": ((1 / 2, 1), (1 / 8 * 1 / 2 * 1 / 4, 3)),  # one as unscored first token is mdlm's first EOS
    "b": ((1, 0), (3 / 8, 1)),  # one token: nothing without a start token
    "": ((1, 0), (1, 0)),
}


@pytest.fixture(scope="module")
def toy(bigrams) -> Scorer:
    return Scorer(str(bigrams), torch.device("cpu"))


@pytest.mark.parametrize("text", BY_HAND)
@pytest.mark.parametrize("protocol", ["mdlm", "hf", "cosmos"])
def test_one_text_by_hand(toy, text, protocol):
    product, count = BY_HAND[text][protocol != "mdlm"]
    if count == 0:
        with pytest.raises(InputError, match="nothing to score"):
            score([text], toy, protocol, max_tokens=8)
        return
    found = score([text], toy, protocol, max_tokens=8)
    assert found.nll_T.tolist() == pytest.approx([-math.log(product)], rel=1e-5)
    assert found.count_T.tolist() == [count]
    assert found.perplexity() == pytest.approx(product ** (-1 / count), rel=1e-5)


def test_texts_together_by_hand(toy):
    texts = list(BY_HAND)
    got = {protocol: score(texts, toy, protocol, max_tokens=8).perplexity() for protocol in PROTOCOLS}
    probability = 1 / 16 * 3 / 32 * 3 / 64 * 1 / 2  # of 2 + 2 + 3 + 1 tokens
    assert got["mdlm"] == pytest.approx(probability ** (-1 / 8), rel=1e-5)
    each = [32 ** (1 / 3), (64 / 3) ** (1 / 3), (256 / 3) ** (1 / 5), 64 ** (1 / 3), 8 / 3]
    assert got["hf"] == pytest.approx(sum(each) / 5, rel=1e-5)
    assert got["cosmos"] == pytest.approx(sum(sorted(each)[:4]) / 4, rel=1e-5)  # of five texts the worst goes


def test_cosmos_leaves_out_a_twentieth_at_each_end(toy):
    texts = ["b", "a <eos> a b"] + ["a b"] * 18  # 8/3, the fourth root of 32, 18 times 2
    found = score(texts, toy, "cosmos", max_tokens=8).perplexity()
    assert found == pytest.approx((32 ** (1 / 4) + 17 * 2) / 18, rel=1e-5)
    values = np.random.default_rng(0).exponential(3, 1_000)
    trimmed = trim_mean(np.exp(values), 0.05)
    assert PROTOCOLS["cosmos"].summary(2 * values, np.full(1_000, 2)) == pytest.approx(trimmed, rel=1e-12)


@pytest.mark.parametrize(
    ("texts", "first", "last"),
    [(1, 1, 1), (2, 1, 1), (19, 1, 18), (20, 2, 19), (30, 2, 28), (64, 4, 60), (99, 5, 94), (100, 6, 95)],
)
def test_cosmos_keeps_what_its_evaluator_keeps(texts, first, last):
    """Of perplexities 1, 2, … those from ⌊0.05 n⌋ up to ⌊0.95 n⌋, counted from 0: 57 of 64."""
    values = np.random.default_rng(0).permutation(np.arange(1, texts + 1))
    found = PROTOCOLS["cosmos"].summary(np.log(values), np.ones(texts))
    assert found == pytest.approx((first + last) / 2, rel=1e-12)


def test_cosmos_is_the_published_slice_for_every_number_of_texts():
    values = np.random.default_rng(1).exponential(3, 300)
    for n in range(2, 301):
        kept = sorted(np.exp(values[:n]))[int(0.05 * n) : int(0.95 * n)]
        assert PROTOCOLS["cosmos"].summary(values[:n], np.ones(n)) == pytest.approx(np.mean(kept), rel=1e-12)


def test_likelihoods_of_which_no_perplexity_can_be_made_are_refused(toy, monkeypatch):
    with torch.no_grad():
        kept = toy.model.lm_head.weight.clone()
        toy.model.lm_head.weight.mul_(1e4)
    try:
        with pytest.raises(InputError, match="its perplexity is not finite"):
            score(["a b a"], toy, max_tokens=8)
    finally:
        toy.model.lm_head.weight.data.copy_(kept)


@pytest.mark.parametrize("protocol", ["hf", "cosmos"])
def test_a_start_token_counts_towards_the_longest_text(toy, protocol):
    assert score(["a b a b a b a b a"], toy, protocol, max_tokens=4).count_T.tolist() == [3]
    assert score(["a b a b a b a b a"], toy, "mdlm", max_tokens=4).count_T.tolist() == [3]
    score(["a b " * 20], toy, protocol, max_tokens=toy.positions)


def test_hf_is_the_mean_of_the_perplexities_that_transformers_own_loss_gives(folder, scorer):
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    each = []
    for ids in scorer.tokens([text for text in TEXTS if text], 11):
        started = torch.tensor([[0, *ids.tolist()]])
        with torch.no_grad():
            each.append(math.exp(model(started, labels=started).loss))
    assert score(TEXTS, scorer, "hf", max_tokens=12).perplexity() == pytest.approx(sum(each) / 6, rel=1e-5)


def test_a_scorer_without_a_start_token_is_refused_where_one_is_needed(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "scorer")
    settings = json.loads((tmp_path / "scorer" / "tokenizer_config.json").read_text())
    del settings["bos_token"]
    (tmp_path / "scorer" / "tokenizer_config.json").write_text(json.dumps(settings))
    bare = Scorer(str(tmp_path / "scorer"), torch.device("cpu"))
    with pytest.raises(InputError, match="has no start token, which --protocol hf puts before every text"):
        score(TEXTS, bare, "hf", max_tokens=12)
    assert score(TEXTS, bare, "mdlm", max_tokens=12).perplexity() > 1


# Tokens


def test_the_beginning_of_a_long_text_gives_the_tokens_of_the_whole(gpt2):
    """The tokenizer is a byte-level BPE here."""
    scorer = Scorer(str(gpt2), torch.device("cpu"))
    seen = []
    plain, scorer._ids = scorer._ids, lambda texts: (seen.append(max(map(len, texts))), plain(texts))[1]
    for text in ["the old captain found a letter, " * 300, " " * 5_000 + "rain", "a" * 3_000, "né " * 2_000, "brief"]:
        whole = scorer.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        assert scorer.tokens([text], 16)[0].tolist() == whole[:16]
    assert max(seen) < 5_000


def test_tokens_that_spell_many_characters_are_read_as_far_as_needed(scorer):
    words = ["z" * 100] * 5 + ["cat"] + ["z" * 100] * 50
    assert scorer.tokens([" ".join(words)], 12)[0].tolist() == [1] * 5 + [4] + [1] * 6


@pytest.mark.parametrize(("length", "on", "said"), [(16, 2, True), (16, 1, False), (15, 3, False)])
def test_texts_that_go_on_where_the_scorer_has_only_seen_ends_are_noted_once(gpt2, length, on, said):
    """Its 16 positions ended with EOS in training; two of three texts are most of them, one is not."""
    notes = []
    scorer = Scorer(str(gpt2), torch.device("cpu"), notes.append)
    rows = [np.full(length, 5, np.int32) for _ in range(3)]
    for row in rows[on:]:
        row[-1] = scorer.eos_id
    for _ in range(2):
        scorer.token_nll(rows, 4)
    assert len(notes) == said
    assert all("2 of 3 texts go on at the last of the 16 positions" in note for note in notes)
    assert all("--max-tokens 15` leaves that token out" in note for note in notes)


def test_nothing_is_noted_of_a_scorer_from_elsewhere(folder):
    notes = []
    Scorer(str(folder), torch.device("cpu"), notes.append).token_nll([np.full(12, 5, np.int32)], 4)
    assert notes == []


# Bootstrap intervals


def test_an_interval_of_a_mean_is_that_of_the_central_limit_theorem():
    values = np.random.default_rng(3).normal(10, 2, 4_000)
    low, high = bootstrap(lambda chosen: values[chosen].mean(), len(values), resamples=1_000, seed=0)
    error = values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_a_single_text_has_no_interval():
    assert bootstrap(lambda chosen: 3.0, 1, resamples=10, seed=0) is None


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


def test_diversity_is_that_of_counting_tuples():
    draw = np.random.default_rng(0)
    rows = [draw.integers(6, size=draw.integers(0, 30)).astype(np.int32) * 1_000_003 for _ in range(50)]
    expected = 1.0
    for n in (2, 3, 4):
        grams = [tuple(row[i : i + n].tolist()) for row in rows for i in range(len(row) - n + 1)]
        expected *= len(set(grams)) / len(grams)
    assert diversity(rows) == pytest.approx(expected, rel=1e-12)
    assert diversity([]) == diversity([[], []]) == 0


def test_ngrams_never_cross_texts():
    assert list(ngrams([1, 2, 3], 2)) == [(1, 2), (2, 3)]
    assert list(ngrams([1, 2], 3)) == []
    # Joined, the two rows would hold the pair (4, 1) too.
    assert diversity([[1, 2, 3, 4], [1, 2, 3, 4]]) == pytest.approx(1 / 8, rel=1e-12)
    assert diversity([[1, 2, 3]]) == 0  # no 4-grams


def test_the_copied_share_counts_ngrams_with_their_repetitions():
    training = [[9, 1, 2, 3, 9], [4, 5]]
    assert copied_shares([[[1, 2, 3, 4, 5]]], training, n=2) == [3 / 4]  # 12, 23, 45 of 12, 23, 34, 45
    assert copied_shares([[[1, 2, 1, 2]]], training, n=2) == [2 / 3]  # 12 twice, 21 never
    assert copied_shares([[[1, 2, 3], [7, 8, 9]]], training, n=3) == [1 / 2]
    assert copied_shares([[[3, 9, 4]]], training, n=3) == [0]  # only across training rows
    assert copied_shares([[[1, 2]]], training, n=3) == [0]
    assert copied_shares([iter([list(range(8))])], iter([list(range(-1, 9))])) == [1]  # 8 is the default
    assert copied_shares([[[1, 2]], [[2, 9], [8, 9]], []], iter(training), n=2) == [1, 0, 0]  # training is read once
