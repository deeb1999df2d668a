"""Latent diffusion language models, trained jointly with their latent space.

Importing `ldlm` is cheap: torch and transformers are imported by the modules that need them.
"""

__version__ = "0.1.0"
