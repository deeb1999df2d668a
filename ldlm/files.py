"""Durable small files: atomic writes, hashes, strict JSON and YAML."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ldlm.errors import InputError
from ldlm.location import Location, ObjectPath, passing

Buffer = bytes | memoryview
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # errors of a file system without hard links
PART = 2**24  # bytes of an object in memory while it is hashed


def fsync_dir(path: Path) -> None:
    """Make the entries of a folder durable, so that a rename inside it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Location) -> None:
    """Make every file and folder below `root` durable. Objects are durable once they are written."""
    if isinstance(root, ObjectPath):
        return
    for folder, _, names in os.walk(root):
        with suppress(FileNotFoundError):  # another process may remove its temporary files meanwhile
            for name in names:
                with suppress(FileNotFoundError), open(os.path.join(folder, name), "rb") as file:
                    os.fsync(file.fileno())
            fsync_dir(Path(folder))


def is_temporary(path: Location) -> bool:
    """Whether a path is a temporary file that a killed `write_atomic` left."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def unique() -> str:
    """A part of a file name that is unique across machines too: in containers, every process may have the id 1."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def target(path: Path) -> Path:
    """The path with symbolic links resolved, whether it exists or not; `InputError` for links in a circle."""
    try:
        return path.resolve()
    except RuntimeError:
        raise InputError(f"{path} is a symbolic link that leads back to itself; remove it, or choose another") from None


def write_atomic(path: Location, data: str | Buffer) -> None:
    """Write a whole file or nothing: temporary file, fsync, rename, fsync of the folder.

    Missing folders are made. A symbolic link stays, and the file that it points to is replaced.
    """
    data = data.encode() if isinstance(data, str) else data
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
        return
    with _written(path, data) as (temporary, there):
        put(temporary, there)


@contextmanager
def _written(path: Path, data: Buffer) -> Iterator[tuple[Path, Path]]:
    """A durable temporary file of the data beside `path`, and `path` without links; errors name `path`."""
    there = target(path)
    make_folder(there.parent)
    temporary = there.with_name(f".{there.name}.{unique()}.tmp")
    try:
        with writing(path):
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary, there
    finally:
        temporary.unlink(missing_ok=True)


