"""Random numbers as a pure function of their address: (seed, purpose, step, row, element).

Training noise is keyed by (seed, step, row of the global batch) and sampling noise by (seed of the text, step), so that
neither depends on the batch size, the number of processes or the device, and a resumed run has no generator state to
restore. The generator is Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), written
in tensor operations so that it runs, and compiles, wherever the model does.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random 32-bit words for each 128-bit counter under a 64-bit key; all are int64 tensors below 2^32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product of two 32-bit words wraps into the sign bit; the mask after the arithmetic shift undoes that.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((product1 >> 32) & _LOW) ^ c1 ^ k0, ((product0 >> 32) & _LOW) ^ c3 ^ k1
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def purpose_word(purpose: str) -> int:
    """The 32-bit word of the address that says what a number is for."""
    return zlib.crc32(purpose.encode())


def _words(seeds: Tensor, purpose: str, step: int | Tensor, rows: Tensor, count: int) -> tuple[Tensor, ...]:
    """Four int64 tensors (R, count): random words at the addresses (seed, purpose, step, row, 0 … count−1)."""
    element = torch.arange(count, device=rows.device)[None, :]
    step_word = step & _LOW if isinstance(step, Tensor) else torch.full_like(element, step & _LOW)
    counter = (element, rows[:, None] & _LOW, step_word, torch.full_like(element, purpose_word(purpose)))
    shape = (rows.shape[0], count)
    key = (seeds[:, None] & _LOW, (seeds[:, None] >> 32) & _LOW)
    return philox(tuple(word.expand(shape) for word in counter), key)  # type: ignore[arg-type]


def _per_row(seed: int | Tensor, rows: Tensor) -> Tensor:
    return seed if isinstance(seed, Tensor) else torch.full_like(rows, seed)


def uniform(seed: int | Tensor, purpose: str, step: int, rows: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform float64 in (0, 1) of shape (R, *shape). `rows` (R,) int64; `seed` an int, or one per row."""
    size = math.prod(shape)
    words = _words(_per_row(seed, rows), purpose, step, rows, -(-size // 4))
    return ((torch.cat(words, dim=1)[:, :size].double() + 0.5) / 2.0**32).reshape(rows.shape[0], *shape)


def uniform_fine(seed: int | Tensor, purpose: str, step: int, rows: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform float64 in (0, 1) of shape (R, *shape), like `uniform` but in steps of 2^−52 instead of 2^−32.

    With it, an outcome of probability 1e-9 is drawn as often as it should be.
    """
    size = math.prod(shape)
    high, low, higher, lower = _words(_per_row(seed, rows), purpose, step, rows, -(-size // 2))
    halves = [(a << 20 | b >> 12).double() + 0.5 for a, b in ((high, low), (higher, lower))]
    return (torch.cat(halves, dim=1)[:, :size] / 2.0**52).reshape(rows.shape[0], *shape)


def normal(seed: int | Tensor, purpose: str, step: int | Tensor, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 of shape (R, *shape), by Box–Muller: two numbers from each pair of words.

    `step` may be a tensor of one element, which is an input of a compiled graph; an int would be a constant.
    """
    size = math.prod(shape)
    words = _words(_per_row(seed, rows), purpose, step, rows, -(-size // 4))
    # 24 bits fill a float32's mantissa; + 0.5 keeps the logarithm finite.
    unit = [((word >> 8).float() + 0.5) * 2.0**-24 for word in words]
    halves = []
    for u, v in ((unit[0], unit[1]), (unit[2], unit[3])):
        radius, angle = (-2.0 * u.log()).sqrt_(), v.mul_(2.0 * math.pi)
        halves += [radius * angle.cos(), radius * angle.sin()]
    return torch.cat(halves, dim=1)[:, :size].reshape(rows.shape[0], *shape)


def kept(
    seed: int | Tensor, purpose: str, step: int | Tensor, rows: Tensor, shape: tuple[int, ...], share: float
) -> Tensor:
    """Booleans (R, *shape), each True with probability `share` to 16 bits: dropout masks, eight per counter.

    `step` may be a tensor of one element, as in `normal`.
    """
    size = math.prod(shape)
    words = _words(_per_row(seed, rows), purpose, step, rows, -(-size // 8))
    halves = torch.cat([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=1)[:, :size]
    return (halves < round(share * 2**16)).reshape(rows.shape[0], *shape)


def coin(seed: int, purpose: str, step: int, probability: float) -> bool:
    """True with the given probability, as a function of (seed, purpose, step) alone: every process agrees (SPEC 4)."""
    row = torch.zeros(1, dtype=torch.int64)
    return bool(uniform(seed, purpose, step, row).item() < probability)
