"""Storage codecs: what comes back, what it costs, and what is refused."""

import numpy as np
import pytest
import torch

from ldlm.errors import InputError
from ldlm.features.codecs import CODECS, Error, decode, encode


@pytest.fixture
def states():
    """States of unit spread with an outlier channel and a token of zeros."""
    h = np.random.default_rng(0).standard_normal((6, 5, 48)).astype(np.float32)
    h[..., 7] *= 30
    h[2, 3] = 0
    return h


# Half a unit in the last place of the mantissa: 10 bits, 7 bits, 23 bits.
@pytest.mark.parametrize(("name", "ulp"), [("fp16", 2.0**-11), ("bf16", 2.0**-8), ("fp32", 0.0)])
def test_a_float_codec_rounds_to_its_mantissa(states, name, ulp):
    back = decode(encode(states, CODECS[name]), CODECS[name])
    assert back.dtype == np.float32
    assert (np.abs(back - states) <= ulp * np.abs(states) + 1e-7).all()
    assert name == "fp32" or not np.array_equal(back, states)


def test_fp16_is_numpys_float16():
    """Every number that it has, every middle between two of them, and what lies close to that."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1] + halves[1:]) / 2
    close = [np.nextafter(middles, np.float32(towards)) for towards in (0, 1e5)]
    values = np.concatenate([halves, middles, *close])
    values = np.concatenate([values, -values])[:, None, None]
    stored = encode(values, CODECS["fp16"])["hidden"]
    assert np.array_equal(stored.view(np.uint16), values.astype(np.float16).view(np.uint16))
    assert np.array_equal(decode({"hidden": stored}, CODECS["fp16"]), stored.astype(np.float32))


def test_bf16_is_torchs_bfloat16(states):
    back = decode(encode(states, CODECS["bf16"]), CODECS["bf16"])
    assert np.array_equal(back, torch.from_numpy(states).to(torch.bfloat16).float().numpy())


def test_the_bf16_recipe_reads_the_stored_bits_without_torch(states):
    stored = encode(states, CODECS["bf16"])["hidden"]
    by_recipe = (stored.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(by_recipe, decode({"hidden": stored}, CODECS["bf16"]))


def test_int8_is_off_by_half_a_step_of_the_tokens_own_scale_and_clips_nothing(states):
    codec = CODECS["int8-token"]
    parts = encode(states, codec)
    assert parts["hidden"].dtype == np.int8
    assert parts["scale"].shape == states.shape[:2]
    step = np.abs(states).max(axis=-1, keepdims=True) / 127
    assert (np.abs(decode(parts, codec) - states) <= step / 2 * (1 + 1e-5)).all()
    largest = np.abs(states).argmax(axis=-1)
    np.testing.assert_allclose(
        np.take_along_axis(decode(parts, codec), largest[..., None], -1),
        np.take_along_axis(states, largest[..., None], -1),
        rtol=1e-6,
    )
    assert np.array_equal(decode(parts, codec), parts["hidden"] * parts["scale"][..., None])  # the recipe, in numpy


def test_the_error_is_the_root_mean_square_of_what_is_lost_and_merges(states):
    codec = CODECS["int8-token"]
    whole = Error.of(states, encode(states, codec), codec)
    wrong = decode(encode(states, codec), codec).astype(np.float64) - states
    assert whole.relative_rms == pytest.approx(np.sqrt((wrong**2).sum() / (states.astype(np.float64) ** 2).sum()))
    per_channel = np.sqrt((wrong**2).sum((0, 1)) / (states.astype(np.float64) ** 2).sum((0, 1)))
    assert whole.worst_channel == pytest.approx(per_channel.max())
    parts = [Error.of(h, encode(h, codec), codec) for h in (states[:2], states[2:])]
    assert parts[0].merge(parts[1]).worst_channel == pytest.approx(whole.worst_channel)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_what_is_not_finite_is_never_stored(states, codec, bad):
    states[1, 1, 1] = bad
    with pytest.raises(InputError, match="not finite"):
        encode(states, codec)
