"""Codecs of hidden states: from float32 to the arrays written to zarr, and back, on the encoder's device.

Lossy steps happen here, before zarr. Nothing is ever clipped: outlier channels would lose the most. fp16 and fp32 are
plain numbers to any zarr reader; the other codecs put `recipe` into the array's attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldlm.compute import fetch
from ldlm.errors import InputError

Parts = Mapping[str, np.ndarray]  # array name (hidden, scale) -> values


@dataclass(frozen=True)
class Codec:
    """`encode` float32 states (R, L, D) into named arrays, and `decode` them, on whatever device they are on."""

    name: str
    dtypes: Mapping[str, str]  # array name -> zarr dtype
    bytes_per_value: float  # before compression, for a width of 768
    recipe: str
    encode: Callable[[Tensor], Mapping[str, Tensor]]
    decode: Callable[[Mapping[str, Tensor]], Tensor]

    def shapes(self, states: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        """Shape of each array for states of shape (R, L, D): a scale has no D."""
        return {name: states[: 3 if name == "hidden" else 2] for name in self.dtypes}

    def empty(self, states: tuple[int, int, int]) -> dict[str, np.ndarray]:
        """Arrays to fill for states of shape (R, L, D)."""
        return {name: np.empty(shape, self.dtypes[name]) for name, shape in self.shapes(states).items()}


def _encode_int8(h: Tensor) -> Mapping[str, Tensor]:
    """int8 with a scale per token: ±127 is the largest magnitude among the token's states."""
    # A tensor, since a GPU would multiply by the rounded inverse of a Python number.
    scale = h.abs().amax(dim=-1, keepdim=True) / torch.full((), 127.0, device=h.device)
    scale = torch.where(scale > 0, scale, 1.0)
    return {"hidden": (h / scale).round_().to(torch.int8), "scale": scale[..., 0]}


def _nothing_stored(parts: Mapping[str, Tensor]) -> Tensor:
    raise ValueError("states that are made online are not stored")


CODECS = {
    codec.name: codec
    for codec in (
        Codec(
            "fp16",
            {"hidden": "float16"},
            2,
            "hidden is float16",
            lambda h: {"hidden": h.half()},
            lambda parts: parts["hidden"].float(),
        ),
        Codec(
            "bf16",
            {"hidden": "uint16"},
            2,
            "hidden holds the bits of bfloat16: h = (hidden as uint32 << 16) viewed as float32",
            lambda h: {"hidden": h.bfloat16().view(torch.uint16)},
            lambda parts: parts["hidden"].view(torch.bfloat16).float(),
        ),
        Codec(
            "int8-token",
            {"hidden": "int8", "scale": "float32"},
            1 + 4 / 768,
            "h = hidden * scale[..., None]",
            _encode_int8,
            lambda parts: parts["hidden"].float() * parts["scale"][..., None],
        ),
        Codec(
            "fp32",
            {"hidden": "float32"},
            4,
            "hidden is float32",
            lambda h: {"hidden": h},
            lambda parts: parts["hidden"],
        ),
        Codec("online", {}, 0, "made by the encoder from the tokens", lambda h: {}, _nothing_stored),
    )
}


def encode(h: Tensor, codec: Codec) -> tuple[Callable[[], Parts], Error]:
    """Start encoding states (R, L, D) on their device: a call that waits for the arrays to store, and their error.

    The call raises `InputError` for NaN, infinity, and values beyond the codec's range.
    """
    parts = codec.encode(h)
    arriving, worst = {name: fetch(values) for name, values in parts.items()}, fetch(largest(h))

    def arrive() -> Parts:
        _check_range(worst().numpy(), codec)
        return {name: values().numpy() for name, values in arriving.items()}

    return arrive, Error.of(h, parts, codec)


def largest(h: Tensor) -> Tensor:
    """The largest magnitude, or NaN if any value is: a scalar on the same device."""
    low, high = h.aminmax()
    return torch.maximum(high, -low)


def _check_range(worst: np.ndarray, codec: Codec) -> None:
    """`InputError` when states of magnitudes up to `worst` can't be stored."""
    if not np.isfinite(worst):
        raise InputError(
            "the encoder gave hidden states that are not finite, and nothing of this shard was stored; use --precision "
            "fp32, or another --layer"
        )
    dtype = np.dtype(codec.dtypes.get("hidden", "float32"))
    with np.errstate(over="ignore"):
        fits = dtype.kind != "f" or np.isfinite(worst.astype(dtype))
    if not fits:
        raise InputError(
            f"hidden states of up to {worst:.3g} don't fit in {codec.name}; use --overwrite --codec bf16, or fp32"
        )


@dataclass(frozen=True)
class Error:
    """Error of a codec: sums of squares per channel, float64 (D,), of the states and of the error, on their device."""

    signal_D: Tensor
    error_D: Tensor

    @classmethod
    def of(cls, h: Tensor, parts: Mapping[str, Tensor], codec: Codec) -> Error:
        """The error of states (R, L, D) that are stored as `parts`."""
        return cls(_squares(h), _squares(codec.decode(parts) - h))

    def merge(self, other: Error) -> Error:
        """The error of both together."""
        return Error(self.signal_D + other.signal_D, self.error_D + other.error_D)

    @property
    def relative_rms(self) -> float:
        """Root mean square of the error over that of the states."""
        signal_D, error_D = self.signal_D.cpu().numpy(), self.error_D.cpu().numpy()
        return float(np.sqrt(error_D.sum() / max(signal_D.sum(), 1e-30)))

    @property
    def worst_channel(self) -> float:
        """Root mean square of the error over that of the states, in the channel where it is largest."""
        signal_D, error_D = self.signal_D.cpu().numpy(), self.error_D.cpu().numpy()
        return float(np.sqrt((error_D / np.maximum(signal_D, 1e-30)).max()))


def _squares(h: Tensor) -> Tensor:
    """Sum of squares per channel, float64 (D,): in float32 over the tokens of a row, and in float64 over rows."""
    if h.is_cuda:
        return h.square().sum(dim=1).sum(dim=0, dtype=torch.float64)
    # numpy adds token by token, as in all records so far; on a CPU, torch adds in another order.
    values = h.numpy()
    return torch.from_numpy(np.einsum("rld,rld->rd", values, values).sum(axis=0, dtype=np.float64))
