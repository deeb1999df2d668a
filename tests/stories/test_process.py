"""The process that writes stories: its probabilities, its entropy, and that no two ways lead to one text."""

import math
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from itertools import combinations, product
from pathlib import Path
from random import Random

import pytest

from ldlm.stories.grammar import START
from ldlm.stories.plots import FORMS
from ldlm.stories.process import STORIES, StoryProcess, random_of, stories, text_of
from ldlm.stories.reading import Reader, sentences_of, words_of
from ldlm.stories.templates import Gap, capitalised, word_of
from ldlm.stories.words import CLASSES, NUMBERS, PRONOUNS, ROLES

MANY = 2_000  # stories


@pytest.fixture(scope="module")
def reader():
    return Reader(STORIES)


def small(plot, size, stop):
    """A source of one plot, with so few words in each class that all its stories can be written down."""
    classes = {name: (*lexemes[: size - 1], lexemes[-1]) for name, lexemes in CLASSES.items()}
    classes["tense"] = CLASSES["tense"]
    return StoryProcess(classes, [form for form in FORMS if form.plot in (plot, "")], stop)


def everything(source, state=START, lexicon=None):
    """(words, probability) of each way to write a story: every sentence with every choice of words."""
    if state.over:
        yield [], 1.0
        return
    lexicon = lexicon or {}
    for edge in source.sentences(state):
        for chosen in product(*(source.classes[ROLES[role]] for role in edge.new)):
            filled = {**{role: lexicon[role] for role in state.known}, **dict(zip(edge.new, chosen, strict=True))}
            of_class = defaultdict(list)
            for role, lexeme in filled.items():
                of_class[ROLES[role]].append(id(lexeme))
            if any(len(set(same)) < len(same) for same in of_class.values()):
                continue
            sentence = [word_of(one, filled[one.role]) if isinstance(one, Gap) else one for one in edge.template]
            sentence[0] = capitalised(sentence[0])
            for rest, probability in everything(source, edge.after, filled):
                yield [*sentence, *rest], math.exp(-edge.nats) * probability


SMALL = [
    ("gift", 2, {0: 0.0, 1: 0.0, 2: 1.0}),
    ("count", 2, {0: 0.0, 1: 1.0}),
    ("hiding", 3, {0: 0.0, 1: 0.7, 2: 1.0}),
    ("pet", 2, {0: 0.0, 1: 0.0, 2: 1.0}),
]


@pytest.mark.parametrize("plot, size, stop", SMALL, ids=[plot for plot, *_ in SMALL])
def test_probabilities_of_all_stories_sum_to_1_no_two_ways_give_one_text_and_the_entropy_is_exact(plot, size, stop):
    source = small(plot, size, stop)
    ways = [(text_of(words), probability) for words, probability in everything(source)]
    assert len(ways) > 500
    assert math.fsum(probability for _, probability in ways) == pytest.approx(1, abs=1e-9)
    assert len({text for text, _ in ways}) == len(ways)
    entropy = -math.fsum(probability * math.log(probability) for _, probability in ways)
    assert source.expected.nats == pytest.approx(entropy, rel=1e-9)
    words = math.fsum(probability * len(words_of(text)) for text, probability in ways)
    assert source.expected.words == pytest.approx(words, rel=1e-9)
    reader = Reader(source)
    for text, probability in Random(0).sample(ways, 200):
        assert math.exp(-reader.parse(words_of(text)).nats) == pytest.approx(probability, rel=1e-9)


def apart(reader, state, a, b):
    """Whether two templates that can follow a state have no spelling in common."""
    if len(a) != len(b):
        return True
    for one, other, (_, words), (_, others) in zip(a, b, reader.places(a), reader.places(b), strict=True):
        if not set(words) & set(others):
            return True
        if isinstance(one, Gap) and isinstance(other, Gap) and one.form == other.form == "":
            known = {one.role, other.role} <= state.known
            if known and one.role != other.role and ROLES[one.role] == ROLES[other.role]:
                return True  # two people
    return False


def test_no_two_sentences_that_can_follow_a_state_have_a_common_spelling(reader):
    for state in STORIES.states:
        by_length = defaultdict(list)
        for edge in STORIES.sentences(state):
            by_length[len(edge.template)].append(edge.template)
        for templates in by_length.values():
            for a, b in combinations(templates, 2):
                assert apart(reader, state, a, b), (state, a, b)


