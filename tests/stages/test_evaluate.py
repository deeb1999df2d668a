"""`ldlm evaluate` as a whole: what a result says, seeds, the order of real and broken text, files of every kind."""

import json
import math
import random
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from ldlm import files
from ldlm.config import EvaluateConfig, PretrainConfig
from ldlm.errors import InputError
from ldlm.evaluation import metrics, samples
from ldlm.evaluation.scorer import Scorer
from ldlm.features import text
from ldlm.features.store import FeatureStore
from ldlm.hub import load_tokenizer
from ldlm.progress import Progress, Task
from ldlm.stages import evaluate, pretrain_encoder

FIGURES = ("gen_ppl", "entropy", "diversity")


def write(path, texts, **fields):
    """A jsonl file of texts, with the i-th value of each field beside the i-th text."""
    rows = [{"text": text, **{name: values[i] for name, values in fields.items()}} for i, text in enumerate(texts)]
    path.write_text(files.dump_jsonl(rows), encoding="utf-8")
    return path


@pytest.fixture
def draws(corpus, tmp_path):
    """Three files of 30 texts each, as three seeds of one model would write them."""
    lines = corpus.read_text(encoding="utf-8").splitlines()
    folder = tmp_path / "draws"
    folder.mkdir()
    return [
        write(folder / f"seed-{i}.jsonl", lines[30 * i : 30 * i + 30], seed=range(10**6 * i, 10**6 * i + 30))
        for i in range(3)
    ]


@pytest.fixture
def call(succeed, gpt2):
    """`ldlm evaluate --json` with the small scorer and texts of 16 tokens."""
    return lambda *arguments: succeed("evaluate", *arguments, "--scorer", gpt2, "--max-tokens", 16)


# ----------------------------------------------------------------------------------------------------------------------
# What a result says


@pytest.mark.parametrize("protocol", ["mdlm", "hf", "cosmos"])
def test_a_result_names_all_that_it_depends_on(call, draws, gpt2, protocol):
    found = call(draws[1], "--protocol", protocol, "--resamples", 200, "--seed", 7)
    assert found["protocol"] == protocol
    weights = {name: files.sha256_file(gpt2 / name) for name in ("config.json", "model.safetensors")}
    assert (found["scorer"], found["scorer_revision"]) == (str(gpt2), f"sha256:{files.sha256_json(weights)}")
    assert (found["dtype"], found["max_tokens"], found["seeds"]) == ("float32", 16, [1_000_000, 1_000_029])
    assert (found["num_texts"], found["texts_scored"]) == (30, 30)
    lengths = [len(ids) for ids in Scorer(str(gpt2), torch.device("cpu")).tokens(samples.read(draws[1]).texts, 100)]
    assert found["tokens"] == sum(min(16, length) for length in lengths)
    unscored = 1 if protocol == "mdlm" else 0  # the first one; a start token is among the 16
    assert found["tokens_scored"] == sum(min(15, length - unscored) for length in lengths)
    assert found["bootstrap"] == {"level": 0.95, "resamples": 200, "seed": 7}
    for name in ("gen_ppl", "entropy"):
        low, high = found["intervals"][name]
        assert low < found[name] < high


def test_the_revision_is_that_of_the_weights(gpt2, other_gpt2, call, succeed, draws):
    one = call(draws[0])["scorer_revision"]
    assert one == call(draws[1])["scorer_revision"]
    assert one != succeed("evaluate", draws[0], "--scorer", other_gpt2, "--max-tokens", 16)["scorer_revision"]


def with_perplexity(value):
    """Every mapping in a JSON value that states a perplexity as a number."""
    if isinstance(value, dict):
        if any(isinstance(value.get(name), (int, float)) for name in ("gen_ppl", "perplexity")):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from with_perplexity(item)


def test_perplexity_never_stands_without_entropy_and_diversity(call, ldlm, draws, gpt2):
    for arguments in ((draws[0],), draws, (*draws, "--seeds"), (draws[0], "--reference", draws[1])):
        found = call(*arguments)
        stated = list(with_perplexity(found))
        assert len(stated) == sum("seed-" in str(argument) for argument in arguments)
        assert all({"entropy", "diversity"} <= set(figures) for figures in stated)
        if "over_seeds" in found:
            assert set(FIGURES) <= set(found["over_seeds"])

        shown = ldlm("evaluate", *arguments, "--scorer", gpt2, "--max-tokens", 16).stdout.splitlines()
        assert re.match(r"\s+gen. ppl\s+entropy\s+diversity\s+texts", shown[0])
        rows = [line for line in shown[2:] if re.search(r"\d$", line)]
        assert len(rows) == len(stated) + ("--seeds" in arguments)
        numbers = [re.sub(r"\[.*?\]|± \S+", "", row).split()[-4:] for row in rows]
        assert all(float(number.replace(",", "")) > 0 for row in numbers for number in row)


def test_a_file_may_be_compared_with_itself(call, draws):
    found = call(draws[0], "--reference", draws[0])
    assert (found["role"], found["reference"]["role"]) == ("texts", "reference")
    assert found["gen_ppl"] == found["reference"]["gen_ppl"]


