"""Fingerprints of what an artefact is made from, compared with a record that an earlier version may have written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Names of fingerprints that earlier versions did not record.
LATER = (
    "decoder_sha256",
    "prompts_sha256",
    "scorer_revision",
    "screen_seeds",
    "shards",
    "tokenizer_sha256",
    "weights_precision",
)


class Fingerprint(str):
    """A fingerprint for which earlier versions recorded `before`."""

    before: str

    def __new__(cls, fingerprint: str, before: str) -> Fingerprint:
        made = super().__new__(cls, fingerprint)
        made.before = before
        return made


def as_recorded(new: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """`new` as the version that wrote `record` had it: by that version's fingerprints, and without those of `LATER`."""
    return {name: _known(value, record.get(name)) for name, value in new.items() if name in record or name not in LATER}


def _known(value: Any, recorded: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(recorded, Mapping):
        return as_recorded(value, recorded)
    return recorded if isinstance(value, Fingerprint) and recorded == value.before else value
