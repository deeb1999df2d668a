"""The sentences of the stories, plot by plot, in the notation of `grammar`.

Five things can happen: something changes hands, things are counted, something is hidden, a pet runs away, two go out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ldlm.stories.grammar import FRIEND, HERO, NOBODY, Form, Number, State

FORMS: list[Form] = []


def _form(part: str, plot: str, text: str, knows: str = "", lacks: str = "", **rest: Any) -> None:
    FORMS.append(
        Form(part=part, plot=plot, text=text, knows=frozenset(knows.split()), lacks=frozenset(lacks.split()), **rest)
    )


def _opening(plot: str, text: str, **rest: Any) -> None:
    _form("opening", plot, text, **rest)


def _middle(plot: str, text: str, **rest: Any) -> None:
    _form("middle", plot, text, **rest)


def _aside(plot: str, text: str, **rest: Any) -> None:
    """A sentence that changes nothing; a story has at most one."""
    when = {**rest.pop("when", {}), "aside": False}
    _form("middle", plot, text, when=when, then={"aside": True}, weight=0.7, **rest)


def _ending(plot: str, text: str, **rest: Any) -> None:
    _form("ending", plot, text, **rest)


_aside("", "it was/is a {weather} day .", test=lambda s: s.told == 1)

# ----------------------------------------------------------------------------------------------------------------------
# A thing changes hands

HERS = {"holder": HERO, "owner": HERO}  # the hero's own, in the hero's hands
LENT = {"holder": FRIEND, "owner": HERO}
THEIRS = {"holder": FRIEND, "owner": FRIEND}
BORROWED = {"holder": HERO, "owner": FRIEND}

_opening("gift", "{hero!} had/has {look.a} {look} {thing} .", then=HERS)
_opening(
    "gift", "{time.first} {time} , {hero!} found/finds {look.a} {look} {thing} {place.at} the {place} .", then=HERS
)
_opening("gift", "{hero!} got/gets {look.a} {look} {thing} from {hero.his} {kin} .", then=HERS)
_opening("gift", "{hero!} made/makes {look.a} {look} {thing} for {friend} .", then=HERS)
_opening("gift", "{friend!} had/has {look.a} {look} {thing} , and {hero} liked/likes it very much .", then=THEIRS)

_middle("gift", "{friend!} came/comes to visit {hero?} .", lacks="friend")
_middle("gift", "{hero!} showed/shows {it} to {friend} .", lacks="friend", when=HERS)
_middle("gift", "{hero!} met/meets {friend} {place.at} the {place} .", lacks="friend place")
_middle("gift", "{hero!} gave/gives {it} to {friend?} .", knows="friend", when=HERS, then=THEIRS, weight=2)
_middle("gift", "{hero!} lent/lends {it} to {friend?} .", knows="friend", when=HERS, then=LENT)
_middle("gift", "{friend!} borrowed/borrows {it} for a day .", knows="friend", when=HERS, then=LENT)
_middle("gift", "{friend!} gave/gives {it} to {hero?} .", when=THEIRS, then=HERS, weight=2)
_middle("gift", "{friend!} lent/lends {it} to {hero?} .", when=THEIRS, then=BORROWED)
_middle("gift", "{hero!} borrowed/borrows {it} for a day .", when=THEIRS, then=BORROWED)
_middle("gift", "{friend!} gave/gives {it} back to {hero?} .", when=LENT, then=HERS, weight=2)
_middle("gift", "{hero!} gave/gives {it} back to {friend?} .", when=BORROWED, then=THEIRS, weight=2)
_middle(
    "gift",
    "{holder!} lost/loses {it} {place.at} the {place} .",
    lacks="place",
    then={"holder": NOBODY},
    test=lambda s: s.holder != NOBODY,
)
_middle(
    "gift",
    "{hero!} went/goes back and found/finds {it} {place.at} the {place} .",
    knows="place",
    when={"holder": NOBODY},
    then={"holder": HERO},
)
_middle(
    "gift",
    "{friend!} found/finds {it} {place.at} the {place} and kept/keeps it .",
    knows="place",
    when={"holder": NOBODY},
    then=THEIRS,
)
_aside("gift", "{friend!} asked/asks {hero?} for {it} .", knows="friend", when={"holder": HERO})
_aside("gift", "{hero!} asked/asks {friend?} for {it} .", knows="friend", when={"holder": FRIEND})
_aside("gift", "{holder!} played/plays with {it} all day .", test=lambda s: s.holder != NOBODY)
_aside("gift", "{holder!} took/takes good care of {it} .", test=lambda s: s.holder != NOBODY)
_aside("gift", "{owner!} looked/looks everywhere for {it} .", when={"holder": NOBODY})

_HELD = {"test": lambda s: s.holder != NOBODY}
_ending("gift", "in the end , {holder!} had/has the {look} {thing} .", **_HELD)
_ending("gift", "so {it} stayed/stays with {holder?} .", **_HELD)
_ending("gift", "{holder!} was/is {glad} to have {it} .", **_HELD)
_ending("gift", "{lacker!} was/is {gloom} without {it} .", knows="friend", **_HELD)
_ending("gift", "{both!} played/play with {it} until dark .", knows="friend", **_HELD)
_ending(
    "gift", "{both!} played/play with {it} {place.at} the {place} until dark .", knows="friend place", weight=2, **_HELD
)
_ending(
    "gift",
    "{holder!} had/has {it} now , but it still belonged/belongs to {owner?} .",
    test=lambda s: s.holder not in (NOBODY, s.owner),
    weight=3,
)
_ending("gift", "from then on , {it} belonged/belongs to {owner?} .", when=THEIRS, weight=2)
_ending("gift", "nobody ever saw/sees the {look} {thing} again .", when={"holder": NOBODY})
_ending("gift", "{owner!} never found/finds {it} again .", when={"holder": NOBODY})
_ending("gift", "{it} was/is still {place.at} the {place} .", when={"holder": NOBODY}, knows="place")

# ----------------------------------------------------------------------------------------------------------------------
# Things are counted

MOST = 9  # items of one person


def _up_to(most: int, limit: Callable[[State], int]) -> Number:
    return lambda state: range(1, min(most, limit(state)) + 1)


def _mine(state: State, k: int) -> Mapping[str, int]:
    return {"mine": state.mine + k}


def _yours(state: State, k: int) -> Mapping[str, int]:
    return {"yours": state.yours + k}


def _given(state: State, k: int) -> Mapping[str, int]:
    return {"mine": state.mine - k, "yours": state.yours + k}


def _received(state: State, k: int) -> Mapping[str, int]:
    return {"mine": state.mine + k, "yours": state.yours - k}


def _lost(state: State, k: int) -> Mapping[str, int]:
    return {"mine": state.mine - k}


_NEWS: Mapping[str, Any] = {"fresh": True}
_SEVERAL: Mapping[str, Any] = {"each": lambda s: range(2, 6), "count": _mine}
_opening("count", "{hero!} had/has {k:item} in {hero.his} {bag} .", **_SEVERAL)
_opening("count", "{time.first} {time} , {hero!} found/finds {k:item} {place.at} the {place} .", **_SEVERAL)
_opening("count", "{hero!} got/gets {k:item} from {hero.his} {kin} .", **_SEVERAL)
_opening("count", "{both!} looked/look for {item.many} {place.at} the {place} .")

_middle(
    "count",
    "{friend!} came/comes along with {k:item} .",
    lacks="friend",
    each=lambda s: range(1, 5),
    count=_yours,
    test=lambda s: s.mine > 0,
)
_middle(
    "count",
    "{hero!} found/finds {k:item} .",
    each=lambda s: range(1, 5),
    count=_mine,
    test=lambda s: s.mine == 0,
    weight=3,
)
_middle(
    "count",
    "{friend!} found/finds {k:item} .",
    knows="friend",
    each=lambda s: range(1, 5),
    count=_yours,
    test=lambda s: s.yours == 0,
)
_middle(
    "count",
    "then {hero!} found/finds {k} more .",
    when={"fresh": False},
    then=_NEWS,
    each=_up_to(3, lambda s: MOST - s.mine),
    count=_mine,
    test=lambda s: s.mine > 0,
)
_middle(
    "count",
    "then {friend!} found/finds {k} more .",
    when={"fresh": False},
    then=_NEWS,
    each=_up_to(3, lambda s: MOST - s.yours),
    count=_yours,
    test=lambda s: s.yours > 0,
)
_middle(
    "count",
    "{hero!} lost/loses {k} of {hero.his} {item.many} .",
    then=_NEWS,
    each=_up_to(3, lambda s: s.mine - 1),
    count=_lost,
)
_middle(
    "count",
    "{hero!} gave/gives {k} of {hero.his} {item.many} to {friend?} .",
    then=_NEWS,
    each=_up_to(3, lambda s: min(s.mine - 1, MOST - s.yours)),
    count=_given,
    weight=2,
)
_middle(
    "count",
    "{friend!} gave/gives {k} of {friend.his} {item.many} to {hero?} .",
    then=_NEWS,
    each=_up_to(3, lambda s: min(s.yours - 1, MOST - s.mine)),
    count=_received,
    weight=2,
)
_middle(
    "count",
    "now {hero!} had/has {mine:item} .",
    when=_NEWS,
    then={"fresh": False},
    test=lambda s: s.mine > 0,
    weight=2,
)
_middle("count", "now {friend!} had/has {yours:item} .", when=_NEWS, then={"fresh": False}, test=lambda s: s.yours > 0)
_aside("count", "{hero!} put/puts them all in {hero.his} {bag} .", lacks="bag", test=lambda s: s.mine > 1)

_ending("count", "in the end , {hero!} had/has {mine:item} .", test=lambda s: s.mine > 0)
_ending(
    "count",
    "in the end , {hero!} had/has {mine:item} and {friend} had/has {yours} .",
    test=lambda s: s.mine > 0 and s.yours > 0,
    weight=2,
)
_ending(
    "count",
    "together they had/have {total:item} .",
    test=lambda s: s.mine > 0 and s.yours > 0 and s.mine + s.yours <= 12,
    weight=2,
)
_ending("count", "so both of them had/have {mine:item} .", test=lambda s: s.mine == s.yours and s.mine > 0, weight=3)
_ending("count", "{hero!} had/has {more} more than {friend?} .", test=lambda s: s.mine > s.yours > 0)
_ending("count", "{friend!} had/has {fewer} more than {hero?} .", test=lambda s: s.yours > s.mine > 0)
_ending(
    "count",
    "there {mine.be} {mine:item} in the {bag} at the end of the day .",
    knows="bag",
    test=lambda s: s.mine > 0,
    weight=2,
)
_ending("count", "{hero!} found/finds none at all .", test=lambda s: s.mine == 0)

# ----------------------------------------------------------------------------------------------------------------------
# A thing is hidden and looked for

HIDDEN = {"holder": NOBODY}

_opening("hiding", "{hero!} hid/hides {look.a} {look} {thing} {spot.at} the {spot} .", then={"where": "spot"})
_opening(
    "hiding",
    "{time.first} {time} , {hero!} put/puts {hero.his} {look} {thing} {spot.at} the {spot} .",
    then={"where": "spot"},
)
_opening(
    "hiding",
    "{hero!} hid/hides {hero.his} {thing} {spot.at} the {spot} because {friend} wanted/wants it .",
    then={"where": "spot"},
)

_middle("hiding", "{friend!} came/comes to look for {it} .", lacks="friend")
_middle(
    "hiding",
    "{friend!} looked/looks {second.at} the {second} , but it was/is not there .",
    lacks="second",
    when=HIDDEN,
    weight=2,
)
_middle(
    "hiding",
    "{friend!} looked/looks for it {third.at} the {third} and found/finds nothing .",
    lacks="third",
    when=HIDDEN,
)
_middle(
    "hiding",
    "{hero!} took/takes {it} away and put/puts it {third.at} the {third} .",
    lacks="third",
    when=HIDDEN,
    then={"where": "third"},
    weight=2,
)
_middle("hiding", "{friend!} found/finds {it} {where} .", when=HIDDEN, then={"holder": FRIEND}, knows="friend")
_middle("hiding", "{friend!} gave/gives {it} to {hero?} .", when={"holder": FRIEND}, then={"holder": HERO}, weight=2)
_middle("hiding", "{hero!} took/takes {it} from {friend?} .", when={"holder": FRIEND}, then={"holder": HERO})
_aside("hiding", "{hero!} smiled/smiles and said/says nothing .", knows="friend")
_aside("hiding", "{friend!} asked/asks where {it} was/is .", knows="friend", when=HIDDEN)
_aside("hiding", "{hero!} told/tells {friend?} to look {where} .", knows="friend", when=HIDDEN)
_aside("hiding", "{friend!} ran/runs home with {it} .", when={"holder": FRIEND})

_ending("hiding", "so {it} stayed/stays {where} .", when=HIDDEN, weight=2)
_ending("hiding", "nobody ever looked/looks {where} .", when=HIDDEN)
_ending("hiding", "in the end , {friend!} found/finds {it} {where} .", when=HIDDEN, knows="friend", weight=3)
_ending("hiding", "{hero!} went/goes to get {it} , and it was/is still {where} .", when=HIDDEN)
_ending("hiding", "now {friend!} had/has the {look} {thing} .", when={"holder": FRIEND}, knows="look")
_ending("hiding", "{friend!} was/is {glad} to have {it} .", when={"holder": FRIEND})
_ending("hiding", "{hero!} was/is {gloom} without {it} .", when={"holder": FRIEND})
_ending("hiding", "{hero!} never hid/hides {it} again .", when={"holder": HERO})
_ending("hiding", "{hero!} put/puts {it} back {where} .", when={"holder": HERO}, weight=2)

# ----------------------------------------------------------------------------------------------------------------------
# A pet runs away

AWAY = {"holder": NOBODY}
HOME = {"holder": HERO}

_opening("pet", "{hero!} had/has {coat.a} {coat} {animal} called {pet} .", then=HOME)
_opening(
    "pet", "{hero!} got/gets {coat.a} {coat} {animal} from {hero.his} {kin} and called/calls it {pet} .", then=HOME
)

_middle(
    "pet", "{time.first} {time} , {pet!} ran/runs away to the {place} .", when=HOME, then=AWAY, lacks="place", weight=3
)
_middle("pet", "{hero!} lost/loses {pet?} {place.at} the {place} .", when=HOME, then=AWAY, lacks="place")
_middle("pet", "{friend!} came/comes to play with {pet?} .", when=HOME, lacks="friend")
_middle("pet", "{friend!} helped/helps {hero?} to look for {pet?} .", when=AWAY, lacks="friend")
_middle("pet", "{friend!} saw/sees {pet?} {place.at} the {place} .", when=AWAY, lacks="friend")
_middle("pet", "{hero!} found/finds {pet?} {place.at} the {place} .", when=AWAY, then=HOME)
_middle("pet", "{friend!} found/finds {pet?} and brought/brings it back to {hero?} .", when=AWAY, then=HOME)
_middle(
    "pet",
    "{friend!} found/finds {pet?} {place.at} the {place} and took/takes it home .",
    when=AWAY,
    then={"holder": FRIEND},
)
_middle("pet", "{friend!} gave/gives {pet?} back to {hero?} .", when={"holder": FRIEND}, then=HOME)
_aside("pet", "{pet!} slept/sleeps {spot.at} the {spot} every night .", when=HOME)
_aside("pet", "{hero!} loved/loves {hero.his} {animal} very much .")
_aside("pet", "{hero!} looked/looks everywhere for {pet?} .", when=AWAY)
_aside("pet", "{hero!} came/comes to see {pet?} every day .", when={"holder": FRIEND})

_ending("pet", "from then on , {pet!} never left/leaves {hero?} again .", when=HOME, knows="place")
_ending("pet", "in the end , {pet!} was/is at home with {hero?} .", when=HOME, knows="place")
_ending("pet", "{hero!} was/is {glad} to have {pet?} .", when=HOME)
_ending("pet", "{pet!} was/is the best {animal} of all .", when=HOME)
_ending("pet", "that night , {pet!} slept/sleeps {spot.at} the {spot} again .", when=HOME, knows="spot", weight=3)
_ending("pet", "{hero!} never saw/sees {hero.his} {coat} {animal} again .", when=AWAY)
_ending("pet", "{pet!} stayed/stays {place.at} the {place} .", when=AWAY)
_ending("pet", "now {pet!} lived/lives with {friend?} .", when={"holder": FRIEND}, weight=2)
_ending("pet", "{hero!} was/is {gloom} without {pet?} .", test=lambda s: s.holder != HERO)

# ----------------------------------------------------------------------------------------------------------------------
# Two go out, and may forget something

FORGOTTEN = {"holder": NOBODY}

_opening("trip", "{time.first} {time} , {both!} went/go to the {place} .")
_opening("trip", "{hero!} took/takes {friend} to the {place} to see {coat.a} {coat} {animal} .")

_middle("trip", "{both!} saw/see {coat.a} {coat} {animal} {place.at} the {place} .", lacks="animal", weight=2)
_middle("trip", "{hero!} forgot/forgets {hero.his} {bag} there .", lacks="bag", then={"owner": HERO})
_middle("trip", "{friend!} forgot/forgets {friend.his} {bag} there .", lacks="bag", then={"owner": FRIEND})
for _owner, _other in ((HERO, FRIEND), (FRIEND, HERO)):
    _lost_by: Mapping[str, Any] = {
        "knows": "bag",
        "when": {**FORGOTTEN, "owner": _owner},
        "then": {"holder": _owner},
        "weight": 2,
    }
    _middle("trip", f"{{{_owner}!}} went/goes back for the {{bag}} .", **_lost_by)
    _middle("trip", f"{{{_other}!}} found/finds the {{bag}} and gave/gives it back to {{{_owner}?}} .", **_lost_by)
_aside("trip", "the {animal} followed/follows {friend?} all the way .", knows="animal")
_aside("trip", "{hero!} gave/gives the {animal} something to eat .", knows="animal")
_aside("trip", "{both!} sang/sing all the way .")

_RESTORED = {"knows": "bag", "test": lambda s: s.holder == s.owner}
_ending("trip", "{both!} stayed/stay {place.at} the {place} until dark .")
_ending("trip", "{both!} were/are {glad} to be home again .")
_ending("trip", "{both!} never forgot/forget the {coat} {animal} .", knows="animal", weight=2)
_ending("trip", "{owner!} never found/finds the {bag} again .", knows="bag", when=FORGOTTEN, weight=3)
_ending("trip", "{owner!} was/is {glad} to have {owner.his} {bag} again .", weight=3, **_RESTORED)
