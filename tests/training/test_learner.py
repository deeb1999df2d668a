"""Steps are read a step late, in their order, and at once where something depends on them."""

from __future__ import annotations

from ldlm.training.learner import Behind


def test_a_step_is_read_when_the_next_has_been_launched_and_in_its_order():
    read = []
    behind = Behind(read.append)
    behind.add(1, now=False)
    assert read == []
    behind.add(2, now=False)
    assert read == [1]
    behind.add(3, now=True)
    assert read == [1, 2, 3]
    behind.add(4, now=False)
    behind.catch_up()
    behind.catch_up()
    assert read == [1, 2, 3, 4]
