"""Softmax attention as a single torch operator, which the compiler leaves whole, and the choice of its kernel.

`ldlm::attention` returns the log-sum-exp of the scores beside the output. From it, `ldlm::attention_backward`
recomputes the probabilities, so neither stores an N·L matrix (Dao et al., 2022).

Shape letters: CONTRIBUTING.md. N counts queries and L keys here.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import Library, impl, register_autograd, register_fake
from torch.utils.flop_counter import register_flop_formula

from ldlm.errors import InputError

HALF = (torch.float16, torch.bfloat16)


def attention(q_BNHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, seen_BL: Tensor | None = None) -> Tensor:
    """softmax(q·k/√K)·v, (B, N, H, K) against (B, L, H, K); returns (B, N, H, K).

    Under autocast all three are cast to its dtype. The kernel is the one that `use_attention` chose, if it accepts the
    inputs; float32 always uses torch's. `seen_BL` is False at keys that a row must not see; with it, torch's own
    function chooses the kernel, since neither flash attention nor our use of xformers accepts masks.
    """
    kind = v_BLHK.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        q_BNHK, k_BLHK, v_BLHK = q_BNHK.to(dtype), k_BLHK.to(dtype), v_BLHK.to(dtype)
    if seen_BL is not None:
        q, k, v = (x.transpose(1, 2) for x in (q_BNHK, k_BLHK, v_BLHK))
        return F.scaled_dot_product_attention(q, k, v, seen_BL[:, None, None]).transpose(1, 2)
    out_BNHK: Tensor = torch.ops.ldlm.attention.default(q_BNHK, k_BLHK, v_BLHK, _kernel)[0]
    return out_BNHK


# `torch.library.custom_op` would do the same in less code, but calls a kernel on a CPU half as fast.
_OPERATORS = Library("ldlm", "DEF")
_OPERATORS.define(
    "attention(Tensor q, Tensor k, Tensor v, str kernel) -> (Tensor out, Tensor logsumexp)",
    tags=torch.Tag.pt2_compliant_tag,
)
_OPERATORS.define(
    "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, str kernel)"
    " -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


# ----------------------------------------------------------------------------------------------------------------------
# On a CPU: torch's fused kernel


@impl(_OPERATORS, "attention", "CPU")
def _cpu_forward(q_BNHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, kernel: str) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, K) and log-sum-exp (B, H, N) of the scores, with kernel `xformers` or `sdpa`."""
    q, k, v = map(_heads_first, (q_BNHK, k_BLHK, v_BLHK))
    out, logsumexp_BHN = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v)
    return out.transpose(1, 2), logsumexp_BHN


