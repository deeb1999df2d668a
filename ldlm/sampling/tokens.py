"""Tokens of a decoder's logits: the most likely, or drawn at a temperature (SPEC 8).

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldlm import noise
from ldlm.errors import InputError


def draw_tokens(logits_BLV: Tensor, seeds_B: Tensor, temperature: float) -> Tensor:
    """Tokens (B, L): the most likely, or at a temperature above 0 drawn with one uniform number each (SPEC 8).

    `InputError` if the logits, or their quotients by the temperature, are not finite.
    """
    if not logits_BLV.amax(-1).isfinite().all():
        raise InputError(
            "these settings lead to latents whose logits are not finite; take a larger --t-min, another --grid or "
            "fewer --steps"
        )
    if temperature == 0:
        return logits_BLV.argmax(-1)
    uniform_BL = noise.uniform(seeds_B, "token", 0, torch.zeros_like(seeds_B), (logits_BLV.shape[1],))
    cdf_BLV = probabilities(logits_BLV, temperature).double().cumsum(-1)
    drawn_BL1 = torch.searchsorted(cdf_BLV / cdf_BLV[..., -1:], uniform_BL[..., None])
    return drawn_BL1.squeeze(-1).clamp(max=logits_BLV.shape[-1] - 1)


def probabilities(logits_V: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature), (…, V); `InputError` if a quotient is infinite."""
    p_V = (logits_V / temperature).softmax(-1)
    if p_V[..., 0].isnan().any():  # so are all entries then
        raise InputError(
            f"the logits divided by --temperature {temperature:g} are not finite; take a --temperature nearer to 1"
        )
    return p_V
