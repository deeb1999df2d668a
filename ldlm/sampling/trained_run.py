"""A trained run as later stages use it: averaged weights, sizes, tokenizer, statistics and decoders.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldlm import artifact, config, files
from ldlm.compute import Compute
from ldlm.config import (
    ComputeConfig,
    DecoderNoise,
    DistilledConfig,
    ModelConfig,
    SampleConfig,
    SamplerConfig,
    TrainConfig,
    decoder_noise,
)
from ldlm.errors import InputError
from ldlm.features.encoder import OnlineEncoder
from ldlm.features.store import FeatureStore
from ldlm.hub import kept_here
from ldlm.model.autoencoder import TokenDecoder
from ldlm.model.diffusion import Schedule
from ldlm.model.joint import JointModel, build, build_meta
from ldlm.model.layers import head_widths
from ldlm.model.timesteps import TimestepSampler
from ldlm.progress import Progress
from ldlm.runtime import World
from ldlm.sampling import drawer, generation, solvers
from ldlm.sampling.drawer import DrawsTexts
from ldlm.sampling.generation import JOINT, Decoder, TextGenerator
from ldlm.sampling.source import OpenRun
from ldlm.training import cost
from ldlm.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class DecoderRecord:
    """A decoder of a run."""

    name: str
    layers: int  # between a latent and the vocabulary head
    parameters: int
    noise: str  # in its training and measurement, like `σ_dec 3`
    held_out: Mapping[str, Any]  # from `heldout.evaluate_decoder`; empty if not measured
    step: int  # optimiser steps taken
    checkpoint_step: int  # of the latents it was trained on
    usable: bool = True  # whether those are the latents of the opened checkpoint
    default: bool = False


def timesteps_of(training: TrainConfig, saved: Checkpoint) -> TimestepSampler:
    """The timestep sampler in the state of a checkpoint."""
    sampler = TimestepSampler(training.timesteps, training.diffusion.t_min)
    sampler.load_state_dict(saved.state["timesteps"])
    return sampler


class TrainedRun(DrawsTexts, OpenRun):
    """A checkpoint of a run of LDLM with the averaged weights, on a device: the newest that verifies, or the one named.

    `InputError` for a token-level run.
    """

    def __init__(self, path: str | Path, device: torch.device, name: str | None = None) -> None:
        super().__init__(path, device, name)
        self.config = cast(TrainConfig, config.stored_training(self.artifact.config))
        self.schedule = Schedule.of(self.config.diffusion)
        self.model = self._load_model()

    @classmethod
    def of_job(cls, path: Path, device: torch.device, name: str | None, world: World) -> TrainedRun:
        """The run at the same checkpoint in all processes of a job, even while its training continues."""
        found = world.main_only(lambda: cls(path, device, name))
        name = world.from_main(None if found is None else found.checkpoint.path.name)
        return found or cls(path, device, name)

    def _check_method(self) -> None:
        method = config.method_of(self.artifact.config)
        if method != config.LDLM:
            raise InputError(
                f"{self.path} is a token-level run, of method {method}: it has no latents and no decoders; give a run "
                f"of LDLM, or draw from this one with `ldlm sample` and `ldlm sweep`"
            )

    def _load_model(self) -> JointModel:
        scratch = self.features["encoder"]["kind"] == "scratch"
        model = build(self.config.model, self.shapes, seed=0, scratch=scratch)
        model.load_state_dict(self.checkpoint.tensors("ema"))
        return model.eval().requires_grad_(False).to(self.device)

    @property
    def latents(self) -> str:
        """Digest of the checkpoint that defined the latents: its own or, for a distilled run, the one it began with."""
        found: str = self.artifact.inputs.get("latents", self.checkpoint.digest)
        return found

    @property
    def student(self) -> SamplerConfig | None:
        """The sampler that the checkpoint of a distilled run has learned; None for other runs."""
        if not isinstance(self.config, DistilledConfig):
            return None
        return self.config.learned(self.checkpoint.state)

    @property
    def timesteps(self) -> TimestepSampler:
        """The timestep sampler in the state of the checkpoint."""
        return timesteps_of(self.config, self.checkpoint)

    def compute(self, config: ComputeConfig) -> Compute:
        """Precision and kernels of its denoiser when it draws texts."""
        return Compute.of(config, self.device, head_widths(self.model.denoiser))

    def generator(self, decoder: str | None = None, compute: Compute | None = None) -> TextGenerator:
        """A generator of texts with the decoder called `decoder` (see the method `decoder`)."""
        return TextGenerator(
            denoiser=self.model.denoiser,
            decoder=self.decoder(decoder),
            schedule=self.schedule,
            timesteps=self.timesteps,
            latent_shape=(self.model.num_latents, self.model.latent_dim),
            seq_len=self.shapes.seq_len,
            vocab_size=self.shapes.vocab_size,
            compute=compute or self.compute(ComputeConfig()),
            self_conditioned=self.self_conditioned,
        )

    @property
    def trained(self) -> ModelConfig:
        """The model's settings in training."""
        return self.config.model

    @property
    def self_conditioned(self) -> bool:
        """Whether its denoiser has learned to read ẑ_prev."""
        return self.config.diffusion.self_conditioned

    def frozen_encoder(self, where: str | None) -> OnlineEncoder:
        """The encoder that reads prompts: `where` is its folder or hub name, None for the one on record.

        The record's hub name is looked up only on this machine.
        """
        return self._frozen_encoder(self.encoder_record(where)["name"])

    def encoder_record(self, where: str | None) -> dict[str, Any]:
        """The features' record of the encoder, its `name` replaced by `where`, or by its folder on this machine."""
        found: dict[str, Any] = self.features["encoder"]
        return {**found, "name": kept_here(found["name"], found.get("revision")) if where is None else where}

    def check(self, sampler: SamplerConfig) -> None:
        """`InputError` for a sampler that is not offered, and for guidance that the run can't be drawn with."""
        drawer.check_guidance(sampler.guidance, self.self_conditioned)
        timesteps = self.timesteps
        solvers.check(solvers.settled(sampler, timesteps), self.student, flat=timesteps.flat)

    def remark(self, config: SampleConfig, progress: Progress) -> None:
        """Note an unfinished run, the default decoder and why it is, and a sampler that a student has not learned."""
        self.remark_on_end(progress)
        self.remark_on_decoder(config.decoder, progress)
        self.remark_on_sampler(self.student, config.sampler, progress, config.prompting.prompt_guidance)

    def check_store(self, store: FeatureStore) -> None:
        """`InputError` if the store's states or tokens differ from those that this run was trained on."""
        for what, noun in (("fingerprint", "encoder"), ("statistics", "normalisation"), ("tokenizer", "tokenizer")):
            mine, theirs = self.features["encoder"][what], store.encoder[what]
            if mine != theirs:
                raise InputError(
                    f"{store.path} was made with another {noun} ({store.encoder['name']}, {theirs[:12]}) than the run "
                    f"({self.features['encoder']['name']}, {mine[:12]}); give the store that the run was trained on"
                )
        if store.shapes != self.shapes:
            raise InputError(f"{store.path} has {store.shapes}, and the run {self.shapes}; give the run's own store")

    @torch.no_grad()
    def encode(self, tokens_BL: Tensor, encoder: str | None = None) -> Tensor:
        """Latents z_0 (B, N, C) of token rows, from E_h and E_z.

        The frozen encoder E_h is the one that the run records, or a folder or hub name `encoder` with the same weights.
        `InputError` if it can't be loaded, or if its weights differ from those that made the features.
        """
        tokens_BL = tokens_BL.to(self.device, torch.int64)
        hidden_BLD = None if self.model.embedding is not None else self._frozen_encoder(encoder)(tokens_BL)
        return self.model.latent_encoder(self.model.states(hidden_BLD, tokens_BL))

    @torch.no_grad()
    def decode(self, decoder: Decoder, z_BNC: Tensor, batch_size: int) -> Tensor:
        """Most likely tokens (B, L) of latents without noise, on the CPU."""
        size = min(batch_size, generation.texts_at_once(self.shapes.seq_len, self.shapes.vocab_size))
        return torch.cat([decoder.logits(z.to(self.device)).argmax(-1).cpu() for z in z_BNC.split(size)])

    def _frozen_encoder(self, where: str | None) -> OnlineEncoder:
        record = {**self.features["encoder"], **({} if where is None else {"name": where})}
        mean_D, std_D = self.statistics()
        return OnlineEncoder(record, mean_D.numpy(), std_D.numpy())

    def statistics(self) -> tuple[Tensor, Tensor]:
        """(mean, std) of the frozen encoder's states before normalisation, float32 (D,)."""
        found = load_file(self.path / "statistics.safetensors")
        return found["mean"], found["std"]

    def decoder(self, name: str | None = None) -> Decoder:
        """The decoder called `name`: `joint` for D_w∘D_h, or a fine-tuned one; None for the default (`_default`)."""
        available = self._finetuned()
        if name is None:
            name = self._default(available)
        if name == JOINT:
            return self._joint()
        if name not in available:
            names = ", ".join([JOINT, *available])
            raise InputError(
                f"{self.path} has no decoder {name!r} (it has: {names}); `ldlm finetune-decoder` makes one"
            )
        return self._load_decoder(name)

    def _joint(self) -> Decoder:
        if self.model.token_decoder is None:
            raise InputError(
                f"{self.path} was trained with model.token_decoder.mode=deferred and has no decoder yet; run "
                f"`ldlm finetune-decoder --run {self.path} --features DIR` first"
            )
        return Decoder(JOINT, self.model.decoder())

    def remark_on_decoder(self, name: str | None, progress: Progress) -> None:
        """Note which decoder is the default and why, if the user names none and there are several."""
        usable = [record for record in self.decoders() if record.usable]
        if name is not None or len(usable) < 2:
            return
        default = next(record for record in usable if record.default)
        alike = self._alike(self._finetuned())
        others = ", ".join(f"{name} {figures['l_w']:.2f}" for name, figures in alike.items() if name != default.name)
        if others:
            why = f"with the lowest held-out cross-entropy ({default.held_out['l_w']:.2f}; {others})"
        elif not alike:
            why = "the newest, since none has been measured"
        else:
            why = "the only one measured on these held-out rows and under this noise"
        progress.note(f"default decoder {default.name}, {why}; --decoder NAME takes another")

    def noise(self, decoder: str) -> DecoderNoise:
        """The noise on the input of that decoder in training."""
        if decoder == JOINT:
            return decoder_noise(self.config.model.space, self.config.recipe)
        return noise_of(self._finetuned()[decoder])

    def usable_decoders(self) -> list[str]:
        """Names of this checkpoint's decoders: the default, then the others, newest first, `joint` last."""
        usable = [record for record in reversed(self.decoders()) if record.usable]
        return [record.name for record in sorted(usable, key=lambda record: not record.default)]

    def decoders(self) -> list[DecoderRecord]:
        """All decoders: the jointly trained one, if there is one, then the fine-tuned ones, oldest first."""
        found = self._finetuned()
        default = self._default(found)
        records = [
            DecoderRecord(
                name=name,
                layers=manifest["network"]["layers"],
                parameters=manifest["parameters"],
                noise=str(noise_of(manifest)),
                held_out=manifest["held_out"],
                step=manifest["step"],
                checkpoint_step=manifest["checkpoint_step"],
                usable=manifest["checkpoint"] == self.latents,
                default=name == default,
            )
            for name, manifest in found.items()
        ]
        if self.model.token_decoder is None:
            return records
        return [replace(self._joint_record(found.values()), default=default == JOINT), *records]

    def _default(self, finetuned: Mapping[str, Mapping[str, Any]]) -> str:
        """The decoder of this checkpoint with the lowest held-out cross-entropy, among those measured alike.

        If none was measured it is the newest, and `joint` if there is no fine-tuned one (SPEC 13.2).
        """
        if not (alike := self._alike(finetuned)):
            return [JOINT, *finetuned, *self._usable(finetuned)][-1]
        return min(reversed(alike), key=lambda name: alike[name]["l_w"])  # among equals the newest

    def _usable(self, finetuned: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        return {name: one for name, one in finetuned.items() if one["checkpoint"] == self.latents}

    def _alike(self, finetuned: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        """Held-out figures of this checkpoint's decoders that were measured alike, D_w∘D_h's first, then oldest first.

        Alike means under the same noise and on the same rows as the newest measured decoder, beside which D_w∘D_h was
        measured.
        """
        usable = {name: one for name, one in self._usable(finetuned).items() if one["held_out"].get("l_w") is not None}
        if not usable:
            return {}
        newest = list(usable.values())[-1]
        of_states = self.features["encoder"]["kind"] != "scratch"
        alike = {n: one["held_out"] for n, one in usable.items() if _are_alike(one, newest, of_states=of_states)}
        joint = newest.get("joint", {})
        if joint.get("l_w") is None or _how(newest, joint) != _how(newest, newest["held_out"]):
            return alike
        return {JOINT: joint, **alike}

    def _joint_record(self, finetuned: Collection[Mapping[str, Any]]) -> DecoderRecord:
        """The record of D_w∘D_h, with the figures measured beside this checkpoint's newest measured decoder."""
        beside = [manifest for manifest in finetuned if manifest["checkpoint"] == self.latents]
        beside = [manifest for manifest in beside if manifest.get("joint")] or beside
        sizes = self.config.model
        return DecoderRecord(
            name=JOINT,
            layers=(sizes.autoencoder.layers if self.model.encodes else 0) + sizes.token_decoder.layers,
            parameters=self.joint_parameters(),
            noise=str(noise_of(beside[-1]) if beside else decoder_noise(sizes.space, self.config.recipe)),
            held_out=beside[-1].get("joint", {}) if beside else {},
            step=self.checkpoint.step,
            checkpoint_step=self.checkpoint.step,
        )

    def joint_parameters(self) -> int:
        """Number of parameters of D_h and D_w; for a deferred D_w, as many as its settings would give."""
        model = self.model
        if model.token_decoder is None:
            decoder = replace(self.config.model.token_decoder, mode="joint")
            scratch = model.embedding is not None
            model = build_meta(replace(self.config.model, token_decoder=decoder), self.shapes, scratch=scratch)
        counts = cost.parameters(model)
        return counts["latent_decoder"] + counts["token_decoder"]

    def _finetuned(self) -> dict[str, dict[str, Any]]:
        """Manifests of the finished decoders with their `inputs`, by name, oldest first."""
        paths = (self.path / "decoders").glob("*/manifest.json")
        made = [artifact.Artifact(path.parent, "decoder", "complete") for path in paths]
        found = {one.path.name: {**one.manifest, "inputs": one.inputs} for one in made}
        return dict(sorted(found.items(), key=lambda named: named[1]["created"]))

    def _load_decoder(self, name: str) -> Decoder:
        folder = self.path / "decoders" / name
        found = artifact.open_artifact(folder, "decoder")
        if found.inputs["checkpoint"] != self.latents:
            other = "" if self.model.token_decoder is None else f", or choose --decoder {JOINT}"
            raise InputError(
                f"the decoder {name} was trained on another checkpoint than {self.checkpoint.path.name}; run "
                f"`ldlm finetune-decoder` again with --overwrite{other}"
            )
        for file, digest in found.manifest.get("sha256", {}).items():  # earlier versions recorded none
            if not (folder / file).is_file() or files.sha256_file(folder / file) != digest:
                raise InputError(
                    f"{folder / file} is damaged or missing; restore it from a copy, run `ldlm finetune-decoder` again "
                    f"with --overwrite, or choose another --decoder"
                )
        network = TokenDecoder(**found.manifest["network"])
        network.load_state_dict(load_file(folder / "ema.safetensors"))
        network.eval().requires_grad_(False).to(self.device)
        return Decoder(name, network, files.sha256_json(found.manifest))


def noise_of(manifest: Mapping[str, Any]) -> DecoderNoise:
    """Noise in a decoder's training and measurement; manifests of earlier versions hold only σ_dec."""
    if "decoder_noise" in manifest:
        return DecoderNoise(**manifest["decoder_noise"])
    return DecoderNoise("additive", manifest["sigma_dec"])


def _are_alike(one: Mapping[str, Any], other: Mapping[str, Any], *, of_states: bool) -> bool:
    """Whether two decoders were measured under the same noise and on the same rows, so that they can be compared.

    The fingerprints of stores are compared if they are `of_states`: those of other kinds have changed between versions.
    """
    stores = {found["inputs"].get("features") for found in (one, other) if of_states} - {None}  # records may lack it
    return _how(one, one["held_out"]) == _how(other, other["held_out"]) and len(stores) < 2


def _how(record: Mapping[str, Any], held_out: Mapping[str, Any]) -> tuple[Any, ...]:
    """Noise, split and number of rows of held-out figures in a decoder's record."""
    return str(noise_of(record)), held_out.get("split"), held_out.get("rows")
