"""Fetches the packages that a machine without network may lack, as wheels to copy there, and prints their sizes.

The machine is assumed to have torch, numpy, scipy, safetensors, transformers and click, with what these need;
docs/gpu.md says how to install the wheels there.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from ldlm.cli import show

THERE = ("torch", "numpy", "scipy", "safetensors", "transformers", "click")
WANTED = ("xformers", "zarr", "numcodecs", "jinja2", "pytest")
BUILDS = {"setuptools"}  # to build ldlm from its checkout there; the one installed with torch may be too old
MOST = 40_000_000  # bytes in all
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main(arguments: Sequence[str]) -> None:
    """`python -m benchmarks wheels`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks wheels", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the wheels")
    parser.add_argument("--python", default="3.12", help="Python version there; default 3.12")
    given = parser.parse_args(arguments)
    fetch(packages(), given.output, given.python)
    sizes = {path.name: path.stat().st_size for path in sorted(given.output.glob("*.whl"))}
    rows = [(name, f"{size / 1e6:.2f} MB") for name, size in [*sizes.items(), ("in all", sum(sizes.values()))]]
    print(show.table(("wheel", "size"), rows))
    if sum(sizes.values()) >= MOST:
        sys.exit(f"more than {MOST / 1e6:.0f} MB")


def packages() -> dict[str, str]:
    """The packages to copy, by name, in the versions that are installed here."""
    wanted = (_needs(WANTED) - _needs(THERE)) | BUILDS
    return {name: metadata.version(name) for name in sorted(wanted)}


def _needs(names: Sequence[str]) -> set[str]:
    """These packages and all their dependencies, by normalised names; extras are left out."""
    found, waiting = set[str](), list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # from another platform, like torch's own packages for CUDA
            found.discard(name)
            continue
        wanted = map(Requirement, lines)
        waiting += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def fetch(wanted: dict[str, str], folder: Path, python: str) -> None:
    """Download the wheels of these versions for Linux on x86-64."""
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(folder)]
    command += [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    subprocess.run([*command, *(f"{name}=={version}" for name, version in wanted.items())], check=True)
