"""Texts from a token-level model: its sampler, with the network in the precision that settings ask for.

A `TokenGenerator` holds everything needed to draw texts. A run (`TrainedTokenRun.generator`) and the model exported
from it (`TokenDiffusion.generator`) make generators that draw the same texts.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldlm.baselines import methods
from ldlm.baselines.backbone import Backbone
from ldlm.baselines.interface import Network, draw_texts
from ldlm.compute import Compute, compiled
from ldlm.config import SamplerOfTokens, Shapes, TokenSampleConfig, TokenTrainConfig
from ldlm.model.layers import blocks_of
from ldlm.sampling import generation
from ldlm.sampling.source import plain_lines


@dataclass(frozen=True)
class InPrecision:
    """The backbone as used for drawing, a `Network`: its body in a given precision, embedding and head in float32.

    The weights of the body are cast once, like those of LDLM's denoiser (`TextGenerator.estimate`).
    """

    network: Backbone
    body: Backbone  # with the network's own embedding and head
    dtype: torch.dtype  # of the body

    @classmethod
    def of(cls, network: Backbone, dtype: torch.dtype) -> InPrecision:
        """The network with its body in that dtype; it is not copied if that is its own."""
        if dtype == network.embedding.dtype:
            return cls(network, network, dtype)
        body = copy.deepcopy(network, {id(kept): kept for kept in (network.embedding, network.head)})
        for name, part in body.named_children():
            if name != "head":
                part.to(dtype)
        return cls(network, body, dtype)

    def compiled(self) -> InPrecision:
        """The network with compiled blocks, which share its weights."""
        body = copy.deepcopy(self.body, {id(p): p for p in self.body.parameters()})
        for block in blocks_of(body):
            block.forward = compiled(block.forward)
        return replace(self, body=body)

    @property
    def embedding(self) -> Tensor:
        """The embedding of the network."""
        return self.network.embedding

    def hidden(self, e_BLW: Tensor, condition_B: Tensor | None) -> Tensor:
        """States of the body, in float32."""
        return self.body.hidden(e_BLW.to(self.dtype), condition_B).to(self.embedding.dtype)

    def logits(self, h_W: Tensor) -> Tensor:
        """Logits of the network's head."""
        return self.network.logits(h_W)


@dataclass
class Taken:
    """Cost of texts: sampler rows for each, and network evaluations summed over texts."""

    rows: int = 0
    texts: int = 0
    evaluations: int = 0


@dataclass(frozen=True, eq=False)
class TokenGenerator:
    """Draws texts, each a function of its seed alone, not of the batch around it."""

    config: TokenTrainConfig  # of the run
    network: Backbone
    shapes: Shapes
    compute: Compute
    taken: Taken = field(default_factory=Taken)

    @property
    def record(self) -> dict[str, Any]:
        """The method's name, for the record of the texts."""
        return {"method": self.config.method}

    def tokens(self, sampler: SamplerOfTokens, seeds_B: Tensor) -> Tensor:
        """Token rows (B, L) int64 of the texts with these seeds."""
        made = methods.sampler(self.config, sampler, self.shapes)
        drawn = draw_texts(made, self._network, seeds_B.to(self.compute.device))
        self.taken.rows = drawn.rows
        self.taken.texts += len(seeds_B)
        self.taken.evaluations += drawn.evaluations * len(seeds_B)
        return drawn.tokens_BL

    def figures(self) -> dict[str, Any]:
        """Sampler rows, and network evaluations per text, which may be fewer; as JSON."""
        if not self.taken.texts:
            return {}
        return {"rows": self.taken.rows, "evaluations_per_text": self.taken.evaluations / self.taken.texts}

    def lines(self, tokenizer: Any, tokens_BL: Tensor, seeds_B: Tensor, clean_up: bool) -> list[dict[str, Any]]:
        """JSON objects of texts."""
        return plain_lines(tokenizer, tokens_BL, seeds_B, clean_up)

    def padded(self, seeds_B: Tensor, texts: int) -> Tensor:
        """The seeds of a last batch, padded by `generation.padded`."""
        return generation.padded(self.compute, seeds_B, texts)

    def batch_size(self, most: int) -> int:
        """Batch size at which the network is fastest per text, found by `generation.fastest`."""
        return generation.fastest(self._seconds, most)

    @torch.no_grad()
    def _seconds(self, size: int) -> float:
        """Seconds of one evaluation of a batch, without logits and not compiled."""
        e_BLW = torch.zeros(size, self.shapes.seq_len, self._plain.embedding.shape[1], device=self.compute.device)
        return generation.seconds_of(partial(self._plain.hidden, e_BLW, None))

    @cached_property
    def _plain(self) -> InPrecision:
        """The network in its precision, not compiled."""
        return InPrecision.of(self.network, self.compute.dtype)

    @cached_property
    def _network(self) -> Network:
        """The network in use."""
        return self._plain.compiled() if self.compute.compiled else self._plain


def drawing_cost(config: TokenSampleConfig, run: TokenTrainConfig, shapes: Shapes) -> dict[str, Any]:
    """The most evaluations that settings of `ldlm sample` take, and their FLOPs, as JSON."""
    rows = methods.sampler(run, config.sampler, shapes).rows
    evaluations = config.num_samples * rows
    return {"rows": rows, "evaluations_at_most": evaluations, "flops": evaluations * evaluation_flops(run, shapes)}


def evaluation_flops(run: TokenTrainConfig, shapes: Shapes) -> int:
    """FLOPs of one evaluation of one text, with logits at all positions."""
    with torch.device("meta"):
        network = methods.network(run, shapes)
        e_1LW = torch.empty(1, shapes.seq_len, network.embedding.shape[1])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(e_1LW)
    return counter.get_total_flops()
