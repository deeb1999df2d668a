"""The `ldlm` command: parse, build a configuration, call one stage, show the result. Nothing here computes.

Importing this imports no torch, so `ldlm --help` is instant; a command imports its stage when it runs.
"""

from ldlm.cli.main import main

__all__ = ["main"]
