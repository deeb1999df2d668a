"""An exported LDLM: everything needed to draw texts, in a folder that `ldlm export` writes, or on the hub.

Its weights are those of the denoiser and the decoders. It contains neither latent encoder nor optimiser state, and the
text encoder only if the export of a model that continues texts was asked to include it. `pretrained` lists what is in
the folder.

    from ldlm import LDLM
    texts = LDLM.from_pretrained("model").sample(8, steps=64)
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

from ldlm import config as configs
from ldlm.compute import Compute
from ldlm.config import ComputeConfig, ModelConfig, SampleConfig, SamplerConfig
from ldlm.errors import InputError
from ldlm.features.encoder import OnlineEncoder
from ldlm.hub import kept_here
from ldlm.model.denoiser import DiT
from ldlm.model.layers import head_widths
from ldlm.model.timesteps import TimestepSampler
from ldlm.progress import Progress
from ldlm.sampling import modelcard, solvers
from ldlm.sampling.description import ModelDescription, Normalisation
from ldlm.sampling.drawer import DrawsTexts, check_guidance
from ldlm.sampling.generation import Decoder, TextGenerator
from ldlm.sampling.pretrained import ExportedModel
from ldlm.sampling.prompts import prompts_of


class LDLM(DrawsTexts, ExportedModel):
    """A latent diffusion language model that draws texts; `save_pretrained` and `push_to_hub` write it."""

    model_type = "ldlm"
    describe = staticmethod(ModelDescription.from_json)
    write_card = staticmethod(modelcard.text)
    config: ModelDescription

    def compute(self, config: ComputeConfig) -> Compute:
        """Precision and kernels of its denoiser when it draws texts."""
        return Compute.of(config, self.device, head_widths(self.networks["denoiser"]))

    def generator(self, decoder: str | None = None, compute: Compute | None = None) -> TextGenerator:
        """A generator of texts with the decoder called `decoder`; None takes the first of `config.decoders`."""
        name = self._decoder_name(decoder)
        return TextGenerator(
            denoiser=cast(DiT, self.networks["denoiser"]),
            decoder=Decoder(name, self.networks[f"decoders/{name}"], self.config.decoder_sha256.get(name)),
            schedule=self.config.schedule,
            timesteps=self.timesteps,
            latent_shape=self.config.latent_shape,
            seq_len=self.shapes.seq_len,
            vocab_size=self.shapes.vocab_size,
            compute=compute or self.compute(ComputeConfig()),
            self_conditioned=self.self_conditioned,
        )

    @property
    def timesteps(self) -> TimestepSampler:
        """The timestep sampler, whose F(t) defines the `learned` grid."""
        return self.config.timesteps

    @property
    def trained(self) -> ModelConfig:
        """The model's settings in training."""
        return self.config.model

    @property
    def self_conditioned(self) -> bool:
        """Whether its denoiser has learned to read ẑ_prev."""
        return self.config.self_conditioned

    def frozen_encoder(self, where: str | None) -> OnlineEncoder:
        """The encoder that reads prompts: `where` is its folder or hub name, None for the one on record.

        That is the encoder included in the model or, failing that, a hub name's, looked up only on this machine. An
        encoder is loaded at the first prompt and kept for later ones.
        """
        record, normalisation = self.config.provenance["encoder"], cast(Normalisation, self.networks["normalisation"])
        if where is None:
            where = str(self.encoder or kept_here(record["name"], record.get("revision")))
        if where not in self._encoders:
            mean_D, std_D = normalisation.mean_D.cpu().numpy(), normalisation.std_D.cpu().numpy()
            self._encoders[where] = OnlineEncoder({**record, "name": where}, mean_D, std_D)
        return self._encoders[where]

    @cached_property
    def _encoders(self) -> dict[str, OnlineEncoder]:
        """Encoders that have read prompts, by folder or hub name."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """State for a copy, without the encoders that have been loaded."""
        return {**super().__getstate__(), "_encoders": {}}

    def check(self, sampler: SamplerConfig) -> None:
        """`InputError` for a sampler that is not offered, unless the model was exported with it.

        Also for guidance that the model can't be drawn with.
        """
        check_guidance(sampler.guidance, self.self_conditioned)
        solvers.check(solvers.settled(sampler, self.timesteps), self.config.sampler, flat=self.timesteps.flat)

    def remark(self, config: SampleConfig, progress: Progress) -> None:
        """Note if a distilled model has not learned this sampler; the default decoder is on record."""
        self.remark_on_sampler(self.student, config.sampler, progress, config.prompting.prompt_guidance)

    @property
    def student(self) -> SamplerConfig | None:
        """The sampler that a distilled model has learned; None for other models."""
        return self.config.student

    def _decoder_name(self, decoder: str | None) -> str:
        name = next(iter(self.config.decoders)) if decoder is None else decoder
        if name not in self.config.decoders:
            raise InputError(f"the model has no decoder {name!r} (it has: {', '.join(self.config.decoders)})")
        return name

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        decoder: str | None = None,
        sampler: str | None = None,
        clean_up: bool = False,
        prompt: str | None = None,
        prompt_guidance: float = 1.0,
        encoder: str | None = None,
        **settings: Any,
    ) -> list[str]:
        """Draw `n` texts, as `ldlm sample` does with these settings.

        `settings` are fields of `ldlm.config.SamplerConfig`, such as `steps=64`, `solver="dpm++2m"`, `grid="learned"`,
        `guidance=1.5` and `temperature=0.8`; their defaults are `config.sampler`, or with `sampler="paper"` those of
        the paper. Text i depends only on `seed` and i, not on `n` or `batch_size` (None: measured). `clean_up` decodes
        with the tokenizer's clean-up of spaces. A model trained with model.condition=prefix can continue a `prompt`,
        with which its texts then begin; `encoder` is the folder or hub name of its frozen encoder, if that is neither
        in the model's folder nor in its place. `InputError` names a setting that does not exist or is out of bounds,
        or a combination of solver, grid and end that is not offered.
        """
        given = {
            "num_samples": n, "seed": seed, "batch_size": batch_size, "clean_up": clean_up, "sampler": settings,
            "prompting": {"prompt": prompt, "prompt_guidance": prompt_guidance, "encoder": encoder},
        }  # fmt: skip
        base = {"sampler": configs.to_dict(self.config.sampler)}
        config = configs.drawing_config(SampleConfig, configs.LDLM, given, named=sampler, base=base)
        config = self.settled(config)
        self.check(config.sampler)
        name = self._decoder_name(decoder)
        if name not in self._generators:
            self._generators[name] = self.generator(name)
        generator, prompts = cast(TextGenerator, self._generators[name]), prompts_of(config, self)
        return self._texts(generator if prompts is None else generator.prompted(prompts), config)
