"""Softmax attention, by the kernel that the process has chosen.

Shape letters: CONTRIBUTING.md. N counts queries and L keys here.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldlm.errors import InputError


def attention(q_BNHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor) -> Tensor:
    """softmax(q·k/√K)·v without a mask, (B, N, H, K) against (B, L, H, K); returns (B, N, H, K).

    The kernel is the one that `use_attention` chose. Compiled code and float32 always take torch's.
    """
    # xformers would break the graph of compiled code, and its kernels for float32 end with the H200.
    if not torch.compiler.is_compiling() and _kernel == "xformers" and v_BLHK.dtype in _HALF and v_BLHK.is_cuda:
        # Under autocast the norms of queries and keys may give float32, which torch's kernel casts by itself.
        return _xformers()(q_BNHK.to(v_BLHK.dtype), k_BLHK.to(v_BLHK.dtype), v_BLHK)
    out_BHNK = F.scaled_dot_product_attention(q_BNHK.transpose(1, 2), k_BLHK.transpose(1, 2), v_BLHK.transpose(1, 2))
    return out_BHNK.transpose(1, 2)


_kernel = "sdpa"
_HALF = (torch.float16, torch.bfloat16)


def use_attention(name: str, device: torch.device) -> str:
    """Choose the attention kernel of this process: `xformers`, `sdpa` (torch's), or `auto`; returns the name chosen.

    `auto` is xformers on a GPU where it can be imported, else sdpa. `InputError` for a kernel that can't be had.
    """
    global _kernel
    if name == "xformers" and device.type != "cuda":
        raise InputError(f"--attention xformers has no kernels for {device.type}; use --attention sdpa, or auto")
    if name == "auto":
        name = "xformers" if device.type == "cuda" and _xformers() is not None else "sdpa"
    if name == "xformers" and _xformers() is None:
        raise InputError("--attention xformers: it can't be imported here; pip install xformers, or use auto")
    _kernel = name
    return name


@cache
def _xformers() -> Callable[..., Tensor] | Any:
    """xformers' memory-efficient attention; None where it can't be imported.

    Where its own extension was built for another CUDA it warns on import, and works through torch's flash kernels.
    """
    logging.getLogger("xformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from xformers.ops import memory_efficient_attention
        except Exception:  # not installed, or built for something else: ImportError, OSError, RuntimeError
            return None
    return memory_efficient_attention
