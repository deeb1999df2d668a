"""Forgetting: what would have to be unknown for a sentence to be right, which names its violation.

The first that helps of one thing alone, in the order of `KINDS`; then one of the two people for the other, and an
ending too early or too late; then two kinds together, under the name of the later. Only after the first is all else
known from there on: the others name a violation, and the text is read on as after a sentence that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from typing import Any, NamedTuple

from ldlm.stories.grammar import FACTS, FRIEND, HERO, ROLE_KINDS, State
from ldlm.stories.process import Sentence
from ldlm.stories.reading import FEW, Domains, Reader, States
from ldlm.stories.templates import Gap, Template, capitalised
from ldlm.stories.words import NUMBERS, PRONOUNS, ROLES

PEOPLE = (HERO, FRIEND)


class Reading(NamedTuple):
    """A way to understand what was read so far: the words that may fill the roles, and the states that may hold."""

    domains: Domains
    states: States


class Match(NamedTuple):
    """A sentence read in one way."""

    template: Template
    before: State
    sentence: Sentence
    domains: Domains


class Relaxation(NamedTuple):
    """Facts that are forgotten, and the kind of violation that this makes."""

    kind: str
    words: Sequence[Collection[str]]  # at each place, the words taken as interchangeable
    facts: tuple[str, ...] = ()  # fields of the state
    roles: tuple[str, ...] = ()
    alone: bool = True  # one thing: all else is known from there on

    def joined(self, other: Relaxation) -> Relaxation:
        """Both forgotten, under the name of the other."""
        words = [{*some, *more} for some, more in zip(self.words, other.words, strict=True)]
        facts, roles = dict.fromkeys(self.facts + other.facts), dict.fromkeys(self.roles + other.roles)
        return Relaxation(other.kind, words, tuple(facts), tuple(roles), alone=False)


@dataclass(frozen=True, eq=False)
class Forgetting:
    """Reads sentences that are wrong; what it computes about the source is kept from one to the next."""

    reader: Reader

    def explained(
        self, words: Sequence[str], readings: Sequence[Reading], stop: int | None = None
    ) -> tuple[Relaxation, list[Match]] | None:
        """The first relaxation with which a sentence, or its words [:stop], is right, and how it reads then, if any."""
        singles = [*self.relaxations(words)]
        kinds = [
            reduce(Relaxation.joined, (one for one in singles if one.kind == kind))
            for kind in dict.fromkeys(one.kind for one in singles)
        ]
        templates = self._templates(reduce(Relaxation.joined, kinds), stop)
        pairs = (some.joined(other) for number, other in enumerate(kinds[:-1]) for some in kinds[:number])
        for forgotten in (*singles, *pairs) if templates else ():
            if matches := [*self._loosely(forgotten, readings, templates, stop)]:
                return forgotten, matches
        return None

    def relaxations(self, words: Sequence[str]) -> Iterator[Relaxation]:
        """All relaxations of a sentence, in the order of `KINDS`."""
        exact: list[Collection[str]] = [(word,) for word in words]
        yield Relaxation("agreement", exact, roles=ROLE_KINDS["agreement"])
        yield Relaxation("agreement", [*map(self.lemma, words)])
        yield Relaxation("pronoun", [_among(PRONOUNS, word) for word in words], FACTS["pronoun"])
        yield Relaxation("count", exact, FACTS["count"])
        yield Relaxation("count", [_among(NUMBERS, word) for word in words])
        yield Relaxation("place", exact, roles=ROLE_KINDS["place"])
        prepositions = [_among(self._prepositions, word) for word in words]
        yield Relaxation("place", prepositions, roles=ROLE_KINDS["place"])
        yield Relaxation("place", exact, FACTS["place"])
        yield Relaxation("possession", exact, FACTS["possession"])
        for role in ROLE_KINDS["reference"]:
            yield Relaxation("reference", exact, roles=(role,))
        yield Relaxation("reference", exact, roles=PEOPLE, alone=False)  # one of the two for the other
        yield Relaxation("ending", exact, FACTS["ending"], alone=False)

    # ------------------------------------------------------------------------------------------------------------------
    # What fits then

    def _templates(self, forgotten: Relaxation, stop: int | None) -> list[Template]:
        """The templates that these words fit whatever was said before."""
        first = dict.fromkeys(t for word in sorted(forgotten.words[0]) for t in self.reader.by_first.get(word, ()))
        return [t for t in first if self.reader.match_any(t, forgotten.words, {}, stop, ROLES) is not None]

    def _loosely(
        self, forgotten: Relaxation, readings: Sequence[Reading], templates: Sequence[Template], stop: int | None
    ) -> Iterator[Match]:
        """The ways to read a sentence when something is forgotten."""
        for domains, states in readings:
            before = self._varied(states, forgotten.facts)
            known = {role: mask for role, mask in domains.items() if role not in forgotten.roles}
            alike = () if forgotten.alone else forgotten.roles
            for template in templates:
                found = self.reader.match_any(template, forgotten.words, known, stop, alike)
                if found is not None:
                    after = {role: mask for role, mask in found.items() if role not in forgotten.roles}
                    for state, sentence in self.reader.edges(template, before):
                        yield Match(template, state, sentence, after)

    def _varied(self, states: States, facts: tuple[str, ...]) -> States:
        """The states with their `facts` replaced by all values that occur in stories, unless they are too many."""
        if len(states) > FEW:
            return self.reader.within_reach(states)
        if not facts:
            return states
        return {
            state._replace(**dict(zip(facts, values, strict=True))): None
            for state in states
            for values in self._values(facts).get((state.plot, state.known), ())
        }

    @cached_property
    def _values(self) -> Callable[[tuple[str, ...]], Mapping[tuple[str, frozenset[str]], Collection[Sequence[Any]]]]:
        """The combinations of values of some facts, by plot and filled roles."""
        return cache(self._collected)

    def _collected(self, facts: tuple[str, ...]) -> dict[tuple[str, frozenset[str]], dict[Sequence[Any], None]]:
        found = dict[tuple[str, frozenset[str]], dict[Sequence[Any], None]]()
        for state in self.reader.source.states:
            if facts != FACTS["ending"] or 0 < self.reader.source.stop[state.told] < 1:  # it may end, or go on
                values = tuple(getattr(state, fact) for fact in facts)
                found.setdefault((state.plot, state.known), {})[values] = None
        return found

    # ------------------------------------------------------------------------------------------------------------------
    # Words that differ in one respect

    def lemma(self, word: str) -> Collection[str]:
        """The forms of a word that differ by number, tense or sound: was, were, is, are; shell, shells; a, an."""
        return self._lemmas.get(word, (word,))

    @cached_property
    def _prepositions(self) -> Collection[str]:
        return {lexeme["at"] for name in ("place", "spot") for lexeme in self.reader.source.classes[name]}

    @cached_property
    def _lemmas(self) -> Mapping[str, Collection[str]]:
        groups: list[set[str]] = [{"a", "an"}, {"was", "were"}]
        groups += [{lexeme["one"], lexeme["many"]} for lexeme in self.reader.source.classes["item"]]
        tokens = {token for template in self.reader.by_template for token in template}
        groups += [set(token.form.split("/")) for token in tokens if isinstance(token, Gap) and token.role == "tense"]
        found = dict[str, set[str]]()
        for group in groups:  # groups that share a form belong to one word
            joined = group.union(*(found[word] for word in group if word in found))
            found.update(dict.fromkeys(joined, joined))
        return found


def _among(words: Collection[str], word: str) -> Collection[str]:
    """All of `words`, also capitalised, if the word is one of them, else the word alone."""
    return [*words, *map(capitalised, words)] if word[0].lower() + word[1:] in words else (word,)
