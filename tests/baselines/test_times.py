"""Times of a training batch: one in each stratum, whatever the number of processes, and new ones at each step."""

import pytest
import torch

from ldlm.baselines.times import above, stratified

BATCH = 24


def drawn(rows, **options):
    return stratified(seed=3, step=5, rows_B=torch.as_tensor(rows), batch=BATCH, **options)


@pytest.mark.parametrize("shuffled", [False, True])
def test_each_stratum_has_one_time(shuffled):
    u = drawn(range(BATCH), shuffled=shuffled)
    assert sorted((u * BATCH).floor().long().tolist()) == list(range(BATCH))


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_times_of_a_batch_do_not_depend_on_the_number_of_processes(shuffled, ranks):
    shares = torch.arange(BATCH).chunk(ranks)
    assert torch.equal(
        torch.cat([drawn(rows, shuffled=shuffled) for rows in shares]), drawn(range(BATCH), shuffled=shuffled)
    )


def test_shuffled_strata_are_in_another_order_at_each_step():
    orders = {
        tuple((stratified(seed=3, step=s, rows_B=torch.arange(8), batch=8, shuffled=True) * 8).long().tolist())
        for s in range(20)
    }
    assert len(orders) > 15


def test_times_within_a_stratum_are_uniform():
    u = torch.cat([stratified(seed=0, step=s, rows_B=torch.arange(4), batch=4) * 4 % 1 for s in range(500)])
    assert u.mean().item() == pytest.approx(0.5, abs=4 / (12 * 2000) ** 0.5)


def test_times_begin_above_the_smallest():
    assert above(1e-3, torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([1e-3, 0.5005, 1.0])
