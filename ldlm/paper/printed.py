"""The quantities of the paper's tables and figures: their names, and their figures as printed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ldlm.errors import InputError


@dataclass(frozen=True)
class Quantity:
    """A quantity of a table: its heading, and the factor and decimals with which the paper shows it."""

    heading: str
    factor: float = 1.0
    decimals: int = 1
    single: bool = False  # measured once: without a seed, or a time
    ratio: bool = False  # positive, and compared by quotients
    entropy: str | None = None  # of a perplexity: the quantity that is the entropy of its texts


QUANTITIES = {
    "gen_ppl": Quantity("Gen. PPL", ratio=True, entropy="entropy"),
    "mauve": Quantity("Mauve", factor=100),
    "diversity": Quantity("Div", factor=100),
    "entropy": Quantity("Ent.", decimals=2),
    "train_days": Quantity("Train (d)", decimals=2, single=True),
    "sample_seconds": Quantity("Sample (s)", single=True),
    "middle_ppl": Quantity("Gen. PPL half way between two latents", ratio=True, entropy="middle_entropy"),
    "middle_entropy": Quantity("Ent. there", decimals=2),
    "mean_ppl": Quantity("Gen. PPL of the mean of two latents", ratio=True, entropy="mean_entropy"),
    "mean_entropy": Quantity("Ent. of the mean", decimals=2),
    "early_l_diff": Quantity("L_diff early in training", decimals=3),
    "l_diff": Quantity("L_diff", decimals=3),
    "l_h": Quantity("L_h", decimals=3),
    "l_w": Quantity("L_w", decimals=3),
    "token_accuracy": Quantity("tokens rebuilt, %", factor=100),
    "latent_std": Quantity("latent std", decimals=3),
    "bend": Quantity("bend of the loss over time", decimals=3),
    "gamma_half": Quantity("γ(S_wu/2)", decimals=3, single=True),
    "gamma_at_c": Quantity("γ(c·S_wu)", decimals=3, single=True),
    "gamma_end": Quantity("γ(S_wu)", decimals=3, single=True),
}


@dataclass(frozen=True)
class Printed:
    """A figure as the paper prints it, `98.5 ± 1.9`, in the paper's units: MAUVE and diversity in per cent."""

    text: str
    mean: float

    @classmethod
    def parse(cls, value: object, where: str) -> Printed:
        """From a number or text in YAML; `InputError`, naming the place, for anything else."""
        text = str(value).strip()
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(?: ± \d+(?:\.\d+)?)?", text)
        if found is None or isinstance(value, bool):
            raise InputError(f"{where} is a figure like 98.5 ± 1.9, not {value!r}")
        return cls(text, float(found[1]))


def quantity(name: object, where: str) -> str:
    """The name of a known quantity; `InputError`, naming the place, for any other."""
    if name not in QUANTITIES:
        raise InputError(f"{where}: there is no quantity {name!r}; known are {', '.join(QUANTITIES)}")
    return str(name)


def shown(name: str, value: float) -> str:
    """One of our values as the paper would print it."""
    one = QUANTITIES[name]
    return f"{value * one.factor:,.{one.decimals}f}"
