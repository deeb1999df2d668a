"""`ldlm stories` and `ldlm evaluate --source stories`: the file and its record, the tokenizer, and what is measured."""

import json
import re
import shutil
import statistics

import numpy as np
import pytest

from ldlm import files
from ldlm.config import EvaluateConfig, StoriesConfig
from ldlm.evaluation import metrics, samples, validity
from ldlm.features import text
from ldlm.hub import load_tokenizer
from ldlm.stages import evaluate, stories
from ldlm.stories import process
from ldlm.stories.process import STORIES

SEQ_LEN = 64
ROWS = 80


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with `stories.txt` and the tokenizer `words`."""
    folder = tmp_path_factory.mktemp("stories")
    stories.run(StoriesConfig(documents=400), folder / "stories.txt", folder / "words")
    return folder


@pytest.fixture(scope="module")
def rows(made):
    """Rows of packed stories (ROWS, L)."""
    documents = (made / "stories.txt").read_text(encoding="utf-8").splitlines()
    return np.concatenate([*text.pack(documents, load_tokenizer(str(made / "words")), SEQ_LEN)])[:ROWS]


@pytest.fixture
def scores(made, tmp_path):
    """Scores of rows of tokens, written as `ldlm sample` writes them; of texts, without boundaries."""

    def call(rows):
        path, tokenizer = tmp_path / "samples.jsonl", load_tokenizer(str(made / "words"))
        if isinstance(rows, list):
            files.write_atomic(path, files.dump_jsonl({"text": one} for one in rows))
        else:
            texts = metrics.decode_tokens(tokenizer, rows)
            files.write_atomic(path, files.dump_jsonl(samples.rows(texts, rows.tolist(), range(len(rows)))))
            samples.write_record(path, "texts", samples.record_of(tokenizer, clean_up=False))
        return evaluate.by_source(EvaluateConfig(source="stories"), [path])[0]

    return call


@pytest.mark.parametrize("tokenizer", ["c.txt", "link/c.txt", "c.txt/words", "c.txt.meta.json"])
def test_a_tokenizer_where_the_stories_stand_is_refused_and_leaves_nothing(tokenizer, refuse, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    words = ("--output", tmp_path / "c.txt", "--tokenizer", tmp_path / tokenizer)
    said = refuse("stories", "--documents", 3, *words)
    assert said == (
        f"--tokenizer {tmp_path / tokenizer} is in the way of the stories, {tmp_path / 'c.txt'}, or of their record; "
        "name another folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_the_file_is_that_of_its_seed_however_often_it_is_written(made, succeed, refuse, tmp_path):
    out = tmp_path / "stories.txt"
    record = succeed("stories", "--documents", 400, "--output", out)
    assert out.read_bytes() == (made / "stories.txt").read_bytes()
    assert out.read_text(encoding="utf-8").splitlines() == [*process.stories(0, 0, 400)]
    assert record["sha256"] == files.sha256_file(out)
    written = json.loads((tmp_path / "stories.txt.meta.json").read_text())
    assert {name: record[name] for name in written} == written
    assert record["words"] == len(out.read_text().replace(".", " .").replace(",", " ,").split())

    before = out.stat().st_mtime_ns
    assert succeed("stories", "--documents", 400, "--output", out) == record
    assert out.stat().st_mtime_ns == before
    assert "--overwrite" in refuse("stories", "--documents", 400, "--seed", 1, "--output", out)
    out.write_text("mine\n")
    assert "does not hold these stories" in refuse("stories", "--documents", 400, "--output", out)
    assert out.read_text() == "mine\n"
    assert succeed("stories", "--documents", 400, "--output", out, "--overwrite") == record


def test_a_file_that_was_not_finished_is_not_there(monkeypatch, tmp_path):
    def until_killed(stories):
        yield ["A story."]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ldlm.stages.stories._batches", until_killed)
        stories.run(StoriesConfig(documents=5), tmp_path / "stories.txt")
    assert [*tmp_path.iterdir()] == []
    stories.run(StoriesConfig(documents=5), tmp_path / "stories.txt")
    assert len((tmp_path / "stories.txt").read_text().splitlines()) == 5


def test_what_can_not_be_is_refused(refuse, succeed, ldlm, made, tmp_path):
    assert "--output is missing" in refuse("stories")
    assert "is a folder" in refuse("stories", "--output", tmp_path)
    assert "documents" in refuse("stories", "--documents", 0, "--output", tmp_path / "a.txt")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "mine").write_text("")
    line = refuse("stories", "--documents", 1, "--output", tmp_path / "a.txt", "--tokenizer", tmp_path / "words")
    assert "holds something else" in line
    source = ("evaluate", "--source")
    assert "not 'novels'" in refuse(*source, "novels", made / "stories.txt")
    assert "--reference" in refuse(*source, "stories", made / "stories.txt", "--reference", made / "stories.txt")
    for flag, value in (
        ("--scorer", "gpt2"),
        ("--protocol", "hf"),
        ("--max-tokens", 64),
        ("--resamples", 100),
        ("--mauve-model", "gpt2"),
    ):
        assert f"needs no {flag}" in refuse(*source, "stories", made / "stories.txt", flag, value)
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(ldlm(*source, "stories", "--dump-config").stdout)
    assert succeed("evaluate", "--config", dumped, made / "stories.txt")["stories_valid"] == 1
    dumped.unlink()
    assert "no texts to evaluate" in refuse(*source, "stories")
    assert [path.name for path in tmp_path.iterdir()] == ["words"]


def test_a_call_that_is_refused_leaves_nothing_and_one_that_was_killed_between_the_two_completes(
    made, refuse, succeed, monkeypatch, tmp_path
):
    out, words = tmp_path / "a.txt", tmp_path / "words"
    succeed("stories", "--documents", 3, "--output", out)
    assert "does not hold these stories" in refuse("stories", "--documents", 4, "--output", out, "--tokenizer", words)
    assert not words.exists()

    out.unlink()
    whole = StoriesConfig(documents=400)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ldlm.stages.stories._batches", lambda stories: (_ for _ in ()).throw(KeyboardInterrupt))
        stories.run(whole, out, words)
    stories.run(whole, out, words)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ldlm.stages.stories.tokens.tokenizer", lambda source: (_ for _ in ()).throw(KeyboardInterrupt))
        stories.run(whole, out, tmp_path / "others")
    stories.run(whole, out, tmp_path / "others")
    assert out.read_bytes() == (made / "stories.txt").read_bytes()
    for folder in (words, tmp_path / "others"):
        assert (folder / "tokenizer.json").read_bytes() == (made / "words" / "tokenizer.json").read_bytes()


def test_the_tokenizer_of_a_model_is_not_replaced(refuse, gpt2, tmp_path):
    model = shutil.copytree(gpt2, tmp_path / "model")
    before = (model / "tokenizer.json").read_bytes()
    command = ("stories", "--documents", 1, "--output", tmp_path / "a.txt", "--tokenizer", model, "--overwrite")
    for left in ("artifact.json", "config.json"):
        assert "holds a model" in refuse(*command)
        assert (model / "tokenizer.json").read_bytes() == before
        (model / left).unlink()
    assert not (tmp_path / "a.txt").exists()


def test_a_word_is_a_token_and_a_story_comes_back_as_it_was(made):
    tokenizer = load_tokenizer(str(made / "words"))
    assert len(tokenizer) == len(STORIES.vocabulary) + 2
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    for word in STORIES.vocabulary:
        (token,) = tokenizer(word, add_special_tokens=False)["input_ids"][-1:]
        assert token != tokenizer.unk_token_id
    for story in (made / "stories.txt").read_text(encoding="utf-8").splitlines():
        ids = tokenizer(story, add_special_tokens=False)["input_ids"]
        assert len(ids) == story.count(" ") + 1 + story.count(".") + story.count(",")
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == story
    assert tokenizer("Zeppelin", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]


def test_words_that_no_story_has_are_said(ldlm, made, tmp_path):
    path = tmp_path / "texts.txt"
    whale, story = "The whale swam on. The whale sang.", (made / "stories.txt").read_text().splitlines()[0]
    path.write_text(f"{whale}\n{story}\n")
    shown = ldlm("evaluate", "--source", "stories", path)
    assert shown.exit_code == 0, shown.stderr
    assert "words that no story has occur" in shown.stderr
    assert "'whale'" in shown.stderr
    assert "--scorer" in shown.stderr
    path.write_text(f"{story}\n")
    assert "no story has" not in ldlm("evaluate", "--source", "stories", path).stderr


def test_an_encoder_trains_on_its_tokens(made, succeed, tmp_path):
    small = ("--layers", 1, "--width", 16, "--heads", 2, "--positions", SEQ_LEN, "--batch-size", 4, "--steps", 2)
    data = ("--data", made / "stories.txt", "--tokenizer", made / "words", "--device", "cpu")
    record = succeed("pretrain-encoder", *data, *small, "--output", tmp_path / "encoder")
    assert record["vocab_size"] == len(STORIES.vocabulary) + 2
    again = load_tokenizer(str(tmp_path / "encoder"))
    assert (
        again("Anna had a kite.")["input_ids"] == load_tokenizer(str(made / "words"))("Anna had a kite.")["input_ids"]
    )


def test_all_of_packed_stories_is_valid(scores, rows):
    found = scores(rows)
    assert found.found.stories_valid == found.found.sentences_valid == found.found.cut_sentences_valid == 1
    assert sum(found.found.violations.values()) == 0
    # Rows are framed by boundary tokens; between others stand whole stories, and a part at each end.
    ends = (rows[:, 1:-1] == 0).sum(1)
    assert found.found.stories == np.maximum(0, ends - 1).sum()
    assert found.found.words == (rows[:, 1:-1] != 0).sum()
    assert found.found.num_texts == found.real.num_texts == ROWS
    # As many real words and boundaries as there are in the rows.
    assert abs(found.real.words - found.found.words) < 0.02 * found.found.words
    assert found.real.stories_valid == found.real.sentences_valid == 1
    # Whole stories in rows are short ones, which are more likely than a story of the source.
    for one in (found.found, found.real):
        assert one.words_per_story < STORIES.expected.words
        assert one.nats_per_story < STORIES.expected.nats
        assert 0.8 < one.coverage <= 1


def test_a_word_that_is_changed_is_a_violation_of_its_sentence(scores, rows, made):
    tokenizer, bad = load_tokenizer(str(made / "words")), rows.copy()
    he, she = tokenizer.convert_tokens_to_ids(["▁He", "▁She"])
    changed = 0
    for row in bad:
        inner = np.flatnonzero(row[1:-1] == 0) + 1
        if len(inner) > 1:  # a whole story
            places = np.flatnonzero(row[: inner[1]] == he)
            places = places[places > inner[0]]
            if len(places):
                row[places[0]] = she
                changed += 1
    found = scores(bad).found
    assert changed > 5
    assert found.violations["pronoun"] == sum(found.violations.values()) == changed
    assert found.stories_valid == pytest.approx(1 - changed / found.stories)
    assert found.sentences_valid == pytest.approx(1 - changed / found.sentences)
    assert found.distances == {"1": changed}


def test_invalid_stories_have_no_likelihood_and_collapse_is_seen(scores, made):
    (story,) = process.stories(7, 3, 4)
    drawn = [*process.stories(7, 0, 60)]
    good, broken, collapsed = scores(drawn), scores([*drawn, *["Anna had. kite"] * 30]), scores([story] * 60)
    assert broken.found.nats_per_story == good.found.nats_per_story
    assert broken.found.stories_valid == pytest.approx(60 / 90)
    assert collapsed.found.stories_valid == 1
    assert collapsed.found.coverage < 0.1 < 0.5 < good.found.coverage
    assert good.source_nats_per_story == STORIES.expected.nats
    assert scores(["of the the"]).found.nats_per_story is None
    empty = scores([" "]).found
    assert (empty.stories, empty.stories_valid, empty.sentences_valid) == (1, 0, None)


def test_rows_without_a_boundary_inside_are_cut_at_both_ends(scores, rows, made):
    tokenizer = load_tokenizer(str(made / "words"))
    words = tokenizer("kite all day. She gave it to Ben. Ben lost", add_special_tokens=False)["input_ids"]
    framed, bare = np.array([[0, *words, 0]]), np.array([[*words]])
    for row in (framed, bare):
        found = scores(row).found
        assert (found.stories, found.sentences, found.cut_sentences) == (0, 1, 2)
        assert found.stories_valid is None
        assert sum(found.violations.values()) == 0
    nothing = scores(np.array([[0, 0, 0, 0, 0]])).found  # two stories without a word
    assert (nothing.stories, nothing.stories_valid, nothing.violations["ending"]) == (2, 0, 2)


def test_the_stories_own_ends_are_boundaries_where_no_record_names_any(scores):
    text = "<|endoftext|>it to Ben.<|endoftext|> Anna had a kite.<|endoftext|> Ben had<|endoftext|>"
    found = scores([text]).found
    assert (found.stories, found.stories_valid, found.cut_sentences) == (1, 0, 2)
    assert found.violations["ending"] == 1  # of "it to Ben.": no story ends so
    assert found.violations["order"] == 1  # of "a kite", which is first told of with its looks


def test_seeds_give_the_mean_and_deviation_of_each_figure_beside_real_stories_of_their_own(succeed, ldlm, tmp_path):
    wrong = ["Anna had a red kite. He lost it by the lake.", "of the the"]
    for seed in range(3):
        texts = [*process.stories(20 + seed, 0, 20 - seed), *wrong[:seed]]
        rows = ({"text": text, "seed": 100 * seed + i} for i, text in enumerate(texts))
        files.write_atomic(tmp_path / "draws" / f"seed-{seed}.jsonl", files.dump_jsonl(rows))
    found = succeed("evaluate", "--source", "stories", tmp_path / "draws", "--seeds")
    each, over_seeds = found["files"], found["over_seeds"]
    alone = succeed("evaluate", "--source", "stories", each[1]["file"], "--seed", 1)
    assert alone == each[1]
    assert [one["seed"] for one in each] == [0, 1, 2]
    assert len({one["real"]["nats_per_story"] for one in each}) == 3
    for name in validity.SHARES_AND_MEANS:
        for figures, of in ((over_seeds, each), (over_seeds["real"], [one["real"] for one in each])):
            values = [one[name] for one in of if one[name] is not None]
            assert figures[name]["files"] == len(values)
            assert figures[name]["mean"] == (pytest.approx(statistics.mean(values)) if values else None)
            if len(values) > 1:
                assert figures[name]["std"] == pytest.approx(statistics.stdev(values))
    assert over_seeds["violations"]["pronoun"] == {"mean": pytest.approx(2 / 3), "std": pytest.approx(0.577, abs=1e-3),
                                                   "files": 3}  # fmt: skip
    assert (over_seeds["files"], over_seeds["texts_each"]) == (3, 20)
    shown = ldlm("evaluate", "--source", "stories", tmp_path / "draws", "--seeds").stdout
    assert re.search(r"mean ± std of 3 seeds +texts +real\n", shown)
    assert re.search(r"valid, of whole stories +0.95 ± 0.05 +1 ± 0\n", shown)
    assert shown.count("the source itself") == 1


def test_what_are_no_seeds_of_one_model_is_refused_by_a_source_too(refuse, made, tmp_path):
    shutil.copy(made / "stories.txt", tmp_path / "again.txt")
    command = ("evaluate", "--source", "stories", "--seeds", made / "stories.txt")
    assert "there is one" in refuse(*command)
    assert "hold the same texts" in refuse(*command, tmp_path / "again.txt")


def test_the_table_names_what_is_wrong(ldlm, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("Anna had a red kite. He lost it by the lake. It was still by the lake.\n")
    shown = ldlm("evaluate", "--source", "stories", path).stdout
    assert re.search(r"whole stories +1 +1\nwhole sentences +3 +[\d]+\ncut sentences +0 +0\n", shown)
    assert "violations: pronoun" in shown
    assert "contradicting the sentence before" in shown
    assert "the source itself: 26.295 nats per story" in shown


def test_the_share_of_a_few_texts_is_not_certain(ldlm, made, tmp_path):
    """Wilson's interval of three of three, and of none of three; a bootstrap of these is a point."""
    path, whole = tmp_path / "texts.txt", (made / "stories.txt").read_text(encoding="utf-8").splitlines()[:3]
    for texts, interval in ((whole, [0.439, 1]), (["Hello world."] * 3, [0, 0.561])):
        path.write_text("".join(f"{one}\n" for one in texts))
        (found,) = evaluate.by_source(EvaluateConfig(source="stories"), [path])
        assert found.found.intervals["stories_valid"] == pytest.approx(interval, abs=1e-3)
    shown = ldlm("evaluate", "--source", "stories", path).stdout
    assert re.search(r"valid, of whole stories +0 \[0, 0.561\] +1 \[0.439, 1\]\n", shown)
