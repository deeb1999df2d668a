"""Text → a feature store of hidden states → batches for training. No trained network is known here."""