def test_texts_that_can_not_be_scored_are_counted_and_said(call, ldlm, tmp_path, gpt2):
    path = write(tmp_path / "some.jsonl", ["rain", "", "The old captain found a letter.", ""])
    found = call(path)
    assert (found["num_texts"], found["texts_scored"]) == (4, 2)
    shown = ldlm("evaluate", path, "--scorer", gpt2, "--max-tokens", 16)
    assert "2 texts have no token to score; perplexity is that of the others" in shown.stdout


# ----------------------------------------------------------------------------------------------------------------------
# Seeds


def test_seeds_give_the_mean_and_the_sample_standard_deviation(call, draws):
    found = call(*draws, "--seeds")
    each = [call(path) for path in draws]
    assert (found["over_seeds"]["files"], found["over_seeds"]["texts_each"]) == (3, 30)
    for name in FIGURES:
        values = [one[name] for one in each]
        assert len(set(values)) == 3
        assert found["over_seeds"][name]["mean"] == pytest.approx(statistics.mean(values))
        assert found["over_seeds"][name]["std"] == pytest.approx(statistics.stdev(values))
    assert [one["gen_ppl"] for one in found["files"]] == [one["gen_ppl"] for one in each]


def test_a_folder_stands_for_the_texts_in_it_and_a_reference_is_no_seed(call, draws, corpus):
    (draws[0].parent / "notes.md").write_text("not a text")
    by_folder = call(draws[0].parent, "--seeds", "--reference", corpus)
    assert by_folder["over_seeds"] == call(*draws, "--seeds")["over_seeds"]
    assert by_folder["reference"]["num_texts"] == by_folder["files"][0]["num_texts"]


def test_a_reference_within_the_folder_of_the_seeds_is_no_seed(call, refuse, draws, corpus, gpt2):
    alone = call(*draws, "--seeds")["over_seeds"]
    real = write(draws[0].parent / "real.jsonl", corpus.read_text(encoding="utf-8").splitlines()[90:120])
    found = call(draws[0].parent, "--seeds", "--reference", real)
    assert (found["over_seeds"], found["reference"]["file"]) == (alone, str(real))
    planned = call(draws[0].parent, "--seeds", "--reference", real, "--dry-run")
    assert list(planned["texts"]) == [*map(str, draws), str(real)]
    by_name = refuse("evaluate", *draws, real, "--seeds", "--reference", real, "--scorer", gpt2)
    assert f"{real} is the reference, and so no seed of a model; leave it out of the files" in by_name
    for path in draws:
        path.unlink()
    assert f"{real.parent} holds no .jsonl" in refuse("evaluate", real.parent, "--seeds", "--reference", real)


def test_real_texts_are_no_seed_of_what_a_model_drew(refuse, draws, gpt2):
    decoded = {"boundaries": {"tokens": [], "spaced": False}, "clean_up": False}
    for path in draws[:2]:
        samples.write_record(path, "samples", {"config": {"sampler": {"steps": 2}}, **decoded})
    samples.write_record(draws[2], "texts", decoded)
    message = f"{draws[2]} has texts that ldlm sample did not draw, unlike {draws[0]}; leave one out"
    assert message in refuse("evaluate", *draws, "--seeds", "--scorer", gpt2)
    assert message in refuse("evaluate", draws[0].parent, "--seeds", "--source", "stories")


def test_files_that_were_drawn_with_other_settings_are_no_seeds(trained, succeed, refuse, gpt2, tmp_path):
    for name, settings in (("a", ("--seed", 0)), ("b", ("--seed", 1)), ("c", ("--seed", 2, "--temperature", 0.5))):
        drawn = ("sample", "--run", trained, "--num-samples", 3, "--steps", 2, "--device", "cpu", *settings)
        succeed(*drawn, "--output", tmp_path / f"{name}.jsonl")
    a, b, c = (tmp_path / f"{name}.jsonl" for name in "abc")
    common = ("--seeds", "--scorer", gpt2)
    assert succeed("evaluate", a, b, *common)["over_seeds"]["files"] == 2
    (tmp_path / "a.jsonl.meta.json").write_text('{"made": "by somebody else"}')
    assert succeed("evaluate", a, b, *common)["over_seeds"]["files"] == 2
    assert "differ in more than the seed (sampler.temperature: 0.0 -> 0.5)" in refuse("evaluate", b, c, *common)


