"""The pictures of the paper's figures, from what was measured."""

from __future__ import annotations

from pathlib import Path

from ldlm.paper.results import Result


def draw(result: Result, folder: Path) -> None:
    """Draw it."""
