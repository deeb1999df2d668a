"""The description of an exported token-level model: the content of its `config.json`, and its model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ldlm import config as configs
from ldlm.baselines import methods
from ldlm.config import SamplerOfTokens, Shapes, TokenTrainConfig, WeightPrecision
from ldlm.sampling import modelcard

PAPERS = {
    "mdlm": "Simple and Effective Masked Diffusion Language Models",
    "duo": "The Diffusion Duality",
    "candi": "CANDI: Hybrid Discrete-Continuous Diffusion Models",
    "flm": "One-step Language Modeling via Continuous Denoising",
}

SAMPLERS = {
    "remdm": "Remasking Discrete Diffusion Models with Inference-Time Scaling",
    "psi": "The Diffusion Duality, Chapter II",
}

FIGURES = """\
`loss` is the training objective on held-out rows, in nats per token, and `loss_se` its standard error; `nelbo` is the
loss if it estimates a bound on the negative log-likelihood.
"""


@dataclass(frozen=True, kw_only=True)
class TokenDescription:
    """Sizes, method and sampler of an exported token-level model, and the provenance of its weights."""

    shapes: Shapes
    sampler: SamplerOfTokens  # the default of `sample`
    provenance: dict[str, Any]  # its `settings` are those of the training, which define network and samplers
    precision: WeightPrecision = "fp32"  # of the stored weights

    def to_json(self) -> dict[str, Any]:
        """The content of `config.json`, except for the hashes."""
        return {"method": self.method, **configs.to_dict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TokenDescription:
        """Inverse of `to_json`."""
        return cls(
            shapes=Shapes(**data["shapes"]),
            sampler=configs.token_sampler(data["method"], data["sampler"]),
            provenance=data["provenance"],
            precision=data.get("precision", "fp32"),  # exports of earlier versions do not record it
        )

    @property
    def training(self) -> TokenTrainConfig:
        """The training settings that determine what was trained."""
        return cast(TokenTrainConfig, configs.stored_training(self.provenance["settings"]))

    @property
    def method(self) -> str:
        """The method of the training."""
        return configs.method_of(self.provenance["settings"])

    def networks(self) -> dict[str, nn.Module]:
        """The `network`, on the meta device."""
        with torch.device("meta"):
            return {"network": methods.network(self.training, self.shapes)}


def card(config: TokenDescription) -> str:
    """The model card, Markdown with YAML front matter."""
    length, vocab, paper = config.shapes.seq_len, config.shapes.vocab_size, PAPERS[config.method]
    intro = (
        f"It draws texts of {length:,} tokens, all positions at once, with a bidirectional transformer over a "
        f"vocabulary of {vocab:,} tokens. It was trained with `ldlm` by the method `{config.method}`, after *{paper}*."
    )
    sampler = SAMPLERS.get(config.sampler.name)
    if sampler is not None:
        intro += f" Its sampler `{config.sampler.name}` is after *{sampler}*."
    (network,) = config.networks().values()
    contents = {
        "network": f"{sum(p.numel() for p in network.parameters()):,} parameters",
        "weights are stored in": config.precision,
        **modelcard.boundaries(config.provenance),
        "vocabulary": f"{vocab:,} tokens",
    }
    figures = config.provenance["held_out"]
    sections = {
        "Use": modelcard.USE.format(name="TokenDiffusion"),
        "What is in it": modelcard.table(contents),
        "Where it comes from": modelcard.table(_provenance(config)),
        "Held-out figures": f"{modelcard.table(figures)}\n\n{FIGURES}" if figures else modelcard.NO_FIGURES,
        "How it draws unless told otherwise": modelcard.table(configs.used(config.sampler)),
        "Licence": modelcard.LICENCE,
    }
    title = f"Token-level diffusion language model ({config.method}), {length:,} tokens"
    return modelcard.page(("diffusion", config.method), title, intro, sections)


def _provenance(config: TokenDescription) -> dict[str, Any]:
    found, settings = config.provenance, config.provenance["settings"]
    return {
        "paper": PAPERS[config.method],
        "method": config.method,
        "training": f"{found['step']:,} steps of {settings['batch_size']:,} rows, seed {settings['seed']}",
        "tokenizer": f"that of {modelcard.source(found['encoder'])}",
        **modelcard.origin(found),
    }