def test_files_of_other_prompts_or_weights_are_no_seeds(refuse, succeed, gpt2, tmp_path):
    def drawn(number, guidance=None, **record):
        path = write(tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl", [f"The old captain found {number} boats."])
        prompting = {} if guidance is None else {"prompting": {"prompt_guidance": guidance}}
        decoded = {"boundaries": {"tokens": [], "spaced": False}, "clean_up": False}
        samples.write_record(path, "samples", {"config": {"sampler": {"steps": 2}, **prompting}, **decoded, **record})
        return path

    rain, sea = ({"prompts": {"count": 1, "sha256": name}} for name in ("rain", "sea"))
    plain, first = drawn(1), drawn(2, 1.0, **rain)
    common = ("--seeds", "--scorer", gpt2)
    assert succeed("evaluate", first, drawn(3, 1.0, **rain), *common)["over_seeds"]["files"] == 2
    assert "prompts: none -> " in refuse("evaluate", plain, first, *common)
    assert "prompts.sha256: rain -> sea" in refuse("evaluate", first, drawn(4, 1.0, **sea), *common)
    assert "prompt_guidance: 1.0 -> 2.0" in refuse("evaluate", first, drawn(5, 2.0, **rain), *common)
    exact, rounded = (drawn(number, weights_precision=how) for number, how in ((6, "fp32"), (7, "bf16")))
    assert "weights_precision: fp32 -> bf16" in refuse("evaluate", exact, rounded, *common)
    assert succeed("evaluate", plain, rounded, *common)["over_seeds"]["files"] == 2  # of an earlier version


def test_the_share_of_eight_grams_that_the_training_text_has(call, ldlm, store, gpt2, unseen, tmp_path):
    """By hand: rows of the store are copies but where a word was put into them, and reversed words are none."""
    rows = FeatureStore(store).split("train").tokens[:6].tolist()
    tokenizer = load_tokenizer(str(store / "tokenizer"))
    copies, strange = tokenizer.batch_decode(rows), [" ".join(reversed(line.split())) for line in unseen[:6]]
    assert tokenizer(copies, add_special_tokens=False)["input_ids"] == rows
    found = call(
        write(tmp_path / "copies.jsonl", copies),
        write(tmp_path / "half.jsonl", [*copies, *strange]),
        "--reference", write(tmp_path / "strange.jsonl", strange), "--training", store,
    )  # fmt: skip
    copied, half = (one["copied_8grams"] for one in found["files"])
    assert (copied, found["reference"]["copied_8grams"]) == (1.0, 0.0)
    length = len(rows[0])
    others = sum(max(0, min(len(row), length) - 7) for row in tokenizer(strange, add_special_tokens=False)["input_ids"])
    assert half == pytest.approx(6 * (length - 7) / (6 * (length - 7) + others))
    seeds = [write(tmp_path / f"{n}.jsonl", copies, seed=range(6 * n, 6 * n + 6)) for n in (1, 2)]
    shown = ldlm("evaluate", *seeds, "--seeds", "--training", store, "--scorer", gpt2).output
    assert "copied 8-grams" in shown and "100.00% ± 0.00%" in shown


def test_json_lines_by_another_name_are_not_scored_as_prose(call, ldlm, draws, gpt2):
    path = draws[0].rename(draws[0].with_suffix(".txt"))
    found, by_name = call(path), call(draws[1])
    assert (found["num_texts"], found["seeds"]) == (30, [0, 29])
    assert found["tokens"] < 2 * by_name["tokens"]
    shown = ldlm("evaluate", path, "--scorer", gpt2, "--max-tokens", 16)
    assert f"{path} holds JSON, of which the field 'text' is read" in shown.stderr


def test_what_is_no_set_of_seeds_is_refused(refuse, draws, gpt2, tmp_path):
    def line(*paths):
        return refuse("evaluate", *paths, "--seeds", "--scorer", gpt2, "--max-tokens", 16)

    assert "and there is one; give more" in line(draws[0])
    assert "and there is one; give more" in line(draws[0], "--reference", draws[1])
    copy = write(tmp_path / "copy.jsonl", [json.loads(row)["text"] for row in draws[1].read_text().splitlines()])
    assert f"{draws[1]} and {copy} hold the same texts" in line(*draws, copy)
    assert "hold the same texts" in line(draws[0], draws[0])
    assert "the seeds have 30, 2 texts" in line(draws[0], write(tmp_path / "two.jsonl", ["one of two", "two of two"]))
    (tmp_path / "empty").mkdir()
    assert "holds no .jsonl, .ndjson, .jsonlines, .parquet or .txt file" in line(tmp_path / "empty")


# ----------------------------------------------------------------------------------------------------------------------
# The order of real and broken text


@pytest.fixture(scope="module")
def trained_scorer(corpus, tmp_path_factory):
    """A GPT-2 that has learned something of the corpus."""
    config = PretrainConfig(
        data=(str(corpus),), layers=2, width=48, heads=2, vocab_size=320, positions=32, steps=150, batch_size=16,
        lr=3e-3, device="cpu",
    )  # fmt: skip
    return pretrain_encoder.run(config, tmp_path_factory.mktemp("scorer") / "scorer").path


@pytest.mark.parametrize("protocol", ["mdlm", "hf", "cosmos"])
def test_real_shuffled_and_unigram_text_come_out_in_this_order(trained_scorer, corpus, unseen, tmp_path, protocol):
    """And text that repeats one sentence has the lowest perplexity: its diversity tells."""
    draw = random.Random(0)
    words = [word for text in corpus.read_text(encoding="utf-8").splitlines() for word in text.split()]
    kinds = {
        "repeated": [unseen[0]] * 100,
        "real": unseen,
        "shuffled": [" ".join(draw.sample(text.split(), len(text.split()))) for text in unseen],
        "unigram": [" ".join(draw.choices(words, k=len(text.split()))) for text in unseen],
        "characters": ["".join(draw.sample(text, len(text))) for text in unseen],
    }
    paths = [write(tmp_path / f"{name}.jsonl", texts) for name, texts in kinds.items()]
    config = EvaluateConfig(scorer=str(trained_scorer), protocol=protocol, max_tokens=32, resamples=100)
    found = {name: one.scores for name, one in zip(kinds, evaluate.run(config, paths), strict=True)}
    order = sorted(kinds, key=lambda name: found[name].gen_ppl)
    assert order == ["repeated", "real", "shuffled", "unigram", "characters"]
    assert found["real"].intervals["gen_ppl"][1] < found["shuffled"].intervals["gen_ppl"][0]
    assert found["repeated"].diversity < found["real"].diversity / 100
    assert found["real"].entropy == pytest.approx(found["shuffled"].entropy, rel=0.1)


@dataclass
class Counted(Progress):
    """Progress that keeps, for each task by name, its total and how much of it was reported."""

    tasks: dict[str, list[int]] = field(default_factory=dict)

    def task(self, name, total, unit, done=0):
        self.tasks[name] = [total, done]
        return CountedTask(self.tasks[name])


@dataclass
class CountedTask(Task):
    units: list[int]

    def advance(self, count, **figures):
        self.units[1] += count


@pytest.mark.parametrize("protocol", ["mdlm", "hf", "cosmos"])
def test_progress_ends_with_the_last_text_where_texts_are_blank_or_known(gpt2, corpus, tmp_path, protocol):
    texts = corpus.read_text(encoding="utf-8").splitlines()[:4]
    paths = [write(tmp_path / "a.jsonl", [*texts, "", " ", "a"]), write(tmp_path / "b.jsonl", ["", ""])]
    config = EvaluateConfig(scorer=str(gpt2), protocol=protocol, max_tokens=16, resamples=10)
    for _ in range(2):  # the second time they are in the cache
        progress = Counted()
        evaluate.run(config, paths, cache=tmp_path / "cache", progress=progress)
        assert progress.tasks == {"score": [9, 9]}


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_progress_of_mauve_leaves_out_a_set_of_blank_texts(gpt2, corpus, tmp_path):
    pytest.importorskip("mauve", reason="the extra ldlm[mauve] is not installed")
    texts = corpus.read_text(encoding="utf-8").splitlines()[:40]
    paths = [write(tmp_path / "a.jsonl", texts[:20]), write(tmp_path / "b.jsonl", [""] * 20)]
    reference, progress = write(tmp_path / "real.jsonl", texts[20:]), Counted()
    config = EvaluateConfig(scorer=str(gpt2), max_tokens=16, resamples=10)
    evaluate.run(config, paths, reference, with_mauve=True, progress=progress)
    assert progress.tasks == {"score": [60, 60], "mauve": [40, 40]}


@pytest.mark.parametrize("few", ["a", "real"])
def test_too_few_texts_for_mauve_are_refused_before_any_is_scored(gpt2, corpus, tmp_path, few):
    pytest.importorskip("mauve", reason="the extra ldlm[mauve] is not installed")
    texts = corpus.read_text(encoding="utf-8").splitlines()[:20]
    a, real = (write(tmp_path / f"{name}.jsonl", texts[name == few :]) for name in ("a", "real"))
    config, progress = EvaluateConfig(scorer=str(gpt2), max_tokens=16, resamples=10), Counted()
    with pytest.raises(InputError, match=rf"at least 20 texts on each side, and the texts of .*{few}.jsonl are 19"):
        evaluate.run(config, [a], real, with_mauve=True, progress=progress)
    assert progress.tasks == {}


# ----------------------------------------------------------------------------------------------------------------------
# Files of every kind


def test_plain_text_jsonl_and_parquet_of_the_same_texts_give_the_same(call, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["The old captain found a letter.", "Mrs Brontë lost rain."]
    (tmp_path / "t.txt").write_text("\n".join(texts) + "\n\n", encoding="utf-8")
    pq.write_table(pa.table({"text": texts}), tmp_path / "t.parquet")
    found = [call(path) for path in (tmp_path / "t.txt", tmp_path / "t.parquet", write(tmp_path / "t.jsonl", texts))]
    for one in found:
        del one["file"]
    assert found[0] == found[1] == found[2]


def test_one_line_is_a_text_which_has_no_intervals(call, ldlm, draws, gpt2, tmp_path):
    (tmp_path / "one.txt").write_text("The old captain found a letter")  # without an end of line
    found = call(tmp_path / "one.txt")
    assert found["num_texts"] == 1
    assert found["intervals"] == {"gen_ppl": None, "entropy": None}
    two = call(write(tmp_path / "two.jsonl", ["The old captain found a letter", ""]))  # one with a token to score
    assert two["intervals"]["gen_ppl"] is None
    assert two["intervals"]["entropy"] is not None
    shown = ldlm("evaluate", tmp_path / "one.txt", draws[0], "--scorer", gpt2, "--max-tokens", 16).stdout
    assert "diversity is that of the first text of each" in shown


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", b'{"texts": ["one", "two"]}', "line 1 has no text in 'text' (fields: texts)"),
        ("t.jsonl", b'{"text": "a \\ud800 b"}\n', r"line 1 holds half a character, '\ud800'"),
        ("t.jsonl", b'{"text": ""}\n', "nothing to score"),
        ("t.txt", b"\n \n", "holds no text"),
        ("t.npy", np.random.default_rng(0).bytes(999), "is an archive or binary"),
    ],
)
def test_files_that_hold_no_texts_are_named(refuse, gpt2, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refuse("evaluate", tmp_path / name, "--scorer", gpt2, "--max-tokens", 16)


@pytest.mark.parametrize("tokens", [[], [1, 2, "3"], [1, 2, -3], [2**40], "1 2 3", [[1], [2]], [1.5, 2], [True], None])
def test_tokens_that_are_none_are_left_to_the_scorer(call, tmp_path, tokens):
    texts = ["The old captain found a letter.", "A young teacher lost a boat."]
    path = write(tmp_path / "t.jsonl", texts, tokens=[tokens, [1, 2, 3]])
    found, without = call(path), call(write(tmp_path / "without.jsonl", texts))
    assert found == {**without, "file": found["file"]}
    assert found["tokens_from"] == "scorer"


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ([1, -100, 2], "tokens of text 2 are no token ids (-100)"),
        ([1, "2"], "tokens of text 2 are no token ids ('2')"),
        ("1 2 3", "tokens of text 2 are no token ids ('1 2 3')"),
        ([], "text 2 has no tokens"),
        (None, "text 2 has no tokens"),
        ([1, 2], None),
    ],
)
def test_whose_tokens_are_counted_is_said(ldlm, gpt2, tmp_path, tokens, why):
    texts = ["The old captain found a letter.", "A young teacher lost a boat.", "rain and sun"]
    path = write(tmp_path / "t.jsonl", texts, tokens=[[1, 2, 3], tokens, [1, 2]])
    shown = ldlm("evaluate", path, "--scorer", gpt2, "--max-tokens", 16)
    notes = [f"{path}: {why}, so entropy and diversity count the scorer's tokens"] if why else []
    assert [line for line in shown.stderr.splitlines() if "token" in line] == notes
    whose = "the scorer's tokens" if why else "the tokens in the file"
    assert f"entropy and diversity count {whose}" in shown.stdout.splitlines()
    without = ldlm("evaluate", write(tmp_path / "none.jsonl", texts), "--scorer", gpt2, "--max-tokens", 16)
    assert "token" not in without.stderr
    assert "entropy and diversity count the scorer's tokens" in without.stdout.splitlines()


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_blank_text_has_no_tokens_and_the_others_keep_theirs(call, tmp_path, blank):
    path = write(tmp_path / "t.jsonl", ["The old captain found a letter.", blank], tokens=[[1, 2, 3], []])
    found = call(path)
    assert (found["tokens"], found["tokens_from"]) == (3, "file")


