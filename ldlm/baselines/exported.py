"""An exported token-level model: everything needed to draw texts, in a folder that `ldlm export` writes.

Its weights are those of the network, without optimiser state. `sampling.pretrained` lists what is in the folder.

    from ldlm import TokenDiffusion
    texts = TokenDiffusion.from_pretrained("model").sample(8, steps=64)
"""

from __future__ import annotations

from typing import Any, cast

from ldlm import config as configs
from ldlm.baselines import description
from ldlm.baselines.backbone import Backbone
from ldlm.baselines.description import TokenDescription
from ldlm.baselines.drawer import DrawsTokens
from ldlm.config import SampleConfig, TokenTrainConfig
from ldlm.sampling.pretrained import ExportedModel


class TokenDiffusion(DrawsTokens, ExportedModel):
    """A token-level diffusion language model that draws texts; `save_pretrained` and `push_to_hub` write it."""

    model_type = "ldlm-tokens"
    describe = staticmethod(TokenDescription.from_json)
    write_card = staticmethod(description.card)
    config: TokenDescription

    @property
    def training(self) -> TokenTrainConfig:
        """The training settings that determine what was trained."""
        return self.config.training

    @property
    def network(self) -> Backbone:
        """The network."""
        return cast(Backbone, self.networks["network"])

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        sampler: str | None = None,
        clean_up: bool = False,
        **settings: Any,
    ) -> list[str]:
        """Draw `n` texts, as `ldlm sample` does with these settings.

        `sampler` is one of the method's, such as `remdm` for an MDLM model, and `settings` are its fields (see
        `ldlm.config.TOKEN_SAMPLERS`), such as `steps=64`, `top_p=0.9` and `eta=0.015`; what is not given is as in
        `config.sampler`. Text i depends only on `seed` and i, not on `n` or `batch_size` (None: measured). `clean_up`
        decodes with the tokenizer's clean-up of spaces. `InputError` names a setting that does not exist, is out of
        bounds, or belongs to another sampler.
        """
        given = {
            "num_samples": n, "seed": seed, "batch_size": batch_size, "clean_up": clean_up, "sampler": settings,
        }  # fmt: skip
        base = {"sampler": configs.to_dict(self.config.sampler)}
        config = configs.drawing_config(SampleConfig, self.config.method, given, named=sampler, base=base)
        if None not in self._generators:
            self._generators[None] = self.generator()
        return self._texts(self._generators[None], config)
