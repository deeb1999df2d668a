"""Artefacts: the folders that stages write, each of a known kind and either complete or unfinished.

    artifact.json   first: kind, schema version, fingerprints of the inputs
    config.yaml     the configuration, which `--config` reads
    …               the payload
    manifest.json   last: sizes, results and provenance; a folder that has one is complete

Stages meet only through complete artefacts. `begin` implements the rule for an output (SPEC 12.1): same configuration
and incomplete, resume; same and complete, do nothing; anything else, refuse unless told to overwrite. An output may be
a symbolic link to a folder or a mount point: that stays, and is emptied and refilled.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import ldlm
from ldlm import config as configs
from ldlm import files
from ldlm.errors import InputError
from ldlm.location import Location
from ldlm.locks import exclusive_lock, shared_lock

SCHEMA = 2  # in 1, `detokenizer: lm1b` stood for today's `lm1b-clean`
COMPLETE = ("manifest.json", "config.json")  # written last: their presence makes a folder complete to its readers

MADE_BY = {
    "encoder": "ldlm pretrain-encoder",
    "features": "ldlm extract-features",
    "run": "ldlm train",
    "decoder": "ldlm finetune-decoder",
    "model": "ldlm export",
    "interpolation": "ldlm interpolate",
    "likelihood": "ldlm likelihood",
    "sweep": "ldlm sweep",
    "frontier": "ldlm sweep --run RUN RUN",
    "trace": "ldlm sample --trace",
    "comparison": "ldlm interpolate",
    "quickstart": "ldlm quickstart",
}


NAMED_BY = {"decoder": "--name", "trace": "--trace"}  # the option for the output, where it is not --output


@dataclass(frozen=True)
class Artifact:
    """A folder of kind `kind`; `state` is what `begin` or `open_artifact` found there."""

    path: Location
    kind: str
    state: Literal["new", "partial", "complete"]

    @property
    def complete(self) -> bool:
        """Whether the artefact is finished."""
        return self.state == "complete"

    @property
    def manifest(self) -> dict[str, Any]:
        """Record of the finished stage; `InputError` when a byte of it has changed since."""
        remedy = f"run `ldlm features repair {self.path}`" if self.kind == "features" else "restore it from a copy"
        return files.read_digested(self.path / "manifest.json", remedy)

    @property
    def inputs(self) -> dict[str, Any]:
        """Fingerprints of the inputs that the artefact was made from."""
        return files.read_json(self.path / "artifact.json")["inputs"]

    @property
    def config(self) -> dict[str, Any]:
        """Configuration that the artefact was made with, as plain data, in the terms of this version."""
        return recorded_config(self.path)

    def write_config(self, config: Any) -> None:
        """Write config.yaml: the configuration that applies from here on."""
        files.write_atomic(self.path / "config.yaml", files.dump_yaml(configs.to_dict(config)))

    @contextmanager
    def or_nothing(self, *unless: str, held: ExitStack | None = None) -> Iterator[None]:
        """Context that removes the folder again on bad input, if `begin` has just made it.

        A folder with a file that matches one of `unless`, like `ledger/*`, stays: that work can be resumed. `held` is
        that of `begin`. It is closed, and while other processes hold the folder, it is theirs: where the input is bad
        for all, the last of them removes it.
        """
        try:
            yield
        except InputError:
            if self.state == "new" and not any(map(self._has, unless)):
                if held is None or not isinstance(self.path, Path):
                    _remove(self.path, self.kind)
                else:
                    held.close()
                    _remove_if_alone(self.path, self.kind)
            raise

    def _has(self, pattern: str) -> bool:
        folder, name = pattern.split("/")
        return bool(files.matching(self.path / folder, name))

    def finish(self, **result: Any) -> Artifact:
        """Write the manifest, which makes the artefact complete."""
        files.fsync_tree(self.path)
        record = {"kind": self.kind, "schema": SCHEMA, **result, "versions": versions()}
        files.write_atomic(self.path / "manifest.json", files.dump_digested(record))
        return Artifact(self.path, self.kind, "complete")


def begin(
    path: Location,
    kind: str,
    config: Any,
    inputs: Mapping[str, Any],
    *,
    overwrite: bool = False,
    reads: Sequence[str | Path] = (),
    shared: bool = False,
    held: ExitStack | None = None,
) -> Artifact:
    """Create the artefact at `path`, resume the one there, or find it complete (SPEC 12.1).

    Raises `InputError` when `path` holds something else, another configuration or other inputs, saying what differs.
    `reads` are the files that the stage will read: an output that contains one is never overwritten. `shared` says that
    several processes work at the output: its configuration is not rewritten on resumption, since another process may be
    finishing it. Until `held` closes, no process can overwrite it.
    """
    # Processes that share an output may begin it at the same time.
    with exclusive_lock(_outside(path), wait=True) if isinstance(path, Path) else nullcontext():
        begun = _begin(path, kind, config, inputs, overwrite, reads, shared)
        if held is not None and isinstance(path, Path):
            held.enter_context(shared_lock(path))
        return begun


def _outside(path: Path) -> Path:
    """The closest parent folder that is no artefact itself, made if need be; it is locked while one below is begun."""
    found = next(folder for folder in files.target(path).parents if not (folder / "artifact.json").is_file())
    files.make_folder(found)
    return found


def _begin(
    path: Location,
    kind: str,
    config: Any,
    inputs: Mapping[str, Any],
    overwrite: bool,
    reads: Sequence[str | Path],
    shared: bool,
) -> Artifact:
    place = NAMED_BY.get(kind, "--output")
    # Processes that a launcher starts together would delete each other's output.
    replacing = "remove it" if shared and int(os.environ.get("WORLD_SIZE", "1")) > 1 else "add --overwrite"
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file and the output is a folder; choose another {place}")
    found = _found(path)
    if found is None:
        return _create(path, kind, config, inputs)
    if overwrite or _is_emptied(found):
        _guard(path, found, kind, reads)
        with exclusive_lock(path) if isinstance(path, Path) else nullcontext():
            _empty(path, kind)
        return _create(path, kind, config, inputs)
    if "kind" not in found:
        raise InputError(f"{path} is not empty and not made by ldlm; choose another {place}, or {replacing}")
    if found["kind"] != kind:
        raise InputError(f"{path} holds {_article(found['kind'])}; choose another {place}")
    decided = (path / "config.yaml").is_file()
    if not decided and all(name == "artifact.json" or name.startswith(".") for _, name in files.below(path)):
        return _create(path, kind, config, inputs)  # killed between the first two files
    old = {
        "inputs": found.get("inputs", {}),
        **_old_identity(path, type(config), f"choose another {place}, or {replacing}"),
    }
    new = {"inputs": dict(inputs), **configs.identity(config)}
    changed = configs.differences(old, new)
    if changed:
        raise InputError(
            f"{path} was made with other settings ({'; '.join(changed)}); choose another {place}, or {replacing}"
        )
    if (path / "manifest.json").is_file():
        return Artifact(path, kind, "complete")
    taken_up = Artifact(path, kind, "partial")
    if not shared:
        taken_up.write_config(config)
    return taken_up


def open_artifact(path: Location, kind: str, *, complete: bool = True) -> Artifact:
    """Open an existing artefact; `InputError` names what was found and the command that makes this kind."""
    if not path.is_dir():
        raise InputError(f"there is no folder {path}; `{MADE_BY[kind]}` makes {_article(kind)}")
    found = _found(path) or {}
    if found.get("kind") != kind:
        what = _article(found["kind"]) if "kind" in found else "something that ldlm did not make"
        raise InputError(f"{path} holds {what}, and {_article(kind)} is needed; `{MADE_BY[kind]}` makes one")
    done = (path / "manifest.json").is_file()
    if (complete and not done) or _is_emptied(found):
        raise InputError(f"{path} is not finished; run the same `{MADE_BY[kind]}` command again and it goes on")
    return Artifact(path, kind, "complete" if done else "partial")


def _found(path: Location) -> dict[str, Any] | None:
    """`artifact.json` of the folder; {} for foreign content; None for nothing or an empty folder."""
    if (path / "artifact.json").is_file():
        return _record(path)
    # A temporary file that a killed process left of its first write does not count as content.
    if not path.is_dir() or (isinstance(path, Path) and all(map(_is_empty, path.iterdir()))):
        return None
    # Another process may have begun it since the first check.
    return _record(path) if (path / "artifact.json").is_file() else {}


def _record(path: Location) -> dict[str, Any]:
    found = files.read_json(path / "artifact.json")
    return found if isinstance(found, dict) else {}


def _is_empty(path: Path) -> bool:
    """Whether an entry is a temporary file, or a folder without files such as `lost+found` or a mount point."""
    if files.is_temporary(path):
        return True
    return path.is_dir() and not path.is_symlink() and not any(names for _, _, names in os.walk(path))


def _is_emptied(found: Mapping[str, Any]) -> bool:
    """Whether the record is that of a folder whose replacement was interrupted."""
    return bool(found.get("emptied"))


def is_emptied(path: Location) -> bool:
    """Whether the replacement of a folder was interrupted: its remaining files may be deleted."""
    return _is_emptied(_found(path) or {})


def _create(path: Location, kind: str, config: Any, inputs: Mapping[str, Any]) -> Artifact:
    if isinstance(path, Path):
        files.make_folder(path)
    # artifact.json comes first: the next `begin` would take a folder with only a config.yaml for foreign content.
    files.write_json(path / "artifact.json", {"kind": kind, "schema": SCHEMA, "inputs": dict(inputs)})
    made = Artifact(path, kind, "new")
    made.write_config(config)
    return made


def _old_identity(path: Location, cls: type, remedy: str) -> dict[str, Any]:
    if not (path / "config.yaml").is_file():  # a user removed it
        return {}
    found = recorded_config(path)
    if others := [name for name in found if name not in {field.name for field in fields(cls)}]:
        raise InputError(f"{path} was made with settings of another kind of run ({', '.join(others)}); {remedy}")
    return configs.identity(configs.from_stored(cls, found))


def recorded_config(path: Location) -> dict[str, Any]:
    """Configuration of an artefact as plain data, in the terms of this version; `InputError` when it is missing."""
    found = files.read_yaml(path / "config.yaml")
    if found.get("detokenizer") == "lm1b" and schema(path) == 1:
        found["detokenizer"] = "lm1b-clean"
    return found


def schema(path: Location) -> int | None:
    """Schema version of the artefact at `path`; None where there is none."""
    return (_found(path) or {}).get("schema")


def _guard(path: Location, found: Mapping[str, Any], kind: str, reads: Sequence[str | Path]) -> None:
    """`InputError` when --overwrite would delete the user's folders, another kind of artefact or an input."""
    resolved = path.resolve() if isinstance(path, Path) else None
    if resolved in (Path.home(), Path.cwd(), *Path.cwd().parents):
        raise InputError(f"--overwrite would delete {resolved}; choose a folder of its own for the output")
    if found.get("kind", kind) != kind and not _is_emptied(found):
        raise InputError(
            f"{path} holds {_article(found['kind'])}, which --overwrite doesn't replace by {_article(kind)}; "
            f"choose another {NAMED_BY.get(kind, '--output')}"
        )
    for read in map(Path, reads):
        if resolved is not None and read.resolve().is_relative_to(resolved):
            raise InputError(f"--overwrite would delete {read}, which is to be read; choose another --output")


