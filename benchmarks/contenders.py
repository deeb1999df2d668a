"""The rivals to be timed: their methods and samplers, ours and as published, on networks with random weights.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import published
from ldlm.baselines.backbone import Backbone
from ldlm.baselines.candi import CANDI, CANDISampler, RankNoise
from ldlm.baselines.chain import Chain, ChainState, Process
from ldlm.baselines.curriculum import Curriculum
from ldlm.baselines.duo import Duo, DuoProcess
from ldlm.baselines.estimate import Estimate
from ldlm.baselines.flm import FLM, FLMSampler
from ldlm.baselines.interface import Method, Network, Sampler
from ldlm.baselines.learner import TokenObjective, TokenState, token_step
from ldlm.baselines.mdlm import MDLM, MDLMProcess
from ldlm.baselines.psi import PsiProcess
from ldlm.baselines.remdm import ReMDMProcess
from ldlm.compute import Compute
from ldlm.config import (
    BackboneConfig,
    CANDIConfig,
    CANDINoiseConfig,
    ChainConfig,
    DenoiserSizes,
    DuoConfig,
    DuoCurriculumConfig,
    FLMBackboneConfig,
    FLMConfig,
    MDLMConfig,
    OptimizerConfig,
    PsiConfig,
    ReMDMConfig,
    Shapes,
    TokenTrainConfig,
)
from ldlm.config.methods import TokenOptimizerConfig
from ldlm.features.batch import Batch
from ldlm.training.ema import EMA
from ldlm.training.optim import optimizer

OURS, PUBLISHED = WAYS = ("ours", "published")
MASKED = ("MDLM", "ReMDM", "CANDI")  # their embedding has a row for the mask
LOGIT_STD = 4.0  # of random heads: 0.9 of the mass is on some 0.3 % of the tokens; freshly initialised, all are equal
CURRICULUM_STEPS = 10**9  # longer than any measurement


def backbone(name: str, sizes: DenoiserSizes, vocab: int) -> Backbone:
    """The network of a method with random weights, as peaked as a trained one: the time of a nucleus depends on it."""
    config = FLMBackboneConfig() if name == "FLM" else BackboneConfig()
    network = Backbone(sizes, config, vocab=vocab, embeddings=vocab + (name.partition(",")[0] in MASKED))
    nn.init.normal_(network.head.weight, std=LOGIT_STD / sizes.width**0.5)
    return network


def methods(vocab: int, width: int) -> dict[str, dict[str, Method]]:
    """Methods to train, by name and way. ReMDM trains as MDLM, and Ψ samples from a Duo model."""
    ranks, settings = RankNoise.of(vocab, CANDINoiseConfig()), DuoCurriculumConfig(share=1.0)
    top = Curriculum.of(settings, vocab, CURRICULUM_STEPS)
    assert top is not None
    full = replace(top, relaxation=published.WideFull(vocab, settings.temperature))
    found: dict[str, tuple[Method, Method]] = {
        "MDLM": (MDLM(vocab), MDLM(vocab)),
        "Duo, curriculum": (Duo(vocab, curriculum=top), Duo(vocab, curriculum=full)),
        "Duo, after it": (Duo(vocab), Duo(vocab)),
        "CANDI": (CANDI(vocab, width, ranks), published.WideCANDI(vocab, width, ranks)),
        "FLM": (FLM(vocab, width), published.WideFLM(vocab, width)),
    }
    return {name: dict(zip(WAYS, pair, strict=True)) for name, pair in found.items()}


def samplers(vocab: int, seq_len: int, steps: int) -> dict[str, dict[str, Sampler]]:
    """Samplers by name and way, with the published settings; all evaluate the network at every step."""
    remdm, psi = ReMDMConfig(steps=steps), PsiConfig(steps=steps)
    chains: dict[str, tuple[Process, ChainConfig]] = {
        "MDLM": (MDLMProcess(vocab, steps), MDLMConfig(steps=steps)),
        "ReMDM": (ReMDMProcess(vocab, remdm), remdm),
        "Duo": (DuoProcess(vocab, steps), DuoConfig(steps=steps)),
        "Duo + Ψ": (PsiProcess(vocab, psi), psi),
    }
    ranks, candi, flm = RankNoise.of(vocab, CANDINoiseConfig()), CANDIConfig(steps=steps), FLMConfig(steps=steps)
    return {
        **{name: _chains(process, seq_len, config) for name, (process, config) in chains.items()},
        "CANDI": {
            OURS: CANDISampler(vocab, seq_len, ranks, candi),
            PUBLISHED: published.WideCANDISampler(vocab, seq_len, ranks, replace(candi, drawing="race")),
        },
        "FLM": {OURS: FLMSampler(vocab, seq_len, flm), PUBLISHED: published.WideFLMSampler(vocab, seq_len, flm)},
    }


class Eager(Chain):
    """Evaluates the network in every row, also where the estimate of the row before still holds."""

    def estimate(self, network: Network, state: ChainState, row: int) -> Estimate:
        """x_θ at a row, evaluated."""
        made = super().estimate(network, state._replace(x_theta=None), row)
        _ = made.hidden_PW
        return made


def _chains(process: Process, seq_len: int, config: ChainConfig) -> dict[str, Sampler]:
    ours = Eager.of(process, seq_len, config)
    nucleus = published.SortedNucleus(config.top_p, config.nucleus_rule) if config.top_p < 1 else ours.nucleus
    return {OURS: ours, PUBLISHED: replace(ours, drawing="race", nucleus=nucleus)}


# ----------------------------------------------------------------------------------------------------------------------
# What is timed


class Training:
    """A network trained on random tokens (B, L)."""

    def __init__(self, network: Backbone, tokens_BL: Tensor, config: OptimizerConfig) -> None:
        batch, seq_len = tokens_BL.shape
        vocab = network.head.out_features
        self.batch = Batch(None, tokens_BL, torch.arange(batch), 0)
        self.state = TokenState(
            config=TokenTrainConfig(method="", batch_size=batch, optimizer=TokenOptimizerConfig(**vars(config))),
            model=network,
            optimizer=optimizer(network, config),
            ema=EMA(network, config.ema_decay),
            compute=Compute(tokens_BL.device),
            objective=TokenObjective(MDLM(vocab), network),
            shapes=Shapes(seq_len=seq_len, hidden_dim=network.head.in_features, vocab_size=vocab),
        )

    def step(self, method: Method, way: str) -> None:
        """Take a training step of a method, by the function that `ldlm train` uses."""
        self.state.objective = TokenObjective(method, self.state.model)
        with published.logits_at_once(self.state.device) if way == PUBLISHED else nullcontext():
            token_step(self.state, self.batch)


class Sampling:
    """Texts in the middle of a sampler's grid, which represents all of it.

    All steps cost the same, or the cost falls linearly from the first to the last, as with CANDI.
    """

    @torch.no_grad()
    def __init__(self, sampler: Sampler, network: Network, seeds_B: Tensor, way: str) -> None:
        self.sampler, self.network, self.way, self.row = sampler, network, way, sampler.rows // 2
        self.state = half_way(sampler, sampler.begin(network, seeds_B))

    @torch.no_grad()
    def step(self) -> None:
        """Take a step of the sampler."""
        device = self.network.embedding.device
        with published.logits_at_once(device) if self.way == PUBLISHED else nullcontext():
            self.state = self.sampler.step(self.network, self.state, self.row)
        self.row = min(self.row + 1, self.sampler.rows - 2)


def half_way(sampler: Sampler, state: Any) -> Any:
    """The state of a sampler in the middle of its grid, made from its first state, with random tokens.

    In a discrete chain each is kept with the marginal probability of that time; in CANDI half are final. FLM's state
    always looks the same.
    """
    row = sampler.rows // 2
    if isinstance(sampler, Chain):
        assert isinstance(state, ChainState)
        alpha = sampler.process.alphas[row][0]  # type: ignore[attr-defined]
        kept_BL = torch.rand(state.z_BL.shape, device=state.z_BL.device) < alpha
        return state._replace(
            z_BL=torch.where(kept_BL, torch.randint_like(state.z_BL, sampler.process.vocab), state.z_BL)
        )
    if isinstance(sampler, CANDISampler):
        token_BL = torch.randint_like(state.token_BL, sampler.vocab)
        return state._replace(token_BL=token_BL, clean_BL=torch.rand(token_BL.shape, device=token_BL.device) < 0.5)
    return state
