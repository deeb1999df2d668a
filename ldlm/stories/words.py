"""The words of the stories: classes of interchangeable lexemes, and the class of each role in a story.

A lexeme has several forms: a person a name, `he`, `him` and `his`; a place a noun, and its preposition as `at`. All
lexemes of a class are equally likely, but no two roles of one class have the same lexeme.
"""

from __future__ import annotations

from collections.abc import Mapping

Lexeme = Mapping[str, str]  # form → word; the form "" is the lexeme itself

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
PRONOUNS = frozenset({"he", "she", "it", "him", "her", "his", "they", "them"})
PUNCTUATION = ".,"

_SHE = {"he": "she", "him": "her", "his": "her"}
_HE = {"he": "he", "him": "him", "his": "his"}
_IT = {"he": "it", "him": "it", "his": "its"}


def _plain(words: str) -> tuple[Lexeme, ...]:
    return tuple({"": word} for word in words.split())


def _people(names: str, pronouns: Lexeme) -> tuple[Lexeme, ...]:
    return tuple({"": name, **pronouns} for name in names.split())


def _with_article(words: str) -> tuple[Lexeme, ...]:
    return tuple({"": word, "a": "an" if word[0] in "aeiou" else "a"} for word in words.split())


def _pairs(words: str, form: str) -> tuple[Lexeme, ...]:
    """Lexemes written as "by river": the other form, then the word."""
    return tuple({"": word, form: other} for other, word in (pair.split() for pair in words.split(", ")))


def _countable(words: str) -> tuple[Lexeme, ...]:
    """Lexemes written as "berry/berries"."""
    return tuple({"one": one, "many": many} for one, many in (pair.split("/") for pair in words.split()))


CLASSES: Mapping[str, tuple[Lexeme, ...]] = {
    "tense": ({"": "past"}, {"": "present"}),  # chooses the form of verbs, which the grammar writes as "gave/gives"
    "person": _people("Anna Bella Clara Emma Grace Lily Mary Nora Rose Ruth Sara Tess", _SHE)
    + _people("Ben Carl David Finn Henry Jack Leo Max Oscar Paul Sam Tom", _HE),
    "pet": _people("Biscuit Button Copper Misty Pepper Pip Shadow Socks", _IT),
    "animal": _plain("dog cat goat rabbit duck pony hen parrot"),
    "coat": _with_article("small big old young black white brown grey"),
    "thing": _plain("kite ball drum doll boat train robot flute puzzle lantern scooter crown"),
    "look": _with_article("red blue green yellow purple orange new tiny wooden shiny round ugly"),
    "item": _countable(
        "shell/shells stone/stones coin/coins nut/nuts apple/apples pear/pears plum/plums feather/feathers "
        "bead/beads marble/marbles cherry/cherries berry/berries"
    ),
    "place": _pairs(
        "in park, on beach, at market, in garden, at zoo, by river, in forest, at library, on hill, at station, "
        "by lake, at farm",
        "at",
    ),
    "spot": _pairs(
        "under bed, in box, behind door, on shelf, under table, in cupboard, behind clock, in basket, under stairs, "
        "behind curtain",
        "at",
    ),
    "time": _pairs(
        "one morning, one evening, one afternoon, on Monday, on Friday, on Sunday, after school, before lunch, "
        "after breakfast, before dinner",
        "first",
    ),
    "kin": _plain("mother father aunt uncle sister brother grandmother grandfather"),
    "bag": _plain("bag bucket hat jar tin sack"),
    "weather": _plain("warm cold windy sunny rainy quiet"),
    "glad": _plain("happy glad proud lucky pleased"),
    "gloom": _plain("sad lonely bored unhappy cross"),
}

# The class of each role. A role is filled when the story first speaks of it, and keeps its lexeme to the end.
ROLES: Mapping[str, str] = {
    **{name: name for name in CLASSES if name != "person"},
    "hero": "person",
    "friend": "person",
    "second": "spot",  # another place to look or to hide
    "third": "spot",
}
PASSING = frozenset({"time", "kin", "weather", "glad", "gloom"})  # roles that are filled anew in each sentence
