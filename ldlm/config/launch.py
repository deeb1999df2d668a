"""How an extraction is launched: settings that affect no byte of a store, and that no store records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ldlm.config.fields import setting


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How processes divide the work of `ldlm extract-features`, and what a dry run plans for."""

    share: str | None = setting(
        None,
        "this process is number I, from 0, of N that work on the store: it begins with its own stretch, and then helps "
        "from the ends of the others'; auto reads RANK and WORLD_SIZE, SLURM_ARRAY_TASK_ID and _COUNT, SLURM_PROCID "
        "and SLURM_NTASKS, or JOB_COMPLETION_INDEX and JOB_COMPLETIONS",
        metavar="I/N",
        none="auto",
    )
    only: Literal["pack", "encode", "seal"] | None = setting(
        None, "stop after this phase; refused until the phase before it is done", metavar="pack|encode|seal"
    )
    engine: Literal["ray"] | None = setting(
        None, "distribute the work with Ray, to a worker on each GPU or to --workers on CPUs", metavar="ray"
    )
    address: str | None = setting(
        None, "with --engine ray: the cluster, or auto; none means RAY_ADDRESS, or else this machine alone"
    )
    workers: int | None = setting(None, "number of workers, with --engine ray, or to plan for, with --dry-run", low=1)
    tokens: int | None = setting(
        None, "with --dry-run: plan for this many tokens of text like the one given", low=1, metavar="INT"
    )
    rate: float | None = setting(
        None, "with --dry-run: tokens per second of a worker, instead of measuring them here", above=0
    )