def _empty(path: Location, kind: str) -> None:
    """Delete the contents of a folder, and keep the folder, which may be a link or a mount point.

    First the manifest goes and the folder is marked: after a kill from here on, nobody opens it and the next `begin`
    empties and refills it.
    """
    (path / "manifest.json").unlink(missing_ok=True)
    _mark(path, kind)
    (path / "config.yaml").unlink(missing_ok=True)  # read when a stage decides whether to resume
    for file, _ in list(files.below(path)):
        if file.name in COMPLETE:  # also of artefacts and models inside it
            file.unlink(missing_ok=True)
    if isinstance(path, Path):
        return files.empty(path, but="artifact.json")
    for file, name in files.below(path):
        if name != "artifact.json":
            file.unlink(missing_ok=True)


def _mark(path: Location, kind: str) -> None:
    """Mark a folder as one whose remaining files the next `begin` deletes."""
    files.write_json(path / "artifact.json", {"kind": kind, "schema": SCHEMA, "emptied": True})


def _remove(path: Location, kind: str) -> None:
    """Delete a folder and its contents; a link or a mount point is left empty."""
    _empty(path, kind)
    (path / "artifact.json").unlink()
    if isinstance(path, Path):
        with suppress(OSError):
            path.rmdir()


def _remove_if_alone(path: Path, kind: str) -> None:
    """`_remove`, unless other processes hold the folder: they may read what this one could not, and finish it."""
    with suppress(InputError), exclusive_lock(path):
        _remove(path, kind)


def _article(kind: str) -> str:
    noun = {"features": "a feature store", "run": "a training run", "decoder": "a token decoder"}.get(kind, kind)
    return noun if noun.startswith("a ") else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@cache
def versions() -> dict[str, str | None]:
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
