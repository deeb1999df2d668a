"""Artefacts: the folders that stages write, each of a known kind and either complete or unfinished.

    artifact.json   first: kind, schema version, fingerprints of the inputs
    config.yaml     the configuration, which `--config` reads
    …               the payload
    manifest.json   last: sizes, results and provenance; a folder that has one is complete

Stages meet only through complete artefacts. `begin` implements the rule for an output (SPEC 12.1): same configuration
and incomplete, resume; same and complete, do nothing; anything else, refuse unless told to overwrite. An output may be
a symbolic link to a folder, or a mount point: the link or mount point stays, and the folder is emptied and refilled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ldlm import config as configs
from ldlm import discarding, files, fingerprints, launcher, presence
from ldlm.completion import DESCRIPTION, is_complete
from ldlm.errors import InputError, Occupied, Unreadable
from ldlm.kinds import MADE_BY, NAMED_BY, SCHEMA, article
from ldlm.leases import Lease
from ldlm.location import Location, check_output_folder
from ldlm.locks import exclusive_lock
from ldlm.presence import CLAIMS
from ldlm.versions import library_versions


@dataclass(frozen=True)
class Artifact:
    """A folder of kind `kind`; `state` is what `begin` or `open_artifact` found there.

    `at_work` is the lease by which this process is at work there beside others, if it is.
    """

    path: Location
    kind: str
    state: Literal["new", "partial", "complete"]
    at_work: Lease | None = field(default=None, compare=False)

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

        A folder with a file that matches one of `unless`, like `ledger/*`, stays: that work can be resumed. So does one
        whose input could not be read, since another machine may be able to read it. `held` is that of `begin`, and is
        closed. While other processes are at work in the folder, it is theirs: if the input is bad for all, the last of
        them removes it.
        """
        try:
            yield
        except InputError as error:
            if self.state == "new" and not isinstance(error, Unreadable) and not any(map(self._has, unless)):
                if held is None:
                    discarding.remove(self.path, self.kind, presence.unlimited)
                else:
                    held.close()
                    discarding.remove_if_alone(self.path, self.kind)
            raise

    def _has(self, pattern: str) -> bool:
        folder, name = pattern.split("/")
        return bool(files.matching(self.path / folder, name))

    def finish(self, **result: Any) -> Artifact:
        """Write the manifest, which makes the artefact complete."""
        files.fsync_tree(self.path)
        files.write_atomic(self.path / "manifest.json", self.record(**result))
        return Artifact(self.path, self.kind, "complete")

    def record(self, **result: Any) -> str:
        """The text of the manifest."""
        return files.dump_digested({"kind": self.kind, "schema": SCHEMA, **result, "versions": library_versions()})


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
    note: Callable[[str], None] = presence.unheard,
) -> Artifact:
    """Create the artefact at `path`, resume the one there, or find it complete (SPEC 12.1).

    Raises `InputError` when `path` holds something else, and `Occupied`, saying what differs, when it was made with
    another configuration or from other inputs. `reads` are the files that the stage will read: an output that contains
    one is never overwritten. Until `held` closes, this process has an unfinished output to itself, and `InputError`
    says if another is at work there.

    `shared` says that several processes work on the output: its configuration is not rewritten on resumption, since
    another process may be finishing it, and until `held` closes this one is at work there beside others (`presence`),
    and none can overwrite it. `note` reports a wait for processes that may be dead.
    """
    check_output_folder(path, NAMED_BY.get(kind, "--output"))
    with presence.turn(path, shared):
        begun = _begin(path, kind, config, inputs, overwrite, reads, shared, note)
        if shared:
            return begun if held is None else replace(begun, at_work=held.enter_context(presence.present(path)))
        if held is not None and isinstance(path, Path) and not begun.complete:
            held.enter_context(exclusive_lock(path))
        if begun.state == "partial":
            if is_complete(path):  # another process has finished it since it was looked at
                return replace(begun, state="complete")
            begun.write_config(config)
        return begun


@contextmanager
def working(
    path: Path,
    kind: str,
    config: Any,
    inputs: Mapping[str, Any],
    *,
    overwrite: bool = False,
    reads: Sequence[str | Path] = (),
) -> Iterator[Artifact]:
    """`begin` an artefact and have its folder to oneself, unless it is complete, until the context ends."""
    with ExitStack() as held:
        yield begin(path, kind, config, inputs, overwrite=overwrite, reads=reads, held=held)


def _begin(
    path: Location,
    kind: str,
    config: Any,
    inputs: Mapping[str, Any],
    overwrite: bool,
    reads: Sequence[str | Path],
    shared: bool,
    note: Callable[[str], None],
) -> Artifact:
    # Processes that a launcher starts together would delete each other's output.
    together = shared and (launcher.number("WORLD_SIZE") or 1) > 1
    instead = _instead(kind, "remove it") if together else _instead(kind)
    first = _first(kind, config, inputs)  # what can't be written is found before anything is deleted
    found = _open_to(path, kind, overwrite, reads, instead)
    if found is None:
        made = _create(path, kind, first)
        # Another machine may have begun it meanwhile, with other settings.
        return made or _begin(path, kind, config, inputs, False, reads, shared, note)
    anew = overwrite or _is_emptied(found)
    if anew or _is_barely_begun(path):
        with presence.replacing(path, shared, note) as still_alone:
            if anew:
                discarding.empty(path, kind, still_alone)
            still_alone()
            return _write_first(path, kind, first)
    _check_same(path, found, config, inputs, instead)
    return Artifact(path, kind, "complete" if is_complete(path) else "partial")


