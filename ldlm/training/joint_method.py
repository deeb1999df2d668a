"""LDLM as a training method: its checks and remarks, held-out figures, and costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file
from torch import nn

from ldlm import config as configs
from ldlm import files
from ldlm.config import Shapes, TrainConfig
from ldlm.errors import InputError
from ldlm.features.batch import Batch
from ldlm.features.encoder import FrozenEncoder, check_causal, check_encoder_causal, online_encoder
from ldlm.features.store import FeatureStore, Split
from ldlm.location import Location
from ldlm.model.joint import JointModel, build_meta
from ldlm.model.objective import elbo_start
from ldlm.model.prefix import longest_prefix
from ldlm.runtime import World
from ldlm.training import cost, heldout, joint
from ldlm.training.footprint import Footprint, footprint
from ldlm.training.joint import JointStep, TrainState
from ldlm.training.method import TrainingMethod
from ldlm.training.phases import phases

NEEDED_KIND = {"tencdm": "hidden", "embedding": "embedding", "scratch": "scratch"}  # by latent space


class JointTraining(TrainingMethod[TrainConfig, TrainState]):
    """Joint training of encoder, denoiser and decoders (Sections 4 and 5), in any latent space."""

    def taken_up(self, stored: Mapping[str, Any]) -> tuple[JointTraining, str | None]:
        """The method with which a run continues: a run of an earlier version keeps the meaning of its settings."""
        old = configs.taken_up(self.config, configs.from_stored(TrainConfig, stored))
        if old == self.config:
            return self, None
        edition, positions = old.recipe.edition, old.model.denoiser.positions
        kept = (
            f"its settings keep their meaning (recipe.edition={edition}), and its denoiser its positions ({positions})"
        )
        return JointTraining(old), kept

    def check(self, store: FeatureStore) -> None:
        """`InputError` for settings that contradict each other or the store."""
        self.check_kind(store.encoder["kind"], store.shapes.seq_len, store.path)
        if self.config.model.condition == "prefix":
            check_causal(store)

    def check_kind(self, kind: str, seq_len: int, place: Location) -> None:
        """`InputError` for settings that contradict each other, or the kind of features that `place` has or gets."""
        config, space = self.config, self.config.model.space
        reconstruction, needed = config.recipe.reconstruction, NEEDED_KIND.get(space, kind)
        if kind != needed:
            raise InputError(
                f"model.space={space} needs features of kind {needed}, and {place} holds {kind}; make them with "
                f"`ldlm extract-features --kind {needed}`"
            )
        if config.recipe.edition == 1 and configs.autoencoder_steps(config) >= config.steps:
            raise InputError(
                f"cosmos.steps={config.cosmos.steps:,} of the autoencoder leave none of {config.steps:,} steps for the "
                f"denoiser; lower it"
            )
        self._check_elbo()
        if config.diffusion.self_conditioning_noise > 0 and not config.diffusion.self_conditioned:
            raise InputError(
                f"diffusion.self_conditioning_noise={config.diffusion.self_conditioning_noise:g} changes nothing with "
                f"diffusion.self_conditioning=0; leave one of the two out"
            )
        if kind == "scratch" and reconstruction != "ce":
            raise InputError(
                f"{place} holds tokens only, whose embeddings learn by cross-entropy alone; add "
                f"--set recipe.reconstruction=ce (it is {reconstruction})"
            )
        if "ce" in reconstruction and config.model.token_decoder.mode == "deferred":
            raise InputError(
                f"recipe.reconstruction={reconstruction} trains the token decoder, and "
                f"model.token_decoder.mode=deferred leaves it out; choose mse or joint"
            )
        if config.model.condition == "prefix":
            longest_prefix(seq_len)
            if kind == "scratch":
                raise InputError(
                    f"model.condition=prefix needs the states of a frozen encoder, and {place} holds tokens only; "
                    f"extract features of kind hidden, or leave model.condition at none"
                )

    def check_encoder(self, encoder: FrozenEncoder, seq_len: int) -> None:
        """`InputError` for a condition on prefixes whose states would reveal what comes after."""
        if self.config.model.condition == "prefix":
            check_encoder_causal(encoder, seq_len)

    def _check_elbo(self) -> None:
        """`InputError` for settings that leave the integral of the ELBO without a convention or a lower end."""
        diffusion, recipe, space = self.config.diffusion, self.config.recipe, self.config.model.space
        if diffusion.weighting != "elbo":
            return
        if recipe.edition > 2 and recipe.loss_reduction == "sum":
            raise InputError(
                "recipe.loss_reduction=sum is for diffusion.weighting=simple; under elbo the terms are in nats per "
                "token, so leave it at mean"
            )
        decoder = configs.decoder_noise(space, recipe)
        if elbo_start(diffusion, decoder) == 0:
            raise InputError(
                f"the decoders' noise ({decoder}) names no t at which the integral of weighting=elbo could begin, and "
                f"at 0 it diverges; set one, like --set diffusion.elbo_t_min=0.05"
            )

    def remarks(self, store: FeatureStore) -> Iterator[str]:
        """Notes on what the latent space entails."""
        recipe, space = self.config.recipe, self.config.model.space
        if space != "ldlm" and recipe.edition > 1 and recipe.decoder_noise == "published":
            yield (
                f"the decoders' noise is that of {space} ({configs.decoder_noise(space, recipe)}); recipe.sigma_dec "
                f"needs recipe.decoder_noise=additive"
            )
        if space == "cosmos":
            first = configs.autoencoder_steps(self.config)
            yield f"the autoencoder trains {first:,} steps (cosmos.steps), and then the denoiser"
            if recipe.reconstruction == "mse":
                yield "recipe.reconstruction=mse: COSMOS trains its autoencoder with ce+mse"

    def rows(self, store: FeatureStore) -> tuple[Split, Split]:
        """Training and held-out rows, with their states."""
        encode = online_encoder(store)
        return store.split("train", encode), store.held_out(encode)

    def record(self, store: FeatureStore, out: Path) -> None:
        """Write the statistics of the states to the run, since later stages do not open the store."""
        mean, std = store.statistics()
        with files.replacing(out / "statistics.safetensors") as temporary:
            save_file({"mean": mean, "std": std}, temporary)

    def start(self, store: FeatureStore, *, device: torch.device, world: World) -> TrainState:
        """A run at step 0."""
        scratch = store.encoder["kind"] == "scratch"
        return joint.start(self.config, store.shapes, scratch=scratch, device=device, world=world)

    def step(self, learner: TrainState, batch: Batch) -> JointStep:
        """Launch one optimiser step."""
        return joint.train_step(learner, batch)

    def evaluate(self, learner: TrainState, held_out: Split) -> dict[str, Any]:
        """Figures of the weights in the model on held-out rows, as JSON."""
        with learner.compute.autocast():
            return heldout.evaluate(
                learner.objective,
                held_out,
                rows=learner.config.eval_rows,
                batch_size=min(learner.rows_at_once, learner.config.eval_rows),
                device=learner.device,
                timesteps=learner.timesteps,
            ).to_json()

    def warning(self, evaluations: Sequence[Mapping[str, Any]]) -> str | None:
        """A warning about collapsed or exploded latents."""
        recipe = self.config.recipe
        return heldout.latent_warning(evaluations, warmup_steps=recipe.warmup_steps, space=self.config.model.space)

    # Its cost.

    def network(self, shapes: Shapes, features: str | None = None) -> JointModel:
        """All parts, on the meta device."""
        return build_meta(self.config.model, shapes, scratch=self._scratch(features))

    def _scratch(self, features: str | None) -> bool:
        """Whether embeddings are trained in place of the encoder: with features of that kind, or where only they do."""
        return (self.config.model.space if features is None else features) == "scratch"

    def parameters(self, model: nn.Module) -> dict[str, int]:
        """Number of parameters of each part of the model."""
        assert isinstance(model, JointModel)
        return cost.parameters(model)

    def attention(self, kernel: str) -> str:
        """Name of the denoiser's attention kernel; one that attends to a prefix has torch's."""
        return joint.denoiser_kernel(self.config, kernel)

    def phase_steps(self) -> dict[str, int]:
        """One phase, or COSMOS's two."""
        return {phase.name: phase.steps for phase in phases(self.config)}

    def flops_per_token(self, shapes: Shapes, phase: str, features: str | None = None) -> int:
        """FLOPs per token of a step of a phase, with self-conditioning in expectation."""
        named = {found.name: found for found in phases(self.config)}
        return cost.flops_per_token(self.config, shapes, named[phase], scratch=self._scratch(features))

    def footprint(self, shapes: Shapes, *, bf16: bool, device: str, features: str | None = None) -> Footprint:
        """Memory of its steps on a kind of device."""
        return footprint(self.config, shapes, bf16=bf16, device=device, scratch=self._scratch(features))
