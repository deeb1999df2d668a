"""The parts of the benchmark, each of which may need a library that is not installed."""

from __future__ import annotations

import importlib
from types import ModuleType


def part(name: str) -> ModuleType | str:
    """The module of that name in this package, or, if it needs a library that is not installed, the library's name."""
    try:
        return importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("benchmarks", "ldlm"):
            raise
        return error.name
