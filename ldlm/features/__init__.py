"""From text to a feature store of hidden states, and from the store to batches."""
