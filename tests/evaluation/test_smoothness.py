"""Paths between latents against their closed forms, and edit distance against the textbook's recursion."""

from functools import cache

import numpy as np
import pytest
import torch

from ldlm.errors import InputError
from ldlm.evaluation.smoothness import (
    HALF,
    PATHS,
    draw_pairs,
    edit_distance,
    edits_along,
    linear,
    path_points,
    points,
    spherical,
)  # fmt: skip


@pytest.fixture
def ends():
    """Latents (B, N, C) whose vectors differ in norm and direction."""
    generator = torch.Generator().manual_seed(0)
    z_A, z_B = (torch.randn(3, 5, 7, generator=generator) * scale for scale in (1.0, 4.0))
    return z_A, z_B


@pytest.mark.parametrize("path", PATHS)
def test_the_ends_of_a_path_are_the_latents_to_the_bit(ends, path):
    z_A, z_B = ends
    assert PATHS[path](z_A, z_B, 0.0).equal(z_A)
    assert PATHS[path](z_A, z_B, 1.0).equal(z_B)
    assert PATHS[path](z_A, z_B, 0.5).dtype == torch.float32


def test_a_right_angle_is_turned_as_sine_and_cosine_say():
    x, y = torch.tensor([[[1.0, 0, 0]]]), torch.tensor([[[0, 1.0, 0]]])
    for a in (0.1, 0.5, 0.75):
        expected = torch.tensor([[[np.cos(a * np.pi / 2), np.sin(a * np.pi / 2), 0]]], dtype=torch.float32)
        torch.testing.assert_close(spherical(x, y, a), expected)


@pytest.mark.parametrize("a", [0.2, 0.5, 0.9])
def test_every_vector_has_its_share_of_the_angle_and_of_the_difference_in_norm(ends, a):
    z_A, z_B = (z.double() for z in ends)
    z = spherical(z_A, z_B, a)

    def angle(one, other):
        return torch.acos((one * other).sum(-1) / one.norm(dim=-1) / other.norm(dim=-1))

    torch.testing.assert_close(z.norm(dim=-1), (1 - a) * z_A.norm(dim=-1) + a * z_B.norm(dim=-1))
    torch.testing.assert_close(angle(z_A, z), a * angle(z_A, z_B))
    torch.testing.assert_close(angle(z, z_B), (1 - a) * angle(z_A, z_B))
    assert (linear(z_A, z_B, a).norm(dim=-1) < z.norm(dim=-1)).all()


def test_parallel_latents_have_one_path(ends):
    z_A, z_B = ends
    for a in (0.25, 0.5):
        torch.testing.assert_close(spherical(z_A, 2.5 * z_A, a), linear(z_A, 2.5 * z_A, a))
        close = z_A + 1e-4 * z_B
        torch.testing.assert_close(spherical(z_A, close, a), linear(z_A, close, a), rtol=0, atol=1e-5)
        assert not torch.allclose(spherical(z_A, z_B, a), linear(z_A, z_B, a), rtol=0, atol=0.1)


def test_where_there_is_no_plane_to_turn_in_the_way_is_straight(ends):
    z_A, _ = ends
    for z_B in (-z_A, -3 * z_A, torch.zeros_like(z_A)):
        torch.testing.assert_close(spherical(z_A, z_B, 0.25), linear(z_A, z_B, 0.25))


def by_recursion(one, other):
    """Levenshtein's distance as it is defined."""

    @cache
    def distance(i, j):
        if not i or not j:
            return i + j
        substituted = distance(i - 1, j - 1) + (one[i - 1] != other[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, substituted)

    return distance(len(one), len(other))


@pytest.mark.parametrize("lengths", [(1, 1), (7, 7), (9, 4), (3, 8)])
def test_edit_distance_is_that_of_the_recursion(lengths):
    draw = np.random.default_rng(1)
    one, other = (draw.integers(0, 3, (40, length)) for length in lengths)
    expected = [by_recursion(tuple(a), tuple(b)) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    assert edit_distance(one, other).tolist() == expected
    assert len(set(expected)) > 1


def test_edit_distance_of_known_words():
    def distance(one, other):
        return edit_distance(*(np.array([[ord(letter) for letter in word]]) for word in (one, other))).item()

    assert distance("kitten", "sitting") == 3
    assert distance("abcdef", "bcdefa") == 2  # a shift costs two edits, not six
    assert distance("abc", "abc") == 0


def test_pairs_take_no_row_twice_and_are_a_function_of_the_seed():
    pairs = draw_pairs(11, 5, seed=3)
    assert pairs.shape == (2, 5)
    assert len(set(pairs.ravel().tolist())) == 10
    assert (pairs == draw_pairs(11, 5, seed=3)).all()
    assert (pairs != draw_pairs(11, 5, seed=4)).any()
    with pytest.raises(InputError, match="use at most 5"):
        draw_pairs(11, 6, seed=3)


def test_points_of_a_path_have_the_edits_from_the_point_before(scores):
    assert points(5) == [0, 0.25, HALF, 0.75, 1]
    rows_PBL = np.array([[[1, 2, 3], [1, 2, 3]], [[1, 2, 4], [7, 8, 9]], [[1, 2, 4], [7, 8, 9]]])
    edits_PB = edits_along(rows_PBL)
    assert edits_PB.tolist() == [[0, 0], [1, 3], [0, 0]]
    first, second, third = path_points(points(3), [scores] * 3, edits_PB)
    assert (first.edits, second.edits, third.edits) == (None, 2.0, 0.0)
    assert (first.edits_interval, second.edits_interval, third.edits_interval) == (None, [1.0, 3.0], [0.0, 0.0])
    assert "edits" not in first.to_json()["intervals"]
    assert second.to_json()["intervals"] == {**scores.intervals, "edits": [1.0, 3.0]}


def test_a_single_pair_has_no_intervals(scores):
    _, second = path_points(points(2), [scores] * 2, np.array([[0], [2]]))
    assert (second.edits, second.edits_interval) == (2.0, None)
    assert "edits" not in second.to_json()["intervals"]
