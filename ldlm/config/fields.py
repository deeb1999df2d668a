"""How settings are declared, and how they come in from outside and go back: strict about names, types and bounds.

`from_dict` is the only way in (YAML, `--set`, checkpoints). This module is standard library only, so that `ldlm --help`
stays instant.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import field
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

    `identity=False` marks what may change between a run and its resumption (where it computes, how often it reports).
    `none` is how a user spells None. `flags` gives the fields of a nested dataclass flags of their own. `metavar`
    stands for a value in the help where its type says too little. `before` is what applied before there was the
    setting: what an artefact's configuration without it means.
    """
    metadata = {
        "help": help, "low": low, "high": high, "above": above, "below": below,
        "identity": identity, "none": none, "flags": flags, "metavar": metavar, "before": before,
    }  # fmt: skip
    if dataclasses.is_dataclass(default):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# ----------------------------------------------------------------------------------------------------------------------
# From outside and back


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of `config`, tuples as lists: what goes into YAML and JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return list(value) if isinstance(value, tuple) else value

    return plain(config)


def from_dict(cls: type[T], data: Mapping[str, Any], prefix: str = "") -> T:
    """Build `cls` from a nested dict; missing keys take their defaults.

    Raises `InputError`, naming the dotted key, for an unknown key, a wrong type, a number that is not finite and a
    value out of bounds. A class whose defaults depend on other settings adds them in its `with_defaults(data)`.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{prefix.rstrip('.') or 'the configuration'} must be a mapping of settings, not {data!r}")
    data = getattr(cls, "with_defaults", dict)(data)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in data.items():
        if key not in fields:
            raise InputError(f"unknown setting {prefix}{key}{_suggestion(str(key), fields)}")
        values[key] = _parse(hints[key], value, f"{prefix}{key}", fields[key].metadata)
    return cls(**values)


def from_stored(cls: type[T], data: Mapping[str, Any]) -> T:
    """`from_dict` of what an artefact holds: a setting that it is older than has the value that applied before."""
    return from_dict(cls, merge(_before(cls), data))


def _before(cls: type) -> dict[str, Any]:
    """The settings of a dataclass, nested, that stand for something else where they are missing in an artefact."""
    found, hints = {}, typing.get_type_hints(cls)
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
    """The nested dict that `("model.denoiser.layers=3", …)` describes; values stay strings until `from_dict`."""
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


def identity(config: Any) -> dict[str, Any]:
    """The settings that make a run what it is: everything but the fields marked `identity=False`."""
    result = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if not f.metadata.get("identity", True):
            continue
        result[f.name] = identity(value) if dataclasses.is_dataclass(value) else to_dict_value(value)
    return result


def to_dict_value(value: Any) -> Any:
    """A leaf as YAML and JSON hold it."""
    return list(value) if isinstance(value, tuple) else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines "key: old -> new" for every leaf in which two nested dicts differ."""
    lines = []
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def _suggestion(key: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _parse(hint: Any, value: Any, key: str, metadata: Mapping[str, Any]) -> Any:
    """`value` as the type `hint`, checked against the bounds in `metadata`."""
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, f"{key}.")  # type: ignore[arg-type]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (inner,) = (arm for arm in typing.get_args(hint) if arm is not type(None))
        if value is None or value in ("none", metadata.get("none")):
            return None
        return _parse(inner, value, key, metadata)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value is None or isinstance(value, bool):  # as YAML reads null, and on, off, yes and no
            value = next((word for word in _WORDS[value] if word in choices), value)
        if value not in choices:
            raise InputError(f"{key} is one of {', '.join(choices)}, not {value!r}")
        return value
    if typing.get_origin(hint) is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise InputError(f"{key} takes a list, not {value!r}")
        return tuple(_parse(typing.get_args(hint)[0], item, key, metadata) for item in items)
    return _bounded(_scalar(hint, value, key), key, metadata)


def _scalar(hint: type, value: Any, key: str) -> Any:
    wrong = InputError(f"{key} takes {_NAMES[hint]}, not {value!r}")
    if hint is bool:
        flag = next((flag for flag, words in _WORDS.items() if str(value).lower() in words), None)
        if isinstance(value, str) and flag is not None:
            return flag
        if not isinstance(value, bool):
            raise wrong
        return value
    if hint is str:
        if not isinstance(value, str):
            raise InputError(f"{key} takes {_NAMES[hint]}, not {value!r}; in a YAML file, put it in quotes")
        return value
    # YAML reads 3e-4 as a string, and --set gives strings: numbers are parsed to the field's type here.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise wrong
    try:
        number = float(value)
        if not math.isfinite(number):
            raise InputError(f"{key} must be a finite number, not {value!r}")
        if hint is float:
            return number
        whole = int(value) if isinstance(value, (int, str)) and not isinstance(value, float) else int(number)
    except InputError:
        raise
    except (ValueError, OverflowError):
        raise wrong from None
    if whole != number:
        raise wrong
    return whole


_WORDS: dict[bool | None, tuple[str, ...]] = {
    True: ("on", "yes", "true"), False: ("off", "no", "false"), None: ("none",)
}  # fmt: skip
_NAMES = {bool: "true or false", str: "a string", int: "a whole number", float: "a number"}


def _bounded(value: Any, key: str, metadata: Mapping[str, Any]) -> Any:
    low, high, above, below = (metadata.get(name) for name in ("low", "high", "above", "below"))
    if low is not None and value < low:
        raise InputError(f"{key} must be at least {low}, not {value}")
    if above is not None and value <= above:
        raise InputError(f"{key} must be more than {above}, not {value}")
    if below is not None and value >= below:
        raise InputError(f"{key} must be less than {below}, not {value}")
    if high is not None and value > high:
        raise InputError(f"{key} must be at most {high}, not {value}")
    return value
