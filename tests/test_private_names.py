"""Private names of other packages: none, but those of torch in one short list, which a new torch is checked against."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("ldlm", "stages", "cli", "benchmarks", "tests", ".ci", "docs")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# Each has no public counterpart.
TORCH = {
    "torch.UntypedStorage._cdata",
    "torch._dynamo.config.patch",
    "torch._dynamo.config.recompile_limit",
    "torch._dynamo.reset",
    "torch._dynamo.utils.counters",
    "torch._foreach_add_",
    "torch._foreach_mul_",
    "torch._foreach_sub",
    "torch.ops.aten._scaled_dot_product_efficient_attention.default",
    "torch.ops.aten._scaled_dot_product_efficient_attention_backward.default",
    "torch.ops.aten._scaled_dot_product_flash_attention.default",
    "torch.ops.aten._scaled_dot_product_flash_attention_backward.default",
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default",
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default",
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch.utils._pytree.tree_leaves",
    "torch.utils._python_dispatch.TorchDispatchMode",
}

DOCUMENTED = {"_exit", "_fields", "_getframe", "_replace"}  # of os, sys and named tuples


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(trees: list[ast.Module]) -> set[str]:
    """Private names that the project itself defines: functions, classes, variables, attributes and fields."""
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in found if private(name)} | DOCUMENTED


def modules(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for, in full."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def dotted(node: ast.expr, known: dict[str, str]) -> str | None:
    """The full name of `module.a.b`; None where it is no attribute of a module."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    parent = dotted(node.value, known) if isinstance(node, ast.Attribute) else None
    return None if parent is None else f"{parent}.{node.attr}"


def last_name(node: ast.expr) -> str:
    """Of `a.b.c` and of `c` it is c."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def private_names(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Private names that are imported or read and not the project's: of modules in full, of objects as `….name`."""
    known = modules(tree)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    yield from (
        name for name in known.values() if any(map(private, name.split("."))) and name.split(".")[-1] not in own
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = dotted(node, known)
            if name is None and private(node.attr) and node.attr not in own:
                yield f"….{node.attr}"
            elif name and id(node) not in inner and any(private(part) and part not in own for part in name.split(".")):
                yield name
        elif isinstance(node, ast.Call) and last_name(node.func).endswith(("getattr", "setattr", "hasattr")):
            words = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            yield from (
                f"….{word}" for word in words if private(word.split(".")[-1]) and word.split(".")[-1] not in own
            )


@pytest.fixture(scope="module")
def found():
    """Every private name of another package, and the first file that has it."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    own = own_names(list(trees.values()))
    listed = {f"….{name.split('.')[-1]}": name for name in TORCH if name.split(".")[1][0].isupper()}  # of a class
    names = {listed.get(name, name): path for path, tree in trees.items() for name in private_names(tree, own)}
    return {name: path.relative_to(ROOT).as_posix() for name, path in names.items()}


def test_no_private_name_of_another_package_is_read_but_those_listed_of_torch(found):
    assert {name: path for name, path in found.items() if name not in TORCH} == {}
    assert set(found) == TORCH  # and none is listed in vain


@pytest.mark.parametrize("name", sorted(TORCH))
def test_what_is_read_of_torchs_private_names_exists(name):
    module, *rest = name.split(".")
    whole = importlib.import_module(module)
    for part in rest:
        module = f"{module}.{part}"
        if not hasattr(whole, part):
            importlib.import_module(module)  # a submodule is there once it is imported
        whole = getattr(whole, part)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import transformers.utils.hub as h\nh._x()", "transformers.utils.hub._x"),
        ("from datasets._y import z", "datasets._y.z"),
        ("model.config._commit_hash", "…._commit_hash"),
        ("getattr(tokenizer, '_tokenizer')", "…._tokenizer"),
        ("patch.setattr(tokenizer, '_tokenizer', 1)", "…._tokenizer"),
        ("import torch\ntorch._C._jit(1)", "torch._C._jit"),
    ],
)
def test_the_check_sees_each_way_of_reading_one(code, expected):
    assert list(private_names(ast.parse(code), own=set())) == [expected]
