"""Declaring settings as dataclass fields, and parsing them strictly from YAML, `--set` and stored artefacts.

`from_dict` is the only way in from outside. This module is standard library only, so that `ldlm --help` stays instant.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import field
from functools import cache
from typing import Any, Literal, TypeVar

from ldlm.errors import InputError

T = TypeVar("T")


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    identity: bool = True,
    none: str = "none",
    flags: bool = False,
    metavar: str | None = None,
    before: Any = None,
) -> Any:
    """A dataclass field with its help text and bounds (`low` and `high` inclusive, `above` and `below` exclusive).

    `identity=False` marks a setting that may differ when a run is resumed (where it computes, how often it reports).
    `none` is how a user spells None. `flags` gives each field of a nested dataclass a command-line flag. `metavar`
    stands for the value in the help. `before` is the value for artefacts that are older than the setting.
    """
    metadata = {
        "help": help, "low": low, "high": high, "above": above, "below": below,
        "identity": identity, "none": none, "flags": flags, "metavar": metavar, "before": before,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def again(cls: type, name: str, default: Any = ..., *, help: str | None = None) -> Any:
    """A setting that repeats one of another class, with its bounds and, unless others are given, default and help."""
    field = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
    metadata = {**field.metadata, "help": field.metadata["help"] if help is None else help}
    return dataclasses.field(default=field.default if default is ... else default, metadata=metadata)


@cache
def types_of(cls: type) -> Mapping[str, Any]:
    """Types of the settings of a class, by name; cached, since opening a run asks for them hundreds of times."""
    return typing.get_type_hints(cls)


def names_of(cls: type) -> list[str]:
    """Names of the settings of a class, in order."""
    return [field.name for field in dataclasses.fields(cls)]


# ----------------------------------------------------------------------------------------------------------------------
# To and from plain data


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of `config` for YAML and JSON, with tuples as lists."""
    return {f.name: _plain(getattr(config, f.name), to_dict) for f in dataclasses.fields(config)}


def identity(config: Any) -> dict[str, Any]:
    """`to_dict` without the fields marked `identity=False`: the settings that may not change between resumptions."""
    fields = [f for f in dataclasses.fields(config) if f.metadata.get("identity", True)]
    return {f.name: _plain(getattr(config, f.name), identity) for f in fields}


def _plain(value: Any, nested: Any) -> Any:
    """A value as YAML and JSON hold it; `nested` converts dataclasses."""
    if dataclasses.is_dataclass(value):
        return nested(value)
    return list(value) if isinstance(value, tuple) else value


def from_dict(cls: type[T], data: Mapping[str, Any], prefix: str = "") -> T:
    """Build `cls` from a nested dict; missing keys take their defaults.

    Raises `InputError`, naming the dotted key, for an unknown key, a wrong type, a number that is not finite and a
    value out of bounds. A class whose defaults depend on other settings adds them in its `with_defaults(data)`.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{prefix.rstrip('.') or 'the configuration'} must be a mapping of settings, not {data!r}")
    data = getattr(cls, "with_defaults", dict)(data)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = types_of(cls)  # type: ignore[arg-type]  # a type is hashable
    values = {}
    for key, value in data.items():
        if key not in fields:
            raise InputError(f"unknown setting {prefix}{key}{_suggestion(str(key), cls, prefix)}")
        values[key] = _parse(hints[key], value, f"{prefix}{key}", fields[key].metadata)
        if values[key] == () and fields[key].default:  # where it may be empty, it is by default
            raise InputError(f"{prefix}{key} is an empty list; give at least one value, or leave it out")
    return cls(**values)


def from_stored(cls: type[T], data: Mapping[str, Any]) -> T:
    """`from_dict` for the configuration of an artefact: settings newer than it take their `before` value."""
    return from_dict(cls, merge(_before(cls), data))


def _before(cls: type) -> dict[str, Any]:
    """The `before` values of a dataclass, nested."""
    found, hints = {}, types_of(cls)
    for one in dataclasses.fields(cls):
        nested = dataclasses.is_dataclass(hints[one.name])
        value = _before(hints[one.name]) or None if nested else one.metadata.get("before")
        if value is not None:
            found[one.name] = value
    return found


def merge(base: Mapping[str, Any], *overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts merged left to right; the last one wins."""
    merged = dict(base)
    for override in overrides:
        for key, value in override.items():
            nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = merge(merged[key], value) if nested else value
    return merged


def assignments(pairs: Iterable[str]) -> dict[str, Any]:
    """The nested dict of `("model.denoiser.layers=3", …)`; values stay strings until `from_dict` parses them."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--set takes KEY=VALUE, for example recipe.sigma_dec=2, and not {pair!r}")
        nested: Any = value
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        result = merge(result, nested)
    return result


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines "key: old -> new" for every leaf in which two nested dicts differ."""
    lines = []
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {_told(a)} -> {_told(b)}")
    return lines


