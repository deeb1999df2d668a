"""Made-up frames of a trace, for the tests of the page and of the film."""

import numpy as np

from ldlm.sampling.frames import Cell, Frame


def frame(words, t=0.5, probabilities=None, token=0):
    """A made-up frame, a token per word."""
    cells = [Cell(word, i, i + 1, word.startswith("[")) for i, word in enumerate(words)]
    p = probabilities or list(np.linspace(0, 1, len(words)))
    return Frame(t, 0.1, list(range(token, token + len(words))), p, "".join(words), cells)


def long_frames(count=24, tokens=1024):
    """A film of a text as long as the paper's, in which everything changes all the time."""
    draw = np.random.default_rng(0)
    words = [" the", "ing", " of", "at", " latent", "s", ",", " 1847", "er", " and", "\n"]
    return [
        frame(list(draw.choice(words, tokens)), 1 - i / count, draw.random(tokens).tolist(), token=i)
        for i in range(count)
    ]
