"""The film of a trace: its frames, their colours, and where the pieces of a text stand."""

from itertools import pairwise

from made_frames import frame, long_frames
from PIL import Image

from ldlm.pages import colours
from ldlm.pages import film as gif
from ldlm.pages.colours import LIGHT


def test_the_film_has_the_frames_and_their_colours(traced):
    folder, written = traced
    with Image.open(folder / "trace.gif") as film:
        assert film.n_frames == 5
        assert film.info["loop"] == 0
        durations = []
        for number, shown in enumerate(written["frames"]):
            film.seek(number)
            durations.append(film.info["duration"])
            found = {colour for _, colour in film.convert("RGB").getcolors(1 << 16)}
            wanted = {LIGHT.background(colours.level(p)) for p in shown["probabilities"]}
            assert wanted <= found
        assert durations == [gif.SHORTEST] * 4 + [gif.REST]


def test_the_film_of_a_long_text_is_small_and_shows_its_beginning(tmp_path):
    gif.write(tmp_path / "long.gif", long_frames(6))
    with Image.open(tmp_path / "long.gif") as film:
        assert film.n_frames == 6
        assert film.size == (gif.WIDTH, gif.TOP + gif.MOST_LINES * gif.LINE + gif.BOTTOM)
    assert (tmp_path / "long.gif").stat().st_size < 1e6 * 6 / 24


def test_pieces_stay_within_the_lines_and_say_everything():
    words = ["a", " b", "w" * 300, "\n", "[special]", " c"] * 4
    shown = frame(words)
    pieces = list(gif._layout(shown, shown.changes(None)))
    assert max(piece.x + piece.width for piece in pieces) <= gif.WIDTH - 2 * gif.MARGIN
    said = "".join(piece.text for piece in pieces).replace(" ", "")
    assert said == "".join(words).replace("\n", "↵").replace(" ", "")
    for a, b in pairwise(pieces):
        assert (b.line, b.x) >= (a.line, a.x + a.width) or b.line > a.line


def test_a_space_that_ends_a_line_and_letters_without_a_width_are_drawn(tmp_path):
    font, room = gif._font(gif.TEXT), gif.WIDTH - 2 * gif.MARGIN
    full = "w" * int(room // font.getlength("w"))
    full += "i" * int((room - font.getlength(full)) // font.getlength("i"))
    first, then = frame(["a", " ", "b", "c"]), frame([full, " ", "\u200b", "b"])
    gif.write(tmp_path / "film.gif", [first, then])
    assert "".join(piece.text for piece in gif._layout(then, then.changes(first))).endswith("b")
