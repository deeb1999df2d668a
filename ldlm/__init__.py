"""Latent diffusion language models, trained jointly with their latent space.

Importing `ldlm` is cheap: torch and transformers are imported by the modules that need them. `ldlm.LDLM`, an exported
model, is one that needs them, and is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldlm.sampling.exported import LDLM

__all__ = ["LDLM", "__version__"]

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name == "LDLM":
        from ldlm.sampling.exported import LDLM

        return LDLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
