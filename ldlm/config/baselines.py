"""The rival methods and their samplers, as settings. The defaults are the published values of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ldlm.config.fields import again, names_of, setting

NucleusRule = Literal["exclusive", "inclusive"]
End = Literal["argmax", "draw"]
Drawing = Literal["exact", "race"]
LOOP = ("t_on", "t_off", "alpha_on")
PUBLISHED_ETA = {"rescale": 0.015, "cap": 0.008, "loop": 0.02}  # from ReMDM's scripts
PsiMode = Literal["ancestral", "kappa", "constant", "cap", "rescale", "rescale-duo"]
TokenSamplerName = Literal["ancestral", "remdm", "psi", "cached", "euler"]


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """Settings that the samplers of discrete diffusions share."""

    steps: int = setting(128, "steps, one evaluation each at most; one more removes any noise that is left", low=1)
    top_p: float = setting(1.0, "p of nucleus filtering; 1 is off", above=0, high=1)
    nucleus_rule: NucleusRule = setting(
        "exclusive",
        "the nucleus, the likeliest tokens with a total mass of p: inclusive keeps the token that crosses p, exclusive "
        "drops it",
    )
    end: End = setting("argmax", "how the last noise is removed: take the most likely token, or draw one")
    drawing: Drawing = setting(
        "exact", "exact draws a token only where one is due; race draws over all tokens everywhere, as published"
    )

    @property
    def idle(self) -> dict[str, str]:
        """Settings that have no effect given the others, each with the one that decides it."""
        return {"nucleus_rule": "top_p"} if self.top_p == 1 else {}


@dataclass(frozen=True, kw_only=True)
class MDLMConfig(ChainConfig):
    """The ancestral sampler of MDLM (Sahoo et al., 2024)."""

    name: Literal["ancestral"] = setting("ancestral", "the sampler")


@dataclass(frozen=True, kw_only=True)
class ReMDMConfig(ChainConfig):
    """ReMDM, which remasks tokens of an MDLM (Wang et al., 2025)."""

    name: Literal["remdm"] = setting("remdm", "the sampler")

    top_p: float = again(ChainConfig, "top_p", 0.9)
    schedule: Literal["rescale", "cap", "conf", "loop"] = setting(
        "rescale",
        "probability σ of remasking a token, up to σ_max: rescale, η·σ_max; cap, at most η; conf, shares of σ_max, "
        "larger for low confidence; loop, η while the process stays at α_on",
    )
    eta: float | None = setting(
        None, "η; none means the published one: 0.015 for rescale, 0.008 for cap, 0.02 for loop", low=0, high=1
    )
    t_on: float = setting(0.55, "time at which the loop begins", above=0, below=1)
    t_off: float = setting(0.05, "time at which the loop ends", above=0, below=1)
    alpha_on: float = setting(0.9, "share of tokens that are not masked in the loop", above=0, below=1)

    @classmethod
    def with_defaults(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Settings with the published η of their schedule if they have none, so that records name it."""
        schedule = data.get("schedule", "rescale")
        default = PUBLISHED_ETA.get(schedule) if isinstance(schedule, str) else None
        return {**data, "eta": default} if data.get("eta") in (None, "none") and default is not None else dict(data)

    @property
    def idle(self) -> dict[str, str]:
        """Settings that have no effect given the others, each with the one that decides it."""
        found = [*["eta"] * (self.schedule == "conf"), *LOOP * (self.schedule != "loop")]
        return {**super().idle, **dict.fromkeys(found, "schedule")}


@dataclass(frozen=True, kw_only=True)
class DuoConfig(ChainConfig):
    """The ancestral sampler of Duo (Sahoo et al., 2025)."""

    name: Literal["ancestral"] = setting("ancestral", "the sampler")

    nucleus_rule: NucleusRule = again(ChainConfig, "nucleus_rule", "inclusive")
    end: End = again(ChainConfig, "end", "draw")


@dataclass(frozen=True, kw_only=True)
class DuoCurriculumConfig:
    """The first half of Duo's training (Sahoo et al., 2025), and its efficient form (Deschenaux et al., 2026)."""

    kind: Literal["top-k", "full", "discrete", "none"] = setting(
        "top-k",
        "the network sees: top-k, a softmax over the largest entries of a noisy one-hot vector; full, over all of it; "
        "discrete, the largest alone; none, no curriculum",
    )
    share: float = setting(0.5, "share of the training's steps", low=0, high=1)
    temperature: float = setting(1e-3, "T of the softmax", above=0)
    top_k: int = setting(5, "largest entries besides the true one", low=2)
    gamma_min: float | None = setting(
        None, "γ at which it begins; none means where α(γ) is 0.95. Published: -3.55 for GPT-2, -3.5 for BERT"
    )
    gamma_max: float | None = setting(
        None, "γ at which it ends; none means where α(γ) is 0.05. Published: -1.85 for GPT-2, -1.75 for BERT"
    )

    def steps_of(self, steps: int) -> int:
        """Steps of the curriculum in a training of `steps` steps; 0 without a curriculum."""
        return 0 if self.kind == "none" else round(self.share * steps)


