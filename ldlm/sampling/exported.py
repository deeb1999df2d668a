"""An exported model: everything that drawing texts takes, in a folder that `ldlm export` writes, or on the hub.

    model.safetensors   averaged weights of the denoiser and the decoders
    tokenizer/          the run's
    README.md           the model card; may be edited
    config.json         written last: sizes, schedule, F(t), sampler, provenance, and sha256 of weights and tokenizer

Text encoder, latent encoder and optimiser state are not in it. Weights are read from safetensors only.

    from ldlm import LDLM
    texts = LDLM.from_pretrained("model").sample(8, steps=64)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import ModelHubMixin
from safetensors.torch import load_file, save_file
from torch import nn

from ldlm import config as configs
from ldlm import files, hub, runtime
from ldlm.compute import Compute
from ldlm.config import ComputeConfig, SampleConfig, SamplerConfig, Shapes
from ldlm.errors import InputError
from ldlm.evaluation import metrics
from ldlm.hub import load_tokenizer
from ldlm.model.denoiser import DiT
from ldlm.model.layers import head_widths
from ldlm.progress import Progress
from ldlm.sampling import description, generation, modelcard, solvers
from ldlm.sampling.description import CARD, CONFIG, TOKENIZER, WEIGHTS, ModelDescription
from ldlm.sampling.generation import Decoder, TextGenerator


class LDLM(ModelHubMixin):
    """A latent diffusion language model that draws texts; `save_pretrained` and `push_to_hub` write it."""

    def __init__(
        self, config: ModelDescription, networks: Mapping[str, nn.Module], tokenizer: Path, card: str | None = None
    ) -> None:
        """`networks` as in `ModelDescription.networks`, with weights; `tokenizer` a folder; `card` None writes one."""
        self.config, self.networks, self.device = config, dict(networks), torch.device("cpu")
        self.tokenizer = load_tokenizer(str(tokenizer))
        self.card = modelcard.text(config) if card is None else card
        self._tokenizer_files = {name: path.read_bytes() for path, name in files.below(tokenizer)}
        self._generators: dict[str, TextGenerator] = {}  # by decoder, with what they have compiled

    @classmethod
    def from_pretrained(  # type: ignore[override]  # there is no other class to pass further options on to
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> LDLM:
        """Load the model in a folder, or of that id on the Hugging Face hub, onto the CPU.

        The network is used for a hub id only. `InputError` when there is no such model, when a file of it is damaged,
        and when its weights are pickled.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            options: dict[str, Any] = {
                "force_download": force_download, "token": token, "cache_dir": cache_dir,
                "local_files_only": local_files_only, "revision": revision,
            }  # fmt: skip
            name = str(pretrained_model_name_or_path)
            description.read(
                hub.download(name, [CONFIG], **options)
            )  # before downloading gigabytes that are none of ours
            folder = hub.download(name, [CONFIG, WEIGHTS, CARD, f"{TOKENIZER}/*"], **options)
        return cls._from_folder(folder)

    @classmethod
    def _from_folder(cls, folder: Path) -> LDLM:
        config = description.verified(folder)
        networks, tensors = config.networks(), load_file(folder / WEIGHTS)
        for name, network in networks.items():
            own = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
            network.to_empty(device="cpu").load_state_dict(own)
            network.eval().requires_grad_(False)
        card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else None
        return cls(config, networks, folder / TOKENIZER, card)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the files for `save_pretrained` and `push_to_hub`; `config.json` comes last and marks it complete."""
        tensors = {
            f"{name}/{key}": tensor.detach().contiguous().cpu()
            for name, network in self.networks.items()
            for key, tensor in network.state_dict().items()
        }
        with files.replacing(save_directory / WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        for name, data in self._tokenizer_files.items():
            files.write_atomic(save_directory / TOKENIZER / name, data)
        files.write_atomic(save_directory / CARD, self.card)
        sha256 = {name: files.sha256_file(save_directory / name) for name in [WEIGHTS, *self._tokenizer_names()]}
        files.write_atomic(save_directory / CONFIG, files.dump_digested({**self.config.to_json(), "sha256": sha256}))

    def _tokenizer_names(self) -> list[str]:
        return [f"{TOKENIZER}/{name}" for name in self._tokenizer_files]

    def to(self, device: str | torch.device) -> LDLM:
        """Move the networks to a device (cpu, cuda, cuda:N or auto); returns itself."""
        self.device = runtime.device(str(device))
        self._generators.clear()
        for network in self.networks.values():
            network.to(self.device)
        return self

    @property
    def shapes(self) -> Shapes:
        """Length of a text in tokens, width of the encoder's states, size of the vocabulary."""
        return self.config.shapes

    @property
    def origin(self) -> dict[str, Any]:
        """Digest and step of the checkpoint that the model was exported from."""
        return {key: self.config.provenance[key] for key in ("checkpoint", "step")}

    def compute(self, config: ComputeConfig) -> Compute:
        """Precision and kernels with which its denoiser draws texts."""
        return Compute.of(config, self.device, head_widths(self.networks["denoiser"]))

    def generator(self, decoder: str | None = None, compute: Compute | None = None) -> TextGenerator:
        """A generator of texts with the decoder of that name; None takes the first of `config.decoders`."""
        name = self._decoder_name(decoder)
        return TextGenerator(
            denoiser=cast(DiT, self.networks["denoiser"]),
            decoder=Decoder(name, self.networks[f"decoders/{name}"]),
            schedule=self.config.schedule,
            timesteps=self.config.timesteps,
            latent_shape=self.config.latent_shape,
            seq_len=self.shapes.seq_len,
            vocab_size=self.shapes.vocab_size,
            compute=compute or self.compute(ComputeConfig()),
        )

    def drawing(self, config: SampleConfig) -> TextGenerator:
        """The generator that settings of `ldlm sample` ask for."""
        return self.generator(config.decoder, self.compute(config.compute))

    def check(self, sampler: SamplerConfig) -> None:
        """`InputError` for a sampler that is not offered, unless the model was exported with it."""
        solvers.check(sampler, known=self.config.sampler)

    def cost(self, config: SampleConfig) -> dict[str, Any]:
        """Evaluations of the denoiser that settings of `ldlm sample` take, and their FLOPs, as JSON."""
        return generation.drawing_cost(config, self.config.model, self.shapes)

    def remark(self, config: SampleConfig, progress: Progress) -> None:
        """Nothing: an exported model has its default decoder on record."""

    def _decoder_name(self, decoder: str | None) -> str:
        name = next(iter(self.config.decoders)) if decoder is None else decoder
        if name not in self.config.decoders:
            raise InputError(f"the model has no decoder {name!r} (it has: {', '.join(self.config.decoders)})")
        return name

    def __getstate__(self) -> dict[str, Any]:
        """State for a copy: without the generators, whose locks and compiled code can't be copied."""
        return {**self.__dict__, "_generators": {}}

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        decoder: str | None = None,
        sampler: str | None = None,
        clean_up: bool = False,
        **settings: Any,
    ) -> list[str]:
        """Draw `n` texts, as `ldlm sample` with these settings does.

        `settings` are fields of `ldlm.config.SamplerConfig`, such as `steps=64`, `solver="dpm++2m"`, `grid="learned"`,
        `guidance=1.5` and `temperature=0.8`; their defaults are `config.sampler`, or with `sampler="paper"` those of
        the paper. Text i depends on `seed` and i only, not on `n` or `batch_size` (None: measured). `clean_up` decodes
        with the tokenizer's clean-up of spaces. `InputError` names a setting that does not exist or is out of bounds,
        and a combination of solver, grid and end that is not offered.
        """
        given = {"num_samples": n, "seed": seed, "batch_size": batch_size, "sampler": settings}
        base = {"sampler": configs.to_dict(self.config.sampler)}
        config = configs.drawing_config(SampleConfig, configs.LDLM, given, named=sampler, base=base)
        self.check(config.sampler)
        name = self._decoder_name(decoder)
        if name not in self._generators:
            self._generators[name] = self.generator(name)
        batches = generation.batches(self._generators[name], config)
        return [
            text
            for _, tokens_BL in batches
            for text in metrics.decode_tokens(self.tokenizer, tokens_BL, clean_up=clean_up)
        ]
