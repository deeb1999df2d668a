"""Figures of a model on held-out rows: denoising loss over t, reconstruction, and the spread of the latents.

The noise and times are functions of the row, so two evaluations differ only in the weights.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldlm import noise
from ldlm.features.store import Split
from ldlm.model.autoencoder import TokenDecoder
from ldlm.model.joint import JointDecoder, JointModel
from ldlm.model.objective import DecoderInput, Draws, Objective, at_least_float32, row_loss
from ldlm.model.prefix import draw_lengths
from ldlm.model.timesteps import TimestepSampler
from ldlm.model.token_loss import TokenLosses

T_BINS = 20
COLLAPSED, EXPLODED = 0.2, 20.0  # per-coordinate standard deviation of the latents
FEWEST_ROWS = 8  # over which it is judged: that of a few rows is smaller, and that of one is 0
SEED = 20_240_229  # of the evaluation's own noise: the same for every run, so that runs are comparable


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Figures of all parts on held-out rows. Losses are means over elements; None marks what the model lacks.

    Decoder noise is that of training, except in `token_accuracy_clean`.
    """

    split: str  # the split of the rows; training rows if the store has no held-out ones
    rows: int
    l_diff: float  # squared error per latent coordinate, self-conditioned as in sampling; t even over (0, 1], k = 0
    l_diff_prefix: float | None  # the same, conditioned on the first k states, with k spread evenly; None without
    l_diff_mean: float  # squared error of predicting the mean latent instead
    l_diff_by_t: list[float | None]  # l_diff in 20 equal bins of t; None in a bin without rows
    l_diff_by_u: list[float | None] | None  # l_diff in 20 equal bins of F(t) (Figure 6)
    l_h: float | None  # squared error per coordinate of h; None if the latents are h itself
    l_w: float | None  # cross-entropy per token in nats; None, like the accuracies, while D_w is deferred
    token_accuracy: float | None  # share of tokens, from 0 to 1
    token_accuracy_clean: float | None  # without decoder noise
    latent_std: float  # standard deviation of a latent coordinate over rows, averaged over coordinates
    latent_norm: float  # mean norm of a latent vector
    timestep_p: list[float] | None  # probabilities of the bins that t is drawn from in training

    def to_json(self) -> dict[str, Any]:
        """Figures by name, without those that the model does not have."""
        return {name: figure for name, figure in vars(self).items() if figure is not None}


@dataclass(frozen=True, kw_only=True)
class DecoderHeldOut:
    """Figures of a decoder of latents on held-out rows, with its training noise and without any (`_clean`)."""

    split: str
    rows: int
    l_w: float  # cross-entropy per token, in nats
    token_accuracy: float  # share of tokens, from 0 to 1
    l_w_clean: float
    token_accuracy_clean: float

    def to_json(self) -> dict[str, Any]:
        """Figures by name."""
        return dict(vars(self))


@torch.no_grad()
def evaluate(
    objective: Objective,
    split: Split,
    *,
    rows: int,
    batch_size: int,
    device: torch.device,
    timesteps: TimestepSampler | None = None,
) -> HeldOut:
    """Figures over the first `rows` rows of the split; those over F(t) only if `timesteps` is given."""
    model, means = objective.model, _Means()
    latents = torch.zeros(2, *model.latent_shape, dtype=torch.float64)  # sums of z_0 and of its square
    t_all, l_diff_all, norms = [], [], 0.0
    for row_B, h_BLD, z_0_BNC, tokens_BL in encoded(model, split, rows, batch_size, device):
        # Denoising
        draws = _draws(row_B, z_0_BNC, objective.config.diffusion.self_conditioned)
        t_all.append(draws.t_B.cpu())
        l_diff_all.append((objective.denoising_loss(z_0_BNC, draws) / objective.scales.diff).cpu())
        if model.denoiser.prefix is not None:
            seeing = replace(draws, k_B=_lengths(row_B, model.shapes.seq_len))
            l_diff_B = objective.denoising_loss(z_0_BNC, seeing, h_BLD) / objective.scales.diff
            means.add(len(row_B), l_diff_prefix=l_diff_B.mean())

        # Reconstruction
        noisy_BNC = objective.decoder_input.draw(model, h_BLD, z_0_BNC, seed=SEED, step=0, rows_B=row_B)
        h_hat_BLD = model.latent_decoder(noisy_BNC)
        if model.encodes:
            means.add(len(row_B), l_h=row_loss(h_hat_BLD, h_BLD).mean())
        if model.token_decoder is not None:
            noisy = model.token_decoder.losses(h_hat_BLD, tokens_BL)
            clean = model.token_decoder.losses(model.latent_decoder(z_0_BNC), tokens_BL)
            means.add(
                len(row_B), l_w=noisy.mean, token_accuracy=_accuracy(noisy), token_accuracy_clean=_accuracy(clean)
            )

        # Latents
        latents += torch.stack([z_0_BNC.double().sum(dim=0), z_0_BNC.double().square().sum(dim=0)]).cpu()
        norms += z_0_BNC.norm(dim=-1).mean(dim=1).sum().item()

    t_B, l_diff_B = torch.cat(t_all), torch.cat(l_diff_all)
    mean_NC, square_NC = latents / len(t_B)
    variance_NC = (square_NC - mean_NC.square()).clamp(min=0)
    return HeldOut(
        split=split.name,
        rows=len(t_B),
        l_diff=l_diff_B.mean().item(),
        l_diff_prefix=means.of("l_diff_prefix"),
        l_diff_mean=variance_NC.mean().item(),
        l_diff_by_t=by_bin(t_B, l_diff_B),
        l_diff_by_u=None if timesteps is None else by_bin(timesteps.cdf(t_B), l_diff_B),
        l_h=means.of("l_h"),
        l_w=means.of("l_w"),
        token_accuracy=means.of("token_accuracy"),
        token_accuracy_clean=means.of("token_accuracy_clean"),
        latent_std=variance_NC.sqrt().mean().item(),
        latent_norm=norms / len(t_B),
        timestep_p=None if timesteps is None else timesteps.state_dict()["p"],
    )


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
) -> DecoderHeldOut:
    """Figures of a decoder of latents over the first `rows` rows of the split, encoded by `model`.

    Rows and noise are those of `evaluate`, so decoders are comparable with each other and the jointly trained one.
    """
    means, done = _Means(), 0
    for row_B, h_BLD, z_0_BNC, tokens_BL in encoded(model, split, rows, batch_size, device):
        noisy_BNC = noisy.draw(model, h_BLD, z_0_BNC, seed=SEED, step=0, rows_B=row_B)
        under_noise, clean = decoder.losses(noisy_BNC, tokens_BL), decoder.losses(z_0_BNC, tokens_BL)
        means.add(len(row_B), l_w=under_noise.mean, token_accuracy=_accuracy(under_noise))
        means.add(len(row_B), l_w_clean=clean.mean, token_accuracy_clean=_accuracy(clean))
        done += len(row_B)
    figures = {name: means.of(name) for name in ("l_w", "token_accuracy", "l_w_clean", "token_accuracy_clean")}
    return DecoderHeldOut(split=split.name, rows=done, **figures)


