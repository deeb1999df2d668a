"""`python -m ldlm.cli`, for launchers such as torchrun that take a module."""

from ldlm.cli import main

main(prog_name="ldlm")
