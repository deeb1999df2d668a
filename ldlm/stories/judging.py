"""Judging: how much of a text the process could have written, and what is wrong with the rest.

A violation is named after what must be forgotten for the sentence to be right: that she is a woman (pronoun), who has
the kite (possession), how many shells there are (count), and so on through `KINDS`. If nothing helps, the kind is
order: words or sentences that do not follow one another. A sentence has at most one violation. What it contradicts is
unknown from there on, until the text says it again; after a sentence that cannot be read at all, everything is unknown
except who and what the story is about.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple

from ldlm.stories.grammar import FACTS, OVER, ROLE_KINDS, START, State
from ldlm.stories.process import Sentence
from ldlm.stories.reading import END, Domains, Reader, kept, sentences_of
from ldlm.stories.templates import Gap, Template, capitalised, roles
from ldlm.stories.words import NUMBERS, PRONOUNS

FEW = 12  # states that are looked at one by one; more are found through the templates with the first word


@dataclass(frozen=True)
class Violation:
    """A violation in a sentence, or at the end of a story."""

    kind: str  # of `KINDS`
    distance: int | None  # sentences back to the one that it contradicts; None if it contradicts none


@dataclass
class Judgement:
    """The findings on a story, or on a part of one."""

    whole: bool  # it has its beginning and its end
    sentences: int = 0  # whole ones
    valid: int = 0  # of these
    cut: int = 0  # sentences that lack their beginning or their end
    cut_valid: int = 0  # of these, as far as they go
    violations: list[Violation] = field(default_factory=list)
    nats: float | None = None  # −ln p of a whole valid story
    choices: set[tuple[str, str]] = field(default_factory=set)  # of valid sentences: forms, and lexemes by role

    @property
    def is_valid(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.violations


class Reading(NamedTuple):
    """A way to understand what was read so far: the words that may fill the roles, and the states that may hold."""

    domains: Domains
    states: Collection[State]


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
    facts: Sequence[str] = ()  # fields of the state
    roles: Collection[str] = ()


@dataclass(eq=False)
class Judge:
    """Judges stories and parts of stories; what it computes about the source is kept from one to the next."""

    reader: Reader

    def judge(self, words: Sequence[str], *, begins: bool = True, ends: bool = True) -> Judgement:
        """Judge a story, or a part that lacks its beginning or its end, as far as it goes."""
        found = Judgement(begins and ends)
        if found.whole and (parse := self.reader.parse(words)) is not None:
            found.sentences = found.valid = len(parse.sentences)
            found.nats = parse.nats
            found.choices = {("form", str(one.form)) for one in parse.sentences} | set(parse.lexemes)
            return found
        _Part(self, found).read(sentences_of(words), begins, ends)
        return found

    # ------------------------------------------------------------------------------------------------------------------
    # What fits

    @cached_property
    def everything(self) -> Collection[State]:
        """All states that a story can be in after a sentence, and `OVER`."""
        return frozenset(self.reader.source.states) - {START}

    @cached_property
    def _reached(self) -> Collection[State]:
        return frozenset(self.reader.source.states)

    @cached_property
    def by_plot(self) -> Mapping[str, Collection[State]]:
        """The states of each plot, with `OVER`."""
        plots = {state.plot for state in self.everything}
        return {plot: frozenset(s for s in self.everything if s.plot == plot or s.over) for plot in plots}

    def fitting(self, words: Sequence[str], readings: Sequence[Reading], stop: int | None = None) -> Iterator[Match]:
        """The ways to read a sentence, or, with `stop`, its first words."""
        for reading in readings:
            known: dict[Template, Domains | None] = {}
            for template, edges in self._candidates(reading.states, words[0]):
                if template not in known:
                    known[template] = self.reader.match(template, words, reading.domains, 0, stop)
                if (domains := known[template]) is not None:
                    for state, sentence in edges:
                        if state in reading.states:
                            yield Match(template, state, sentence, domains)

    def _candidates(
        self, states: Collection[State], first: str
    ) -> Iterator[tuple[Template, Sequence[tuple[State, Sentence]]]]:
        """Templates that may follow, with the states before them; for many states, only those with this first word."""
        if len(states) <= FEW:
            for state in states:
                for sentence in self.reader.source.sentences(state):
                    yield sentence.template, [(state, sentence)]
        else:
            for template in self.reader.by_first.get(first, ()):
                yield template, self.reader.by_template[template]

    def ending(self, words: Sequence[str]) -> Iterator[Match]:
        """The ways to read a sentence that may lack its first words."""
        for template in self.reader.by_last.get(words[-2], ()) if len(words) > 1 else self.reader.by_template:
            if len(words) <= len(template):
                domains = self.reader.match(template, words, {}, len(template) - len(words))
                if domains is not None:
                    for state, sentence in self.reader.by_template[template]:
                        yield Match(template, state, sentence, domains)

    def inside(self, words: Sequence[str]) -> bool:
        """Whether some sentence contains these words before its full stop."""
        return any(
            self.reader.match(template, words, {}, start, start + len(words)) is not None
            for template in self.reader.by_template
            for start in range(len(template) - len(words))
        )

    # ------------------------------------------------------------------------------------------------------------------
    # What would fit if something were forgotten

    def relaxations(self, words: Sequence[str]) -> Iterator[Relaxation]:
        """What can be forgotten, in the order of `KINDS`."""
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

    def loosely(self, forgotten: Relaxation, readings: Sequence[Reading]) -> Iterator[Match]:
        """The ways to read a sentence when something is forgotten."""
        for reading in readings:
            domains = {role: mask for role, mask in reading.domains.items() if role not in forgotten.roles}
            for template, edges in self._loose_candidates(reading.states, forgotten):
                found = self.reader.match_any(template, forgotten.words, domains)
                if found is not None:
                    known = {role: mask for role, mask in found.items() if role not in forgotten.roles}
                    for state, sentence in edges:
                        yield Match(template, state, sentence, known)

    def _loose_candidates(
        self, states: Collection[State], forgotten: Relaxation
    ) -> Iterator[tuple[Template, Iterable[tuple[State, Sentence]]]]:
        """Templates that may follow, with the states before them; facts are forgotten only if the states are few."""
        if len(states) > FEW:
            for template in dict.fromkeys(t for word in forgotten.words[0] for t in self.reader.by_first.get(word, ())):
                yield template, (edge for edge in self.reader.by_template[template] if edge[0] in states)
            return
        source = self.reader.source
        for state in self._varied(states, forgotten.facts):
            # The states that no story reaches are too many to keep their sentences.
            for sentence in source.sentences(state) if state in self._reached else source.made(state):
                yield sentence.template, [(state, sentence)]

    def _varied(self, states: Collection[State], facts: Sequence[str]) -> Iterator[State]:
        """The states with their `facts` replaced by all values that occur in stories; without facts, the states."""
        for state in states:
            for values in self._values(tuple(facts)).get((state.plot, state.known), ()) if facts else ((),):
                yield state._replace(**dict(zip(facts, values, strict=True)))

    @cached_property
    def _values(self) -> Callable[[tuple[str, ...]], Mapping[tuple[str, frozenset[str]], Collection[Sequence[Any]]]]:
        """The combinations of values of some facts, by plot and filled roles."""
        return cache(self._collected)

    def _collected(self, facts: tuple[str, ...]) -> dict[tuple[str, frozenset[str]], dict[Sequence[Any], None]]:
        found = dict[tuple[str, frozenset[str]], dict[Sequence[Any], None]]()
        for state in self.reader.source.states:
            values = tuple(getattr(state, fact) for fact in facts)
            found.setdefault((state.plot, state.known), {})[values] = None
        return found

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


# ----------------------------------------------------------------------------------------------------------------------
# One part


@dataclass(eq=False)
class _Part:
    """Reads one part of a text, sentence by sentence."""

    judge: Judge
    found: Judgement
    history: list[list[Match]] = field(default_factory=list)  # by sentence: the ways to read it, none if unreadable

    def read(self, sentences: Sequence[Sequence[str]], begins: bool, ends: bool) -> None:
        """Judge all sentences, and whether the story may end where it does."""
        readings = [Reading({}, [START] if begins else self.judge.everything)]
        for number, words in enumerate(sentences):
            cut_off = not ends and number == len(sentences) - 1 and words[-1] != END
            if not begins and number == 0:
                readings = self._beginning(words, cut_off, readings)
            elif cut_off:
                self._count(cut=True, valid=self._cut_end(words, readings))
            else:
                readings = self._sentence(words, readings)
        unfinished = bool(sentences) and sentences[-1][-1] != END  # already counted as a violation
        if ends and not unfinished and not any(OVER in reading.states for reading in readings):
            self._violation("ending")

    def _count(self, *, cut: bool, valid: bool) -> None:
        if cut:
            self.found.cut += 1
            self.found.cut_valid += valid
        else:
            self.found.sentences += 1
            self.found.valid += valid

    def _violation(self, kind: str, distance: int | None = None) -> None:
        self.found.violations.append(Violation(kind, distance))

    def _beginning(self, words: Sequence[str], cut_off: bool, readings: list[Reading]) -> list[Reading]:
        """Read a sentence whose beginning may be cut off."""
        if [*words] == [END]:
            self._count(cut=True, valid=True)
            self.history.append([])
            return readings
        matches = [] if words[-1] != END else [*self.judge.ending(words)]
        valid = bool(matches) or (cut_off and self.judge.inside(words))
        self._count(cut=True, valid=valid)
        self.history.append(matches)
        if not valid:
            self._violation("order" if words[-1] == END or cut_off else "ending")
        return _merged(matches) or readings

    def _cut_end(self, words: Sequence[str], readings: list[Reading]) -> bool:
        """Read a sentence whose end is cut off."""
        if next(self.judge.fitting(words, readings, len(words)), None) is not None:
            return True
        self._violation("ending" if _all_over(readings) else "order")
        return False

    def _sentence(self, words: Sequence[str], readings: list[Reading]) -> list[Reading]:
        """Read a whole sentence."""
        matches = [*self.judge.fitting(words, readings)]
        self._count(cut=False, valid=bool(matches))
        if matches:
            self._choose(matches)
            self.history.append(matches)
            return _merged(matches)
        if _all_over(readings) or words[-1] != END:
            self._violation("ending")
            self.history.append([])
            return self._unknown(readings)
        for forgotten in self.judge.relaxations(words):
            if matches := [*self.judge.loosely(forgotten, readings)]:
                self._violation(forgotten.kind, self._distance(forgotten, matches[0], words, readings))
                self.history.append(matches)
                return _merged(matches)
        self._violation("order")
        self.history.append([])
        return self._unknown(readings)

    def _choose(self, matches: Sequence[Match]) -> None:
        """Note the choices of a valid sentence that are beyond doubt."""
        forms = {match.sentence.form for match in matches}
        if len(forms) == 1:
            self.found.choices.add(("form", str(forms.pop())))
        if len(matches) == 1:
            self.found.choices.update(self.judge.reader.lexemes(matches[0].template, matches[0].domains))

    def _unknown(self, readings: Sequence[Reading]) -> list[Reading]:
        """The reading after an unreadable sentence: roles stay as they were, and any state of the plot may hold."""
        plots = {state.plot for reading in readings for state in reading.states if not state.over}
        states = self.judge.by_plot[plots.pop()] if len(plots) == 1 and plots != {""} else self.judge.everything
        return [Reading(reading.domains, states) for reading in readings[:1]]

    # ------------------------------------------------------------------------------------------------------------------
    # How far back the contradicted sentence is

    def _distance(
        self, forgotten: Relaxation, match: Match, words: Sequence[str], readings: Sequence[Reading]
    ) -> int | None:
        """Sentences back to the one that a sentence contradicts; 0: itself, None: unknown."""
        facts = forgotten.facts
        if forgotten.kind == "agreement":
            return 1 if forgotten.roles and self.history else 0  # every sentence tells the tense
        if forgotten.kind in ("count", "possession") or facts == FACTS["place"]:
            return self._since(lambda one: any(getattr(one.before, f) != getattr(one.sentence.after, f) for f in facts))
        wrong = self._first_wrong(words, readings)
        token = match.template[wrong]
        if not isinstance(token, Gap):
            return 1 if forgotten.kind == "pronoun" and self.history else None
        before = {other.role for other in match.template[:wrong] if isinstance(other, Gap)}
        if token.role in before and any(len(words) > 1 for words in forgotten.words):
            return 0
        return self._since(lambda one: token.role in roles(one.template))

    def _first_wrong(self, words: Sequence[str], readings: Sequence[Reading]) -> int:
        """Index of the first word with which no sentence can go on."""
        for stop in range(1, len(words)):
            if next(self.judge.fitting(words[:stop], readings, stop), None) is None:
                return stop - 1
        return len(words) - 1

    def _since(self, holds: Callable[[Match], bool]) -> int | None:
        """Sentences back to the last for which `holds` is true; None if there is none."""
        for back, matches in enumerate(reversed(self.history), start=1):
            if matches and holds(matches[0]):
                return back
        return None


def _all_over(readings: Sequence[Reading]) -> bool:
    return all(state.over for reading in readings for state in reading.states)


def _merged(matches: Sequence[Match]) -> list[Reading]:
    """The readings after a sentence, with the states grouped by what is known about the roles."""
    found = dict[tuple[tuple[str, int], ...], tuple[Domains, set[State]]]()
    for match in matches:
        domains = kept(match.domains)
        states = found.setdefault(tuple(sorted(domains.items())), (domains, set()))[1]
        states.add(match.sentence.after)
    return [Reading(domains, states) for domains, states in found.values()]
