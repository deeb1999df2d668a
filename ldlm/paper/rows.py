"""The rows of the paper's tables, read strictly from `rows/TABLE/ROW.yaml`.

A row names a preset and its changes to it, stage by stage; `tiny` holds what is different at `--scale tiny`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ldlm import files
from ldlm.config import LDLM, METHODS, PRESETS
from ldlm.errors import InputError
from ldlm.paper.printed import Printed, quantity

FOLDER = Path(__file__).with_name("rows")
STAGES = ("store", "train", "decoder", "sampler")  # settings of extract-features, train, finetune-decoder and sample
KEYS = {"name", "section", "preset", "method", "real", "tiny", "printed", *STAGES}
TINY_STEPS = 1_200


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Settings of a row at `--scale tiny`; those of stages are applied on top of the row's own."""

    steps: int = TINY_STEPS  # of training; 3,000 in rows that decide an ordering
    warmup: float | None = None  # S_wu as a share of the steps; None: the share in preset tiny
    stages: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: its changes to its preset, by stage, and what the paper prints."""

    key: str  # table-1/ce
    name: str  # as the paper prints it
    section: str
    preset: str
    method: str
    real: bool  # real text: nothing is trained
    stages: Mapping[str, Any]
    tiny: Tiny
    printed: Mapping[int | None, Mapping[str, Printed]]  # by evaluations, None if the table has no budgets

    @property
    def short(self) -> str:
        """The key without its table: what `--row` takes."""
        return self.key.split("/")[1]


@cache
def load(key: str) -> Row:
    """The row of that key, like `table-1/ce`; `InputError` if there is none or its file is malformed."""
    path = FOLDER / f"{key}.yaml"
    if not path.is_file():
        raise InputError(f"there is no row {key}")
    return parse(key, files.read_yaml(path))


def parse(key: str, data: Mapping[str, Any]) -> Row:
    """A row from its file's settings; `InputError`, naming the row and the key, for anything unknown."""
    check_keys(key, data, KEYS, needed=("name", "section", "preset"))
    if data["preset"] not in PRESETS:
        raise InputError(f"{key}: there is no preset {data['preset']!r}; choose one of {', '.join(PRESETS)}")
    method = data.get("method", LDLM)
    if method not in METHODS:
        raise InputError(f"{key}: there is no method {method!r}; choose one of {', '.join(METHODS)}")
    return Row(
        key=key,
        name=str(data["name"]),
        section=str(data["section"]),
        preset=data["preset"],
        method=method,
        real=flag(key, data, "real", False),
        stages=_stages(key, data),
        tiny=_tiny(key, mapping(key, data, "tiny")),
        printed=_printed(key, mapping(key, data, "printed")),
    )


def check_keys(where: str, data: Mapping[str, Any], known: set[str], needed: tuple[str, ...] = ()) -> None:
    """`InputError` for an unknown key, or a missing one that is needed."""
    for name in data:
        if name not in known:
            raise InputError(f"{where}: there is no key {name!r}; known are {', '.join(sorted(known))}")
    for name in needed:
        if name not in data:
            raise InputError(f"{where}: the key {name!r} is missing")


def mapping(where: str, data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The mapping under a key, empty if the key is absent; `InputError` for anything else."""
    found = data.get(name, {})
    if not isinstance(found, dict):
        raise InputError(f"{where}: {name} takes settings, one `key: value` each, not {found!r}")
    return found


def flag(where: str, data: Mapping[str, Any], name: str, default: bool) -> bool:
    """The boolean under a key; `InputError` for anything else."""
    found = data.get(name, default)
    if not isinstance(found, bool):
        raise InputError(f"{where}: {name} is true or false, not {found!r}")
    return found


def _stages(where: str, data: Mapping[str, Any]) -> dict[str, Any]:
    return {stage: mapping(where, data, stage) for stage in STAGES if stage in data}


def _tiny(key: str, data: Mapping[str, Any]) -> Tiny:
    where = f"{key}, tiny"
    check_keys(where, data, {"steps", "warmup", *STAGES})
    steps, warmup = data.get("steps", TINY_STEPS), data.get("warmup")
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"{where}: steps is a number of training steps, not {steps!r}")
    if warmup is not None and not (isinstance(warmup, int | float) and 0 <= warmup <= 1):
        raise InputError(f"{where}: warmup is a share of the steps from 0 to 1, not {warmup!r}")
    return Tiny(steps=steps, warmup=warmup, stages=_stages(where, data))


def _printed(key: str, data: Mapping[Any, Any]) -> dict[int | None, dict[str, Printed]]:
    where = f"{key}, printed"
    if all(isinstance(budget, int) for budget in data) and data:
        return {budget: _figures(f"{where}, {budget}", cells) for budget, cells in data.items()}
    return {None: _figures(where, data)} if data else {}


def _figures(where: str, data: Any) -> dict[str, Printed]:
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: figures stand by name, like gen_ppl: 98.5 ± 1.9, not {data!r}")
    return {quantity(name, where): Printed.parse(value, f"{where}, {name}") for name, value in data.items()}