def check(
    path: Location,
    kind: str,
    config: Any,
    inputs: Mapping[str, Any],
    *,
    reads: Sequence[str | Path] = (),
    instead: str | None = None,
) -> None:
    """`InputError` where `begin` would refuse what is there, for stages that have more to do before they begin.

    `instead` is the remedy for an output made with other settings, if the user can't choose another.
    """
    check_output_folder(path, NAMED_BY.get(kind, "--output"))
    instead = instead or _instead(kind)
    found = _open_to(path, kind, False, reads, instead)
    if found is not None and not (_is_emptied(found) or _is_barely_begun(path)):
        _check_same(path, found, config, inputs, instead)


def check_overwrite(path: Location, kind: str, reads: Sequence[str | Path]) -> None:
    """`InputError` where `begin` would refuse to overwrite, whatever the configuration and the inputs are."""
    check_output_folder(path, NAMED_BY.get(kind, "--output"))
    if _open_to(path, kind, True, reads, _instead(kind)) is not None:
        with presence.replacing(path, shared=False):  # unless another process is at work there
            pass


def _instead(kind: str, replacing: str = "add --overwrite") -> str:
    """The remedy, as text, for a folder that holds something else."""
    return f"choose another {NAMED_BY.get(kind, '--output')}, or {replacing}"


def _open_to(
    path: Location, kind: str, overwrite: bool, reads: Sequence[str | Path], instead: str
) -> dict[str, Any] | None:
    """The record of a folder, as `_found` reads it; `InputError` if `begin` may neither use nor replace the folder."""
    place = NAMED_BY.get(kind, "--output")
    found = _found(path)
    if found is not None and (overwrite or _is_emptied(found)):
        _guard(path, found, kind, reads)
    elif found == {} and _is_known(path, kind):
        raise InputError(f"{path} is {article(kind)} {_lacking(path)}; restore that from a copy, {instead}")
    elif found == {}:
        raise _foreign(path, place)
    elif found is not None and found["kind"] != kind:
        raise InputError(f"{path} holds {article(found['kind'])}; choose another {place}")
    return found


def _check_same(path: Location, found: Mapping[str, Any], config: Any, inputs: Mapping[str, Any], instead: str) -> None:
    """`Occupied`, saying what differs, where what is there was made with another configuration or other inputs."""
    old = {"inputs": found.get("inputs", {}), **_old_identity(path, type(config), instead)}
    new = fingerprints.as_recorded({"inputs": inputs, **configs.identity(config)}, old)
    changed = configs.differences(old, new)
    if changed:
        raise Occupied(f"{path} was made with other settings ({'; '.join(changed)}); {instead}")


def open_artifact(path: Location, kind: str, *, complete: bool = True) -> Artifact:
    """Open an existing artefact; `InputError` names what was found and the command that makes this kind."""
    if path.is_file():
        raise InputError(f"{path} is a file, and {article(kind)} is a folder; `{MADE_BY[kind]}` makes one")
    if not path.is_dir():
        here = f" in {Path.cwd()}" if isinstance(path, Path) and not path.is_absolute() else ""
        raise InputError(f"there is no folder {path}{here}; `{MADE_BY[kind]}` makes {article(kind)}")
    found = _found(path)
    if found is None or found.get("kind") != kind:
        if found == {} and _is_known(path, kind):
            raise InputError(
                f"{path} is {article(kind)} {_lacking(path)}, which says what it is made of; restore that "
                f"from a copy, or make it anew: `{MADE_BY[kind]} … --overwrite`"
            )
        what = article(found["kind"]) if found else "something that ldlm did not make"
        state = "is empty" if found is None else f"holds {what}"
        raise InputError(f"{path} {state}, and {article(kind)} is needed; `{MADE_BY[kind]}` makes one")
    done = is_complete(path)
    if (complete and not done) or _is_emptied(found):
        raise InputError(f"{path} is not finished; run the same `{MADE_BY[kind]}` command again and it goes on")
    return Artifact(path, kind, "complete" if done else "partial")


def _found(path: Location) -> dict[str, Any] | None:
    """`artifact.json` of the folder; {} for foreign content; None for nothing or an empty folder."""
    if (path / "artifact.json").is_file():
        return _record(path)
    # A temporary file that a killed process left from its first write does not count as content.
    if not path.is_dir() or (isinstance(path, Path) and all(map(_is_empty, path.iterdir()))):
        return None
    names = [name for _, name in files.below(path)]
    if names and all(name.startswith(f"{CLAIMS}/") for name in names):  # of a process that came too late
        return None
    # Another process may have begun it since the first check.
    return _record(path) if (path / "artifact.json").is_file() else {}


