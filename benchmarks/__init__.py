"""Measures the figures that the documentation claims: `python -m benchmarks`."""