def as_parquet(path, **types):
    """A parquet file, beside a jsonl file, of the same rows; `types` are those of columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    arrays = {name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    pq.write_table(pa.table(arrays), path.with_suffix(".parquet"), row_group_size=1)
    return path.with_suffix(".parquet")


@pytest.mark.parametrize(
    "tokens",
    [
        [[1, 2, 3], [4, 5]], [[1, 2, 3], []], [None, [1, 2, 3]], [[1, 2, -3], [1]], [[2**40], [1]], [[1, None], [2]],
        ["1 2", "3"], [[1.0, 2.0], [3.0]], [[True], [False]], [[[1], [2]], [[3]]], [["1"], ["2"]], [{"a": 1}] * 2,
        [1, 2],
    ],
)  # fmt: skip
def test_parquet_counts_the_tokens_that_json_lines_count(call, tmp_path, tokens):
    texts = ["The old captain found a letter.", "A young teacher lost a boat."]
    path = write(tmp_path / "t.jsonl", texts, tokens=tokens, seed=[7, 5])
    lines, found = call(path), call(as_parquet(path))
    assert found == {**lines, "file": found["file"]}
    assert found["seeds"] == [5, 7]
    assert found["tokens_from"] == ("file" if tokens == [[1, 2, 3], [4, 5]] else "scorer")


@pytest.mark.parametrize("kind", ["int32", "uint16", "large", "fixed"])
def test_tokens_of_parquet_may_be_integers_of_any_size(call, tmp_path, kind):
    import pyarrow as pa

    whole = {"large": pa.large_list(pa.int64()), "fixed": pa.list_(pa.int32(), 3)}
    path = write(tmp_path / "t.jsonl", ["The old captain", "a letter"], tokens=[[1, 2, 3], [4, 5, 4]])
    found = call(as_parquet(path, tokens=whole.get(kind) or pa.list_(pa.type_for_alias(kind))))
    assert (found["tokens"], found["tokens_from"]) == (6, "file")
    assert found["entropy"] == pytest.approx((math.log(3) + math.log(3) - 2 / 3 * math.log(2)) / 2)


def test_a_column_of_its_own_is_measured_by_its_own_tokens(call, tmp_path):
    """A continuation by its own, and not by those of the whole text, which begin with the prompt's."""
    texts, tokens = ["The old captain found", "A young teacher lost"], [[1, 2, 3, 4], [1, 5, 6, 7, 8]]
    apart = {"continuation": ["found", "lost"], "continuation_tokens": [[4], [7, 8]], "prompt": ["The old", "A young"]}
    path = write(tmp_path / "texts.jsonl", texts, tokens=tokens, **apart)
    alone = write(tmp_path / "alone.jsonl", apart["continuation"], tokens=apart["continuation_tokens"])
    own = call(alone)
    for one in (path, as_parquet(path)):
        found = call(one, "--text-column", "continuation")
        assert found == {**own, "file": found["file"]}
        assert (found["tokens"], found["tokens_from"]) == (3, "file")
        assert call(one)["tokens"] == 9
        assert call(one, "--text-column", "prompt")["tokens_from"] == "scorer"  # there are no `prompt_tokens`


