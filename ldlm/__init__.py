"""Latent diffusion language models, trained jointly with their latent space, and token-level rivals of theirs.

Importing `ldlm` is cheap: torch and transformers are imported by the modules that need them. The exported models,
`ldlm.LDLM` and `ldlm.TokenDiffusion`, need them, and are imported when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldlm.baselines.exported import TokenDiffusion
    from ldlm.sampling.exported import LDLM

__all__ = ["LDLM", "TokenDiffusion", "__version__"]

__version__ = "0.2.0"

_MODELS = {"LDLM": "ldlm.sampling.exported", "TokenDiffusion": "ldlm.baselines.exported"}


def __getattr__(name: str) -> Any:
    if name in _MODELS:
        return getattr(import_module(_MODELS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