def put(finished: Path, path: Path) -> None:
    """Rename a finished, durable file to `path`, replacing what is there, and make the rename durable.

    A file that is a mount point, as containers have them, can't be renamed over, and is overwritten: after a kill it
    may be cut short, and `finished` is still there.
    """
    try:
        os.replace(finished, path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        shutil.copyfile(finished, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        finished.unlink()
    fsync_dir(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within the block, an error of the operating system names the file.

    A full disk raises an error without a file name, and libraries in Rust wrap the system's errors in their own.
    """
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def write_once(path: Location, data: Buffer, check: Callable[[], None] = lambda: None) -> Buffer:
    """Write a whole file if there is none yet; returns the content that is there now, of whoever was first.

    `check` is called right before, and raises an error if the file must not be written.
    """
    if isinstance(path, ObjectPath):
        return data if path.write_bytes(data, once=True, still=passing(check)) else path.read_bytes()
    with _written(path, data) as (temporary, there):
        check()
        return data if link(temporary, there) else there.read_bytes()


def link(finished: Path, path: Path) -> bool:
    """Give a finished, durable file the name `path` too, durably, if that name is free; returns whether it was.

    Of several processes one succeeds. On a file system without hard links, a file that appears meanwhile is replaced.
    """
    try:
        os.link(finished, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if path.exists():
            return False
        shutil.copyfile(finished, copy := finished.with_name(f".{unique()}.tmp"))
        put(copy, path)
    fsync_dir(path.parent)
    return True


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably; for a symbolic link, the folder that it points to."""
    if not path.is_dir():
        there = target(path)
        make_folder(there.parent)
        try:
            there.mkdir(exist_ok=True)
        except FileNotFoundError:
            if there.parent.is_dir():  # as /proc, which takes no folders
                raise PermissionError(errno.EPERM, "no folder can be made here; choose another", str(there)) from None
            raise
        fsync_dir(there.parent)


def finite(value: Any) -> Any:
    """Plain data with None in place of NaN and infinity, which JSON doesn't have."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dump_json(value: Any) -> str:
    """Indented, strict JSON (no NaN)."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Location, value: Any) -> None:
    """Write indented, strict JSON atomically."""
    write_atomic(path, dump_json(value))


def read_json(path: Location) -> Any:
    """The JSON in `path`; `InputError` when it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged and can't be read as JSON: {error}") from None


def dump_digested(value: Mapping[str, Any]) -> str:
    """JSON of an object with a digest of it, from which `load_digested` detects changed bits."""
    return dump_json({**value, "digest": sha256_json(value)})


def load_digested(data: bytes) -> dict[str, Any] | None:
    """The object that `dump_digested` wrote; None when the data is damaged or something else."""
    try:
        found = json.loads(data)
        digest = found.pop("digest")
        whole = digest == sha256_json(found) and dump_digested(found).encode() == data
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if whole else None


def read_digested(path: Location, remedy: str) -> dict[str, Any]:
    """The object of a `dump_digested` file; `InputError`, with the remedy, when it is absent or damaged."""
    data = content(path)
    found = None if data is None else load_digested(data)
    if found is None:
        problem = "is missing" if data is None else "is damaged: it is not what was written"
        raise InputError(f"{path} {problem}; {remedy}")
    return found


def dump_yaml(value: Mapping[str, Any]) -> str:
    """YAML of settings, in their order."""
    import yaml

    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, default_flow_style=False)


def read_yaml(path: Location) -> dict[str, Any]:
    """A YAML mapping; `InputError` for a file that is absent or malformed, and for a key that occurs twice."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, if it is there, is far faster

    class Strict(loader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=deep)
                if not isinstance(key, Hashable):
                    raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: {key} can't be the name of a setting")
                if key in seen:
                    raise InputError(f"{path}, line {key_node.start_mark.line + 1}: {key} is set twice; keep one")
                seen.add(key)
            return super().construct_mapping(node, deep=deep)

    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=Strict)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, and a YAML file is needed") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{path} must hold a mapping of settings, one `key: value` per line")
    return value or {}


def amount(count: float) -> str:
    """A number of bytes in a readable unit: 512 B, 3.4 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def size(path: Location) -> int | None:
    """Bytes of a file; None when there is none."""
    try:
        return path.size() if isinstance(path, ObjectPath) else path.stat().st_size
    except FileNotFoundError:
        return None


def content(path: Location) -> bytes | None:
    """A file's bytes; None when there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def sizes(root: Location) -> dict[str, int]:
    """Bytes of every file below a folder, by relative name. An object store is listed once."""
    if isinstance(root, ObjectPath):
        return root.sizes()
    found = ((name, size(path)) for path, name in below(root))
    return {name: bytes_ for name, bytes_ in found if bytes_ is not None}


def matching(folder: Location, pattern: str) -> list[Any]:
    """The paths directly in a folder whose names match `pattern`, sorted."""
    return sorted(folder.glob(pattern))


def below(root: Location) -> Iterator[tuple[Any, str]]:
    """Every file below a folder with its relative name, sorted; another process may remove some of them meanwhile."""
    paths: list[Any] = sorted(root.rglob("*") if isinstance(root, ObjectPath) else _walk(root))
    for path in paths:
        if isinstance(path, ObjectPath) or path.is_file():
            yield path, path.relative_to(root).as_posix()


def _walk(root: Path) -> Iterator[Path]:
    """The files below a folder. os.walk skips folders that vanish, where rglob raises an error."""
    return (Path(folder, name) for folder, _, names in os.walk(root) for name in names)


def copy_tree(source: Location, target: Location) -> dict[str, str]:
    """Copy every file below `source` to `target`, local or not; returns the sha256 of the files there, by name.

    Objects that exist already are kept.
    """
    return {name: sha256(write_once(target / name, path.read_bytes())) for path, name in below(source)}


def sha256(data: Buffer) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Location) -> str:
    """Hex digest of a file's bytes; an object's are fetched in parts."""
    if isinstance(path, ObjectPath):
        digest = hashlib.sha256()
        for start in range(0, size := path.size(), PART):
            digest.update(path.read_range(start, min(PART, size - start)))
        return digest.hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, one per line."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {number} is not JSON: {error.msg}") from None
            if not isinstance(value, dict):
                raise InputError(f'{path}, line {number} must be a JSON object, for example {{"text": "…"}}')
            yield value


def dump_jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON lines, one per row."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


_UMASK = os.umask(0o077)  # it can be read only by setting it
os.umask(_UMASK)


def by_umask(path: Path) -> None:
    """Give a file the permissions of the umask: safetensors makes files that only their owner may read."""
    with suppress(OSError):  # on file systems without modes
        path.chmod(0o666 & ~_UMASK)


@contextmanager
def replacing(path: Path, *, once: bool = False) -> Iterator[Path]:
    """A temporary path for a library to write a file to; renamed to `path` when the block succeeds.

    With `once`, a file that is there by then stays.
    """
    there = target(path)
    make_folder(there.parent)
    temporary = there.with_name(f".{unique()}.{there.name}")
    try:
        with writing(path):
            yield temporary
            by_umask(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            (link if once else put)(temporary, there)
    finally:
        temporary.unlink(missing_ok=True)
