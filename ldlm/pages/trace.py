"""A trace as one HTML file: no network, no library, readable without JavaScript, on a phone, in light or dark mode.

Without scripts the frames stand one below the other. With scripts they lie on top of each other, and a slider, the
arrow keys or a touch on the picture below chooses one. `#7` after the address opens frame 7.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldlm.pages import colours
from ldlm.pages.colours import DARK, LEVELS, LIGHT, Scale
from ldlm.pages.page import render
from ldlm.sampling.frames import Frame


@dataclass(frozen=True)
class ShownCell:
    """A cell as the page shows it: its text, its classes, and its probability in words."""

    text: str
    kinds: str
    probability: str


@dataclass(frozen=True)
class ShownFrame:
    """A frame as the page shows it: figures by name, and cells."""

    t: str
    figures: list[tuple[str, str]]
    cells: list[ShownCell]


def page(frames: Sequence[Frame], about: Mapping[str, Any]) -> str:
    """Render a trace as HTML. `about` holds facts by name, shown below the text."""
    scales = {"light": LIGHT, "dark": DARK}
    return render(
        "trace.html",
        script="trace.js",
        frames=[_shown(before, frame) for before, frame in zip([None, *frames[:-1]], frames, strict=True)],
        scales={name: _levels(scale) for name, scale in scales.items()},
        strips={name: _strip(frames, scale) for name, scale in scales.items()},
        height=min(max(7 * len(frames), 110), 260),
        positions=f"{len(frames[0].tokens):,}",
        about=about,
    )


def time(frame: Frame) -> str:
    """t with three digits, as the page and the film write it."""
    return f"{frame.t:.3f}"


def ratio(frame: Frame) -> str:
    """The signal-to-noise ratio as the page and the film write it."""
    return "0" if frame.snr < 5e-4 else f"{frame.snr:,.3f}" if frame.snr < 1 else f"{frame.snr:,.1f}"


def _shown(before: Frame | None, frame: Frame) -> ShownFrame:
    changes = frame.changes(before)
    figures = [("t", time(frame)), ("SNR", ratio(frame)), ("confidence", f"{frame.confidence:.0%}")]
    if before is not None:
        figures.append(("changed", f"{sum(changes)} of {len(changes)}"))
    cells = []
    for cell in frame.cells:
        p = frame.probability(cell)
        marks = " s" * cell.special + " n" * any(changes[cell.start : cell.stop])
        cells.append(ShownCell(cell.text, f"c{colours.level(p)}{marks}", f"{p:.1%}"))
    return ShownFrame(time(frame), figures, cells)


def _levels(scale: Scale) -> list[tuple[str, str]]:
    """Background and ink of each level."""
    return [(colours.css(scale.background(n)), colours.css(scale.on(n))) for n in range(LEVELS)]


def _strip(frames: Sequence[Frame], scale: Scale) -> str:
    """A PNG as a data URL: a row of pixels per frame, a pixel per position."""
    from PIL import Image

    image = Image.new("RGB", (len(frames[0].tokens), len(frames)))
    image.putdata([scale.background(colours.level(p)) for frame in frames for p in frame.probabilities])
    stream = io.BytesIO()
    image.quantize(LEVELS).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
