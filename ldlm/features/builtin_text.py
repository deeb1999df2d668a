"""The quickstart's corpus: English prose that every machine with ldlm has.

It is Python's language reference and the docstrings of the standard library and of installed dependencies.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

# Dependencies, direct and indirect, whose docstrings are prose. The standard library comes before them.
PACKAGES = ("torch", "scipy", "sympy", "pandas", "networkx", "numpy", "matplotlib", "huggingface_hub", "zarr")
SHORTEST = 80  # characters; below that a paragraph is a heading or a signature
_PARAGRAPHS = re.compile(r"\n\s*\n")
_MARKUP = re.compile(r":[a-z:]+:(?=`)|[`*]")
_CODE = re.compile(r">>>|::|--|[=<>{}|\\\[\]@$#^~]|\w_\w+_|\(self")


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a docstring or page that read as English, each on one line."""
    for block in _PARAGRAPHS.split(text):
        line = _MARKUP.sub("", " ".join(block.split()))
        if len(line) < SHORTEST or not line[0].isupper() or line[-1] not in ".:!?":
            continue
        letters = sum(character.isalpha() or character == " " for character in line)
        if letters >= 0.9 * len(line) and not _CODE.search(line):
            yield line


def documents(workers: int = 2) -> list[str]:
    """All paragraphs, without duplicates, in an order that depends only on the installed versions."""
    import pydoc_data.topics

    pages = (pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    found = dict.fromkeys(line for page in pages for line in paragraphs(page))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for lines in pool.map(_of_files, _batches(_sources(), 200)):
            found.update(dict.fromkeys(lines))
    return list(found)


def _sources() -> list[Path]:
    roots = [Path(sysconfig.get_paths()["stdlib"])]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            roots.append(Path(spec.origin).parent)
    return [path for root in roots for path in sorted(root.rglob("*.py")) if _wanted(path.relative_to(root))]


def _wanted(path: Path) -> bool:
    skipped = {"site-packages", "tests", "test", "testing", "_vendor", "idlelib", "lib2to3"}
    return skipped.isdisjoint(path.parts)


def _batches(paths: list[Path], size: int) -> list[list[Path]]:
    return [paths[i : i + size] for i in range(0, len(paths), size)]


def _of_files(paths: list[Path]) -> list[str]:
    return [line for path in paths for docstring in _docstrings(path) for line in paragraphs(docstring)]


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):  # templates and deliberately broken files among the sources
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
