"""Judging: how much of a text the process could have written, and what is wrong with the rest.

A violation is named after what must be forgotten for the sentence to be right: that she is a woman (pronoun), who has
the kite (possession), how many shells there are (count), and so on through `KINDS`; `forgetting` tries them. If
nothing helps, the kind is order: words or sentences that do not follow one another. A sentence has at most one
violation. What it contradicts is unknown from there on, until the text says it again; after a sentence that cannot be
read even if one thing is forgotten, everything is unknown except who and what the story is about. The first sentence
after the end of a story is wrong, as a boundary is missing, and the rest may be another story.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ldlm.stories.forgetting import Forgetting, Match, Reading, Relaxation
from ldlm.stories.grammar import FACTS, OVER, START, State
from ldlm.stories.process import Sentence
from ldlm.stories.reading import END, FEW, Domains, Reader, States, kept, sentences_of
from ldlm.stories.templates import Gap, Template, roles

BEGINNING = (Reading({}, {START: None}),)  # what is known before a story


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


@dataclass(eq=False)
class Judge:
    """Judges stories and parts of stories; what it computes about the source is kept from one to the next."""

    reader: Reader

    @cached_property
    def forgetting(self) -> Forgetting:
        """The reader of sentences that are wrong, which names their violations."""
        return Forgetting(self.reader)

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
    def everything(self) -> States:
        """All states that a story can be in after a sentence, and `OVER`."""
        return {state: None for state in self.reader.source.states if state != START}

    @cached_property
    def by_plot(self) -> Mapping[str, States]:
        """The states of each plot, with `OVER`."""
        plots = {state.plot for state in self.everything}
        return {plot: {s: None for s in self.everything if s.plot == plot or s.over} for plot in plots}

    def fitting(self, words: Sequence[str], readings: Sequence[Reading], stop: int | None = None) -> Iterator[Match]:
        """The ways to read a sentence, or, with `stop`, its first words."""
        for reading in readings:
            known: dict[Template, Domains | None] = {}
            for template, edges in self._candidates(reading.states, words[0]):
                if template not in known:
                    known[template] = self.reader.match(template, words, reading.domains, 0, stop)
                if (domains := known[template]) is not None:
                    for state, sentence in edges:
                        yield Match(template, state, sentence, domains)

    def _candidates(self, states: States, first: str) -> Iterator[tuple[Template, Iterable[tuple[State, Sentence]]]]:
        """Templates that may follow, with the states before them; for many states, only those with this first word."""
        if len(states) <= FEW:
            for state in states:
                for sentence in self.reader.source.sentences(state):
                    yield sentence.template, [(state, sentence)]
        else:
            reached = self.reader.within_reach(states)
            for template in self.reader.by_first.get(first, ()):
                yield template, self.reader.edges(template, reached)

    def ending(self, words: Sequence[str]) -> Iterator[Match]:
        """The ways to read a sentence that may lack its first words."""
        for template in self.reader.by_last.get(words[-2], ()) if len(words) > 1 else self.reader.by_template:
            if len(words) <= len(template):
                domains = self.reader.match(template, words, {}, len(template) - len(words))
                if domains is not None:
                    for state, sentence in self.reader.by_template[template].items():
                        yield Match(template, state, sentence, domains)

    def inside(self, words: Sequence[str]) -> bool:
        """Whether some sentence contains these words before its full stop."""
        return any(
            self.reader.match(template, words, {}, start, start + len(words)) is not None
            for template in self.reader.by_template
            for start in range(len(template) - len(words))
        )


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
        readings = [*BEGINNING] if begins else [Reading({}, self.judge.everything)]
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
            unfinished = words[-1] != END and not cut_off and self.judge.inside(words)
            self._violation("ending" if unfinished else "order")
        return _merged(matches) or readings

    def _cut_end(self, words: Sequence[str], readings: list[Reading]) -> bool:
        """Read a sentence whose end is cut off."""
        if next(self.judge.fitting(words, readings, len(words)), None) is not None:
            return True
        if _all_over(readings):
            self._violation("ending")
        else:
            self._wrong(words, readings, len(words))
        return False

    def _sentence(self, words: Sequence[str], readings: list[Reading]) -> list[Reading]:
        """Read a whole sentence."""
        if _all_over(readings):
            return self._after_the_end(words)
        matches = [*self.judge.fitting(words, readings)]
        self._count(cut=False, valid=bool(matches))
        if matches:
            self._choose(matches)
        elif words[-1] != END:  # the story stops within it
            self._violation("ending" if self._begun(words, readings) else "order")
        else:
            matches = self._wrong(words, readings)
        self.history.append(matches)
        return _merged(matches) if matches else self._unknown(readings)

    def _after_the_end(self, words: Sequence[str]) -> list[Reading]:
        """Read a whole sentence after the end of a story: a violation, from where on another story may be told."""
        self._count(cut=False, valid=False)
        self._violation("ending")
        matches = [*self.judge.fitting(words, BEGINNING)]
        if not matches and (found := self.judge.forgetting.explained(words, BEGINNING)) is not None:
            forgotten, loosely = found
            matches = loosely if forgotten.alone else []
        self.history[:] = [matches]  # the other story does not contradict the first
        return _merged(matches) or [Reading({}, {START: None, **self.judge.everything})]

    def _begun(self, words: Sequence[str], readings: list[Reading]) -> bool:
        """Whether a sentence can begin so, whatever must be forgotten."""
        if any(self.judge.fitting(words, readings, len(words))):
            return True
        return self.judge.forgetting.explained(words, readings, len(words)) is not None

    def _wrong(self, words: Sequence[str], readings: list[Reading], stop: int | None = None) -> list[Match]:
        """Name the violation in a sentence, or in its first words; the ways to read it then, none if unknown."""
        if (found := self.judge.forgetting.explained(words, readings, stop)) is not None:
            forgotten, matches = found
            self._violation(forgotten.kind, self._distance(forgotten, matches[0], words, readings))
            return matches if forgotten.alone else []
        else:
            self._violation("order")
        return []

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
        if forgotten.kind == "ending":
            return None
        if forgotten.kind == "agreement":
            return 1 if forgotten.roles and self.history else 0  # every sentence tells the tense
        if forgotten.kind in ("count", "possession") or (forgotten.kind == "place" and "where" in forgotten.facts):
            facts = FACTS[forgotten.kind]
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
    found = dict[tuple[tuple[str, int], ...], tuple[Domains, dict[State, None]]]()
    for match in matches:
        domains = kept(match.domains)
        states = found.setdefault(tuple(sorted(domains.items())), (domains, {}))[1]
        states[match.sentence.after] = None
    return [Reading(domains, states) for domains, states in found.values()]