@impl(_OPERATORS, "attention_backward", "CPU")
def _cpu_backward(
    grad_BNHK: Tensor,
    q_BNHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    out_BNHK: Tensor,
    logsumexp_BHN: Tensor,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, each in the shape of its input."""
    grad, q, k, v, out = map(_heads_first, (grad_BNHK, q_BNHK, k_BLHK, v_BLHK, out_BNHK))
    of_torch = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    return _heads_inside(of_torch(grad, q, k, v, out, logsumexp_BHN, 0.0, False))


def _heads_first(x_BNHK: Tensor) -> Tensor:
    """(B, H, N, K), as torch's kernels take it; the values of a head must be contiguous."""
    return (x_BNHK if x_BNHK.stride(-1) == 1 else x_BNHK.contiguous()).transpose(1, 2)


def _heads_inside(gradients: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (x_BHNK.transpose(1, 2).contiguous() for x_BHNK in gradients)
    return dq, dk, dv


# ----------------------------------------------------------------------------------------------------------------------
# On a GPU: xformers, or torch if it has no kernel


@impl(_OPERATORS, "attention", "CUDA")
def _cuda_forward(q_BNHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, kernel: str) -> tuple[Tensor, Tensor]:
    length, found = q_BNHK.shape[1], _xformers_of(q_BNHK) if kernel == "xformers" else None
    if found is None:
        return _torch_forward(q_BNHK, k_BLHK, v_BLHK)
    q, k, v = map(_laid_out, (q_BNHK, k_BLHK, v_BLHK))
    out, logsumexp = _fmha().memory_efficient_attention_forward_requires_grad(q, k, v, op=found[0])
    return out.contiguous(), logsumexp[..., :length].contiguous()  # some kernels pad it


@impl(_OPERATORS, "attention_backward", "CUDA")
def _cuda_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, kernel: str
) -> tuple[Tensor, Tensor, Tensor]:
    found = _xformers_of(q) if kernel == "xformers" else None
    if found is None:
        return _torch_backward(grad, q, k, v, out, logsumexp)
    grad, out, q, k, v = map(_laid_out, (grad, out, q, k, v))
    dq, dk, dv = _fmha().memory_efficient_attention_backward(grad, out, logsumexp, q, k, v, op=found[1])
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def _laid_out(x_BNHK: Tensor) -> Tensor:
    """The tensor as xformers takes it: the values of a head contiguous, and heads at multiples of 8."""
    return x_BNHK if x_BNHK.stride(-1) == 1 and x_BNHK.stride(-2) % 8 == 0 else x_BNHK.contiguous()


def _torch_forward(q_BNHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp from torch's GPU kernels: flash attention, or memory-efficient in float32."""
    length, width = q_BNHK.shape[1], q_BNHK.shape[-1]
    q, k, v = (_heads_first(_aligned(x)) for x in (q_BNHK, k_BLHK, v_BLHK))
    scale = 1 / math.sqrt(width)
    if _flash(q_BNHK.device, q_BNHK.dtype, width):
        out, logsumexp, *_ = torch.ops.aten._scaled_dot_product_flash_attention.default(q, k, v, scale=scale)
    else:
        of_torch = torch.ops.aten._scaled_dot_product_efficient_attention.default
        out, logsumexp, *_ = of_torch(q, k, v, None, True, scale=scale)
    return out.transpose(1, 2)[..., :width].contiguous(), logsumexp[..., :length].contiguous()


def _torch_backward(
    grad_BNHK: Tensor, q_BNHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, out_BNHK: Tensor, logsumexp_BHN: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients from the kernels of `_torch_forward`; without dropout they read no random generator's state."""
    length, width = q_BNHK.shape[1], q_BNHK.shape[-1]
    grad, q, k, v, out = (_heads_first(_aligned(x)) for x in (grad_BNHK, q_BNHK, k_BLHK, v_BLHK, out_BNHK))
    scale, state = 1 / math.sqrt(width), torch.empty(2, dtype=torch.int64, device=q.device)
    if _flash(q_BNHK.device, q_BNHK.dtype, width):
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward.default(
            grad, q, k, v, out, logsumexp_BHN, None, None, length, k.shape[2], 0.0, False, state, state, scale=scale
        )
    else:
        padded = F.pad(logsumexp_BHN, (0, -length % 32), value=math.inf)  # as the kernel expects: probabilities of 0
        gradients = torch.ops.aten._scaled_dot_product_efficient_attention_backward.default(
            grad, q, k, v, None, out, padded, state[0], state[1], 0.0, [True, True, True, False], scale=scale
        )[:3]
    return _heads_inside(x[..., :width] for x in gradients)


def _aligned(x_BNHK: Tensor) -> Tensor:
    """Heads padded with zeros to a multiple of 8 values, as the GPU kernels require; this changes no score."""
    return F.pad(x_BNHK, (0, -x_BNHK.shape[-1] % 8)) if x_BNHK.shape[-1] % 8 else x_BNHK


@cache
def _flash(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether torch's flash attention accepts heads of that width."""
    recent = torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= (8, 0)
    return recent and dtype in HALF and width <= 256


# ----------------------------------------------------------------------------------------------------------------------
# What the compiler, autograd and FLOP counters need to know


@register_fake("ldlm::attention", lib=_OPERATORS)
def _fake_forward(q_BNHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, kernel: str) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q_BNHK.shape
    dtype = torch.float64 if q_BNHK.dtype == torch.float64 else torch.float32
    if q_BNHK.is_cpu:  # the CPU kernel has the heads innermost
        logsumexp_BHN = q_BNHK.new_empty(batch, length, heads, dtype=dtype).transpose(1, 2)
    else:
        logsumexp_BHN = q_BNHK.new_empty(batch, heads, length, dtype=dtype)
    return q_BNHK.new_empty(q_BNHK.shape), logsumexp_BHN


@register_fake("ldlm::attention_backward", lib=_OPERATORS)
def _fake_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, kernel: str
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, str], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.kernel = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zero gradient for the log-sum-exp


def _gradients(ctx: Any, grad_BNHK: Tensor | None, _: None) -> Sequence[Tensor | None]:
    if grad_BNHK is None:
        return (None,) * 4
    backward = torch.ops.ldlm.attention_backward.default
    return (*backward(grad_BNHK.contiguous(), *ctx.saved_tensors, ctx.kernel), None)


register_autograd("ldlm::attention", _gradients, setup_context=_save, lib=_OPERATORS)


@register_flop_formula(torch.ops.ldlm.attention)
def _forward_flops(q_BNHK: torch.Size, k_BLHK: torch.Size, *_: Any, **__: Any) -> int:
    """Two matrix products, q·kᵀ and p·v."""
    batch, queries, heads, width = q_BNHK
    return 2 * 2 * batch * heads * queries * k_BLHK[1] * width


@register_flop_formula(torch.ops.ldlm.attention_backward)
def _backward_flops(grad_BNHK: torch.Size, q_BNHK: torch.Size, k_BLHK: torch.Size, *_: Any, **__: Any) -> int:
    """Four matrix products; the one that recomputes the scores does not count."""
    return 2 * _forward_flops(q_BNHK, k_BLHK)


# ----------------------------------------------------------------------------------------------------------------------
# The choice of a kernel

_kernel = "sdpa"


def use_attention(name: str, device: torch.device, widths: Collection[int] = ()) -> str:
    """Choose the attention kernel of this process: `xformers`, `sdpa` (torch's), or `auto`; returns the name chosen.

    `auto` is xformers on a GPU if it has kernels for heads of these widths, else sdpa. `InputError` for a kernel that
    is not available.
    """
    global _kernel
    refusal = None if name == "sdpa" else without_xformers(device, widths)
    if name == "xformers" and refusal is not None:
        raise InputError(f"--attention xformers {refusal}; use --attention sdpa, or auto")
    _kernel = "sdpa" if name == "sdpa" or refusal is not None else "xformers"
    return _kernel


def without_xformers(device: torch.device, widths: Collection[int] = ()) -> str | None:
    """Why xformers can't be used on a device for heads of these widths in half precision, as text; None if it can."""
    if device.type != "cuda":
        return f"has no kernels for {device.type}"
    if _fmha() is None:
        return "can't be imported here (pip install xformers)"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or more"
    for width in widths or (64,):
        if _xformers_kernels(device, torch.bfloat16, width) is None:
            return f"has no kernel for heads of width {width} here"
    return None


def _xformers_of(q_BNHK: Tensor) -> tuple[Any, Any] | None:
    return _xformers_kernels(q_BNHK.device, q_BNHK.dtype, q_BNHK.shape[-1])


@cache
def _xformers_kernels(device: torch.device, dtype: torch.dtype, width: int) -> tuple[Any, Any] | None:
    """xformers' fastest kernels, forward and backward, that by its own check take heads of a width in half precision.

    None if there are none. In float32 its kernels end with the H200, and torch's accept all.
    """
    fmha = _fmha()
    if fmha is None or dtype not in HALF:
        return None
    probe = torch.empty(1, 1, 1, width, dtype=dtype, device=device)
    inputs = fmha.Inputs(probe, probe, probe)
    for family in (fmha.flash3, fmha.flash, fmha.cutlass):
        if family.FwOp.supports(inputs) and family.BwOp.supports(inputs):
            return family.FwOp, family.BwOp
    return None


@cache
def _fmha() -> Any:
    """xformers' module of memory-efficient attention; None if it can't be imported.

    If its own extension was built for another CUDA version, it warns on import and works through torch's flash kernels.
    """
    logging.getLogger("xformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from xformers.ops import fmha
        except Exception:  # not installed, or built for something else: ImportError, OSError, RuntimeError
            return None
    return fmha
