"""Steps are read a step late, in their order, and at once where something depends on them."""

from __future__ import annotations

from ldlm.training.loop import ReadLate


def test_a_step_is_read_when_the_next_has_been_launched_and_in_its_order():
    read = []
    late = ReadLate(read.append)
    late.add(1)
    assert read == []
    late.add(2)
    assert read == [1]
    late.add(3)
    late.read_last()
    assert read == [1, 2, 3]
    late.add(4)
    late.read_last()
    late.read_last()
    assert read == [1, 2, 3, 4]
