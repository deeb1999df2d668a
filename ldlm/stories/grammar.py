"""The parts of a story: its facts (`State`), and the sentences that can be told given those facts (`Form`).

A form is a line of English with gaps:

- `gave/gives`: a verb, in the tense of the story
- `{thing}`, `{hero.his}`: a role of `words.ROLES`, or one of its forms; filled by a free choice if the role is new
- `{hero!}`: the subject; a pronoun or the name if it was also the subject of the sentence before, else the name
- `{friend?}`: an object; a pronoun or the name if it was the subject of the sentence before and is not that of this one
- `{holder!}`, `{owner?}`, `{lacker!}`: the same for whoever has the thing, owns it, or lacks it
- `{both!}`: hero and friend together
- `{it}`: "the kite", or "it" if the sentence before spoke of it
- `{where}`: the place where the thing is hidden, "under the bed"
- `{k:item}`, `{mine:item}`: a number of things, "one shell", "four shells"; `{k}` the number alone
- `{mine.be}`: was or were, for that number

So a pronoun always stands for the subject of the sentence before, except `his` and `its`, which stand for the subject
of their own sentence. `when` says what must be true, `then` what becomes true, each as fields of the state; `each` is
the numbers that `k` can be, and `count` says what they change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class State(NamedTuple):
    """The facts between two sentences, except for the words that fill the roles.

    The sentences that can follow, and their probabilities, depend only on this.
    """

    plot: str = ""
    told: int = 0  # sentences
    known: frozenset[str] = frozenset()  # roles that are filled
    topic: str = ""  # role that was the subject of the last sentence; or `both`
    near: bool = False  # the last sentence spoke of the thing
    holder: str = ""  # role that has the thing or the pet; empty: nobody
    owner: str = ""  # role to which it belongs
    where: str = ""  # role that names the hiding place of the thing
    mine: int = 0  # items of the hero
    yours: int = 0  # items of the friend
    fresh: bool = False  # a number has changed since one was last told
    aside: bool = False  # the story has had its aside
    over: bool = False


HERO, FRIEND, NOBODY = "hero", "friend", ""

START = State()
OVER = State(over=True)

# Kinds of violation: what must be forgotten for a sentence to be right. If several would do, the first is taken; if
# two are needed, the later names it.
KINDS = ("agreement", "pronoun", "count", "place", "possession", "reference", "order", "ending")
FACTS: Mapping[str, tuple[str, ...]] = {  # fields of the state by kind
    "pronoun": ("topic", "near"),
    "count": ("mine", "yours"),
    "place": ("where",),
    "possession": ("holder", "owner"),
    "ending": ("told",),
}
ROLE_KINDS: Mapping[str, tuple[str, ...]] = {  # roles by kind
    "agreement": ("tense",),
    "place": ("place", "spot", "second", "third"),
    "reference": ("hero", "friend", "thing", "look", "item", "animal", "coat", "pet", "bag"),
}

# Probability that the next sentence is the last, by the number of sentences before it.
STOP = {0: 0.0, 1: 0.0, 2: 0.25, 3: 0.4, 4: 0.6, 5: 1.0}

Number = Callable[[State], Iterable[int]]


@dataclass(frozen=True, kw_only=True)
class Form:
    """A sentence that can be told in some states."""

    text: str
    part: str  # opening, middle or ending
    plot: str  # empty: any
    weight: float = 1.0
    knows: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    when: Mapping[str, Any] = field(default_factory=dict)
    then: Mapping[str, Any] = field(default_factory=dict)
    test: Callable[[State], bool] = lambda state: True
    each: Number | None = None
    count: Callable[[State, int], Mapping[str, int]] = lambda state, k: {}  # numbers that change

    def fits(self, state: State) -> bool:
        """Whether the form can be told in this state."""
        if self.plot and self.plot != state.plot and self.part != "opening":
            return False
        if not self.knows <= state.known or self.lacks & state.known:
            return False
        return all(getattr(state, name) == value for name, value in self.when.items()) and self.test(state)
