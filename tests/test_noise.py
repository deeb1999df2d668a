"""The counter-based generator: the published Philox vectors, independence of the batch, and the distributions."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from ldlm import noise

# Random123, kat_vectors: philox4x32, 10 rounds: (counter, key, result)
KNOWN_ANSWERS = {
    "zeros": (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    "ones": (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    "digits of pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


def words(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 in Python's unbounded integers, from the paper."""
    mask = 2**32 - 1
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * counter[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = (high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0)
        key = ((key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask)
    return counter


def address(seed: int, purpose: str, step: int, row: int, element: int) -> tuple[int, ...]:
    """The four words at an address, as the module documents it."""
    return words((element, row, step, zlib.crc32(purpose.encode())), (seed % 2**32, seed >> 32))


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_philox_gives_the_published_vectors(name):
    counter, key, expected = KNOWN_ANSWERS[name]
    result = noise.philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in result) == expected
    assert words(counter, key) == expected  # so that the reference below may be trusted too


def test_uniform_reads_the_words_at_its_address_with_64_bit_seeds():
    seed, step, rows = 2**40 + 5, 7, [3, 9]
    got = noise.uniform(seed, "t", step, torch.tensor(rows), (6,))
    for place, row in enumerate(rows):
        pair = [address(seed, "t", step, row, element) for element in range(2)]
        expected = [(pair[i % 2][i // 2] + 0.5) / 2**32 for i in range(6)]
        assert got[place].tolist() == expected


def test_normal_is_box_muller_of_the_words_at_its_address():
    got = noise.normal(11, "eps", 2, torch.tensor([5]), (2, 2))[0].flatten().tolist()
    u = [((word >> 8) + 0.5) / 2**24 for word in address(11, "eps", 2, 5, 0)]
    expected = []
    for a, b in ((u[0], u[1]), (u[2], u[3])):
        radius = math.sqrt(-2 * math.log(a))
        expected += [radius * math.cos(2 * math.pi * b), radius * math.sin(2 * math.pi * b)]
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_noise_of_a_row_does_not_depend_on_the_other_rows_or_their_order():
    rows = torch.arange(10)
    chosen = torch.tensor([7, 2, 9])
    for draw in (noise.normal, noise.uniform):
        everything = draw(0, "eps", 3, rows, (5, 3))
        assert torch.equal(draw(0, "eps", 3, chosen, (5, 3)), everything[chosen])
        assert torch.equal(draw(0, "eps", 3, rows.flip(0), (5, 3)).flip(0), everything)
        assert len(everything.flatten(1).unique(dim=0)) == 10


@pytest.mark.parametrize(
    "other",
    [(1, "eps", 3), (2**32, "eps", 3), (0, "eps_dec", 3), (0, "eps", 4)],
    ids=["seed", "high", "purpose", "step"],
)
def test_another_seed_purpose_or_step_gives_unrelated_noise(other):
    rows, size = torch.arange(4), 4_000
    a = noise.normal(0, "eps", 3, rows, (size,)).flatten().double()
    b = noise.normal(*other, rows, (size,)).flatten().double()
    assert abs((a * b).mean()) < 4 / math.sqrt(len(a))


def test_rows_and_elements_are_uncorrelated():
    x = noise.normal(0, "eps", 0, torch.arange(8), (4_000,)).double()
    assert (x @ x.T / 4_000 - torch.eye(8)).abs().max() < 5 / math.sqrt(4_000)
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 4 / math.sqrt(x.numel())


def test_one_seed_per_row_equals_each_seed_alone():
    seeds = torch.tensor([4, 2**33 + 1, 0])
    together = noise.normal(seeds, "z_1", 0, torch.zeros(3, dtype=torch.int64), (7,))
    for place, seed in enumerate(seeds.tolist()):
        alone = noise.normal(seed, "z_1", 0, torch.zeros(1, dtype=torch.int64), (7,))
        assert torch.equal(together[place : place + 1], alone)


def test_normal_noise_has_the_moments_and_the_distribution_of_a_standard_normal():
    x = noise.normal(0, "eps", 0, torch.arange(10), (20_000,))
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    x = x.double().flatten().numpy()
    n = len(x)
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / n)
    gap = np.abs(ndtr(np.sort(x)) - (np.arange(n) + 0.5) / n).max()  # Kolmogorov–Smirnov
    assert gap < 1.95 / math.sqrt(n)


def test_uniform_noise_is_even_and_never_reaches_0_or_1():
    u = noise.uniform(0, "t", 0, torch.arange(50_000))
    assert u.dtype == torch.float64
    assert u.shape == (50_000,)
    # Midpoints of 2^32 equal cells: nothing else can come out, so neither end can.
    cell = u * 2**32 - 0.5
    assert torch.equal(cell, cell.round())
    assert cell.min() >= 0
    assert cell.max() <= 2**32 - 1
    gap = np.abs(np.sort(u.numpy()) - (np.arange(50_000) + 0.5) / 50_000).max()
    assert gap < 1.95 / math.sqrt(50_000)


def test_the_coin_is_a_function_of_seed_and_step_with_the_right_share():
    def throws(seed, p):
        return [noise.coin(seed, "self_condition", step, p) for step in range(600)]

    first = throws(0, 0.3)
    torch.manual_seed(1)
    assert throws(0, 0.3) == first
    assert abs(sum(first) / 600 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 600)
    agree = sum(a == b for a, b in zip(first, throws(1, 0.3), strict=True)) / 600
    assert abs(agree - 0.58) < 0.08  # 0.3² + 0.7²
    assert not any(throws(0, 0.0))
    assert all(throws(0, 1.0))


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [7, torch.tensor([2**40 + 3, 5])], ids=["one", "of each row"])
def test_the_words_of_a_gpu_are_those_of_the_cpu_to_the_bit(seed):
    """A uniform number is a word of 32 bits; the normal ones made from them are compared in test_compute.py."""
    rows, shape = torch.tensor([0, 2**33]), (300, 999)
    of_rows = seed if isinstance(seed, int) else seed.cuda()
    found = noise.uniform(of_rows, "eps", 3, rows.cuda(), shape)
    assert found.cpu().equal(noise.uniform(seed, "eps", 3, rows, shape))


def test_kept_elements_have_their_share_and_depend_on_nothing_but_their_address():
    kept = noise.kept(0, "dropout", 3, torch.arange(50), (3, 401), 0.9)
    assert kept.dtype == torch.bool
    assert kept.shape == (50, 3, 401)
    n = kept.numel()
    assert kept.double().mean().item() == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / n))
    # Neighbours, which come from one counter, are independent.
    flat = kept.flatten(1).double()
    both = (flat[:, 1:] * flat[:, :-1]).mean().item()
    assert both == pytest.approx(0.81, abs=5 * math.sqrt(0.81 * 0.19 / n))
    again = noise.kept(0, "dropout", torch.tensor([3]), torch.tensor([9, 2]), (3, 401), 0.9)
    assert torch.equal(again, kept[[9, 2]])
    assert not torch.equal(noise.kept(0, "dropout", 4, torch.arange(50), (3, 401), 0.9), kept)
    assert noise.kept(0, "dropout", 3, torch.arange(9), (8,), 1.0).all()
    assert not noise.kept(0, "dropout", 3, torch.arange(9), (8,), 0.0).any()


def test_fine_uniform_numbers_have_52_bits():
    # Those in steps of 2^−32 would be halves after a multiplication by 2^32.
    u = noise.uniform_fine(0, "test", 0, torch.arange(2**16), (4,)).flatten()
    assert u.min() > 0 and u.max() < 1
    assert len(u.unique()) == len(u)
    low = (u * 2.0**32) % 1
    assert low.mean().item() == pytest.approx(0.5, abs=4 / (12 * len(u)) ** 0.5)
    assert low.square().mean().item() == pytest.approx(1 / 3, abs=0.003)
    assert ((u * 2.0**52) % 1 == 0.5).all()


def test_fine_uniform_numbers_do_not_depend_on_the_batch():
    seeds, rows = torch.tensor([5, 2**40 + 1, 7]), torch.tensor([0, 3, 2])
    together = noise.uniform_fine(seeds, "test", 4, rows, (2, 3))
    alone = [noise.uniform_fine(seeds[i : i + 1], "test", 4, rows[i : i + 1], (2, 3)) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    assert len(together.unique()) == together.numel()
