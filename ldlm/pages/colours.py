"""Probability as colour: a sequential scale that cools down from doubt to certainty, which is plain paper.

Lightness alone carries the order, so the scale reads the same in greyscale and to colour-blind readers. The hues in
between are those of matplotlib's magma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

RGB = tuple[int, int, int]

LEVELS = 21  # equal steps of the square root of the probability


@dataclass(frozen=True)
class Scale:
    """Background colours from probability 0 to 1, which is the `paper`."""

    stops: Sequence[str]
    ink: str
    reverse: str  # the ink on backgrounds far from the paper

    @property
    def paper(self) -> RGB:
        """The background of a certain token."""
        return rgb(self.stops[-1])

    def background(self, level: int) -> RGB:
        """The colour of a level from 0 to LEVELS − 1."""
        place = level / (LEVELS - 1) * (len(self.stops) - 1)
        first = min(int(place), len(self.stops) - 2)
        return mix(rgb(self.stops[first]), rgb(self.stops[first + 1]), place - first)

    def on(self, level: int) -> RGB:
        """The ink, dark or light, that is easier to read on the background of a level."""
        return max((rgb(self.ink), rgb(self.reverse)), key=lambda ink: contrast(ink, self.background(level)))


LIGHT = Scale(("#4a1072", "#a8327d", "#ee5b5e", "#fea973", "#fde5b4", "#ffffff"), ink="#16161d", reverse="#ffffff")
DARK = Scale(("#fcf6b8", "#feb97f", "#f3655c", "#a3307e", "#451077", "#14141c"), ink="#f2f1f7", reverse="#000000")


def level(probability: float) -> int:
    """The level with which a probability is shown, by its square root, since most changes happen below one half."""
    return round(math.sqrt(probability) * (LEVELS - 1))


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """The colour at that share of the way from `a` to `b`."""
    red, green, blue = (round(x + share * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def rgb(code: str) -> RGB:
    """`#rrggbb` as three numbers up to 255."""
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def css(colour: RGB) -> str:
    """A colour as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def luminance(colour: RGB) -> float:
    """Relative luminance, from 0 for black to 1 for white (WCAG 2.2)."""
    red, green, blue = (c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: RGB, b: RGB) -> float:
    """Contrast ratio, from 1 to 21 (WCAG 2.2); text needs 4.5."""
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)
