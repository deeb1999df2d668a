"""The kinds of artefacts: the command that makes each, what messages call it, and the version of their record."""

from __future__ import annotations

MADE_BY = {
    "encoder": "ldlm pretrain-encoder",
    "features": "ldlm extract-features",
    "run": "ldlm train",
    "decoder": "ldlm finetune-decoder",
    "model": "ldlm export",
    "interpolation": "ldlm interpolate",
    "likelihood": "ldlm likelihood",
    "sweep": "ldlm sweep",
    "frontier": "ldlm sweep --run RUN RUN",
    "trace": "ldlm sample --trace",
    "comparison": "ldlm interpolate",
    "quickstart": "ldlm quickstart",
}

SCHEMA = 2  # of artifact.json; in 1, `detokenizer: lm1b` stood for today's `lm1b-clean`

NAMED_BY = {"decoder": "--name", "trace": "--trace"}  # the option for the output, if it is not --output


def article(kind: str) -> str:
    """The name of a kind, as it appears in a sentence."""
    noun = {"features": "a feature store", "run": "a training run", "decoder": "a token decoder"}.get(kind, kind)
    return noun if noun.startswith("a ") else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
