"""The course of one text from noise: decoded estimates of z_0 while t falls (Section 4.3).

A frame is one such estimate, decoded as the final text will be; the last frame is the text itself. Confidence is the
decoder's probability of the token shown: the softmax of its logits, without the temperature. At a temperature above 0
each position draws with the same random number in every frame, so frames differ only by their latents, and here too
the last frame is the text of `ldlm sample`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldlm.config import SamplerConfig
from ldlm.sampling import solvers
from ldlm.sampling.frames import Frame, cells
from ldlm.sampling.generation import TextGenerator


@torch.no_grad()
def record(
    generator: TextGenerator, tokenizer: Any, sampler: SamplerConfig, seed: int, frames: int, times: Sequence[float]
) -> list[Frame]:
    """Frames of the text with seed `seed` as t falls: at the times that `evaluations` chooses, and at the end."""
    grid = solvers.grid_of(sampler, generator.schedule, generator.timesteps)
    chosen = evaluations(grid, frames, times)
    seeds_B = torch.tensor([seed], device=generator.device)
    seen: dict[float, Frame] = {}

    def watch(t: Tensor, z_hat_BNC: Tensor) -> None:
        if t.item() in chosen:  # heun evaluates a time twice, and its second estimate is kept
            seen[t.item()] = look(t, z_hat_BNC)

    def look(t: Tensor, z_BNC: Tensor) -> Frame:
        logits_BLV = generator.decoder.logits(z_BNC)
        tokens_BL = generator.draw_tokens(logits_BLV, seeds_B, sampler.temperature)
        p_BL = logits_BLV.double().softmax(-1).gather(-1, tokens_BL[..., None])[..., 0]
        alpha, sigma = generator.schedule.alpha_sigma(t)
        tokens = tokens_BL[0].tolist()
        found = cells(tokenizer, tokens)
        text = "".join(cell.text for cell in found)
        return Frame(t.item(), (alpha / sigma).item() ** 2, tokens, p_BL[0].tolist(), text, found)

    generator.watched_ends(sampler, seeds_B, watch)
    end = look(grid[-1], generator.latents(sampler, seeds_B))  # that of `ldlm sample`, compiled or not
    return [*seen.values(), end]


def evaluations(grid: Tensor, frames: int, times: Sequence[float]) -> set[float]:
    """Times of a grid (N+1,) to record besides its end: those nearest to `times`, or `frames` − 1 evenly spread.

    The denoiser is evaluated at all times of the grid but the last, at which the text is complete.
    """
    last = len(grid) - 1
    if times:
        numbers = [int((grid[:-1] - t).abs().argmin()) for t in times]
    else:
        numbers = torch.linspace(0, last, min(frames, last + 1)).round().int().tolist()[:-1]
    return {grid[number].item() for number in numbers}
