"""Versions of the software that decides results, for the records of artefacts."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import ldlm


@cache
def library_versions() -> dict[str, str | None]:
    """Versions of Python and the libraries that decide results, and the commit of a source checkout."""
    import torch

    found: dict[str, str | None] = {"ldlm": ldlm.__version__, "python": platform.python_version()}
    found["torch"] = torch.__version__  # with the build, which the distribution's version may omit
    for name in ("transformers", "tokenizers", "numpy", "zarr", "numcodecs"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["commit"] = _commit()
    return found


def _commit() -> str | None:
    source = Path(ldlm.__file__).resolve().parent.parent
    if not (source / ".git").exists():
        return None
    try:
        describe = ["git", "-C", str(source), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        out = subprocess.run(describe, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None
