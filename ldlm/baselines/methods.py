"""The method of a run from its settings: its network, its loss in training and on held-out rows, and its samplers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ldlm.baselines.backbone import Backbone
from ldlm.baselines.candi import CANDI, CANDISampler, RankNoise
from ldlm.baselines.chain import Chain, Process
from ldlm.baselines.curriculum import Curriculum
from ldlm.baselines.duo import Duo, DuoProcess
from ldlm.baselines.flm import FLM, FLMSampler
from ldlm.baselines.interface import Method, Sampler
from ldlm.baselines.mdlm import MDLM, MDLMProcess
from ldlm.baselines.psi import PsiProcess
from ldlm.baselines.remdm import ReMDMProcess
from ldlm.compute import Compute
from ldlm.config import (
    LDLM,
    CANDIConfig,
    CANDITrainConfig,
    ComputeConfig,
    DuoConfig,
    DuoTrainConfig,
    FLMConfig,
    FLMTrainConfig,
    MDLMConfig,
    MDLMTrainConfig,
    PsiConfig,
    ReMDMConfig,
    SamplerOfTokens,
    Shapes,
    TokenTrainConfig,
)
from ldlm.model.layers import head_widths

CAPPED = "capped"  # in place of a kernel's name: capped scores are materialised, and no kernel takes them


def method(config: TokenTrainConfig, shapes: Shapes) -> Method:
    """The method of a training, with the curriculum that its first steps may have."""
    return _METHODS[type(config)](config, shapes.vocab_size, True)


def held_out_method(config: TokenTrainConfig, shapes: Shapes) -> Method:
    """The method by which held-out rows are judged, without a curriculum."""
    return _METHODS[type(config)](config, shapes.vocab_size, False)


def _duo(config: DuoTrainConfig, vocab: int, in_training: bool) -> Duo:
    return Duo(vocab, curriculum=Curriculum.of(config.curriculum, vocab, config.steps) if in_training else None)


# From settings of a training, the vocabulary's size, and whether it is for training.
_METHODS: dict[type[TokenTrainConfig], Callable[[Any, int, bool], Method]] = {
    MDLMTrainConfig: lambda config, vocab, _: MDLM(vocab),
    DuoTrainConfig: _duo,
    CANDITrainConfig: lambda config, vocab, _: CANDI(
        vocab, config.model.denoiser.width, RankNoise.of(vocab, config.noise)
    ),
    FLMTrainConfig: lambda config, vocab, _: FLM(vocab, config.model.denoiser.width),
}


def bounds_likelihood(name: str) -> bool:
    """Whether a method's loss bounds the negative log-likelihood; for LDLM, together with its decoder."""
    bounds = {LDLM: True, "mdlm": MDLM.bound, "duo": Duo.bound, "candi": CANDI.bound, "flm": FLM.bound}
    return bounds[name]


def network(config: TokenTrainConfig, shapes: Shapes, seed: int = 0) -> Backbone:
    """The network of a run at initialisation, on the default device."""
    embeddings = held_out_method(config, shapes).embeddings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes, backbone = config.model.denoiser, config.model.backbone
        return Backbone(sizes, backbone, vocab=shapes.vocab_size, embeddings=embeddings)


def sampler(config: TokenTrainConfig, chosen: SamplerOfTokens, shapes: Shapes) -> Sampler:
    """A sampler of a run's method (`TOKEN_SAMPLERS`)."""
    return _SAMPLERS[type(chosen)](config, chosen, shapes)


def _chain(process: Callable[[int, Any], Process]) -> Callable[[Any, Any, Shapes], Chain]:
    return lambda config, chosen, shapes: Chain.of(process(shapes.vocab_size, chosen), shapes.seq_len, chosen)


def _candi(config: CANDITrainConfig, chosen: CANDIConfig, shapes: Shapes) -> CANDISampler:
    return CANDISampler(shapes.vocab_size, shapes.seq_len, RankNoise.of(shapes.vocab_size, config.noise), chosen)


# From settings of the training and of the sampler.
_SAMPLERS: dict[type[SamplerOfTokens], Callable[[Any, Any, Shapes], Sampler]] = {
    MDLMConfig: _chain(lambda vocab, chosen: MDLMProcess(vocab, chosen.steps)),
    ReMDMConfig: _chain(ReMDMProcess),
    DuoConfig: _chain(lambda vocab, chosen: DuoProcess(vocab, chosen.steps)),
    PsiConfig: _chain(PsiProcess),
    CANDIConfig: _candi,
    FLMConfig: lambda config, chosen, shapes: FLMSampler(shapes.vocab_size, shapes.seq_len, chosen),
}


def compute(config: ComputeConfig, network: Backbone, device: torch.device) -> Compute:
    """Precision and kernels for a network, whose capped attention is its own."""
    found = Compute.of(config, device, head_widths(network))
    return replace(found, attention=CAPPED, remark=None) if network.attention_cap else found
