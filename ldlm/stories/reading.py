"""Reading: the choices of the process behind a text, found by matching it word by word against the same templates.

What a text has said about a role so far is a set of lexemes, as a bit mask: after "She" the hero is one of the women,
after "Anna" she is Anna.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

from ldlm.stories.grammar import START, State
from ldlm.stories.process import Sentence, StoryProcess
from ldlm.stories.templates import Gap, Template, capitalised
from ldlm.stories.words import PASSING, ROLES

END = "."  # of a sentence; no other word has it
FEW = 12  # states that are looked at one by one; more are found through the templates with the first word
KEPT = 1 << 16  # sentences after states that no story reaches
_WORDS = re.compile(r"\w+|[^\w\s]")

Domains = Mapping[str, int]  # what each role may be: a bit for each lexeme of its class
States = Mapping[State, None]  # a set of states that are looked at in their order, which is that of every process
Place = tuple[str | None, Mapping[str, int]]  # of a template: the role, and by word the lexemes that it can be


def words_of(text: str) -> list[str]:
    """The words and punctuation of a text."""
    return _WORDS.findall(text)


def sentences_of(words: Sequence[str]) -> list[Sequence[str]]:
    """Words by sentence, each sentence with its full stop; the last may lack it."""
    ends = [place + 1 for place, word in enumerate(words) if word == END]
    found = [words[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]
    rest = words[ends[-1] if ends else 0 :]
    return [*found, rest] if rest else found


class Parse(NamedTuple):
    """The choices behind a story."""

    sentences: tuple[Sentence, ...]
    lexemes: tuple[tuple[str, str], ...]  # roles, each with the first form of the lexeme that fills it, in order

    @property
    def nats(self) -> float:
        """−ln p of the story."""
        return sum(sentence.nats for sentence in self.sentences)


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads stories of a source."""

    source: StoryProcess

    def parse(self, words: Sequence[str]) -> Parse | None:
        """The choices behind a whole story; None if the process never writes it."""
        found: list[tuple[State, Domains, tuple[Sentence, ...], tuple[tuple[str, str], ...]]] = [(START, {}, (), ())]
        for sentence in sentences_of(words):
            found = [
                (edge.after, domains, (*path, edge), (*chosen, *self.lexemes(edge.template, domains)))
                for state, before, path, chosen in found
                for edge in self.source.sentences(state)
                if (domains := self.match(edge.template, sentence, before)) is not None
            ]
            found = [(state, kept(domains), path, chosen) for state, domains, path, chosen in found]
        whole = [Parse(path, tuple(dict.fromkeys(chosen))) for state, _, path, chosen in found if state.over]
        assert len(whole) < 2, f"two ways to write {' '.join(words)}"
        return whole[0] if whole else None

    def match(
        self, template: Template, words: Sequence[str], domains: Domains, start: int = 0, stop: int | None = None
    ) -> Domains | None:
        """What the roles may be once template[start:stop] is read; None if the text does not fit."""
        places = self.places(template)[start:stop]
        return self._narrowed(places, [(word,) for word in words], domains)

    def match_any(
        self,
        template: Template,
        words: Sequence[Collection[str]],
        domains: Domains,
        stop: int | None,
        alike: Collection[str],
    ) -> Domains | None:
        """`match` of template[:stop], where each word is one of several; the roles `alike` may be the same lexeme."""
        return self._narrowed(self.places(template)[:stop], words, domains, alike)

    def _narrowed(
        self,
        places: Sequence[Place],
        words: Sequence[Collection[str]],
        domains: Domains,
        alike: Collection[str] = (),
    ) -> Domains | None:
        if len(places) != len(words):
            return None
        found = dict(domains)
        for (role, masks), alternatives in zip(places, words, strict=True):
            mask = 0
            for word in alternatives:
                mask |= masks.get(word, 0)
            if role is not None:
                mask = found[role] = mask & found.get(role, -1)
            if not mask:
                return None
        apart = {role: mask for role, mask in found.items() if role not in alike} if alike else found
        return found if _distinct(apart) else None

    @cached_property
    def places(self) -> Callable[[Template], Sequence[Place]]:
        """A template by its words: at each place, what a word says about the lexeme there."""
        return cache(lambda template: [self._place(token, place == 0) for place, token in enumerate(template)])

    def _place(self, token: str | Gap, first: bool) -> Place:
        masks = dict[str, int]()
        for number, word in enumerate(self.source.spellings(token)):
            word = capitalised(word) if first else word
            masks[word] = masks.get(word, 0) | 1 << number
        return (token.role if isinstance(token, Gap) else None), masks

    def lexemes(self, template: Template, domains: Domains) -> Iterator[tuple[str, str]]:
        """(role, word) for each role of a template whose lexeme is known; the word is the lexeme's first form."""
        for role in dict.fromkeys(token.role for token in template if isinstance(token, Gap)):
            if (mask := domains[role]).bit_count() == 1:
                lexeme = self.source.classes[ROLES[role]][mask.bit_length() - 1]
                yield role, next(iter(lexeme.values()))

    # ------------------------------------------------------------------------------------------------------------------
    # All states at once, for texts without a beginning

    @cached_property
    def by_template(self) -> Mapping[Template, Mapping[State, Sentence]]:
        """Each template with the states that it can follow and the sentence that it then is."""
        found = dict[Template, dict[State, Sentence]]()
        for state in self.source.states:
            for sentence in self.source.sentences(state):
                found.setdefault(sentence.template, {})[state] = sentence
        return found

    def edges(self, template: Template, states: States) -> Iterator[tuple[State, Sentence]]:
        """The states, out of some, that a template can follow, each with the sentence that it then is.

        States that no story reaches are among them.
        """
        told = self.by_template[template]
        for state in told if len(told) < len(states) else states:
            if state in told and state in states:
                yield state, told[state]
        unreached = states.keys() - self.reached
        for state in states if unreached else ():
            if state in unreached and (sentence := self._unreached(template, state)) is not None:
                yield state, sentence

    def within_reach(self, states: States) -> States:
        """The states, out of some, that stories reach."""
        unreached = states.keys() - self.reached
        return {state: None for state in states if state not in unreached} if unreached else states

    @cached_property
    def reached(self) -> Set[State]:
        """The states that stories reach."""
        return frozenset(self.source.states)

    @cached_property
    def _unreached(self) -> Callable[[Template, State], Sentence | None]:
        """The sentence with a template that can follow a state that no story reaches."""
        forms = {template: {edge.form for edge in edges.values()} for template, edges in self.by_template.items()}
        return lru_cache(KEPT)(lambda template, state: self.source.spelled(template, forms[template], state))

    @cached_property
    def by_first(self) -> Mapping[str, Sequence[Template]]:
        """The templates by their first words."""
        return _index((word, template) for template in self.by_template for word in self.places(template)[0][1])

    @cached_property
    def by_last(self) -> Mapping[str, Sequence[Template]]:
        """The templates by their last words before the full stop."""
        return _index((word, template) for template in self.by_template for word in self.places(template)[-2][1])


def _index(pairs: Iterable[tuple[str, Template]]) -> Mapping[str, Sequence[Template]]:
    found = dict[str, list[Template]]()
    for word, template in pairs:
        found.setdefault(word, []).append(template)
    return found


def kept(domains: Domains) -> Domains:
    """What is still known about the roles after a sentence: all but the passing ones."""
    return {role: mask for role, mask in domains.items() if role not in PASSING}


def _distinct(domains: Domains) -> bool:
    """Whether no two roles of one class are known to be the same lexeme."""
    seen = set[tuple[str, int]]()
    for role, mask in domains.items():
        if not mask & (mask - 1):
            one = (ROLES[role], mask)
            if one in seen:
                return False
            seen.add(one)
    return True
