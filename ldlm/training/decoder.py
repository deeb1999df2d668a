"""The training of a token decoder alone (Appendix B.2), one step of it; the loop is in `stages/finetune_decoder.py`.

Latent encoder and denoiser are frozen. The decoder reads z̃_0 = z_0 + σ_dec·ε, or with what other noise the latent space
has (SPEC 13.5), and learns by cross-entropy.

Shapes in names: B batch, L tokens, N latents, D width of h, C width of a latent, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldlm.compute import Compute
from ldlm.config import TrainConfig
from ldlm.features.stream import Batch
from ldlm.model.autoencoder import TokenDecoder
from ldlm.model.cosmos import decoder_input
from ldlm.model.joint import JointModel
from ldlm.model.layers import compile_blocks
from ldlm.model.objective import DecoderInput
from ldlm.model.token_loss import TokenLosses
from ldlm.runtime import ALONE, World
from ldlm.training.ema import EMA
from ldlm.training.learner import Learner, parallel
from ldlm.training.optim import adamw, learning_rate


@dataclass(kw_only=True)
class DecoderState(Learner):
    """A decoder in training, the frozen parts that make its inputs, and the noise of those."""

    model: TokenDecoder
    frozen: JointModel
    decoder_input: DecoderInput


def start(
    config: TrainConfig, frozen: JointModel, network: dict[str, Any], *, device: torch.device, world: World = ALONE
) -> DecoderState:
    """A decoder at step 0: `network` are its sizes, as `TokenDecoder` takes them."""
    compute = Compute.of(config.compute, device)
    model = build(network, config.seed).to(device)
    if compute.compiled:
        compile_blocks(model)
    return DecoderState(
        config=config,
        model=model,
        optimizer=adamw(model.parameters(), config.optimizer),
        ema=EMA(model, config.optimizer.ema_decay),
        compute=compute,
        world=world,
        parallel=parallel(TokenObjective(model), world),
        frozen=frozen,
        decoder_input=decoder_input(config),
    )


def build(network: dict[str, Any], seed: int) -> TokenDecoder:
    """A decoder whose initial weights depend on `seed` alone, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TokenDecoder(**network)


class TokenObjective(nn.Module):
    """The loss of a decoder as one module, for a data-parallel wrapper."""

    def __init__(self, decoder: TokenDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z_BNC: Tensor, tokens_BL: Tensor) -> TokenLosses:
        return self.decoder.losses(z_BNC, tokens_BL)


class DecoderStep(NamedTuple):
    """What a step did: losses and shares of right tokens by row of this process; the rest as in `trainer.Step`."""

    number: int
    l_w_B: Tensor
    accuracy_B: Tensor
    lr: float
    gradient_norm: Tensor
    finite: Tensor


def finetune_step(state: DecoderState, batch: Batch) -> DecoderStep:
    """One optimiser step: encode, add noise, forward, backward, clip, update, average."""
    number, lr = state.step, learning_rate(state.step, state.config.steps, state.config.optimizer)
    l_w, accuracy = zip(*(_backward(state, part) for part in state.micro_batches(batch)), strict=True)
    gradient_norm, finite = state.update(lr, number)
    return DecoderStep(number, torch.cat(l_w), torch.cat(accuracy), lr, gradient_norm, finite)


def settle(state: DecoderState, step: DecoderStep) -> bool:
    """Whether the step updated anything; counts those that did not. Waits for the device."""
    finite = bool(step.finite)
    state.skipped += not finite
    return finite


def _backward(state: DecoderState, batch: Batch) -> tuple[Tensor, Tensor]:
    """Add the gradient of one micro-batch; returns loss and accuracy by row."""
    config, objective = state.config, state.parallel or TokenObjective(state.model)
    with torch.no_grad(), state.compute.autocast():
        h_BLD = state.frozen.states(batch.hidden_BLD, batch.tokens_BL)
        z_0_BNC = state.frozen.latent_encoder(h_BLD)
        rows_B = batch.index_B.to(state.device, non_blocking=True)
        noisy_BNC = state.decoder_input.draw(
            state.frozen,
            h_BLD,
            z_0_BNC,
            seed=config.seed,
            step=state.step,
            rows_B=rows_B,
            normal=state.compute.normal,
        )
    with state.compute.autocast():
        found: TokenLosses = objective(noisy_BNC, batch.tokens_BL)
    state.backward(found.mean)
    return found.loss_BL.mean(dim=1), found.right_BL.float().mean(dim=1)


def figures(state: DecoderState, step: DecoderStep) -> dict[str, float]:
    """A step as numbers, over all processes."""
    mine = torch.stack([step.l_w_B.mean(), step.accuracy_B.mean()]).double().cpu()
    l_w, accuracy = (state.world.sum(mine) / state.world.size).tolist()
    return {"l_w": l_w, "token_accuracy": accuracy, "lr": step.lr, "gradient_norm": step.gradient_norm.item()}
