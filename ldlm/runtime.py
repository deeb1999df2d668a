"""Where and how things run: devices and reproducibility."""

from __future__ import annotations

import os

import torch

from ldlm.errors import InputError


def device(name: str) -> torch.device:
    """The device that `name` means; `auto` is cuda where there is one. `InputError` when it can't be had.

    Under torchrun each process on a machine has a GPU of its own, unless `name` says which.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        # The remainder, since a launcher may show each process its own GPU only, as number 0.
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % max(1, torch.cuda.device_count())}"
    try:
        found = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name!r} is not a device; use cpu, cuda, cuda:N or auto") from None
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here; use cpu")
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name} is not supported; use cpu, cuda, cuda:N or auto")
    return found