def test_a_column_that_some_files_lack_is_their_text(call, ldlm, refuse, draws, gpt2, tmp_path):
    real, common = draws[1], ("--scorer", gpt2, "--max-tokens", 16)
    rows = [{"generated_text": json.loads(row)["text"]} for row in draws[0].read_text().splitlines()]
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text(files.dump_jsonl(rows))
    for reference in (real, as_parquet(real)):
        found = call(theirs, "--reference", reference, "--text-column", "generated_text")
        alone = call(draws[0], "--reference", reference)
        for one, other in ((found, alone), (found["reference"], alone["reference"])):
            assert [one[name] for name in FIGURES] == [other[name] for name in FIGURES]
    shown = ldlm("evaluate", theirs, "--reference", real, "--text-column", "generated_text", *common)
    assert f"{real} has no 'generated_text', and its 'text' is read" in shown.stderr.splitlines()
    assert "(fields: generated_text); set --text-column" in refuse("evaluate", theirs, "--reference", real, *common)
    for misspelt in ([real], [real, "--reference", real]):
        assert "has no text in 'generated'" in refuse("evaluate", *misspelt, "--text-column", "generated", *common)
    other = tmp_path / "other.jsonl"
    other.write_text('{"story": "rain", "id": 3}\n')
    line = refuse("evaluate", theirs, other, "--reference", real, "--text-column", "generated_text", *common)
    assert f"neither 'generated_text' nor 'text' is in {other} (fields: story, id); rename the field" in line


