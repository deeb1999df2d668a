"""The model card of an exported model: the README.md that the Hugging Face hub shows, made only from `config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ldlm import config as configs
from ldlm.sampling.description import ModelDescription

PAPER = "How to Train Your Latent Diffusion Language Model Jointly With the Latent Space"

HEAD = """\
---
library_name: ldlm
pipeline_tag: text-generation
tags:
{tags}
---
"""

USE = """\
```python
from ldlm import {name}

model = {name}.from_pretrained(".")  # this folder, or the id of the model on the hub
for text in model.sample(8, seed=0):
    print(text)
```

`ldlm sample --run . --num-samples 8` prints texts; with `--output samples.jsonl` it writes them to a file, with their
tokens and seeds. A text depends on its seed, not on the number of texts or the batch.
"""

CONTINUE_ALONE = """
It also continues texts: `model.sample(8, prompt="The sea was calm")`, or `ldlm sample --prompt`. The frozen text
encoder, which reads the prompt, is in `encoder/`.
"""

CONTINUE = """
It also continues texts: `model.sample(8, prompt="The sea was calm", encoder=ENCODER)`, or `ldlm sample --prompt`.
ENCODER is the folder or hub name of the frozen text encoder that is named below and is not in this folder; other
weights are refused.
"""

LICENCE = """\
No licence has been declared for these weights. Whoever publishes them declares one, as `license:` at the top of this
card, subject to the terms of the training text and of the text encoder. The toolkit itself, `ldlm`, is under the
Apache License 2.0.
"""

FIGURES = """\
`l_diff` is the denoising loss, and `l_diff_mean` that of predicting the mean latent. Under the noise of training, `l_h`
and `l_w` are the losses of the hidden states and of the tokens, and `token_accuracy` is the share of tokens that are
rebuilt; `_clean` is without noise.
"""


DISTILLED = """\
It was distilled to draw in {steps} evaluations with {solver} on the grid {grid}, and has learned no other way to draw:
more steps or another solver do not make better texts.
"""


NO_FIGURES = "None were measured before this checkpoint."


def text(config: ModelDescription) -> str:
    """The model card, Markdown with YAML front matter."""
    length, (number, width) = config.shapes.seq_len, config.latent_shape
    intro = (
        f"It draws texts of {length:,} tokens: a diffusion transformer denoises {number:,} latents of width {width:,}, "
        f"and a decoder turns them into tokens in one pass. It was trained with `ldlm` after *{PAPER}*."
    )
    sections = {
        "Use": USE.format(name="LDLM") + _continuing(config),
        "What is in it": f"{table(_contents(config))}\n\n{_absent(config)}",
        "Where it comes from": table(_provenance(config)),
        "Held-out figures": _figures(config.provenance),
        "How it draws unless told otherwise": _drawing(config),
        "Licence": LICENCE,
    }
    title = f"Latent diffusion language model, {length:,} tokens"
    return page(("diffusion", "latent-diffusion"), title, intro, sections)


def page(tags: Sequence[str], title: str, intro: str, sections: Mapping[str, str]) -> str:
    """A model card with these tags for the hub and these sections by heading."""
    head = HEAD.format(tags="\n".join(f"- {tag}" for tag in tags))
    body = "\n\n".join(f"## {heading}\n\n{section.strip()}" for heading, section in sections.items())
    return f"{head}\n# {title}\n\n{intro}\n\n{body}\n"


def _continuing(config: ModelDescription) -> str:
    if config.model.condition != "prefix":
        return ""
    return CONTINUE if config.encoder_parameters is None else CONTINUE_ALONE


def _absent(config: ModelDescription) -> str:
    if config.encoder_parameters is not None:
        return "The latent encoder and the state of the optimiser are not in it: drawing texts needs neither of them."
    return (
        "The text encoder, the latent encoder and the state of the optimiser are not in it: drawing texts needs none "
        "of them."
    )


def _drawing(config: ModelDescription) -> str:
    made, student = table(configs.to_dict(config.sampler)), config.student
    if student is None:
        return made
    return f"{made}\n\n{DISTILLED.format(steps=student.steps, solver=student.solver, grid=student.grid)}"


def _contents(config: ModelDescription) -> dict[str, Any]:
    networks = config.networks()
    sizes = {name: f"{sum(p.numel() for p in network.parameters()):,} parameters" for name, network in networks.items()}
    own = config.encoder_parameters
    return {
        "denoiser": sizes["denoiser"],
        **{f"decoder `{name}`": sizes[f"decoders/{name}"] for name in config.decoders},
        "decoder by default": f"`{next(iter(config.decoders))}`",
        "weights are stored in": config.precision,
        **({} if own is None else {"text encoder, in `encoder/`": f"{own:,} parameters"}),
        **boundaries(config.provenance),
        "vocabulary": f"{config.shapes.vocab_size:,} tokens",
    }


def boundaries(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The row of boundary tokens; no row if the export has no record of them."""
    tokens = provenance.get("boundaries", {"tokens": []})["tokens"]
    return {"rows and documents begin and end with": ", ".join(f"`{token}`" for token in tokens)} if tokens else {}


def _provenance(config: ModelDescription) -> dict[str, Any]:
    provenance, settings = config.provenance, config.provenance["settings"]
    encoder, recipe = provenance["encoder"], settings["recipe"]
    trained = cast(configs.TrainConfig, configs.stored_training(settings))
    noise = configs.decoder_noise(trained.model.space, trained.recipe)
    return {
        "paper": PAPER,
        "training": f"{provenance['step']:,} steps of {settings['batch_size']:,} rows, seed {settings['seed']}",
        "recipe": f"space {config.model.space}, reconstruction {recipe['reconstruction']}, "
        f"warm-up {recipe['warmup_steps']:,} steps, decoder noise {noise}, "
        f"timesteps {settings['timesteps']['kind']}, schedule {config.schedule.kind}",
        "frozen text encoder": f"{source(encoder)}, kind {encoder['kind']}, layer {encoder['layer']}",
        "its weights": f"fingerprint `{encoder['fingerprint']}`",
        **origin(provenance),
    }


def origin(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Rows on the training data, the checkpoint and the versions."""
    features = provenance["features"]
    return {
        "training rows": _rows(features["rows"]),
        "training text": f"fingerprint `{features['text']}`",
        "features": f"fingerprint `{features['store']}`",
        "checkpoint": f"digest `{provenance['checkpoint']}`",
        "trained with": _versions(provenance["versions"]["training"]),
        "exported with": _versions(provenance["versions"]["export"]),
    }


def source(encoder: Mapping[str, Any]) -> str:
    """The encoder's name, with its commit if it is from the hub and the features record one."""
    commit = encoder.get("revision")
    return f"{encoder['name']} at commit `{commit}`" if commit else str(encoder["name"])


def _rows(rows: Mapping[str, int] | None) -> str:
    return "not recorded" if rows is None else ", ".join(f"{count:,} {split}" for split, count in rows.items())


def _versions(versions: Mapping[str, str | None] | None) -> str:
    if versions is None:
        return "not recorded: the run is not finished"
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)


def _figures(provenance: Mapping[str, Any]) -> str:
    held_out, decoders = provenance["held_out"], provenance["decoders"]
    if not held_out and not decoders:
        return NO_FIGURES
    fine_tuned = {f"{name}: {key}": value for name, figures in decoders.items() for key, value in figures.items()}
    return f"{table({**held_out, **fine_tuned})}\n\n{FIGURES}"


def table(values: Mapping[str, Any]) -> str:
    """Values by name as a table in Markdown."""
    rows = [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")
