"""Evaluation of texts and latents: perplexity, entropy, diversity, MAUVE, smoothness, the frontier of a sweep."""
