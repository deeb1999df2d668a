"""Precision of matrix products, attention kernel, compilation and CUDA graphs: how things are computed, not what.

In training, bf16 means autocast: weights, optimiser, losses and the residual stream stay float32. In sampling, the
denoiser's own weights are bf16; the solver's state and the decoders are float32. The same holds for the rivals, whose
head is float32 in both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from threading import Lock
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ldlm import noise
from ldlm.attention import use_attention, without_xformers
from ldlm.config import ComputeConfig, Precision
from ldlm.progress import Progress

Function = TypeVar("Function", bound=Callable[..., Any])

RECOMPILE_LIMIT = 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """A `ComputeConfig` resolved for a device."""

    device: torch.device
    dtype: torch.dtype = torch.float32  # of matrix products
    compiled: bool = False
    attention: str = "sdpa"  # the kernel used in that precision
    remark: str | None = None  # for the user: why that is not the kernel of this kind of device

    @classmethod
    def of(cls, config: ComputeConfig, device: torch.device, widths: Collection[int] = ()) -> Compute:
        """Resolve a configuration for heads of these widths, and choose the process's attention kernel.

        `InputError` for what is not available.
        """
        dtype = DTYPES[precision_on(config.precision, device)]
        kernel = use_attention(config.attention, device, widths)
        if dtype == torch.float32:
            kernel = "sdpa"  # whatever was chosen
        compiled = device.type == "cuda" if config.compile == "auto" else config.compile == "on"
        return cls(device, dtype, compiled, kernel, _remark(config, device, dtype, widths))

    def tell(self, progress: Progress) -> None:
        """Give the user the remark, if there is one, once in a process."""
        if self.remark is not None and self.remark not in _told:
            _told.add(self.remark)
            progress.note(self.remark)

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """Name of the dtype, as it is recorded."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    @cached_property
    def normal(self) -> Callable[..., Tensor]:
        """`noise.normal`, compiled if the blocks are: one operation instead of hundreds, with different rounding.

        Pass the step as a tensor: with an int it would be compiled anew for each step.
        """
        return _compiled_noise(noise.normal) if self.compiled else noise.normal

    @cached_property
    def kept(self) -> Callable[..., Tensor]:
        """`noise.kept`, compiled if the blocks are. Pass the step as a tensor, as to `normal`."""
        return _compiled_noise(noise.kept) if self.compiled else noise.kept

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which matrix products and attention are computed in `dtype`, whatever precision is set around it.

        An encoder in float32 may run within an evaluation in bf16.
        """
        if self.dtype == torch.float32:
            return without_autocast(self.device)
        return torch.autocast(self.device.type, self.dtype)


def _compiled_noise(function: Function) -> Function:
    """A compiled version of a function that generates random numbers."""
    # Without this option, products of element numbers and 32-bit constants become index arithmetic, which overflows in
    # GPU kernels (pytorch/pytorch#175966).
    return compiled(function, constant_and_index_propagation=False)


_told: set[str] = set()


def _remark(config: ComputeConfig, device: torch.device, dtype: torch.dtype, widths: Collection[int]) -> str | None:
    """Why `auto` is torch's attention on a GPU in half precision; None if it is not."""
    if config.attention != "auto" or device.type != "cuda" or dtype == torch.float32:
        return None
    refusal = without_xformers(device, widths)
    return None if refusal is None else f"attention is computed by torch's kernels, since xformers {refusal}"


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Context in which products are in the dtype of their factors, whatever precision is set around it."""
    kind = device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def without_cast_cache(device: torch.device) -> AbstractContextManager[object]:
    """Context in which autocast, if it is on, casts the weights anew at each use.

    It is for a pass without gradients inside a step. In torch before 2.11, casts cached in that pass have no graph, and
    the pass with gradients would reuse them and train nothing (pytorch/pytorch#112583).
    """
    kind = device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False)


def precision_on(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision on a device; `auto` is bf16 if the hardware supports it, else fp32."""
    if precision != "auto":
        return precision
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if fast else "fp32"


def compiled(function: Function, **options: bool) -> Function:
    """Compile a function for each combination of shapes; `options` are the compiler's."""
    # To the compiler, a purpose's word is a constant. This is declared here, not in `noise`: declaring it imports the
    # compiler, which takes as long as importing torch.
    torch.compiler.assume_constant_result(noise.purpose_word)  # type: ignore[no-untyped-call]
    # Beyond its limit torch stops compiling; the default of 8 is too few for batches of 1, 2, 4 … 256 texts.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    made: Any = torch.compile(function, dynamic=False, options=dict(options) or None)
    return made  # type: ignore[no-any-return]


def fetch(tensor: Tensor) -> Callable[[], Tensor]:
    """Start copying a tensor to the host while the device keeps working; calling the result waits for the copy."""
    if not tensor.is_cuda:
        return lambda: tensor
    stream = _stream("copies", tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        there = tensor.to("cpu", non_blocking=True)  # into pinned memory, which torch uses for this
        arrived = stream.record_event()
    tensor.record_stream(stream)

    def wait() -> Tensor:
        arrived.synchronize()
        return there

    return wait


@cache
def _stream(purpose: str, device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


WARM_UPS = 3
_RECORDING = Lock()  # one graph at a time in a process


def recorded(function: Callable[[], None], device: torch.device) -> Callable[[], None] | None:
    """Record a function that changes tensors in place as a CUDA graph, replayed by one launch; None without a GPU.

    The function first runs `WARM_UPS` times, to be compiled, so set the tensors' values afterwards. It must not wait
    for the device.
    """
    if device.type != "cuda":
        for _ in range(WARM_UPS):
            function()
        return None
    stream, graph = _stream("graphs", device), torch.cuda.CUDAGraph()
    with _RECORDING, torch.cuda.device(device):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what a first call compiles or chooses must not be part of the graph
            for _ in range(WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        # Other threads may allocate meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            function()
    return graph.replay
