"""The rooms of the library: what may import what, no cycles, no long files or functions, and tests in the same rooms.

Every import counts, also one inside a function or under TYPE_CHECKING.
"""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

# A room may import from itself and from those named. `root` are the modules directly in ldlm/.
LIBRARY = ["root", "config", "model", "features", "stories", "training", "evaluation", "sampling", "baselines", "pages"]
MAY_IMPORT = {
    "root": {"config"},
    "config": {"root"},
    "model": {"root", "config"},
    "features": {"root", "config"},
    "stories": {"root", "config"},
    "training": {"root", "config", "model", "features"},
    "evaluation": {"root", "config", "model", "features", "stories"},
    "sampling": set(LIBRARY) - {"baselines", "pages"},
    "baselines": set(LIBRARY) - {"pages"},
    "pages": set(LIBRARY),
    "paper": set(LIBRARY),
    "stages": {*LIBRARY, "paper"},
    "cli": {*LIBRARY, "paper", "stages"},
}
# The root of the library that `config` stands on, which the rest of the root may import in turn.
UNDER_CONFIG = {"ldlm.errors"}
BETWEEN_STAGES = {
    "ldlm.stages.quickstart": None,  # all
    "ldlm.stages.source_stories": {f"ldlm.stages.{name}" for name in ("sources", "evaluate", "stories")},
    "ldlm.stages.source_text": {f"ldlm.stages.{name}" for name in ("sources", "evaluate", "features")},
    "ldlm.stages.features": {"ldlm.stages.extract_features"},
}

MOST_LINES = 400  # of a file of the library
MOST_FUNCTION_LINES = 60


@cache
def modules():
    """Every module of the package and its file: ldlm.cli and ldlm.stages lie beside ldlm."""
    found = {}
    for package, folder in (("ldlm", "ldlm"), ("ldlm.stages", "stages"), ("ldlm.cli", "cli")):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            parts = path.relative_to(PROJECT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def room(module):
    """The room of a module: `ldlm.features.store` → features, `ldlm.files` → root, `ldlm` itself → None."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    return parts[1] if parts[1] in MAY_IMPORT else "root"


@cache
def tree(path):
    """A file, parsed."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """All dotted names that a file imports, wherever in it; of `from a import b` both a.b and a."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module


@cache
def graph():
    """The modules of the package that each imports: of `from ldlm.features import store` the module, not the room.

    `ldlm` itself is left out. It offers `LDLM` when asked for it, and the version.
    """
    known = modules()
    edges = {}
    for module, path in known.items():
        names = {name for name in imported(path) if name in known}
        packages = {a for a in names for b in names if b.startswith(f"{a}.")}
        edges[module] = names - packages - {module, "ldlm"}
    return edges


def arrows():
    """Every import as "a → b"."""
    return [(a, b) for a, targets in graph().items() for b in sorted(targets) if a != "ldlm"]


def is_allowed(a, b):
    """Whether module a may import module b."""
    if room(a) == "config" and room(b) == "root":
        return b in UNDER_CONFIG
    if a in UNDER_CONFIG:
        return False
    if room(a) == room(b) == "stages":
        return a in BETWEEN_STAGES and (BETWEEN_STAGES[a] is None or b in BETWEEN_STAGES[a])
    return room(a) == room(b) or room(b) in MAY_IMPORT[room(a)]


def components(edges):
    """Groups of two or more modules that import one another, directly or not (Tarjan, 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges[node]:
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(" ↔ ".join(sorted(group)))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def functions(path):
    """(name, lines) of every function of a file, methods and nested ones among them."""
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.end_lineno - node.lineno + 1


# ----------------------------------------------------------------------------------------------------------------------


def test_imports_follow_the_order_of_the_rooms():
    assert len(arrows()) > 200
    assert [f"{a} → {b}" for a, b in arrows() if not is_allowed(a, b)] == []


def test_no_module_imports_itself_by_way_of_others():
    assert components({a: b for a, b in graph().items() if a != "ldlm"}) == []


def test_cycles_are_found():
    assert components({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["a"]}) == ["b ↔ c"]


def test_the_rooms_that_are_named_are_those_on_disk():
    on_disk = {path.name for path in (PROJECT / "ldlm").iterdir() if (path / "__init__.py").exists()}
    assert {*on_disk, "root", "stages", "cli"} == set(MAY_IMPORT)


def test_pages_never_import_torch():
    pages = [module for module in modules() if room(module) == "pages"]
    assert [module for module in pages if "torch" in imported(modules()[module])] == []
    code = "import importlib, sys; list(map(importlib.import_module, sys.argv[1:])); print('torch' in sys.modules)"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *pages], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_no_stage_asks_whether_a_run_is_of_ldlm():
    """They look methods up in `baselines`, which says what differs between them."""
    asking = [m for m, path in modules().items() if room(m) == "stages" and "ldlm.config.LDLM" in imported(path)]
    assert asking == []


def test_no_file_of_the_library_is_long():
    sizes = {m: len(p.read_text(encoding="utf-8").splitlines()) for m, p in modules().items() if room(m) != "cli"}
    assert [module for module, lines in sizes.items() if lines > MOST_LINES] == []


def test_no_function_is_long():
    long = [
        f"{module}: {name}"
        for module, path in modules().items()
        for name, lines in functions(path)
        if lines > MOST_FUNCTION_LINES
    ]
    assert long == []


def test_tests_are_in_the_rooms_of_what_they_test():
    inside = {path.parent for path in (PROJECT / "tests").rglob("test_*.py")}
    rooms = {folder.relative_to(PROJECT / "tests").as_posix() for folder in inside}
    assert rooms - {"."} == set(MAY_IMPORT) - {"root"}
