"""Storage codecs: what comes back, what it costs, and what is refused."""

import numpy as np
import pytest
import torch

from ldlm.errors import InputError
from ldlm.features import codecs
from ldlm.features.codecs import CODECS
from ldlm.features.encoder import Statistics

STORED = [name for name, codec in CODECS.items() if codec.dtypes]


def encode(h, codec):
    """The arrays to store, of states as numpy has them."""
    return codecs.encode(torch.from_numpy(h), codec)[0]()


def decode(parts, codec):
    """The states, from the arrays that are stored."""
    return codec.decode({name: torch.from_numpy(array) for name, array in parts.items()}).numpy()


def error_of(h, codec):
    """The error of the stored states."""
    return codecs.encode(torch.from_numpy(h), codec)[1]


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
    whole = error_of(states, codec)
    wrong = decode(encode(states, codec), codec).astype(np.float64) - states
    assert whole.relative_rms == pytest.approx(np.sqrt((wrong**2).sum() / (states.astype(np.float64) ** 2).sum()))
    per_channel = np.sqrt((wrong**2).sum((0, 1)) / (states.astype(np.float64) ** 2).sum((0, 1)))
    assert whole.worst_channel == pytest.approx(per_channel.max())
    parts = [error_of(h, codec) for h in (states[:2], states[2:])]
    assert parts[0].merge(parts[1]).worst_channel == pytest.approx(whole.worst_channel)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", STORED)
def test_what_is_not_finite_is_never_stored(states, name, bad):
    states[1, 1, 1] = bad
    with pytest.raises(InputError, match="not finite"):
        encode(states, CODECS[name])


# ----------------------------------------------------------------------------------------------------------------------
# The bytes of the first version, which encoded in numpy


def in_numpy(h, name):
    """What each codec stores of states, computed in numpy alone."""
    if name == "int8-token":
        scale = np.abs(h).max(axis=-1, keepdims=True) / 127
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        return {"hidden": np.rint(h / scale).astype(np.int8), "scale": scale[..., 0]}
    if name == "bf16":  # to the nearest, and of two as near to the one whose last bit is zero
        bits = h.view(np.uint32).astype(np.uint64)
        return {"hidden": ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)}
    return {"hidden": h.astype({"fp16": np.float16, "fp32": np.float32}[name])}


def error_in_numpy(h, back):
    """Sums of squares per channel of the states and of the error: in float32 over tokens, in float64 over rows."""
    return [np.einsum("rld,rld->rd", x, x).sum(axis=0, dtype=np.float64) for x in (h, back - h)]


def edges(name):
    """States that are easy to get wrong by a bit: ties, zeros, rows of zeros, the smallest and the largest numbers."""
    draw = np.random.default_rng(1)
    h = draw.standard_normal((4, 37, 64)).astype(np.float32)  # more tokens than are added in one go
    h[0, :32] *= 2.0 ** np.arange(-149, 11, 5, dtype=np.float32)[:, None]
    h[1, 0], h[1, 1, ::2] = 0, -0.0
    h[1, 2], h[1, 2, 0] = np.arange(64) + 0.5, 127  # the scale is 1, and every state is halfway between two steps
    h[1, 3] = 1 + np.arange(64, dtype=np.float32) * 2.0**-11
    h[1, 4] = 1 + np.arange(64, dtype=np.float32) * 2.0**-8
    h[2] = 1e-42 * draw.standard_normal((37, 64))
    h[3, 0, :2] = (65504, -65519.996) if name == "fp16" else (3e38, -3e38)
    return h


@pytest.mark.parametrize("name", STORED)
def test_the_stored_bytes_are_those_that_numpy_makes(states, name):
    for h in (states, edges(name)):
        parts, expected = encode(h, CODECS[name]), in_numpy(h, name)
        assert {key: values.dtype.name for key, values in parts.items()} == dict(CODECS[name].dtypes)
        assert {key: values.tobytes() for key, values in parts.items()} == {
            key: values.tobytes() for key, values in expected.items()
        }


@pytest.mark.parametrize("name", STORED)
def test_the_error_is_to_the_bit_that_which_numpy_adds_up(states, name):
    large = np.random.default_rng(2).standard_normal((33, 70, 48)).astype(np.float32)
    errors = [error_of(h, CODECS[name]) for h in (states, large)]
    expected = [error_in_numpy(h, decode(encode(h, CODECS[name]), CODECS[name])) for h in (states, large)]
    signal_D, error_D = (one + other for one, other in zip(*expected, strict=True))
    merged = errors[0].merge(errors[1])
    assert merged.relative_rms == float(np.sqrt(error_D.sum() / signal_D.sum()))
    assert merged.worst_channel == float(np.sqrt((error_D / signal_D).max()))


def test_normalising_is_numpys_where_a_channel_does_not_vary():
    """The floor of the variance is the smallest divisor, and the mean of a constant channel leaves zeros."""
    h = np.random.default_rng(3).standard_normal((2, 3, 64)).astype(np.float32) * np.float32(1e3)
    h[..., 0] = 7
    found = Statistics.of(h)
    mean_D, std_D = found.mean_D.astype(np.float32), found.std_D.astype(np.float32)
    there = (torch.from_numpy(h) - torch.from_numpy(mean_D)) / torch.from_numpy(std_D)
    assert there.numpy().tobytes() == ((h - mean_D) / std_D).tobytes()
    assert std_D[0] == np.float32(0.01)
    assert not there[..., 0].any()


@pytest.mark.gpu
@pytest.mark.parametrize("name", STORED)
def test_a_gpu_stores_the_bytes_of_the_cpu(states, name):
    """Of states that are normalised there, and of the edges, but for the smallest numbers, which may become zero."""
    mean_D, std_D = torch.linspace(-1, 1, 48), torch.linspace(0.01, 3, 48)

    def stored(h, device):
        arrive, error = codecs.encode(h, CODECS[name])
        assert h.device.type == device
        return {key: values.tobytes() for key, values in arrive().items()}, error

    def normalised(device):
        return (torch.from_numpy(states).to(device) - mean_D.to(device)) / std_D.to(device)

    edge = torch.from_numpy(edges(name)[[1, 3]])
    for here, there in ((normalised("cpu"), normalised("cuda")), (edge, edge.cuda())):
        (expected, error), (found, error_there) = stored(here, "cpu"), stored(there, "cuda")
        assert found == expected
        assert error_there.relative_rms == pytest.approx(error.relative_rms, rel=1e-5)
        assert error_there.worst_channel == pytest.approx(error.worst_channel, rel=1e-5)
