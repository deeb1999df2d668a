"""Probability as colour: a scale of lightness on which letters can be read."""

import numpy as np
import pytest

from ldlm.pages import colours
from ldlm.pages.colours import DARK, LEVELS, LIGHT


@pytest.mark.parametrize("scale", [LIGHT, DARK], ids=["light", "dark"])
def test_the_scale_is_one_of_lightness_and_letters_can_be_read_on_it(scale):
    backgrounds = [scale.background(level) for level in range(LEVELS)]
    steps = np.diff([colours.luminance(colour) for colour in backgrounds])
    assert (steps > 0).all() or (steps < 0).all()
    assert backgrounds[-1] == scale.paper
    assert min(colours.contrast(scale.on(level), scale.background(level)) for level in range(LEVELS)) >= 4.5


def test_levels_and_contrast_have_their_known_values():
    assert [colours.level(p) for p in (0, 0.25, 1)] == [0, (LEVELS - 1) // 2, LEVELS - 1]
    assert colours.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert colours.contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.005)  # WCAG's #777