def _told(value: Any) -> str:
    return "none" if value is None else str(value)


# ----------------------------------------------------------------------------------------------------------------------
# Parsing one value

_WORDS: dict[bool | None, tuple[str, ...]] = {
    True: ("on", "yes", "true"), False: ("off", "no", "false"), None: ("none",)
}  # fmt: skip
_NAMES = {bool: "true or false", str: "a string", int: "a whole number", float: "a number"}


def _suggestion(key: str, cls: type, prefix: str) -> str:
    """The end of an error about an unknown key: those of that name in a section, the closest known one, or all."""
    known = [one.name for one in dataclasses.fields(cls)]
    inside = [name for name in _dotted(cls) if name.rpartition(".")[2] == key]
    close = inside or difflib.get_close_matches(key, known, n=1)
    if not close:
        return f"; known here: {', '.join(known)}"
    return f"; did you mean {' or '.join(prefix + name for name in close)}?"


def _dotted(cls: type) -> list[str]:
    """Names of all settings of a dataclass, those of its sections with dots."""
    hints, found = types_of(cls), []
    for one in dataclasses.fields(cls):
        section = hints[one.name]
        nested = _dotted(section) if isinstance(section, type) and dataclasses.is_dataclass(section) else []
        found += [one.name, *(f"{one.name}.{name}" for name in nested)]
    return found


def _parse(hint: Any, value: Any, key: str, metadata: Mapping[str, Any]) -> Any:
    """`value` as the type `hint`, checked against the bounds in `metadata`."""
    if dataclasses.is_dataclass(value):  # built by `with_defaults`, which chose its class
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, f"{key}.")  # type: ignore[arg-type]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (inner,) = (arm for arm in typing.get_args(hint) if arm is not type(None))
        if value is None or value in ("none", metadata.get("none")):
            return None
        return _parse(inner, value, key, metadata)
    if typing.get_origin(hint) is Literal:
        return _choice(typing.get_args(hint), value, key)
    if typing.get_origin(hint) is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise InputError(f"{key} takes a list, not {value!r}")
        return tuple(_parse(typing.get_args(hint)[0], item, key, metadata) for item in items)
    return _bounded(_scalar(hint, value, key), key, metadata)


def _choice(choices: tuple[str, ...], value: Any, key: str) -> str:
    """`value` as one of the choices. YAML does not read null, on, off, yes and no as words."""
    if value is None or isinstance(value, bool):
        value = next((word for word in _WORDS[value] if word in choices), value)
    if value not in choices:
        raise InputError(f"{key} is one of {', '.join(choices)}, not {value!r}")
    return value


def _scalar(hint: type, value: Any, key: str) -> Any:
    """`value` as a bool, string or number, not yet checked against bounds."""
    wrong = f"{key} takes {_NAMES[hint]}, not {value!r}"
    if hint is bool:
        if isinstance(value, str):
            value = next((flag for flag, words in _WORDS.items() if value.lower() in words), None)
        if not isinstance(value, bool):
            raise InputError(wrong)
        return value
    if hint is str:
        if not isinstance(value, str):
            raise InputError(f"{wrong}; in a YAML file, put it in quotes")
        return whole(value, key)
    return _number(hint, value, key, wrong)


def whole(value: str, key: str) -> str:
    """`value` itself; `InputError` if it can't be recorded, as a command line whose bytes are not UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise InputError(
            f"{key} holds {half}, which is no whole character of UTF-8; remove it, or rename the file"
        ) from None
    return value


def _number(hint: type, value: Any, key: str, wrong: str) -> int | float:
    """`value` as a finite number. YAML reads 3e-4 as a string, and --set gives strings."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise InputError(wrong)
    if hint is int and not isinstance(value, float):  # no float holds every whole number
        with suppress(ValueError):
            return int(value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise InputError(wrong) from None
    if not math.isfinite(number):
        raise InputError(f"{key} must be a finite number, not {value!r}")
    if hint is float:
        return number
    if isinstance(value, str) or not number.is_integer():
        raise InputError(wrong)
    return int(number)


def _bounded(value: Any, key: str, metadata: Mapping[str, Any]) -> Any:
    """`value` itself; `InputError` when it is out of bounds."""
    low, high, above, below = (metadata.get(name) for name in ("low", "high", "above", "below"))
    if high is None and isinstance(value, int):
        high = sys.float_info.max  # whole numbers are also divided
    if low is not None and value < low:
        raise InputError(f"{key} must be at least {low}, not {value}")
    if above is not None and value <= above:
        raise InputError(f"{key} must be more than {above}, not {value}")
    if below is not None and value >= below:
        raise InputError(f"{key} must be less than {below}, not {value}")
    if high is not None and value > high:
        raise InputError(f"{key} must be at most {high}, not {value}")
    return value
