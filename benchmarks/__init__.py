"""Figures that the documentation claims, measured: `python -m benchmarks`."""
