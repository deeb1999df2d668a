"""How a model is trained: steps, optimiser, checkpoints, metrics and held-out figures."""
