"""Words, figures and sections of the report on a rival's run, which reads and writes tokens."""

from __future__ import annotations

import math

from ldlm import config as configs
from ldlm.pages import report_results, report_training, token_curves
from ldlm.pages.chart import number
from ldlm.pages.report_data import Figure, Report, SampleSet, Section, charts, model_name, of_step

NAMES = {
    "mdlm": "MDLM, a masked diffusion",
    "duo": "Duo, a uniform-state diffusion",
    "candi": "CANDI, a masked diffusion whose masks show a noisy token",
    "flm": "FLM, a flow on one-hot vectors",
}


def what(report: Report[configs.TokenTrainConfig]) -> str:
    """The run in two sentences."""
    config, features = report.config, report.features
    name = NAMES[config.method]
    trained = f"trained in steps of {config.batch_size:,} rows with seed {config.seed}"
    if features is None:
        return f"{name}, {trained}."
    size, rows = sum(report.parameters.values()), features["rows"]["train"]
    return (
        f"{name}, with {size:,} parameters, {trained}. It learns from {rows:,} rows of "
        f"{features['shapes']['seq_len']:,} tokens of {model_name(features['encoder']['name'])}."
    )


def steps(report: Report[configs.TokenTrainConfig]) -> int:
    """Steps of the whole training."""
    return report.config.steps


def held_out(report: Report[configs.TokenTrainConfig]) -> list[Figure]:
    """The loss of the newest held-out evaluation and, if it estimates the NELBO, the bound on the perplexity."""
    newest = next(reversed(report.lines("eval")), {})
    if newest.get("loss") is None:
        return []
    loss, about = newest["loss"], "nats per token"
    if newest.get("loss_se") is not None:
        about += f", standard error {newest['loss_se']:.2g}"
    if "nelbo" not in newest:
        return [("held-out loss", number(loss), f"{about}; no bound")]
    perplexity = f"{math.exp(loss):.4g}" if loss < 100 else "∞"
    bits = number(loss / math.log(2))
    return [
        ("held-out NELBO", number(loss), about),
        ("perplexity", f"≲ {perplexity}", f"estimate of a bound: {bits} bits per token"),
    ]


# ----------------------------------------------------------------------------------------------------------------------
# The training


def losses(report: Report[configs.TokenTrainConfig]) -> Section:
    """The loss over the steps and against time."""
    lead = (
        "What the network minimises, in nats per token. Faint lines are single steps; dots are held-out rows with "
        "averaged weights."
    )
    newest = next(reversed(report.lines("eval")), None)
    if newest is not None:
        lead += f" {_BOUND if 'nelbo' in newest else _NO_BOUND}"
    end = report.config.curriculum_steps
    if end:
        lead += (
            f" Up to step {end:,} a curriculum trains on a part of the noise levels, γ from γ_min to γ_max, and the "
            "training loss is that part of the NELBO: it jumps where the curriculum ends. Held-out losses are over all "
            "noise levels throughout."
        )
    return Section("losses", "Loss", lead, charts(token_curves.losses(report.course)))


_BOUND = (
    "On held-out rows the loss estimates the NELBO, which bounds the negative log-likelihood of a token from above, "
    "from a few times and noises of each row."
)
_NO_BOUND = "It bounds no likelihood, so it is comparable only between runs of the same method."


def optimisation(report: Report[configs.TokenTrainConfig]) -> Section:
    """The gradient and the learning rate."""
    config = report.config.optimizer
    name = "Muon for the matrices of the blocks, AdamW for the rest" if config.kind == "muon" else "AdamW"
    lead = f"{name}; a gradient with a norm beyond {config.clip_norm:g} is scaled down to it."
    return Section("optimisation", "Optimisation", lead, charts(token_curves.optimisation(report.course)))


def provenance(report: Report[configs.TokenTrainConfig]) -> Section:
    """Text, tokenizer, parameters, versions, fingerprints, and settings other than the method's defaults."""
    tokens = {"tokenizer": "tokenizer"}
    return report_training.origin(report, "Text and tokens", {"tokenizer of": "name"}, tokens, same="text and tokens")


# ----------------------------------------------------------------------------------------------------------------------
# Its results


def samples(report: Report[configs.TokenTrainConfig]) -> Section | None:
    """The first texts of each set that was drawn."""
    return report_results.samples(report, _how)


def _how(report: Report[configs.TokenTrainConfig], one: SampleSet) -> str:
    """The sampler with which a set of texts was drawn, and its settings other than the defaults."""
    sampler = one.about["config"]["sampler"]
    made_by = configs.TOKEN_SAMPLERS[report.config.method].get(sampler["name"])
    default = {} if made_by is None else configs.to_dict(made_by())
    sampler = configs.used_in_record(report.config.method, sampler)
    default |= {"steps": sampler["steps"], "top_p": None}  # steps are told below, and top_p whenever it is set
    told = [f", {key} {value}" for key, value in sampler.items() if value != default.get(key)]
    return (
        f"{len(one.rows):,} texts from {of_step(report, one.about['step'])}: {sampler['name']}, "
        f"{sampler['steps']:,} steps{''.join(told)}."
    )
