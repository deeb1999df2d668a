"""Commands of `ldlm` as jobs: what each reads and makes, and the words of its command line.

The name of a job's output ends in a digest of its settings and of the names of its inputs: rows that need the same
thing share it, and another setting gives another folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldlm import config as configs
from ldlm import files

KINDS = (
    "text", "encoder", "scorer", "features", "reference", "train", "decoder", "sample", "evaluate", "interpolate"
)  # fmt: skip
ARTEFACTS = {"encoder", "scorer", "features", "train", "decoder", "interpolate"}  # folders completed by a manifest


@dataclass(frozen=True)
class Job:
    """One command, or the splitting of the text. Paths are relative to the output folder."""

    kind: str
    words: tuple[str, ...]  # of the command, after `ldlm`; none for `text`
    output: str  # the folder or file that it makes
    needs: tuple[str, ...] = ()  # outputs of other jobs
    keeps: str | None = None  # file for the result that it prints as JSON
    settings: Any = field(default=None, compare=False)  # from which the cost is counted
    run: Any = field(default=None, compare=False)  # the row's `RowJobs`, for a training and what follows it

    @property
    def mark(self) -> str:
        """The file whose presence says that the job is done."""
        if self.keeps is not None:
            return self.keeps
        return f"{self.output}/manifest.json" if self.kind in ARTEFACTS else self.output

    def done(self, folder: Path) -> bool:
        """Whether the job is done."""
        return (folder / self.mark).exists()


def named(kind: str, label: str, *settings: object, suffix: str = "") -> str:
    """A name for what is made with these settings: its kind, a readable label, and a digest."""
    return f"{kind}/{label}-{files.sha256_json(settings)[:8]}{suffix}"


def options(changes: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings as `--set KEY=VALUE`, nested ones with dotted keys."""
    words = []
    for name, value in changes.items():
        if isinstance(value, Mapping):
            words += options(value, f"{prefix}{name}.")
        else:
            words += ["--set", f"{prefix}{name}={_word(value)}"]
    return words


def flags(changes: Mapping[str, Any]) -> list[str]:
    """Settings as flags, `--seq-len 128`."""
    words = []
    for name, value in changes.items():
        many = value if isinstance(value, list | tuple) else [value]
        words += [f"--{name.replace('_', '-')}", *map(_word, many)]
    return words


def changed(config: Any, base: Any) -> dict[str, Any]:
    """Top-level settings in which a configuration differs from another of its class, with their own values."""
    mine, other = configs.to_dict(config), configs.to_dict(base)
    return {name: value for name, value in mine.items() if value != other[name]}


def _word(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def unique(jobs: Iterable[Job]) -> list[Job]:
    """Jobs in order, each once."""
    return list({job.output if job.keeps is None else job.keeps: job for job in jobs}.values())
