"""Fingerprints of what an artefact is made from, compared with a record that an earlier version may have written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Fingerprint(str):
    """A fingerprint for which earlier versions recorded `before`, or nothing if that is None."""

    before: str | None

    def __new__(cls, fingerprint: str, before: str | None) -> Fingerprint:
        made = super().__new__(cls, fingerprint)
        made.before = before
        return made


def as_recorded(inputs: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs by the fingerprints that the version of a record had for them; None for what it did not record."""
    return {name: _known(value, record.get(name)) for name, value in inputs.items()}


def _known(value: Any, recorded: Any) -> Any:
    return recorded if isinstance(value, Fingerprint) and recorded == value.before else value
