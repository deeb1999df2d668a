"""Templates: sentences with fixed words and gaps, each of which is filled with a form of a lexeme."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

from ldlm.stories.grammar import FRIEND, HERO, Form, State
from ldlm.stories.words import NUMBERS, Lexeme

PRONOUN = 0.7  # probability of a pronoun where one is allowed


class Gap(NamedTuple):
    """A word that depends on the lexeme of a role: its form of that name, or for a verb "gave/gives" by tense."""

    role: str
    form: str


Token = str | Gap
Template = tuple[Token, ...]
Part = tuple[float, Template]  # a way to spell an element of a form, with its probability


def word_of(gap: Gap, lexeme: Lexeme) -> str:
    """The word with which a lexeme fills a gap."""
    if gap.role == "tense":
        return gap.form.split("/")[lexeme[""] == "present"]
    return lexeme[gap.form]


def capitalised(word: str) -> str:
    """The word as it begins a sentence."""
    return word[0].upper() + word[1:]


class Expansion(NamedTuple):
    """A form in a state with all choices made except the lexemes."""

    probability: float
    template: Template
    numbers: Mapping[str, int]  # counts in the state that have changed
    subject: str


def expansions(form: Form, state: State) -> Iterator[Expansion]:
    """All templates of a form in a state, with probabilities that sum to 1; may be none."""
    choices = [0] if form.each is None else list(form.each(state))
    elements = _elements(form.text)
    subject = next((_referent(one[1:-2], state) for one in elements if one.endswith("!}")), "")
    for k in choices:
        parts = [_parts(element, state, k, subject) for element in elements]
        for chosen in product(*parts):
            probability, template = 1 / len(choices), list[Token]()
            for share, tokens in chosen:
                probability *= share
                template += tokens
            yield Expansion(probability, tuple(template), form.count(state, k), subject)


@cache
def _elements(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _parts(element: str, state: State, k: int, subject: str) -> Sequence[Part]:
    """The ways to spell one element of a form."""
    if not element.startswith("{"):
        return [(1, (Gap("tense", element) if "/" in element else element,))]
    inside = element[1:-1]
    if inside in _SPECIAL:
        return _SPECIAL[inside](state)
    if inside[-1] in "!?":
        return _mention(_referent(inside[:-1], state), inside[-1], state, subject)
    name, _, what = inside.partition(":")
    number = _number(name, state, k)
    if number is not None:
        counted: Template = (Gap(what, "one" if number == 1 else "many"),) if what else ()
        return [(1, (NUMBERS[number], *counted))]
    role, _, form = inside.partition(".")
    if role == "mine":
        return [(1, (Gap("tense", "was/is" if state.mine == 1 else "were/are"),))]
    return [(1, (Gap(_referent(role, state), form),))]


def _referent(name: str, state: State) -> str:
    """The role that a name like `holder` stands for; roles stand for themselves."""
    if name == "lacker":
        return FRIEND if state.holder == HERO else HERO
    return {"holder": state.holder, "owner": state.owner}.get(name, name)


def _mention(role: str, how: str, state: State, subject: str) -> Sequence[Part]:
    """A person or pet as subject (`!`) or object (`?`): the name or, if it was the subject before, maybe a pronoun."""
    name: Template = (Gap(HERO, ""), "and", Gap(FRIEND, "")) if role == "both" else (Gap(role, ""),)
    if state.topic != role or (how == "?" and subject == role):
        return [(1, name)]
    pronoun: Token = "they" if role == "both" else Gap(role, "he" if how == "!" else "him")
    return [(PRONOUN, (pronoun,)), (1 - PRONOUN, name)]


def _it(state: State) -> Sequence[Part]:
    name: Template = ("the", Gap("thing", ""))
    return [(PRONOUN, ("it",)), (1 - PRONOUN, name)] if state.near else [(1, name)]


def _where(state: State) -> Sequence[Part]:
    return [(1, (Gap(state.where, "at"), "the", Gap(state.where, "")))]


_SPECIAL: Mapping[str, Callable[[State], Sequence[Part]]] = {"it": _it, "where": _where}


def _number(name: str, state: State, k: int) -> int | None:
    """The number that a name stands for; None if it stands for none."""
    return {
        "k": k,
        "mine": state.mine,
        "yours": state.yours,
        "total": state.mine + state.yours,
        "more": state.mine - state.yours,
        "fewer": state.yours - state.mine,
    }.get(name)


def roles(template: Template) -> list[str]:
    """The roles of a template, in the order of their first gaps."""
    return list(dict.fromkeys(token.role for token in template if isinstance(token, Gap)))


def speaks_of_it(template: Template) -> bool:
    """Whether the template names the thing or calls it "it"."""
    return "it" in template or any(isinstance(token, Gap) and token.role == "thing" for token in template)
