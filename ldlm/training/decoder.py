"""Training of a token decoder alone (Appendix B.2): its state, and one step of it. The loop is in `loop.py`.

Latent encoder and denoiser are frozen. The decoder reads z̃_0 = z_0 + σ_dec·ε, or z_0 under the latent space's own
noise if that differs (SPEC 13.5), and learns by cross-entropy.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldlm.compute import Compute
from ldlm.config import TrainConfig
from ldlm.features.batch import Batch
from ldlm.model.autoencoder import TokenDecoder
from ldlm.model.cosmos import decoder_input
from ldlm.model.joint import JointModel
from ldlm.model.layers import compile_blocks, head_widths, recompute_activations
from ldlm.model.objective import DecoderInput, at_least_float32
from ldlm.model.token_loss import TokenLosses
from ldlm.runtime import ALONE, World
from ldlm.training.ema import EMA
from ldlm.training.learner import Learner, Step, parallel
from ldlm.training.optim import learning_rate, optimizer


@dataclass(frozen=True, kw_only=True)
class DecoderStep(Step):
    """A launched step of a decoder, with the losses of this process by row."""

    l_w_B: Tensor
    accuracy_B: Tensor


@dataclass(kw_only=True)
class DecoderState(Learner[DecoderStep]):
    """A decoder in training, the frozen parts that compute its inputs, and the noise on those inputs."""

    shown: ClassVar[tuple[str, ...]] = ("l_w", "token_accuracy")

    model: TokenDecoder
    objective: DecoderObjective
    frozen: JointModel
    decoder_input: DecoderInput

    def figures(self, step: DecoderStep) -> dict[str, float]:
        """Figures of a step over all processes."""
        mine = torch.stack([step.l_w_B.mean(), step.accuracy_B.mean()]).double().cpu()
        l_w, accuracy = (self.world.sum(mine) / self.world.size).tolist()
        return {"l_w": l_w, "token_accuracy": accuracy, "lr": step.lr, "gradient_norm": step.gradient_norm.item()}

    def losses_of(self, step: DecoderStep) -> tuple[dict[str, Tensor], Tensor]:
        """Token cross-entropy by row of the micro-batch."""
        return {"l_w": step.l_w_B}, step.l_w_B

    @property
    def remedy(self) -> str:
        """Advice to a user whose losses are not finite."""
        return f"under another --name, lower --lr (it is {self.config.optimizer.lr})"


def start_decoder(
    config: TrainConfig, frozen: JointModel, network: dict[str, Any], *, device: torch.device, world: World = ALONE
) -> DecoderState:
    """A decoder at step 0. `network` holds its sizes, as `TokenDecoder` takes them."""
    model = build_decoder(network, config.seed).to(device)
    compute = Compute.of(config.compute, device, head_widths(model) | head_widths(frozen))
    if compute.compiled:
        compile_blocks(model)
    if config.recompute:
        recompute_activations(model)
    objective = DecoderObjective(model)
    return DecoderState(
        config=config,
        model=model,
        optimizer=optimizer(model, config.optimizer),
        ema=EMA(model, config.optimizer.ema_decay),
        compute=compute,
        world=world,
        parallel=parallel(objective, world),
        objective=objective,
        frozen=frozen,
        decoder_input=decoder_input(config),
    )


def build_decoder(network: dict[str, Any], seed: int) -> TokenDecoder:
    """A decoder whose initial weights depend on `seed` alone, not on earlier random draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TokenDecoder(**network)


class DecoderObjective(nn.Module):
    """Cross-entropy of a decoder as one module, for a data-parallel wrapper."""

    def __init__(self, decoder: TokenDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z_BNC: Tensor, tokens_BL: Tensor) -> TokenLosses:
        return self.decoder.losses(z_BNC, tokens_BL)


def finetune_step(state: DecoderState, batch: Batch) -> DecoderStep:
    """Launch one optimiser step: encode, add noise, forward, backward, clip, update, average."""
    lr = learning_rate(state.step, state.config.steps, state.config.optimizer)
    l_w, accuracy = zip(*(_backward(state, part) for part in state.micro_batches(batch)), strict=True)
    taken = state.update(batch, lr, state.step)
    return DecoderStep(**vars(taken), l_w_B=torch.cat(l_w), accuracy_B=torch.cat(accuracy))


def _backward(state: DecoderState, batch: Batch) -> tuple[Tensor, Tensor]:
    """Add the gradient of one micro-batch; returns loss and accuracy by row."""
    config = state.config
    with torch.no_grad(), state.compute.autocast():
        h_BLD = state.frozen.states(batch.hidden_BLD, batch.tokens_BL)
        z_0_BNC = at_least_float32(state.frozen.latent_encoder(h_BLD))
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
        found: TokenLosses = (state.parallel or state.objective)(noisy_BNC, batch.tokens_BL)
    state.backward(found.mean)
    return found.loss_BL.mean(dim=1), found.right_BL.float().mean(dim=1)
