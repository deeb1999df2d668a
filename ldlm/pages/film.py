"""A trace as a film: an animated GIF made with Pillow, for places that cannot show a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ldlm import files
from ldlm.pages import colours, drawing
from ldlm.pages.colours import LEVELS, LIGHT
from ldlm.pages.trace import ratio, time
from ldlm.sampling.frames import Frame, visible

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

WIDTH, MARGIN = 960, 44  # pixels
TEXT, SMALL, SPECIAL, LINE = 23, 18, 16, 40  # font sizes, height of a line
PAD = 22  # width of a special token beyond its letters
THINNEST = 4  # least width of a piece, so that its frame has an inside
TOP, BOTTOM = 96, 84  # heights of the head and the foot
MOST_LINES = 12  # of a longer text, the film shows only the beginning
SHORTEST, REST = 220, 3500  # milliseconds for which a frame and the last frame are shown

SOFT, ACCENT, TRACK = "#6b6b78", "#1c7ed6", "#e3e1e8"


@dataclass(frozen=True)
class Piece:
    """The part of a cell on one line."""

    text: str
    x: float
    line: int
    width: float
    level: int
    changed: bool
    special: bool


def write(path: Path, frames: Sequence[Frame]) -> None:
    """Write the film, one picture per frame, whole or not at all."""
    from PIL import Image

    laid = [
        list(_layout(frame, frame.changes(before))) for before, frame in zip([None, *frames[:-1]], frames, strict=True)
    ]
    lines = min(MOST_LINES, max(piece.line + 1 for pieces in laid for piece in pieces))
    pictures = [_picture(frames, number, pieces, lines) for number, pieces in enumerate(laid)]
    palette = _palette()
    first, *others = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    with files.replacing(path) as temporary:
        first.save(
            temporary,
            "GIF",
            save_all=True,
            append_images=others,
            duration=[*[SHORTEST] * len(others), REST],
            loop=0,
        )


def _layout(frame: Frame, changes: Sequence[bool]) -> Iterator[Piece]:
    """The frame's cells, broken into lines."""
    x, line = 0.0, 0
    for cell in frame.cells:
        level = colours.level(frame.probability(cell))
        changed = any(changes[cell.start : cell.stop])
        font = _font(SPECIAL, mono=True) if cell.special else _font(TEXT)
        for row, text in enumerate(visible(cell.text).split("\n")):
            if row:
                x, line = 0.0, line + 1
            for part in _parts(text, font):
                width = font.getlength(part) + PAD * cell.special
                if x + width > WIDTH - 2 * MARGIN and x:
                    x, line, part = 0.0, line + 1, part.lstrip(" ")
                    width = font.getlength(part) + PAD * cell.special
                if width:  # a space at the end of a line has none, nor has a combining accent by itself
                    yield Piece(part, x, line, max(width, THINNEST), level, changed, cell.special)
                    x += width


def _parts(text: str, font: FreeTypeFont) -> Iterator[str]:
    """A cell's text, cut only if it is wider than a line."""
    while text:
        size = len(text)
        while size > 1 and font.getlength(text[:size]) > WIDTH - 2 * MARGIN - PAD:
            size -= 1
        yield text[:size]
        text = text[size:]


def _picture(frames: Sequence[Frame], number: int, pieces: Sequence[Piece], lines: int) -> Picture:
    from PIL import Image, ImageDraw

    height = TOP + lines * LINE + BOTTOM
    picture = Image.new("RGB", (WIDTH, height), LIGHT.paper)
    draw = ImageDraw.Draw(picture)
    _head(draw, frames[number])
    for piece in pieces:
        if piece.line < lines:
            _piece(draw, piece, TOP + piece.line * LINE)
    if pieces[-1].line >= lines:
        draw.text((WIDTH - MARGIN + 8, TOP + (lines - 1) * LINE + 4), "…", SOFT, _font(TEXT))
    _foot(draw, number, len(frames), height)
    return picture


def _head(draw: ImageDraw, frame: Frame) -> None:
    """Draw t, the signal-to-noise ratio and the mean probability, each in a fixed place so that nothing jumps."""
    figures = (("t", time(frame)), ("SNR", ratio(frame)), ("confidence", f"{frame.confidence:.0%}"))
    for x, (name, value) in zip((MARGIN, MARGIN + 150, MARGIN + 330), figures, strict=True):
        draw.text((x, 36), name, SOFT, _font(SMALL))
        draw.text((x + _font(SMALL).getlength(name) + 9, 36), value, LIGHT.ink, _font(SMALL))
    left = WIDTH - MARGIN - 6 * LEVELS - 22
    draw.text((left - 8, 36), "0", SOFT, _font(SMALL), anchor="ra")
    for level in range(LEVELS):
        draw.rectangle((left + 6 * level, 38, left + 6 * level + 5, 56), LIGHT.background(level))
    draw.rectangle((left, 38, left + 6 * LEVELS - 1, 56), outline=TRACK)
    draw.text((left + 6 * LEVELS + 8, 36), "1", SOFT, _font(SMALL))


def _piece(draw: ImageDraw, piece: Piece, top: int) -> None:
    x, right = MARGIN + piece.x, MARGIN + piece.x + piece.width
    background, ink = LIGHT.background(piece.level), LIGHT.on(piece.level)
    if piece.special:
        draw.rounded_rectangle((x + 3, top + 2, right - 4, top + 29), 13, background, TRACK)
        draw.text((x + 11, top + 6), piece.text, ink, _font(SPECIAL, mono=True))
    else:
        draw.rounded_rectangle((x, top, right - 1, top + 30), 4, background)
        draw.text((x, top + 2), piece.text, ink, _font(TEXT))
    if piece.changed:
        draw.rectangle((x + 1, top + 32, right - 2, top + 34), ACCENT)


def _foot(draw: ImageDraw, number: int, count: int, height: int) -> None:
    """Draw how much of the film has passed."""
    y, length = height - 36, WIDTH - 2 * MARGIN
    draw.rounded_rectangle((MARGIN, y, MARGIN + length, y + 5), 3, TRACK)
    draw.rounded_rectangle((MARGIN, y, MARGIN + max(6, length * (number + 1) // count), y + 5), 3, LIGHT.ink)


def _palette() -> Picture:
    """The colours of all pictures: the scale, its inks, and mixtures of the two for the edges of letters."""
    from PIL import Image

    levels = [(LIGHT.background(level), LIGHT.on(level)) for level in range(LEVELS)]
    rest = [(LIGHT.paper, colours.rgb(colour)) for colour in (LIGHT.ink, SOFT, ACCENT, TRACK)]
    mixed = [colours.mix(a, b, share) for a, b in [*levels, *rest] for share in (0, 0.25, 0.5, 0.75, 1)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in mixed for value in colour])
    return palette


@cache
def _font(size: int, *, mono: bool = False) -> FreeTypeFont:
    """DejaVu, which comes with matplotlib and covers most alphabetic scripts."""
    from PIL import ImageFont

    name = "DejaVuSansMono" if mono else "DejaVuSans"
    return ImageFont.truetype(str(Path(drawing.library().get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)
