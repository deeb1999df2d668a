"""What a model does on held-out rows: denoising loss over t, reconstruction, and the state of the latents.

The noise and times are functions of the row, so two evaluations differ in the weights only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldlm import noise
from ldlm.features.store import Split
from ldlm.model.autoencoder import TokenDecoder
from ldlm.model.joint import JointDecoder, JointModel
from ldlm.model.objective import DecoderInput, Draws, Objective, at_least_float32, row_loss
from ldlm.model.timesteps import TimestepSampler
from ldlm.model.token_loss import TokenLosses

T_BINS = 20
COLLAPSED, EXPLODED = 0.2, 20.0  # per-coordinate standard deviation of the latents
_SEED = 20_240_229  # of the evaluation's own noise: the same for every run, so that runs compare


def batches(split: Split, rows: int, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor | None, Tensor]]:
    """The first `rows` rows as (hidden float32 or None, tokens int64) batches on the device."""
    for start in range(0, min(rows, split.rows), batch_size):
        parts, tokens = split.read(start, min(start + batch_size, rows, split.rows))
        tokens_BL = torch.from_numpy(tokens).to(device, torch.int64)
        yield split.states(parts, tokens_BL), tokens_BL


@torch.no_grad()
def evaluate(
    objective: Objective,
    split: Split,
    *,
    rows: int,
    batch_size: int,
    device: torch.device,
    timesteps: TimestepSampler | None = None,
) -> dict[str, Any]:
    """Held-out figures over the first `rows` rows (keys below); all losses are means over elements.

    `split` is where the rows come from: a store without held-out rows gives training rows.
    `l_diff` with t spread evenly over (0, 1] and self-conditioning, `l_diff_mean`: the loss of predicting the mean
    latent instead, `l_diff_by_t`: l_diff in 20 equal bins of t, `l_diff_by_u`: in 20 equal bins of F(t) where
    `timesteps` has an F (Figure 6), `l_h` (where the latents are not h itself), `l_w`, `token_accuracy`: reconstruction
    under the decoder noise of training, `token_accuracy_clean`: without noise, `latent_std`: standard deviation of a
    latent coordinate over rows, averaged over coordinates, `latent_norm`: mean norm of a latent vector.
    """
    model = objective.model
    rows = min(rows, split.rows)
    sums: dict[str, float] = {}
    l_diff_all, t_all, norms = [], [], 0.0
    latents = torch.zeros(2, model.num_latents, model.latent_dim, dtype=torch.float64)  # sums of z_0 and of its square
    done = 0
    for hidden_BLD, tokens_BL in batches(split, rows, batch_size, device):
        count = len(tokens_BL)
        row_B = torch.arange(done, done + count, device=device)
        h_BLD = model.states(hidden_BLD, tokens_BL)
        z_0_BNC = at_least_float32(model.latent_encoder(h_BLD))
        draws = _draws(row_B, rows, z_0_BNC)

        l_diff_all.append((objective.denoising_loss(z_0_BNC, draws) / objective.scales.diff).cpu())
        t_all.append(draws.t_B.cpu())
        noisy_BLD = model.latent_decoder(
            objective.decoder_input.draw(model, h_BLD, z_0_BNC, seed=_SEED, step=0, rows_B=row_B)
        )
        figures = {"l_h": row_loss(noisy_BLD, h_BLD).mean().item()} if model.encodes else {}
        if model.token_decoder is not None:
            noisy = model.token_decoder.losses(noisy_BLD, tokens_BL)
            clean = model.token_decoder.losses(model.latent_decoder(z_0_BNC), tokens_BL)
            figures |= {"l_w": noisy.mean.item(), "token_accuracy": _accuracy(noisy)}
            figures["token_accuracy_clean"] = _accuracy(clean)
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + count * value
        latents += torch.stack([z_0_BNC.double().sum(dim=0), z_0_BNC.double().square().sum(dim=0)]).cpu()
        norms += z_0_BNC.norm(dim=-1).mean(dim=1).sum().item()
        done += count

    l_diff = torch.cat(l_diff_all)
    mean_NC, square_NC = latents / done
    variance_NC = (square_NC - mean_NC.square()).clamp(min=0)
    return {
        "split": split.name,
        "rows": done,
        "l_diff": l_diff.mean().item(),
        "l_diff_mean": variance_NC.mean().item(),
        "l_diff_by_t": _by_bin(torch.cat(t_all), l_diff),
        **({} if timesteps is None else {"l_diff_by_u": _by_bin(timesteps.cdf(torch.cat(t_all)), l_diff)}),
        **{name: total / done for name, total in sums.items()},
        "latent_std": variance_NC.sqrt().mean().item(),
        "latent_norm": norms / done,
    }


@torch.no_grad()
def evaluate_decoder(
    decoder: TokenDecoder | JointDecoder,
    model: JointModel,
    split: Split,
    *,
    noisy: DecoderInput,
    rows: int,
    batch_size: int,
    device: torch.device,
) -> dict[str, Any]:
    """What a decoder of latents makes of the first `rows` rows of the split, encoded by `model`.

    `l_w` and `token_accuracy` under the noise of training, `l_w_clean` and `token_accuracy_clean` without. Rows and
    noise are those of `evaluate`, so that decoders compare with each other and with the jointly trained one.
    """
    rows, sums = (
        min(rows, split.rows),
        dict.fromkeys(("l_w", "token_accuracy", "l_w_clean", "token_accuracy_clean"), 0.0),
    )
    done = 0
    for hidden_BLD, tokens_BL in batches(split, rows, batch_size, device):
        count = len(tokens_BL)
        h_BLD = model.states(hidden_BLD, tokens_BL)
        z_0_BNC = at_least_float32(model.latent_encoder(h_BLD))
        row_B = torch.arange(done, done + count, device=device)
        noisy_BNC = noisy.draw(model, h_BLD, z_0_BNC, seed=_SEED, step=0, rows_B=row_B)
        for suffix, z_BNC in (("", noisy_BNC), ("_clean", z_0_BNC)):
            found = decoder.losses(z_BNC, tokens_BL)
            sums["l_w" + suffix] += count * found.mean.item()
            sums["token_accuracy" + suffix] += count * _accuracy(found)
        done += count
    return {"split": split.name, "rows": done, **{name: total / done for name, total in sums.items()}}


def _draws(row_B: Tensor, rows: int, z_0_BNC: Tensor) -> Draws:
    """Times evenly spread over (0, 1], scattered over the rows by a golden-ratio walk."""
    t_B = ((row_B.double() + 0.5) * 0.6180339887498949) % 1.0
    return Draws(
        t_B=t_B.clamp(min=1e-5),
        weight_B=torch.ones_like(t_B),
        eps_BNC=noise.normal(_SEED, "eps", 0, row_B, (z_0_BNC.shape[1], z_0_BNC.shape[2])),
        eps_dec_BNC=torch.empty_like(z_0_BNC),  # of `DecoderInput.draw`
        self_condition=True,
    )


def _accuracy(found: TokenLosses) -> float:
    return found.right_BL.float().mean().item()


def _by_bin(t_B: Tensor, loss_B: Tensor) -> list[float | None]:
    index = (t_B * T_BINS).long().clamp(max=T_BINS - 1)
    return [loss_B[index == i].mean().item() if (index == i).any() else None for i in range(T_BINS)]


def latent_warning(evaluations: Sequence[Mapping[str, Any]], warmup_steps: int, space: str = "ldlm") -> str | None:
    """What is to be said when the newest evaluation finds the latents collapsed or exploded; None when they are well.

    The noise of the diffusion has standard deviation 1: latents far below it drown at nearly every t (Section 5.2). At
    first they may be small, until the warm-up of `warmup_steps` is over or they have been larger.
    """
    if evaluations[-1]["latent_std"] is None:
        return "the latents are not finite; lower the learning rate (optimizer.lr)"
    warmup = "" if space == "cosmos" else "{} the warm-up (recipe.warmup_steps) or "
    others = "recipe.sigma_dec, with recipe.decoder_noise=additive"
    noise_setting = {"ldlm": "recipe.sigma_dec", "cosmos": "cosmos.noise"}.get(space, others)
    stds = [std for evaluation in evaluations if (std := evaluation["latent_std"]) is not None]
    if stds[-1] < COLLAPSED and (evaluations[-1]["step"] >= warmup_steps or max(stds) >= COLLAPSED):
        return (
            f"the latents have collapsed to a standard deviation of {stds[-1]:.3f} (the most was {max(stds):.3f}); "
            f"{warmup.format('lengthen')}raise {noise_setting}"
        )
    if stds[-1] > EXPLODED:
        return (
            f"the latents have grown to a standard deviation of {stds[-1]:.1f}, which the diffusion loss can't hold; "
            f"{warmup.format('shorten')}lower {noise_setting}"
        )
    return None


@torch.no_grad()
def encode_rows(model: JointModel, split: Split, rows: np.ndarray, device: torch.device) -> tuple[Tensor, np.ndarray]:
    """z_0 (B, N, C) of rows of a split, and their tokens (B, L)."""
    parts, tokens = split.read_rows(rows)
    tokens_BL = torch.from_numpy(tokens).to(device, torch.int64)
    h_BLD = model.states(split.states(parts, tokens_BL), tokens_BL)
    return model.latent_encoder(h_BLD), tokens
