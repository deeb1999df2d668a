"""A trained run as the later stages see it: averaged weights, sizes, tokenizer, statistics and decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldlm import artifact, checkpoint, config, files
from ldlm.autoencoder import TokenDecoder
from ldlm.checkpoint import Checkpoint
from ldlm.config import Shapes, TrainConfig
from ldlm.diffusion import Schedule
from ldlm.encoder import load_tokenizer
from ldlm.errors import InputError
from ldlm.generation import Decoder, TextGenerator
from ldlm.model import JointModel, build
from ldlm.online import OnlineEncoder
from ldlm.store import FeatureStore
from ldlm.timesteps import TimestepSampler

JOINT = "joint"


class TrainedRun:
    """A checkpoint of a run with the averaged weights, on a device: the newest that verifies, or the one named."""

    def __init__(self, path: str | Path, device: torch.device, name: str | None = None) -> None:
        self.path, self.device = Path(path), device
        self.artifact = artifact.open_artifact(self.path, "run", complete=False)
        self.checkpoint = self._latest() if name is None else checkpoint.named(self.path / "checkpoints", name)
        self.config = config.from_dict(TrainConfig, self.artifact.config)
        self.features: dict[str, Any] = files.read_json(self.path / "features.json")
        self.shapes = Shapes(**self.features["shapes"])
        self.schedule = Schedule.of(self.config.diffusion)
        self.model = self._load_model()

    def _latest(self) -> Checkpoint:
        found = checkpoint.latest(self.path / "checkpoints")
        if found is None:
            raise InputError(
                f"{self.path} has no checkpoint yet; run the same `ldlm train` command again and it goes on"
            )
        return found

    def _load_model(self) -> JointModel:
        scratch = self.features["encoder"]["kind"] == "scratch"
        model = build(self.config.model, self.shapes, seed=0, scratch=scratch)
        model.load_state_dict(self.checkpoint.tensors("ema"))
        return model.eval().requires_grad_(False).to(self.device)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that the run was trained with."""
        return load_tokenizer(str(self.path / "tokenizer"))

    @property
    def timesteps(self) -> TimestepSampler:
        """The timestep sampler as the checkpoint has it."""
        sampler = TimestepSampler(self.config.timesteps, self.config.diffusion.t_min)
        sampler.load_state_dict(self.checkpoint.state["timesteps"])
        return sampler

    def generator(self, decoder: str | None = None) -> TextGenerator:
        """What draws texts, with the decoder of that name (see `decoder`)."""
        return TextGenerator(
            denoiser=self.model.denoiser,
            decoder=self.decoder(decoder),
            schedule=self.schedule,
            timesteps=self.timesteps,
            latent_shape=(self.model.num_latents, self.model.latent_dim),
            seq_len=self.shapes.seq_len,
            vocab_size=self.shapes.vocab_size,
            device=self.device,
        )

    def check_store(self, store: FeatureStore) -> None:
        """`InputError` when the store's states are not the ones this run was trained on."""
        for what in ("fingerprint", "statistics"):
            mine, theirs = self.features["encoder"][what], store.encoder[what]
            if mine != theirs:
                noun = "encoder" if what == "fingerprint" else "normalisation"
                raise InputError(
                    f"{store.path} was made with another {noun} ({store.encoder['name']}, {theirs[:12]}) than the run "
                    f"({self.features['encoder']['name']}, {mine[:12]}); give the store that the run was trained on"
                )
        if store.shapes != self.shapes:
            raise InputError(f"{store.path} has {store.shapes}, and the run {self.shapes}; give the run's own store")

    @torch.no_grad()
    def encode(self, tokens_BL: Tensor) -> Tensor:
        """Latents z_0 (B, N, C) of token rows, by the frozen encoder that the run records and by E_z.

        `InputError` when that encoder can't be had, or is not the one any more that the features were made with.
        """
        tokens_BL = tokens_BL.to(self.device, torch.int64)
        hidden_BLD = None if self.model.embedding is not None else self._frozen_encoder()(tokens_BL)
        return self.model.latent_encoder(self.model.states(hidden_BLD, tokens_BL))

    def _frozen_encoder(self) -> OnlineEncoder:
        statistics = load_file(self.path / "statistics.safetensors")
        return OnlineEncoder(self.features["encoder"], statistics["mean"].numpy(), statistics["std"].numpy())

    def decoder(self, name: str | None = None) -> Decoder:
        """The decoder of that name: `joint` for D_w∘D_h, or a fine-tuned one; None is the newest fine-tuned one."""
        available = self._finetuned()
        if name is None:
            name = available[-1] if available else JOINT
        if name == JOINT:
            return self._joint()
        if name not in available:
            names = ", ".join([JOINT, *available])
            raise InputError(
                f"{self.path} has no decoder {name!r} (it has: {names}); `ldlm finetune-decoder` makes one"
            )
        return self._load_decoder(name)

    def _joint(self) -> Decoder:
        latent_decoder, token_decoder = self.model.latent_decoder, self.model.token_decoder
        if token_decoder is None:
            raise InputError(
                f"{self.path} was trained with model.token_decoder.mode=deferred and has no decoder yet; run "
                f"`ldlm finetune-decoder --run {self.path} --features DIR` first"
            )
        return Decoder(JOINT, lambda z_BNC: token_decoder(latent_decoder(z_BNC)))

    def _finetuned(self) -> list[str]:
        """Names of the finished decoders, oldest first."""
        finished = [(path, artifact.Artifact(path.parent, "decoder", "complete")) for path in self._manifests()]
        return [path.parent.name for path, found in sorted(finished, key=lambda pair: pair[1].manifest["created"])]

    def _manifests(self) -> list[Path]:
        return list((self.path / "decoders").glob("*/manifest.json"))

    def _load_decoder(self, name: str) -> Decoder:
        folder = self.path / "decoders" / name
        found = artifact.open_artifact(folder, "decoder")
        if found.inputs["checkpoint"] != self.checkpoint.digest:
            raise InputError(
                f"the decoder {name} was trained on another checkpoint than {self.checkpoint.path.name}; run "
                f"`ldlm finetune-decoder` again with --overwrite, or choose --decoder {JOINT}"
            )
        network = TokenDecoder(**found.manifest["network"])
        network.load_state_dict(load_file(folder / "ema.safetensors"))
        network.eval().requires_grad_(False).to(self.device)
        return Decoder(name, network)
