"""CONTRIBUTING leads where it says: its tree is the one on disk, and every equation is where its index says."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RIVALS = ("MDLM", "ReMDM", "Duo", "Ψ", "CANDI", "FLM")
EQUATIONS = {1, 2, 3, 4, 5, 19, 20, 22, 28, 29, 30}  # of the paper's, those that SPEC 3-8 rest on


def tree():
    """The files that the tree in CONTRIBUTING names, by path, as often as it names them."""
    (block,) = re.findall(r"```\n(ldlm/ .*?)```", TEXT, re.DOTALL)
    folders, found = [], []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        first, *rest = line.split()
        if first.endswith("/"):
            folders = [*folders[:depth], first]
        else:
            # Several files share a line where their names say all.
            names = [first, *rest] if all(name.endswith(".py") for name in rest) else [first]
            found += ["".join([*folders[:depth], name]) for name in names]
    return found


def test_the_tree_is_the_one_on_disk():
    paths = [path for top in ("ldlm", "stages", "cli") for path in (ROOT / top).rglob("*.py")]
    on_disk = [path.relative_to(ROOT).as_posix() for path in paths]
    rooms = {path for path in on_disk if path.endswith("__init__.py")} - {"ldlm/__init__.py"}
    named = tree()
    assert sorted(set(on_disk) - rooms - set(named)) == [], "missing from CONTRIBUTING's tree"
    assert sorted(set(named) - set(on_disk)) == [], "named by CONTRIBUTING's tree, and not there"
    assert len(named) == len(set(named))


def index():
    """(first cell, places) of each row of the table of equations."""
    kinds = rf"Eq\.|Section|SPEC|Fig\.|{'|'.join(RIVALS)}"
    rows = re.findall(rf"^\| ({kinds})[ ,]+([^|]*) \| [^|]* \| ([^|]*) \|$", TEXT, re.MULTILINE)
    return [(f"{kind} {which}", re.findall(r"`(\S+?\.py):(\S+?)`", places)) for kind, which, places in rows]


def definition(file, name):
    """The function or class of that (dotted) name, parsed."""
    node = ast.parse((ROOT / "ldlm" / file).read_text(encoding="utf-8"))
    for part in name.split("."):
        (node,) = (n for n in node.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == part)
    return node


def cited(docstring):
    """The equations that a docstring cites: 28, 29 and 30 of "(Eq. 28, 29-30)"."""
    numbers = set()
    for cell in re.findall(r"Eq\. ([\d, –-]+)", docstring):
        for first, last in re.findall(r"(\d+)(?:[-–](\d+))?", cell):
            numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def test_every_place_of_the_index_is_there():
    places = [place for _, found in index() for place in found]
    assert len(places) > 20
    for file, name in places:
        assert ast.get_docstring(definition(file, name)), (file, name)


def test_every_equation_stands_in_the_index_once_and_its_function_cites_it():
    seen = []
    for cell, places in index():
        if cell.startswith("Eq."):
            ((file, name),) = places
            numbers = cited(cell)
            assert numbers <= cited(ast.get_docstring(definition(file, name))), (cell, file, name)
            seen += numbers
    assert len(seen) == len(set(seen))
    assert set(seen) >= EQUATIONS


def test_every_rival_stands_in_the_index():
    assert {cell.split()[0] for cell, _ in index()} >= set(RIVALS)


def test_no_source_cites_a_page_that_its_readers_do_not_have():
    paths = [path for top in ("ldlm", "stages", "cli") for path in (ROOT / top).rglob("*.py")]
    assert [path.name for path in paths if "BASELINES" in path.read_text(encoding="utf-8")] == []


def test_citations_are_read():
    assert cited("γ(s) (Eq. 28-30), and (Eq. 2, 3).") == {28, 29, 30, 2, 3}


def test_every_shape_letter_of_a_tensor_name_is_in_the_legend():
    (legend,) = re.findall(r"Shapes stand at the end.*?\n\n(\|.*?)\n\n", TEXT, re.DOTALL)
    letters = {letter for row in legend.splitlines()[2:] for letter in re.findall(r"\| ([\w, ]+?) \| ", row)}
    letters = {one for cell in letters for one in cell.split(", ") if len(one) == 1}
    for path in {*(ROOT / "ldlm").rglob("*.py")} - {ROOT / "ldlm/evaluation/smoothness.py"}:  # where A and B are ends
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Name, ast.arg)):
                name = node.id if isinstance(node, ast.Name) else node.arg
                if ending := re.fullmatch(r"[a-z][a-z0-9_]*_([A-Z0-9]*[A-Z][A-Z0-9]*)", name):
                    assert set(ending[1]) <= letters, f"{path.name}: {name}"
