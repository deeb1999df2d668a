"""The process that writes stories, as a graph: for each state, the sentences that can follow and their probabilities.

Writing draws a path through this graph, reading follows one, and entropies are sums over all paths.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from random import Random
from typing import NamedTuple

from ldlm.stories.grammar import OVER, START, STOP, Form, State
from ldlm.stories.plots import FORMS
from ldlm.stories.templates import Gap, Template, capitalised, expansions, roles, speaks_of_it, word_of
from ldlm.stories.words import CLASSES, PASSING, PUNCTUATION, ROLES, Lexeme

VERSION = 1  # of the distribution of the stories: the grammar, the words and how they are drawn


class Sentence(NamedTuple):
    """An edge of the graph: a sentence that can follow a state, without the lexemes of its roles."""

    probability: float
    nats: float  # −ln p of the sentence with its new lexemes
    template: Template
    new: tuple[str, ...]  # roles that it fills
    form: int  # index among the forms
    after: State


class Expected(NamedTuple):
    """Exact expectations over the continuations of a state."""

    nats: float  # entropy
    words: float  # with punctuation
    sentences: float


@dataclass(frozen=True, eq=False)
class StoryProcess:
    """The distribution of the stories: `STORIES`, or smaller ones for tests that enumerate all their stories."""

    classes: Mapping[str, Sequence[Lexeme]]
    forms: Sequence[Form]
    stop: Mapping[int, float]  # probability of an ending, by the number of sentences before it

    # ------------------------------------------------------------------------------------------------------------------
    # The graph

    @cached_property
    def sentences(self) -> Callable[[State], Sequence[Sentence]]:
        """All sentences that can follow a state, with probabilities that sum to 1; none after `OVER`."""
        return cache(lambda state: [] if state.over else [*self._of_parts(state)])

    def spelled(self, template: Template, forms: Iterable[int], state: State) -> Sentence | None:
        """The sentence of one of some forms that can follow a state and has this template, as if no other could."""
        shares = {} if state.over else self._shares(state)
        for number in forms:
            if shares.get(self.forms[number].part) and self.forms[number].fits(state):
                for probability, spelled, numbers, subject in expansions(self.forms[number], state):
                    if spelled == template:
                        return self._sentence(state, number, probability, template, numbers, subject)
        return None

    def _of_parts(self, state: State) -> Iterator[Sentence]:
        """Whether the story ends is drawn first, then the form, then the wording; impossible parts have no share."""
        shares = self._shares(state)
        found = {part: self._fitting(state, part) for part, share in shares.items() if share}
        total = sum(shares[part] for part, fitting in found.items() if fitting)
        for part, fitting in found.items():
            weights = sum(self.forms[form].weight for form, _ in fitting)
            for form, ways in fitting:
                share = shares[part] / total * self.forms[form].weight / weights
                for probability, template, numbers, subject in ways:
                    yield self._sentence(state, form, share * probability, template, numbers, subject)

    def _shares(self, state: State) -> Mapping[str, float]:
        """Probabilities of the parts that the next sentence may be."""
        stop = self.stop[state.told]
        return {"opening": 1.0} if state.told == 0 else {"ending": stop, "middle": 1 - stop}

    def _fitting(self, state: State, part: str) -> list[tuple[int, list]]:
        """Index and expansions of each form of a part that can be told."""
        forms = (n for n, form in enumerate(self.forms) if form.part == part and form.fits(state))
        ways = ((form, [*expansions(self.forms[form], state)]) for form in forms)
        return [(form, found) for form, found in ways if found]

    def _sentence(
        self, state: State, number: int, probability: float, template: Template, numbers: Mapping[str, int], topic: str
    ) -> Sentence:
        form = self.forms[number]
        new = tuple(role for role in roles(template) if role not in state.known)
        known, nats = set(state.known), -math.log(probability)
        for role in new:
            nats += math.log(self._options(role, known))
            known.add(role)
        if form.part == "ending":
            return Sentence(probability, nats, template, new, number, OVER)
        after = state._replace(
            plot=form.plot or state.plot,
            told=state.told + 1,
            known=frozenset(known - PASSING),
            topic=topic,
            near=speaks_of_it(template),
            **{**numbers, **form.then},
        )
        return Sentence(probability, nats, template, new, number, after)

    def _options(self, role: str, known: Iterable[str]) -> int:
        """Number of lexemes that a role may have: those of its class that no other role has."""
        return len(self.classes[ROLES[role]]) - sum(ROLES[other] == ROLES[role] for other in known)

    @cached_property
    def states(self) -> Sequence[State]:
        """All states that stories reach, `START` first."""
        found, waiting = {START: None}, deque([START])
        while waiting:
            for sentence in self.sentences(waiting.popleft()):
                if sentence.after not in found:
                    found[sentence.after] = None
                    waiting.append(sentence.after)
        return list(found)

    # ------------------------------------------------------------------------------------------------------------------
    # Writing

    def write(self, random: Random) -> str:
        """Draw a story."""
        return text_of(self.told(random))

    def told(self, random: Random) -> list[str]:
        """Draw a story, as words and punctuation."""
        state, lexicon, words = START, dict[str, Lexeme](), list[str]()
        while not state.over:
            sentence = self._drawn(state, random.random())
            known = [*state.known]
            for role in sentence.new:
                taken = [lexicon[other] for other in known if ROLES[other] == ROLES[role]]
                known.append(role)
                options = [lexeme for lexeme in self.classes[ROLES[role]] if lexeme not in taken]
                lexicon[role] = options[int(random.random() * len(options))]
            told = [
                word_of(token, lexicon[token.role]) if isinstance(token, Gap) else token for token in sentence.template
            ]
            words += [capitalised(told[0]), *told[1:]]
            state = sentence.after
        return words

    def _drawn(self, state: State, uniform: float) -> Sentence:
        """The sentence after a state that a uniform number in [0, 1) selects."""
        sums = self._sums(state)
        return self.sentences(state)[bisect_right(sums, uniform * sums[-1], hi=len(sums) - 1)]

    @cached_property
    def _sums(self) -> Callable[[State], list[float]]:
        return cache(lambda state: [*accumulate(sentence.probability for sentence in self.sentences(state))])

    # ------------------------------------------------------------------------------------------------------------------
    # Expectations

    @cached_property
    def expected(self) -> Expected:
        """Entropy, words and sentences of a story, exactly.

        H(s) = Σ_e p(e) (−ln p(e) + ln of the options of its new lexemes + H(s')), by dynamic programming backwards from
        the last states. The lexemes of a role are equally likely, and what follows depends on which roles are filled
        but not on their lexemes, so each adds ln of its number of options. Since no two paths give the same text, the
        entropy of the choices is that of the text.
        """
        known = {OVER: Expected(0.0, 0.0, 0.0)}
        for state in sorted((s for s in self.states if not s.over), key=lambda s: -s.told):
            edges = self.sentences(state)
            known[state] = Expected(
                sum(e.probability * (e.nats + known[e.after].nats) for e in edges),
                sum(e.probability * (len(e.template) + known[e.after].words) for e in edges),
                sum(e.probability * (1 + known[e.after].sentences) for e in edges),
            )
        return known[START]

    @cached_property
    def vocabulary(self) -> Sequence[str]:
        """All words of the stories, also capitalised if they can begin a sentence, and punctuation; sorted."""
        found = set[str]()
        for state in self.states:
            for sentence in self.sentences(state):
                for place, token in enumerate(sentence.template):
                    found |= {capitalised(word) if place == 0 else word for word in self.spellings(token)}
        return sorted(found)

    def spellings(self, token: str | Gap) -> Sequence[str]:
        """The words that a token of a template can be, in the order of the lexemes."""
        return [token] if isinstance(token, str) else self._spellings(token)

    @cached_property
    def _spellings(self) -> Callable[[Gap], list[str]]:
        return cache(lambda gap: [word_of(gap, lexeme) for lexeme in self.classes[ROLES[gap.role]]])


def text_of(words: Sequence[str]) -> str:
    """Words as text, with punctuation joined to the word before it."""
    text = " ".join(words)
    for mark in PUNCTUATION:
        text = text.replace(f" {mark}", mark)
    return text


STORIES = StoryProcess(CLASSES, FORMS, STOP)


def random_of(purpose: str, seed: int, number: int) -> Random:
    """The random numbers of one story, keyed by purpose, seed and number."""
    return Random(f"ldlm stories {VERSION} {purpose} {seed} {number}")


def stories(seed: int, start: int, stop: int, *, purpose: str = "text") -> Iterator[str]:
    """The stories of a seed with numbers start … stop − 1."""
    return (STORIES.write(random_of(purpose, seed, number)) for number in range(start, stop))
