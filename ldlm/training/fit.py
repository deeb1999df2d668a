"""Which micro-batches fit a device: how many rows at once, and with what accumulation and recomputation."""

from __future__ import annotations

import re

from ldlm import files
from ldlm.config import Shapes
from ldlm.errors import InputError
from ldlm.runtime import World
from ldlm.training.footprint import Footprint
from ldlm.training.learner import check_shares
from ldlm.training.method import AnyMethod

# Share of a device's memory kept for the CUDA context, library workspaces, fragmentation and what the estimate misses.
RESERVE = 0.1
UNITS = {"GB": 10**9, "GiB": 2**30}


def capacity(text: str) -> int:
    """Bytes of a size such as 80GB or 79.1GiB; `InputError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GB|GiB)", text)
    if found is None or not float(found[1]):
        raise InputError(f"--fit {text!r} is not an amount of memory; write it like 80GB or 79.1GiB")
    return round(float(found[1]) * UNITS[found[2]])


def largest(found: Footprint, size: str, share: int, devices: int) -> int:
    """The most rows at once of a process's `share` that fit a device of that size beside the reserve; 0 if none do.

    They divide the share, since `--accumulate` makes micro-batches of one size.
    """
    budget = (1 - RESERVE) * capacity(size)
    fitting = (rows for rows in divisors(share)[::-1] if found.memory(rows, share, devices=devices).total <= budget)
    return next(fitting, 0)


def divisors(share: int) -> list[int]:
    """The whole numbers that divide a process's share of a batch, ascending."""
    return [n for n in range(1, share + 1) if share % n == 0]


def fitted(
    method: AnyMethod,
    shapes: Shapes,
    size: str,
    *,
    devices: int,
    bf16: bool,
    device: str,
    features: str | None = None,
) -> tuple[AnyMethod, str]:
    """The method with the least recomputation and the fewest micro-batches that fit, and its flags.

    `features` is the kind of the features, if known. `InputError` if nothing fits a device of that size beside the
    reserve.
    """
    budget = round((1 - RESERVE) * capacity(size))
    check_shares(method.changed(accumulate=1).config, World(size=devices))
    share = method.config.batch_size // devices
    for recompute in (False, True):
        found = method.changed(recompute=recompute).footprint(shapes, bf16=bf16, device=device, features=features)
        for accumulate in divisors(share):
            if found.memory(share // accumulate, share, devices=devices).total <= budget:
                flags = f"--accumulate {accumulate} --recompute {str(recompute).lower()}"
                return method.changed(accumulate=accumulate, recompute=recompute), flags
    least = found.memory(1, share, devices=devices)
    remedy = (
        "use more processes or a smaller --batch-size"
        if least.batches > least.step
        else "use shorter rows, a smaller model or a larger device"
    )
    raise InputError(
        f"--fit {size}: with recomputation and one row at a time a device needs {files.amount(least.total)}, "
        f"{files.amount(least.batches)} of them for batches, and may use {files.amount(budget)}; {remedy}"
    )