@dataclass(frozen=True, kw_only=True)
class PsiConfig(ChainConfig):
    """Ψ-samplers of Duo, which mix ancestral with predictor–corrector steps (Deschenaux et al., 2026)."""

    name: Literal["psi"] = setting("psi", "the sampler")

    top_p: float = again(ChainConfig, "top_p", 0.9)
    nucleus_rule: NucleusRule = again(ChainConfig, "nucleus_rule", "inclusive")
    end: End = again(ChainConfig, "end", "draw")
    mode: PsiMode = setting(
        "rescale-duo",
        "share κ of ancestral steps: ancestral, 1; kappa, η itself; else 1 − σ/(1 − α_s) with σ: constant, η; cap, "
        "min(η, (1 − α_s)/α_t); rescale, η·min(1, (1 − α_s)/α_t); rescale-duo, η·min(η, (1 − α_s)/α_t), as in the "
        "code of Duo",
    )
    eta: float = setting(
        0.05, "η; published: 0.05 for rescale-duo, and 0.01 with p = 0.95 for profile loop", low=0, high=1
    )
    profile: Literal["linear", "loop"] = setting("linear", "times: equal steps, or a loop that stays at α_on")
    t_on: float = setting(0.55, "time at which the middle of the grid, or the loop, begins", above=0, below=1)
    t_off: float = setting(0.05, "time at which the middle of the grid, or the loop, ends", above=0, below=1)
    alpha_on: float = setting(0.9, "α in the loop", above=0, below=1)
    mode_high: PsiMode | None = setting(None, "mode before the middle; none means `mode`, or ancestral for a loop")
    mode_low: PsiMode | None = setting(None, "mode after the middle; none means `mode`, or ancestral for a loop")

    @property
    def idle(self) -> dict[str, str]:
        """Settings that have no effect given the others, each with the one that decides it."""
        modes = {self.mode, self.mode_high or self.mode, self.mode_low or self.mode}
        bands = len(modes) > 1  # then t_on and t_off say where each applies
        looping = self.profile == "loop"
        of_profile = [*["t_on", "t_off"] * (not bands and not looping), *["alpha_on"] * (not looping)]
        eta = {"eta": "mode"} if modes == {"ancestral"} else {}
        return {**super().idle, **eta, **dict.fromkeys(of_profile, "profile")}


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Settings of the rivals' network besides its depth and width, which are those of LDLM's denoiser."""

    dropout: float = setting(0.1, "dropout rate of both residual branches in training", low=0, below=1)
    attention_cap: float = setting(0.0, "c of attention scores c·tanh(s/c); 0 is off", low=0)
    logit_cap: float = setting(0.0, "c of logits c·tanh(l/c); 0 is off", low=0)


@dataclass(frozen=True, kw_only=True)
class FLMBackboneConfig(BackboneConfig):
    """The network of FLM (Lee et al., 2026)."""

    attention_cap: float = setting(50.0, "c of attention scores c·tanh(s/c); 0 is off", low=0)
    logit_cap: float = setting(30.0, "c of logits c·tanh(l/c); 0 is off, as in the first release of its code", low=0)


@dataclass(frozen=True, kw_only=True)
class FLMConfig:
    """The sampler of FLM, which has neither a temperature nor a nucleus."""

    name: Literal["euler"] = setting("euler", "the sampler")

    steps: int = setting(128, "Euler steps in warped time", low=1)


@dataclass(frozen=True, kw_only=True)
class CANDINoiseConfig:
    """The noise of CANDI (Pynadath et al., 2025): σ(t), given by the expected rank r of the true token among all.

    r is a share of the vocabulary, and goes from `r_low` to `r_high` as tokens are masked.
    """

    r_low: float = setting(0.05, "r at t = 0", above=0, below=0.5)
    r_high: float = setting(0.25, "r at t = 1", above=0, below=0.5)


@dataclass(frozen=True, kw_only=True)
class CANDIConfig:
    """The sampler of CANDI, the cached one of its code."""

    name: Literal["cached"] = setting("cached", "the sampler")

    steps: int = setting(128, "steps N, one evaluation each", low=1)
    temperature: float = setting(1.0, "temperature at which tokens are drawn, more than 0", above=0)
    step_size: float = setting(1.0, "factor of the steps of the continuous part", low=0)
    update: Literal["published", "flow"] = setting(
        "published", "continuous part: published divides a step by σ², as its code does; flow by σ, as the ODE does"
    )
    drawing: Drawing = setting("exact", "exact draws tokens where none is final; race draws everywhere, as published")


SamplerOfTokens = MDLMConfig | ReMDMConfig | DuoConfig | PsiConfig | CANDIConfig | FLMConfig

# The samplers of a method, by --sampler; the first is its default.
TOKEN_SAMPLERS: dict[str, dict[str, type]] = {
    "mdlm": {"ancestral": MDLMConfig, "remdm": ReMDMConfig},
    "duo": {"ancestral": DuoConfig, "psi": PsiConfig},
    "candi": {"cached": CANDIConfig},
    "flm": {"euler": FLMConfig},
}


def idle(sampler: SamplerOfTokens) -> dict[str, str]:
    """Settings of a sampler that have no effect given the others, each with the one that decides it."""
    return sampler.idle if isinstance(sampler, ChainConfig) else {}


def used(sampler: SamplerOfTokens) -> dict[str, Any]:
    """Settings of a sampler by name, without those that have no effect given the others."""
    without = idle(sampler)
    return {key: value for key, value in asdict(sampler).items() if key not in without}


def used_in_record(method: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Recorded settings of a method's sampler, without those of no effect; all if this version knows another."""
    made_by = TOKEN_SAMPLERS.get(method, {}).get(settings.get("name", ""))
    if made_by is None or not settings.keys() <= {*names_of(made_by)}:
        return settings
    return used(made_by(**settings))
