"""Settings of `ldlm paper`: the paper's tables and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ldlm.config.fields import setting
from ldlm.config.stages import DEVICE_HELP


@dataclass(frozen=True, kw_only=True)
class PaperConfig:
    """`ldlm paper`: a table or figure of the paper, reproduced."""

    scale: Literal["tiny", "paper"] = setting(
        "tiny", "tiny runs on two cores; paper has the paper's sizes, and writes the commands as a script"
    )
    row: tuple[str, ...] = setting((), "rows, by key or printed name; none given means all", metavar="NAME")
    seeds: int | None = setting(None, "trainings of each row; none means 2, or 1 at scale paper", low=1)
    text: str | None = setting(
        None,
        "at scale tiny: the text to train on, a text, JSON or parquet file; none means the documentation of Python and "
        "the installed packages",
        metavar="FILE",
    )
    steps: int | None = setting(
        None, "at scale tiny: steps of every training; none means the rows' own, 1,200 or 3,000", low=10
    )
    texts: int | None = setting(None, "texts of each sampling seed; none means 250, or 1,000 at scale paper", low=2)
    sampling_seeds: int | None = setting(
        None, "sets of texts drawn from each run; none means 2, or 5 at scale paper", low=1
    )
    mauve: Literal["auto", "on", "off"] = setting(
        "auto", "compute MAUVE; auto does if mauve-text is installed and there are 20 texts or more"
    )
    device: str = setting("auto", DEVICE_HELP, identity=False)
    device_name: str | None = setting(
        None, "the device whose hours --dry-run counts, and whose memory trainings must fit", identity=False
    )
    devices: int | None = setting(None, "number of devices; none means 1, or 2 for CPU cores", low=1, identity=False)