def test_probabilities_of_the_sentences_after_each_state_sum_to_1_and_every_story_ends():
    for state in STORIES.states:
        edges = STORIES.sentences(state)
        assert state.over or math.fsum(edge.probability for edge in edges) == pytest.approx(1, abs=1e-12)
        assert state.told < 2 or state.over or any(edge.after.over for edge in edges), state
        assert all(edge.after.over for edge in edges) if state.told == 5 else True


def test_what_was_written_is_read_back_to_its_choices(reader):
    for number in range(MANY):
        random = random_of("text", 3, number)
        words = STORIES.told(random)
        text = text_of(words)
        assert words_of(text) == words
        parse = reader.parse(words)
        assert parse is not None, text
        again = rewritten(parse)
        assert again == words


def rewritten(parse):
    """The words of the sentences of a parse, with the lexemes that it names, written down once more."""
    lexicon, words = {}, []
    rest = list(parse.lexemes)
    for edge in parse.sentences:
        for role in dict.fromkeys(one.role for one in edge.template if isinstance(one, Gap)):
            if role in edge.new:
                named = next(word for name, word in rest if name == role)
                rest.remove((role, named))
                lexicon[role] = next(one for one in CLASSES[ROLES[role]] if next(iter(one.values())) == named)
        told = [word_of(one, lexicon[one.role]) if isinstance(one, Gap) else one for one in edge.template]
        words += [capitalised(told[0]), *told[1:]]
    return words


def test_entropy_of_drawn_stories_is_the_exact_one(reader):
    drawn = [words_of(story) for story in stories(5, 0, MANY)]
    for exact, found in (
        (STORIES.expected.nats, [reader.parse(words).nats for words in drawn]),
        (STORIES.expected.words, list(map(len, drawn))),
        (STORIES.expected.sentences, [len(sentences_of(words)) for words in drawn]),
    ):
        error = statistics.stdev(found) / math.sqrt(MANY)
        assert abs(statistics.mean(found) - exact) < 3.5 * error
        assert error < 0.02 * exact


def test_a_story_depends_on_its_seed_and_number_alone():
    first = list(stories(0, 0, 20))
    assert list(stories(0, 10, 20)) == first[10:]
    assert list(stories(1, 0, 20)) != first
    assert list(stories(0, 0, 20, purpose="real")) != first
    code = "from ldlm.stories.process import stories; print(*stories(0, 0, 20), sep='\\n')"
    for hashing in ("1", "2"):
        env = {"PYTHONHASHSEED": hashing}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == first


FIGURES = (
    26.29465188182678,
    37.142977626932655,
    "Lily has a new flute, and Nora likes it very much. It is a rainy day. ",
)


def test_the_law_of_this_version_stays():
    """Who changes the grammar, the words or the drawing gives it a new `VERSION`, and changes these figures."""
    assert STORIES.expected.nats == pytest.approx(FIGURES[0], abs=1e-9)
    assert STORIES.expected.words == pytest.approx(FIGURES[1], abs=1e-9)
    assert next(stories(0, 0, 1)).startswith(FIGURES[2])


def test_the_words_are_what_the_grammar_takes_them_for():
    for name, lexemes in CLASSES.items():
        if name in ("place", "spot", "time"):
            continue  # whose prepositions are shared
        spellings = [lexeme.get("", lexeme.get("one")) for lexeme in lexemes]
        assert len(set(spellings)) == len(spellings), name
    nouns = [lexeme.get("", lexeme.get("one")) for lexemes in CLASSES.values() for lexeme in lexemes]
    assert len(set(nouns)) == len(nouns)  # no word is of two classes
    assert 300 < len(STORIES.vocabulary) < 500
    assert set(PRONOUNS) < set(STORIES.vocabulary)
    assert set(NUMBERS[1:]) < set(STORIES.vocabulary)
    assert all(story.count(".") <= 6 for story in stories(0, 0, 200))


def test_the_stories_of_the_page_are_the_first_that_are_written():
    page = (Path(__file__).resolve().parents[2] / "docs" / "stories.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\d+\. (.*)$", page, re.MULTILINE)
    assert shown == [*stories(0, 0, 20)]
    expected = STORIES.expected
    assert f"{expected.nats:.3f} nats per story, {expected.nats / expected.words:.3f} per word" in page
    assert f"vocabulary      {len(STORIES.vocabulary)}\n" in page