def _record(path: Location) -> dict[str, Any]:
    try:
        found = files.read_json(path / "artifact.json")
    except InputError as error:
        raise InputError(f"{error}; restore it from a copy, or remove {path} and make it anew") from None
    return found if isinstance(found, dict) and "kind" in found else {}


def _is_known(path: Location, kind: str) -> bool:
    """Whether a folder whose record names no kind is of this one, by its manifest or a feature store's description."""
    manifest, described = (
        files.load_digested(files.content(path / name) or b"") for name in ("manifest.json", DESCRIPTION)
    )
    return (manifest or {}).get("kind") == kind or (kind == "features" and described is not None)


def _lacking(path: Location) -> str:
    """A phrase that says what is wrong with the record of a folder whose record names no kind."""
    return f"{'with a damaged' if (path / 'artifact.json').is_file() else 'without its'} artifact.json"


def _foreign(path: Location, place: str) -> InputError:
    """The error for a folder of somebody else's files, which --overwrite does not delete either."""
    return InputError(f"{path} is not empty and not made by ldlm; choose another {place}, or empty it yourself")


def _is_empty(path: Path) -> bool:
    """Whether an entry is a temporary file, or a folder without files such as `lost+found` or a mount point."""
    if files.is_temporary(path):
        return True
    return path.is_dir() and not path.is_symlink() and not any(names for _, _, names in os.walk(path))


def _is_emptied(found: Mapping[str, Any]) -> bool:
    """Whether the record is that of a folder whose replacement was interrupted."""
    return bool(found.get("emptied"))


def is_open(path: Location, kind: str) -> bool:
    """Whether a location holds nothing yet, or an unfinished artefact of this kind."""
    found = _found(path)
    return found is None or (found.get("kind") == kind and not is_complete(path))


def _is_barely_begun(path: Location) -> bool:
    """Whether a process was killed between writing the first two files."""
    own = (f"{CLAIMS}/", ".")
    return all(name == "artifact.json" or name.startswith(own) for _, name in files.below(path))


def _first(kind: str, config: Any, inputs: Mapping[str, Any]) -> dict[str, str]:
    """The first two files of an artefact. The next `begin` would take a folder with only the second for foreign."""
    record = {"kind": kind, "schema": SCHEMA, "inputs": dict(inputs)}
    return {"artifact.json": files.dump_json(record), "config.yaml": files.dump_yaml(configs.to_dict(config))}


def _create(path: Location, kind: str, first: Mapping[str, str]) -> Artifact | None:
    """A new artefact; None if another process has just begun another one."""
    if isinstance(path, Path):
        files.make_folder(path)
    for name, text in first.items():
        with suppress(FileNotFoundError):  # this process was stopped for long, and another has cleaned up after it
            if bytes(files.write_once(path / name, text.encode())) == text.encode():
                continue
        return None
    return Artifact(path, kind, "new")


def _write_first(path: Location, kind: str, first: Mapping[str, str]) -> Artifact:
    """A new artefact in a folder that this process has to itself."""
    for name, text in first.items():
        files.write_atomic(path / name, text)
    return Artifact(path, kind, "new")


def _old_identity(path: Location, cls: type, remedy: str) -> dict[str, Any]:
    if not (path / "config.yaml").is_file():  # a user removed it
        return {}
    found = recorded_config(path)
    if others := [name for name in found if name not in {field.name for field in fields(cls)}]:
        raise Occupied(f"{path} was made with settings of another kind of run ({', '.join(others)}); {remedy}")
    return configs.identity(configs.from_stored(cls, found))


def recorded_config(path: Location) -> dict[str, Any]:
    """Configuration of an artefact as plain data, in the terms of this version; `InputError` when it is missing."""
    found = files.read_yaml(path / "config.yaml")
    if found.get("detokenizer") == "lm1b" and schema(path) == 1:
        found["detokenizer"] = "lm1b-clean"
    return found


def schema(path: Location) -> int | None:
    """Schema version of the artefact at `path`; None if there is none."""
    return (_found(path) or {}).get("schema")


def _guard(path: Location, found: Mapping[str, Any], kind: str, reads: Sequence[str | Path]) -> None:
    """`InputError` when --overwrite would delete files of the user's, another kind of artefact or an input."""
    resolved = path.resolve() if isinstance(path, Path) else None
    if resolved in (Path.home(), Path.cwd(), *Path.cwd().parents):
        raise InputError(f"--overwrite would delete {resolved}; choose a folder of its own for the output")
    if found.get("kind", kind) != kind and not _is_emptied(found):
        raise InputError(
            f"{path} holds {article(found['kind'])}, which --overwrite doesn't replace with {article(kind)}; "
            f"choose another {NAMED_BY.get(kind, '--output')}"
        )
    for read in map(Path, reads):
        if resolved is not None and read.resolve().is_relative_to(resolved):
            raise InputError(f"--overwrite would delete {read}, which is to be read; choose another --output")
    if "kind" not in found and not _is_known(path, kind):
        raise _foreign(path, NAMED_BY.get(kind, "--output"))
