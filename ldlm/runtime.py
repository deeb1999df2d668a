"""Where and how things run: devices and reproducibility."""

from __future__ import annotations

import torch

from ldlm.errors import InputError


def device(name: str) -> torch.device:
    """The device that `name` means; `auto` is cuda where there is one. `InputError` when it can't be had."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name!r} is not a device; use cpu, cuda, cuda:N or auto") from None
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here; use cpu")
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name} is not supported; use cpu, cuda, cuda:N or auto")
    return found