MEASURED = """
import json, resource, sys
from pathlib import Path
from ldlm.config import EvaluateConfig
from ldlm.stages import evaluate
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
config = EvaluateConfig(scorer=sys.argv[1], max_tokens=16, batch_size=512, resamples=100, device="cpu")
(found,) = evaluate.run(config, [Path(sys.argv[2])])
found = found.to_json()
found["grown"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(json.dumps(found))
"""


def measured(scorer, path):
    """The result of a process of its own, with the bytes by which it grew."""
    done = subprocess.run([sys.executable, "-c", MEASURED, scorer, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_hundred_megabytes_in_one_line(gpt2, tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("The old captain found a letter in the harbour. " * 2_200_000)
    found = measured(gpt2, path)
    assert (found["num_texts"], found["tokens"]) == (1, 16)
    assert found["grown"] < 600e6


@pytest.mark.slow
def test_a_hundred_megabytes_in_many_lines(gpt2, tmp_path):
    path = tmp_path / "many.txt"
    line = "The old captain found a letter in the harbour, and nobody remembered the winter of 1847 as ever. " * 20
    with open(path, "w") as file:
        file.writelines(f"{line}{i}\n" for i in range(50_000))
    found = measured(gpt2, path)
    assert found["num_texts"] == 50_000
    assert found["grown"] < 800e6


# ----------------------------------------------------------------------------------------------------------------------
# Boundaries: texts of one tokenizer beside those of another (Table 6)


def rows_of(tokenizer, documents):
    """Two documents to a row, as `text.pack` wraps and ends them, decoded with special tokens kept."""
    bos, eos = text.special_tokens(tokenizer)
    ids = [tokenizer(document, add_special_tokens=False)["input_ids"] for document in documents]
    rows = [[bos, *one, eos, *two, eos] for one, two in zip(ids[::2], ids[1::2], strict=True)]
    return [metrics.decode_tokens(tokenizer, np.array([row]), clean_up=True)[0] for row in rows]


@pytest.fixture(scope="module")
def two_tokenizers(trained_scorer, bert, tmp_path_factory):
    """The same rows as BERT and as GPT-2 write them, each with a record of its boundaries."""
    documents = [f"{who} {did} {what}." for who in ("he", "the captain", "nobody") for did in ("found", "lost")
                 for what in ("rain", "a letter", "three boats", "the road")]  # fmt: skip
    paths = {}
    for name, folder in (("gpt2", trained_scorer), ("bert", bert)):
        tokenizer = load_tokenizer(str(folder))
        paths[name] = write(tmp_path_factory.mktemp(name) / "texts.jsonl", rows_of(tokenizer, documents))
        samples.write_record(paths[name], "texts", samples.record_of(tokenizer, clean_up=True))
    return paths


@pytest.mark.parametrize("protocol", ["mdlm", "hf", "cosmos"])
def test_rows_cost_alike_whatever_tokenizer_they_come_from(two_tokenizers, trained_scorer, protocol):
    def perplexities(how):
        config = EvaluateConfig(scorer=str(trained_scorer), protocol=protocol, boundaries=how, max_tokens=32)
        found = [one.scores for one in evaluate.run(config, list(two_tokenizers.values()))]
        assert {one.boundaries for one in found} == {how}
        assert [one.boundary_tokens for one in found] == [["<|endoftext|>"], ["[CLS]", "[SEP]"]]
        return [one.gen_ppl for one in found]

    for how in ("eos", "drop"):
        gpt2, bert = perplexities(how)
        assert bert == pytest.approx(gpt2, rel=1e-6)
    gpt2, bert = perplexities("text")
    assert abs(bert / gpt2 - 1) > 0.1
    assert gpt2 == perplexities("eos")[0]  # to the bit


def test_boundaries_may_be_named_where_there_is_no_record(two_tokenizers, trained_scorer, succeed, tmp_path):
    common = ("--scorer", trained_scorer, "--max-tokens", 32)
    for name, tokens in (("gpt2", ["<|endoftext|>"]), ("bert", ["[CLS]", "[SEP]"])):
        bare = tmp_path / f"{name}.jsonl"
        bare.write_bytes(two_tokenizers[name].read_bytes())
        recorded = succeed("evaluate", two_tokenizers[name], *common)
        named = succeed("evaluate", bare, "--boundary-tokens", *tokens, *common)
        unknown = succeed("evaluate", bare, *common)
        for figure in FIGURES:
            assert named[figure] == recorded[figure]
        assert (unknown["gen_ppl"] == recorded["gen_ppl"]) == (name == "gpt2")
        assert (recorded["clean_up"], named["clean_up"], named["boundary_tokens"]) == (True, None, tokens)


def test_entropy_counts_boundaries_however_perplexity_does(two_tokenizers, trained_scorer):
    def entropy(how):
        config = EvaluateConfig(scorer=str(trained_scorer), boundaries=how, max_tokens=32)
        found = [one.scores for one in evaluate.run(config, list(two_tokenizers.values()))]
        return [(one.entropy, one.diversity) for one in found]

    assert entropy("eos") == entropy("drop")
    assert entropy("eos")[0] == entropy("eos")[1] == entropy("text")[0] != entropy("text")[1]


# ----------------------------------------------------------------------------------------------------------------------
# Sets of different size, sets with nothing to score, lengths that nobody has given, scorers that are damaged


def test_diversity_is_that_of_equal_numbers_of_texts(call, ldlm, draws, gpt2, tmp_path):
    few = write(tmp_path / "few.jsonl", [json.loads(row)["text"] for row in draws[1].read_text().splitlines()[:12]])
    alone = write(tmp_path / "a.jsonl", [json.loads(row)["text"] for row in draws[0].read_text().splitlines()[:12]])
    for arguments in ((draws[0], few), (draws[0], "--reference", few), (few, draws[0]), (few, "--reference", draws[0])):
        found = call(*arguments)
        both = found.get("files") or [found, found["reference"]]
        assert {one["diversity_texts"] for one in both} == {12}
        by_name = {one["file"]: one for one in both}
        assert by_name[str(draws[0])]["diversity"] == call(alone)["diversity"]
        assert by_name[str(few)]["diversity"] == call(few)["diversity"]
    assert call(draws[0])["diversity_texts"] == 30
    shown = ldlm("evaluate", draws[0], few, "--scorer", gpt2, "--max-tokens", 16).stdout
    assert "diversity is that of the first 12 texts of each" in shown


def test_figures_that_count_the_tokens_of_different_tokenizers_are_not_compared_in_silence(ldlm, draws, gpt2, tmp_path):
    own = write(tmp_path / "own.jsonl", ["a letter"] * 30, tokens=[[5, 6, 7]] * 30)
    shown = [
        ldlm("evaluate", *files, "--scorer", gpt2, "--max-tokens", 16).stdout
        for files in ((own, draws[0]), (draws[0], "--reference", own), (own,), draws)
    ]
    said = "entropy and diversity count the tokens in the file for {}, and the scorer's for {}; they compare"
    assert [said.format(own, draws[0]) in one for one in shown] == [True, True, False, False]
    assert ["of one tokenizer" in one for one in shown] == [True, True, False, False]


def test_a_file_with_nothing_to_score_is_a_row_and_the_others_go_on(call, refuse, ldlm, draws, gpt2, tmp_path):
    nothing = write(tmp_path / "nothing.jsonl", ["<|endoftext|>" * 5] * 30)
    one, other = call(draws[0], nothing)["files"]
    assert (other["gen_ppl"], other["intervals"]["gen_ppl"], other["texts_scored"]) == (None, None, 0)
    assert (other["entropy"], one["gen_ppl"]) == (0, call(draws[0])["gen_ppl"])
    assert call(nothing, "--reference", draws[0])["gen_ppl"] is None
    assert call(draws[0], "--reference", nothing)["reference"]["gen_ppl"] is None
    shown = ldlm("evaluate", draws[0], nothing, "--scorer", gpt2, "--max-tokens", 16).stdout
    assert f"{nothing}: no text has a token to score, so there is no perplexity" in shown
    line = refuse("evaluate", nothing, "--scorer", gpt2, "--max-tokens", 16)
    assert "there is nothing to score: no text has a second token that is not the end-of-text token" in line


def test_a_seed_with_nothing_to_score_is_left_out_of_the_mean_of_perplexities(call, ldlm, draws, gpt2, tmp_path):
    nothing = write(tmp_path / "nothing.jsonl", ["<|endoftext|>" * 5] * 30)
    over = call(*draws, nothing, "--seeds")["over_seeds"]
    assert over["gen_ppl"] == call(*draws, "--seeds")["over_seeds"]["gen_ppl"]
    assert (over["gen_ppl"]["files"], over["entropy"]["files"], over["files"]) == (3, 4, 4)
    alone = call(draws[0], nothing, "--seeds")["over_seeds"]["gen_ppl"]
    assert (alone["mean"], alone["std"], alone["files"]) == (call(draws[0])["gen_ppl"], None, 1)
    again = write(tmp_path / "again.jsonl", ["<|endoftext|>" * 5] * 30, seed=range(30))
    other = write(tmp_path / "other.jsonl", ["<|endoftext|>" * 5] * 30, seed=range(30, 60))
    over = call(again, other, draws[0], "--seeds")["over_seeds"]  # the same texts of other seeds
    assert (over["gen_ppl"]["files"], over["diversity"]["files"]) == (1, 3)
    shown = ldlm("evaluate", *draws, nothing, "--seeds", "--scorer", gpt2, "--max-tokens", 16).stdout
    assert "(3 of 4)" in shown


@pytest.mark.parametrize("tokens", [None, 40])
def test_texts_are_cut_at_what_the_scorer_takes_where_nobody_says(ldlm, succeed, refuse, draws, gpt2, tmp_path, tokens):
    path = draws[0]
    if tokens is not None:  # a run of longer rows than the scorer takes
        rows = [json.loads(row)["text"] for row in draws[0].read_text().splitlines()]
        path = write(tmp_path / "long.jsonl", rows, tokens=[[5] * tokens] * 30)
    wanted = "1,024" if tokens is None else "40"
    shown = ldlm("evaluate", path, "--scorer", gpt2)
    assert shown.exit_code == 0, shown.stderr
    assert (
        f"texts are cut after 16 tokens, the most that the scorer {gpt2} takes, instead of after {wanted}"
        in shown.stderr
    )
    found = succeed("evaluate", path, "--scorer", gpt2)
    assert found["max_tokens"] == 16
    assert found["gen_ppl"] == succeed("evaluate", path, "--scorer", gpt2, "--max-tokens", 16)["gen_ppl"]
    line = refuse("evaluate", path, "--scorer", gpt2, "--max-tokens", 17)
    assert "--max-tokens 17 is longer than the 16 positions of the scorer" in line


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["mlp.c_fc.weight", "wte.weight"])
def test_a_scorer_with_damaged_weights_is_refused_in_one_line(refuse, draws, gpt2, tmp_path, value, where, score_cache):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(gpt2, tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith(where))
    weights[name][-1] = value  # of an embedding, that of a token which the check on loading does not use
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    line = refuse("evaluate", draws[0], "--scorer", folder, "--max-tokens", 16, "--json")
    assert f"the scorer {folder} gives NaN or infinity, so its weights are damaged" in line


def test_how_boundaries_are_found_is_said_where_it_may_surprise(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "[CLS] one [SEP]"}\n')
    assert list(samples.remarks([path], [])) == []
    samples.write_record(path, "samples", {})  # of an earlier version
    (line,) = samples.remarks([path], [])
    assert line.endswith("is scored as written; name them: --boundary-tokens")
    assert list(samples.remarks([path], ["[CLS]", "[SEP]"])) == []
    samples.write_record(path, "samples", {"boundaries": {"tokens": ["[CLS]", "[SEP]"], "spaced": True}})
    (line,) = samples.remarks([path], ["[SEP]"])
    assert "([CLS] [SEP]), and --boundary-tokens is not used for it" in line
