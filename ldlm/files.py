"""Durable small files: atomic writes, hashes, strict JSON and YAML."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldlm.errors import InputError


def fsync_dir(path: Path) -> None:
    """Make the entries of a folder durable, so that a rename inside it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Make every file and folder below `root` durable."""
    for folder, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        fsync_dir(Path(folder))


def is_temporary(path: Path) -> bool:
    """Whether this is what a killed `write_atomic` left."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a whole file or nothing: temporary file, fsync, rename, fsync of the folder."""
    data = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Atomic, indented, strict JSON (no NaN)."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in `path`; `InputError` when it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged and can't be read as JSON: {error}") from None


def dump_yaml(value: Mapping[str, Any]) -> str:
    """YAML in the order of the settings."""
    import yaml

    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, default_flow_style=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; `InputError` for a file that is absent or malformed, and for a key that stands twice."""
    import yaml

    class Strict(yaml.SafeLoader):
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


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
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
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path for a library to write a file to; renamed to `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
