"""Raw states on disk: what was written is read, and anything else is nothing."""

import errno
import os

import numpy as np
import pytest

from ldlm.features.spool import Spool

SHAPE = (3, 7, 5)  # not a multiple of anything


@pytest.fixture
def states():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def test_blocks_of_any_size_come_back_as_they_were(tmp_path, states):
    spool, larger = Spool(tmp_path), np.random.default_rng(1).normal(size=(64, 33, 8)).astype(np.float32)
    spool.write(3, states)
    spool.write(12, larger)
    first = spool.read(3, SHAPE)
    np.testing.assert_array_equal(spool.read(12, larger.shape), larger)
    np.testing.assert_array_equal(first, states)  # still, for it is no view of memory that is used again
    assert spool.blocks() == {3, 12}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["states-0000003", "states-0000012"]


@pytest.mark.parametrize("shape", [(3, 7, 6), (2, 7, 5), (300, 7, 5)])
def test_a_block_of_another_shape_is_nothing(tmp_path, states, shape):
    spool = Spool(tmp_path)
    spool.write(0, states)
    assert spool.read(0, shape) is None
    assert spool.read(1, SHAPE) is None


def test_every_flipped_bit_of_the_states_is_noticed(tmp_path, states):
    spool = Spool(tmp_path)
    spool.write(0, states)
    whole = bytearray(spool.path(0).read_bytes())
    for offset in range(0, 4 * states.size, 3):
        torn = bytearray(whole)
        torn[offset] ^= 1 << offset % 8
        spool.path(0).write_bytes(torn)
        assert spool.read(0, SHAPE) is None


def test_file_systems_without_direct_access_serve_too(tmp_path, states, monkeypatch):
    """As some network and memory file systems: open or write says EINVAL."""
    really, refused = os.open, []

    def refusing(path, flags, *mode):
        if flags & os.O_DIRECT:
            refused.append(path)
            raise OSError(errno.EINVAL, "Invalid argument")
        return really(path, flags, *mode)

    monkeypatch.setattr(os, "open", refusing)
    spool = Spool(tmp_path)
    spool.write(0, states)
    np.testing.assert_array_equal(spool.read(0, SHAPE), states)
    assert len(refused) == 2


def test_a_full_disk_is_an_error_and_leaves_no_block(tmp_path, states, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    spool = Spool(tmp_path)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        spool.write(0, states)
    assert spool.blocks() == set()