class _Means:
    """Means of figures over rows, by name."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._rows: dict[str, int] = {}

    def add(self, rows: int, **figures: Tensor) -> None:
        """Add the mean figures of `rows` rows."""
        for name, figure in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + rows * figure.item()
            self._rows[name] = self._rows.get(name, 0) + rows

    def of(self, name: str) -> Any:
        """The mean of a figure over all rows; None if none was added."""
        return self._sums[name] / self._rows[name] if name in self._sums else None


def encoded(
    model: JointModel, split: Split, rows: int, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Batches of the first `rows` rows of a split: number of each row, h in float32, z_0 and tokens, on the device."""
    end = min(rows, split.rows)
    for start in range(0, end, batch_size):
        parts, tokens = split.read(start, min(start + batch_size, end))
        tokens_BL = torch.from_numpy(tokens).to(device, torch.int64)
        h_BLD = model.states(split.states(parts, tokens_BL), tokens_BL)
        z_0_BNC = at_least_float32(model.latent_encoder(h_BLD))
        yield torch.arange(start, start + len(tokens_BL), device=device), h_BLD, z_0_BNC, tokens_BL
    split.check_unreplaced()  # once for all of them, since a run evaluates often


def _draws(row_B: Tensor, z_0_BNC: Tensor, self_conditioned: bool) -> Draws:
    """Times evenly spread over (0, 1], scattered over the rows by a golden-ratio walk."""
    t_B = ((row_B.double() + 0.5) * 0.6180339887498949) % 1.0
    return Draws(
        t_B=t_B.clamp(min=1e-5),
        weight_B=torch.ones_like(t_B),
        eps_BNC=noise.normal(SEED, "eps", 0, row_B, (z_0_BNC.shape[1], z_0_BNC.shape[2])),
        eps_dec_BNC=torch.empty_like(z_0_BNC),  # unused: `DecoderInput.draw` draws its own
        self_condition=self_conditioned,
    )


def _lengths(row_B: Tensor, seq_len: int) -> Tensor:
    """Lengths k ≥ 1 of the visible prefixes, one per row and the same at every evaluation."""
    k_B = draw_lengths(seed=SEED, step=0, rows_B=row_B.cpu(), seq_len=seq_len, unconditional=0.0)
    return k_B.to(row_B.device)


def _accuracy(found: TokenLosses) -> Tensor:
    return found.right_BL.float().mean()


def by_bin(t_B: Tensor, loss_B: Tensor) -> list[float | None]:
    """Mean losses in 20 equal bins of t; None in a bin without rows."""
    index = (t_B * T_BINS).long().clamp(max=T_BINS - 1)
    return [loss_B[index == i].mean().item() if (index == i).any() else None for i in range(T_BINS)]


def latent_warning(evaluations: Sequence[Mapping[str, Any]], warmup_steps: int, space: str = "ldlm") -> str | None:
    """A warning if the newest evaluation finds the latents collapsed or exploded; None if they are neither.

    The diffusion's noise has standard deviation 1: latents far smaller drown in it at nearly every t (Section 5.2). At
    first they may be small, until the warm-up of `warmup_steps` is over or they have once been larger. The spread over
    fewer than 8 rows says nothing.
    """
    if evaluations[-1]["latent_std"] is None:
        return "the latents are not finite; lower the learning rate (optimizer.lr)"
    if evaluations[-1].get("rows", FEWEST_ROWS) < FEWEST_ROWS:
        return None
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
            f"the latents have grown to a standard deviation of {stds[-1]:.1f}, beyond the diffusion loss's control; "
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
