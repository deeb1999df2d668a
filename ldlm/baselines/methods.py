"""Methods by the settings of a run: its network, its loss in training and on held-out rows, and its samplers."""

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
    CANDIConfig,
    CANDITrainConfig,
    ChainConfig,
    ComputeConfig,
    DuoConfig,
    DuoTrainConfig,
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

CAPPED = "capped"  # in place of an attention kernel's name: scores that are capped exist, and no kernel takes them
BOUNDED = ("mdlm", "duo")  # methods whose held-out loss is a bound of the negative log-likelihood


def method(config: TokenTrainConfig, shapes: Shapes) -> Method:
    """The method of a training, with the curriculum that its first steps may have."""
    if isinstance(config, DuoTrainConfig):
        return Duo(shapes.vocab_size, curriculum=Curriculum.of(config.curriculum, shapes.vocab_size, config.steps))
    return held_out_method(config, shapes)


def held_out_method(config: TokenTrainConfig, shapes: Shapes) -> Method:
    """The method as held-out rows are judged by it, without a curriculum."""
    vocab, width = shapes.vocab_size, config.model.denoiser.width
    match config:
        case MDLMTrainConfig():
            return MDLM(vocab)
        case DuoTrainConfig():
            return Duo(vocab)
        case CANDITrainConfig():
            return CANDI(vocab, width, RankNoise.of(vocab, config.noise))
        case FLMTrainConfig():
            return FLM(vocab, width)
    raise TypeError(type(config))


def network(config: TokenTrainConfig, shapes: Shapes, seed: int = 0) -> Backbone:
    """The network of a run at initialisation, on the default device."""
    embeddings = held_out_method(config, shapes).embeddings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes, backbone = config.model.denoiser, config.model.backbone
        return Backbone(sizes, backbone, vocab=shapes.vocab_size, embeddings=embeddings)


def sampler(config: TokenTrainConfig, chosen: SamplerOfTokens, shapes: Shapes) -> Sampler:
    """A sampler of a run's method (`TOKEN_SAMPLERS`)."""
    vocab, seq_len = shapes.vocab_size, shapes.seq_len
    if isinstance(chosen, ChainConfig):
        return Chain.of(_PROCESSES[type(chosen)](vocab, chosen), seq_len, chosen)
    if isinstance(chosen, CANDIConfig):
        assert isinstance(config, CANDITrainConfig)
        return CANDISampler(vocab, seq_len, RankNoise.of(vocab, config.noise), chosen)
    return FLMSampler(vocab, seq_len, chosen)


_PROCESSES: dict[type, Callable[[int, Any], Process]] = {
    MDLMConfig: lambda vocab, chosen: MDLMProcess(vocab, chosen.steps),
    ReMDMConfig: ReMDMProcess,
    DuoConfig: lambda vocab, chosen: DuoProcess(vocab, chosen.steps),
    PsiConfig: PsiProcess,
}


def compute(config: ComputeConfig, network: Backbone, device: torch.device) -> Compute:
    """Precision and kernels for a network, whose capped attention is its own."""
    found = Compute.of(config, device, head_widths(network))
    return replace(found, attention=CAPPED, remark=None) if network.attention_cap else found
