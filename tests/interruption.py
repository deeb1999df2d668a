"""Ctrl-C at a certain piece of the text, for tests of packing that goes on."""

from ldlm.features import pieces


def at_piece(monkeypatch, number):
    """Interrupt the process when it reads the `number`-th piece, from 1 on; returns the list of those that it reads."""
    seen, real = [], pieces.documents

    def reading(config, piece):
        seen.append(piece)
        if len(seen) == number:
            raise KeyboardInterrupt
        return real(config, piece)

    monkeypatch.setattr(pieces, "documents", reading)
    return seen
