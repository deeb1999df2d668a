"""The order of rows as a pure function of (seed, position), and the same batches from wherever a run goes on."""

import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from ldlm import files
from ldlm.errors import InputError
from ldlm.features.store import FeatureStore
from ldlm.features.stream import RowOrder, Stream, default_window
from ldlm.stages import extract_features

CPU = torch.device("cpu")


def row(order: RowOrder, position: int) -> int:
    """The row at one position."""
    return int(order.rows_at(position, 1)[0])


def epoch_rows(order: RowOrder, epoch: int) -> list[int]:
    """The rows of an epoch, one position at a time."""
    return [row(order, epoch * order.rows + i) for i in range(order.rows)]


# fewer rows than a block, than a window, just beyond one, and several windows with a short last block
@pytest.mark.parametrize("rows", [1, 5, 16, 100, 513, 1200])
def test_every_epoch_sees_every_row_exactly_once(rows):
    order = RowOrder(rows, 3, 512)
    for epoch in (0, 1, 7):
        assert sorted(epoch_rows(order, epoch)) == list(range(rows))


def test_epochs_and_seeds_differ_in_their_order():
    orders = [epoch_rows(RowOrder(700, seed, 512), epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 6
    # Both parts of it change: which blocks stand in a window, and the order of the rows of one block.
    assert len({frozenset(order[:512]) for order in orders}) == 6
    assert len({tuple(epoch_rows(RowOrder(16, 0, 512), epoch)) for epoch in range(6)}) == 6


def test_the_order_is_a_function_of_the_position_alone():
    asked_backwards, fresh = RowOrder(700, 5, 512), RowOrder(700, 5, 512)
    positions = range(0, 2800, 13)
    backwards = {position: row(asked_backwards, position) for position in reversed(positions)}
    assert [row(fresh, position) for position in positions] == [backwards[position] for position in positions]
    assert backwards[2600] == row(RowOrder(700, 5, 512), 2600)


def test_rows_are_shuffled_within_windows_and_blocks_over_the_corpus():
    order = RowOrder(4096, 0, 512)  # 8 windows of 32 blocks of 16 rows
    first = np.array([row(order, i) for i in range(512)])
    assert sorted(first // 16) == sorted(np.repeat(np.unique(first // 16), 16))  # whole blocks
    assert len(np.unique(first // 512)) > 4  # from all over the corpus
    # neighbours in the order are rarely neighbours in the corpus
    assert (np.abs(np.diff(first)) == 1).mean() < 0.05
    # a uniform permutation correlates with the position by about 1/sqrt(4096)
    everything = np.array(epoch_rows(order, 0))
    assert abs(np.corrcoef(np.arange(4096), everything)[0, 1]) < 0.1


def test_a_window_is_found_at_each_of_its_positions():
    order = RowOrder(700, 1, 512)
    for position in range(0, 1400, 7):
        epoch, window, offset = order.window_of(position)
        assert epoch == position // 700
        assert order.window_rows(epoch, window)[offset] == row(order, position)


def test_the_order_is_right_while_another_thread_asks_for_another_epoch():
    """Between any two looks at what is remembered, another thread has moved on to the next epoch."""

    class Shared(RowOrder):
        @property
        def _epoch(self):
            remembered, self.remembered = self.remembered, self.following
            return remembered

        @_epoch.setter
        def _epoch(self, value):
            self.remembered = value

    alone, order = RowOrder(700, 2, 512), Shared(700, 2, 512)
    order.following = (1, *RowOrder(700, 2, 512)._blocks(1))
    for window in (0, 1):
        order._epoch = (0, *alone._blocks(0))
        assert order.window_rows(0, window).tolist() == alone.window_rows(0, window).tolist()


# ----------------------------------------------------------------------------------------------------------------------
# Batches


@pytest.fixture
def opened(store):
    return FeatureStore(store)


def batches(store, count, *, position=0, batch_size=8, split="train", seed=0, shuffle_rows=None):
    """The next `count` batches from a position on."""
    found = store.split(split)
    stream = Stream(found, batch_size=batch_size, seed=seed, device=CPU, shuffle_rows=shuffle_rows)
    stream.position = position
    with stream:
        return list(islice(stream, count))


@pytest.mark.parametrize(("split", "batch_size"), [("train", 8), ("train", 403), ("validation", 9)])
def test_a_batch_holds_the_rows_that_the_order_says(opened, split, batch_size):
    found = opened.split(split)
    order = RowOrder(found.rows, 4, 512)
    hidden, tokens = found.hidden[:], found.tokens[:]
    count = 2 * found.rows // batch_size + 2  # across two ends of an epoch
    for number, batch in enumerate(batches(opened, count, batch_size=batch_size, split=split, seed=4)):
        assert batch.position == number * batch_size
        rows = [row(order, batch.position + i) for i in range(batch_size)]
        assert np.array_equal(batch.hidden_BLD.numpy(), hidden[rows])
        assert np.array_equal(batch.tokens_BL.numpy(), tokens[rows])
        assert (batch.hidden_BLD.dtype, batch.tokens_BL.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("shuffle_rows", [None, 32])  # one window in an epoch, and thirteen
@pytest.mark.parametrize("position", [8, 24, 400, 1000])
def test_a_stream_gives_the_same_batches_wherever_it_begins(opened, position, shuffle_rows):
    whole = batches(opened, position // 8 + 5, shuffle_rows=shuffle_rows)
    later = batches(opened, 5, position=position, shuffle_rows=shuffle_rows)
    for mine, theirs in zip(later, whole[-5:], strict=True):
        assert mine.position == theirs.position
        assert torch.equal(mine.hidden_BLD, theirs.hidden_BLD)
        assert torch.equal(mine.tokens_BL, theirs.tokens_BL)


def test_what_goes_wrong_in_the_reading_thread_is_raised_where_the_batches_are_consumed(store_copy):
    opened = FeatureStore(store_copy)  # sizes are checked here, and stay as they are
    for shard in (store_copy / "features.zarr" / "hidden" / "c").glob("*/0/0"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    with (
        Stream(opened.split("train"), batch_size=8, seed=0, device=CPU) as stream,
        pytest.raises(ValueError, match=r"(?i)checksum"),
    ):
        next(iter(stream))


@pytest.fixture
def twins(extract_config, other_gpt2, tmp_path):
    """Two stores of the same rows whose states are those of two encoders, uncompressed: the same chunks, by size."""
    plain = replace(extract_config, compression="none")
    made = [(plain, tmp_path / "store"), (replace(plain, encoder=str(other_gpt2)), tmp_path / "other")]
    return [extract_features.run(config, path).path for config, path in made]


def swap(store, other):
    """Put another store in the place of one, as a user would."""
    store.rename(store.with_name("before"))
    other.rename(store)


def test_a_store_that_replaces_another_is_not_mixed_with_it(twins):
    store, other = twins
    right = batches(FeatureStore(store), 20, shuffle_rows=32)
    found, refusal = [], rf"{store} was replaced while it was read: its store\.json is not that"
    with Stream(FeatureStore(store).split("train"), batch_size=8, seed=0, device=CPU, shuffle_rows=32) as stream:
        found.append(next(iter(stream)))
        swap(store, other)
        with pytest.raises(InputError, match=refusal):
            found.extend(islice(iter(stream), 20))
    assert len(found) < 20
    assert all(torch.equal(mine.hidden_BLD, theirs.hidden_BLD) for mine, theirs in zip(found, right, strict=False))


def test_a_store_that_is_taken_away_is_not_called_damaged(twins):
    store, _ = twins
    with Stream(FeatureStore(store).split("train"), batch_size=8, seed=0, device=CPU, shuffle_rows=32) as stream:
        next(iter(stream))
        store.rename(store.with_name("before"))
        with pytest.raises(InputError, match="was replaced while it was read"):
            [next(iter(stream)) for _ in range(20)]


def test_states_are_decoded_in_the_reading_thread_alone(opened):
    """torch's other threads would take cores from the threads that decompress."""
    threads, codec = [], opened.split("train").codec

    def decode(parts):
        threads.append(torch.get_num_threads())
        return codec.decode(parts)

    split = replace(opened.split("train"), codec=replace(codec, decode=decode))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Stream(split, batch_size=4, seed=0, device=CPU) as stream:
            next(iter(stream))
        assert threads[0] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_leaving_early_ends_the_reading_thread(opened):
    with Stream(opened.split("train"), batch_size=8, seed=0, device=CPU) as stream:
        next(iter(stream))
        assert stream._thread.is_alive()
    assert not stream._thread.is_alive()


def test_too_few_rows_for_one_batch_are_refused(opened):
    with pytest.raises(InputError, match="has 403 train rows, too few for one batch of 404; lower batch_size"):
        Stream(opened.split("train"), batch_size=404, seed=0, device=CPU)


@pytest.mark.parametrize("codec", ["fp16", "fp32", "int8-token"])
def test_a_window_is_not_overwritten_while_its_rows_are_still_wanted(extract_config, tmp_path, codec):
    """The next window is read meanwhile, into memory of its own; small windows and a slow consumer would show it."""
    extract_features.run(replace(extract_config, codec=codec, max_channel_error=1.0), tmp_path / "s")
    opened = FeatureStore(tmp_path / "s")
    split = opened.split("train")
    stream = Stream(split, batch_size=8, seed=3, device=CPU)
    stream.order = RowOrder(split.rows, 3, 32)
    stream._memory = [split.memory(32), split.memory(32)]
    with stream:
        for batch in islice(stream, 2 * split.rows // 8):
            time.sleep(0.01)
            parts, tokens = split.read_rows(stream.order.rows_at(batch.position, 8))
            assert batch.tokens_BL.tolist() == tokens.tolist()
            assert torch.equal(batch.hidden_BLD, split.states(parts, batch.tokens_BL))


# ----------------------------------------------------------------------------------------------------------------------
# The window


def test_the_default_window_is_two_gibibytes_of_rows_at_least_four_batches_and_at_most_all(opened):
    def rows(seq_len, batch_size, rows=10**9):
        split = replace(opened.split("train"), rows=rows, row_bytes=seq_len * (768 * 2 + 4))
        return default_window(split, batch_size)

    assert (rows(1024, 32), rows(128, 512)) == (1360, 10_880)
    assert rows(1024, 512) == 4 * 512
    assert rows(1024, 512, rows=1500) == 1500
    split = opened.split("train")
    assert default_window(split, 8) == split.rows == 403
    assert split.row_bytes == sum(array[0].nbytes for array in (split.hidden, split.tokens))
    assert split.without_states().row_bytes == split.row_bytes  # methods that read no states have the same order


@pytest.mark.parametrize("window", [16, 100, 512, 10_000])
def test_a_window_of_any_size_takes_whole_blocks_and_every_row_once(window):
    order = RowOrder(700, 3, window)
    assert sorted(epoch_rows(order, 1)) == list(range(700))
    assert order.largest_window == min(700, -(-window // 16) * 16)
    first = order.window_rows(1, 0)
    assert all(np.isin(range(16 * block, min(700, 16 * block + 16)), first).all() for block in np.unique(first // 16))


def test_the_order_of_earlier_versions_stays_as_it_was():
    """Runs that were begun with it go on: over two epochs of two full windows of 512 rows and a part of one."""
    rows = RowOrder(1200, 3, 512).rows_at(0, 2400).astype("<i8")
    assert files.sha256(rows.tobytes()) == "3e69bd6392374cd8e14e26c64d7861c7b287670dc300ea36a082c82a74e6f0fa"


def test_rows_of_a_store_within_one_window_are_in_the_order_of_earlier_versions():
    for rows in (100, 512):
        assert epoch_rows(RowOrder(rows, 3, 512), 1) == epoch_rows(RowOrder(rows, 3, 10**6), 1)
