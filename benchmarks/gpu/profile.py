"""Where a device's time goes: the kernels that take most of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.job import Job

LARGEST = 10


def record_largest_kernels(job: Job, what: str, work: Callable[[], Any]) -> None:
    """Record the ten kernels that take most of a call or, in one line, why there is no profile."""
    table = f"largest kernels of {what}"
    try:
        rows = largest_kernels(work, job.device)
    except Exception as error:  # from the profiler, or out of memory: the timings are recorded already
        rows = [{"name": "all", "failed": f"{type(error).__name__}: {error}".partition("\n")[0]}]
    for row in rows:
        job.record(table, **row)


def largest_kernels(work: Callable[[], Any], device: torch.device) -> list[dict[str, Any]]:
    """The ten kernels (on a CPU, operations) that take most of a call, with their share of the total time."""
    work()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds) as found:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    rows = [
        (event.key, event.count, _seconds(event, device)) for event in found.key_averages() if _runs_on(event, device)
    ]
    whole = sum(seconds for *_, seconds in rows)
    rows.sort(key=lambda row: -row[-1])
    return [
        {"name": name[:70], "calls": calls, "seconds": seconds, "share": seconds / whole}
        for name, calls, seconds in rows[:LARGEST]
    ]


def _runs_on(event: Any, device: torch.device) -> bool:
    """Whether an event is a kernel on the device, rather than its launch or an annotated range of several."""
    on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
    return on_gpu == (device.type == "cuda") and not event.is_user_annotation


def _seconds(event: Any, device: torch.device) -> float:
    return 1e-6 * (event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total)
