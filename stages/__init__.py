"""The stages: one module each, with a function `run(config, inputs, out)`. They meet only through artefacts."""
