"""The shares of processes: read from the option and from launchers, and the order that they give."""

import pytest

from ldlm.errors import InputError
from ldlm.features.shares import Share, in_turn, share_of, share_of_environment


def test_a_share_is_read_and_said_again():
    assert share_of("0/8") == Share(0, 8)
    assert share_of(" 7/8 ") == Share(7, 8)
    assert str(Share(7, 8)) == "7/8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8/8", "--share 8/8: shares are numbered from 0, and the last of 8 is 7"),
        ("0/0", "--share 0/0: there is at least one process, so N is at least 1"),
        ("3", "--share takes I/N, like 0/8 for the first of 8 processes, and not '3'"),
        ("-1/8", "--share takes I/N, like 0/8 for the first of 8 processes, and not '-1/8'"),
        ("1/2/3", "--share takes I/N, like 0/8 for the first of 8 processes, and not '1/2/3'"),
        ("½/2", "--share takes I/N, like 0/8 for the first of 8 processes, and not '½/2'"),
    ],
)
def test_what_is_no_share_is_refused_in_one_line(text, message):
    with pytest.raises(InputError) as refused:
        share_of(text)
    assert str(refused.value) == message


def array(task, count, least=0, most=None):
    """The variables of a task of a SLURM array."""
    most = least + count - 1 if most is None else most
    names = {"ID": task, "COUNT": count, "MIN": least, "MAX": most}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


def step(number, of):
    """The variables of a task of a SLURM step."""
    return {"SLURM_PROCID": str(number), "SLURM_NTASKS": str(of)}


def torchrun(number, of, local=None):
    """The variables of a process of torchrun, on one machine unless that has `local` of them."""
    return {"RANK": str(number), "WORLD_SIZE": str(of), "LOCAL_WORLD_SIZE": str(local or of)}


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, None),
        ({"RANK": "2", "WORLD_SIZE": "4"}, Share(2, 4)),
        ({"RANK": "2", "WORLD_SIZE": "4", **step(0, 8)}, Share(2, 4)),  # torchrun within a step
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),  # the only one
        ({**torchrun(0, 1), **array(3, 16)}, Share(3, 16)),  # of its task
        ({**torchrun(0, 1), **step(3, 8)}, Share(3, 8)),
        ({**torchrun(0, 1), "JOB_COMPLETION_INDEX": "5", "JOB_COMPLETIONS": "8"}, Share(5, 8)),
        ({**array(5, 1, least=5), **step(3, 8)}, Share(3, 8)),
        ({**torchrun(5, 8), **array(3, 16)}, Share(29, 128)),  # within a task of an array
        ({**torchrun(5, 8), **array(3, 16), **step(0, 2)}, Share(29, 128)),
        ({**torchrun(1, 2), "JOB_COMPLETION_INDEX": "5", "JOB_COMPLETIONS": "8"}, Share(11, 16)),  # within a pod
        (
            {**torchrun(11, 16, local=2), "JOB_COMPLETION_INDEX": "5", "JOB_COMPLETIONS": "8"},
            Share(11, 16),  # of all pods together
        ),
        (step(3, 8), Share(3, 8)),
        (step(0, 1), None),
        (array(0, 16), Share(0, 16)),
        (array(16, 16, least=1), Share(15, 16)),  # --array=1-16
        ({**array(3, 4), **step(0, 1)}, Share(3, 4)),  # a batch script, which is a step of one
        ({**array(3, 4), **step(1, 2)}, Share(7, 8)),  # srun within a task of an array
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}, Share(3, 4)),
        ({"JOB_COMPLETION_INDEX": "5", "JOB_COMPLETIONS": "8"}, Share(5, 8)),
        ({"JOB_COMPLETION_INDEX": "5"}, None),  # of how many?
        ({"RANK": "x", "WORLD_SIZE": "4"}, None),
        (step(8, 8), None),
    ],
)
def test_launchers_tell_a_process_its_share(environment, share):
    assert share_of_environment(environment) == share


@pytest.mark.parametrize(
    "tasks",
    [range(10), range(1, 11), range(0, 16, 4), range(7, 100, 31), [5], [1, 3, 5, 6, 7], [0, 1000]],
    ids=str,
)
def test_the_tasks_of_any_slurm_array_have_shares_of_their_own(tasks):
    """Beginning anywhere, with steps, and with gaps as in --array=1,3,5-7."""
    tasks = list(tasks)
    found = [share_of_environment(array(task, len(tasks), tasks[0], tasks[-1])) for task in tasks]
    assert found == [Share(number, len(tasks)) if len(tasks) > 1 else None for number in range(len(tasks))]


def test_two_tasks_of_an_uneven_slurm_array_may_have_one_share():
    found = [share_of_environment(array(task, 3, 7, 30)) for task in (7, 8, 30)]
    assert found == [Share(0, 3), Share(0, 3), Share(2, 3)]


def test_every_process_takes_every_item_and_begins_with_a_stretch_that_is_nobody_else_s():
    for items in (list(range(count)) for count in (0, 1, 5, 24, 100)):
        for of in (1, 2, 3, 7, 30):
            orders = [in_turn(items, Share(number, of)) for number in range(of)]
            assert all(sorted(order) == items for order in orders)
            edges = [len(items) * number // of for number in range(of + 1)]
            starts = [order[: b - a] for order, a, b in zip(orders, edges, edges[1:], strict=False)]
            assert [item for start in starts for item in start] == items


def test_a_process_helps_from_the_ends_of_the_others_stretches():
    assert in_turn(list(range(8)), Share(1, 4)) == [2, 3, 1, 0, 7, 6, 5, 4]
    assert in_turn(list(range(8)), Share(3, 4)) == [6, 7, 5, 4, 3, 2, 1, 0]


def test_without_a_share_items_come_as_they_are_or_from_anywhere_on():
    items = list(range(1000))
    assert in_turn(items, None) == items
    starts = [in_turn(items, None, apart=True) for _ in range(5)]
    assert len({order[0] for order in starts}) > 1
    assert all(order == [*range(order[0], 1000), *range(order[0])] for order in starts)
    assert in_turn([], None, apart=True) == []


@pytest.mark.parametrize("of", [1, 3])
def test_the_parts_of_shares_are_shares_that_leave_nothing_out(of):
    parts = [share.part(number, of) for share in (Share(0, 2), Share(1, 2)) for number in range(of)]
    assert parts == [Share(number, 2 * of) for number in range(2 * of)]
