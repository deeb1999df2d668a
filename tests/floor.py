"""The lowest versions that pyproject.toml allows, as constraints for pip: `python tests/floor.py > floor.txt`.

Standard library only: it runs before anything is installed.
"""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8"))


def floors() -> dict[str, str]:
    """Lowest version by name, of what the package and its extra for object stores need. Ray's is left out."""
    project = PROJECT["project"]
    needs = [*project["dependencies"], *project["optional-dependencies"]["object-stores"]]
    return dict(re.match(r"([\w.-]+)>=([\w.]+)", need).groups() for need in needs)


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in floors().items()))
