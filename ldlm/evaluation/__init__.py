"""How good texts and latents are: perplexity, entropy, diversity, MAUVE, smoothness."""
