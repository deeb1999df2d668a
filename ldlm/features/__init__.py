"""Text → a feature store of hidden states → batches for training. Nothing here knows the networks to be trained."""
