"""The `ldlm` command: parse options, build a configuration, call one stage, show the result.

Importing this imports no torch, so `ldlm --help` is instant; a command imports its stage when it runs.
"""

from ldlm.cli.main import main

__all__ = ["main"]
