"""When nobody can move, DeadlockError comes at once, with a table of who waits for what, and where."""

import pytest
import torch

from lib.devices import Cluster, DeadlockError

X = torch.zeros(2)


def message(program, size=3):
    with pytest.raises(DeadlockError) as error:
        Cluster(size).run(program)
    return str(error.value)


def test_the_whole_table():
    def program(group):
        if group.rank == 0:
            return
        if group.rank == 1:
            group.all_reduce(X)
        group.recv(src=0, tag=5)

    first = program.__code__.co_firstlineno
    assert message(program).splitlines() == [
        "no device can move: 2 of 3 wait for something that will never happen",
        "  rank  waits for                                in",
        "     0  (has ended)",
        f"     1  all_reduce(op='sum') in group (0, 1, 2)  program, line {first + 4}: group.all_reduce(X)",
        f"     2  recv(src=0, tag=5) in group (0, 1, 2)    program, line {first + 5}: group.recv(src=0, tag=5)",
        "Fix: every device of a group must make the same calls, and every recv needs its send; "
        "some have ended too early.",
    ]


def test_a_device_that_leaves_early():
    text = message(lambda group: group.barrier() if group.rank else None)
    assert "2 of 3 wait" in text
    assert "some have ended too early" in text


def test_a_device_that_calls_one_collective_more():
    text = message(lambda group: [group.all_reduce(X) for _ in range(2 if group.rank == 1 else 1)])
    assert "1 of 3 wait" in text
    assert "all_reduce(op='sum') in group (0, 1, 2)" in text
    assert text.count("(has ended)") == 2


def test_recv_without_send():
    text = message(lambda group: group.recv(src=0) if group.rank == 2 else None)
    assert "recv(src=0, tag=0)" in text
    assert "every recv needs its send" in text


def test_a_cycle_of_recv():
    text = message(lambda group: group.recv(src=(group.rank + 1) % group.size))
    assert "3 of 3 wait" in text
    assert "Fix: all wait to receive before anyone has sent: let some device send first." in text


def test_one_receives_what_the_others_reduce():
    text = message(lambda group: group.all_reduce(X) if group.rank else group.recv(src=1))
    assert "3 of 3 wait" in text
    assert "Fix: every device of a group must make the same calls in the same order." in text


def test_groups_entered_in_another_order():
    def program(group):
        row, column = group.split([[0, 1], [2, 3]]), group.split([[0, 2], [1, 3]])
        for sub in (row, column) if group.rank in (0, 3) else (column, row):
            sub.barrier()

    text = message(program, size=4)
    for line in (
        "0  barrier() in group (0, 1)",
        "1  barrier() in group (1, 3)",
        "2  barrier() in group (0, 2)",
        "3  barrier() in group (2, 3)",
    ):
        assert line in text


def test_one_device_that_waits_for_itself():
    assert "1 of 1 wait" in message(lambda group: group.recv(src=0), size=1)


def test_a_recv_under_another_tag_or_in_another_group():
    def program(group):
        sub = group.split(1)
        if group.rank == 0:
            group.send(X, dst=1, tag=1)
            sub.send(X, dst=1)
        else:
            group.recv(src=0)

    assert "recv(src=0, tag=0) in group (0, 1)" in message(program, size=2)


def test_the_line_is_the_reader_s_even_when_the_verb_is_called_deep_inside():
    def helper(group):
        return torch.nn.Sequential(Layer(group))(X)

    class Layer(torch.nn.Module):
        def __init__(self, group):
            super().__init__()
            self.group = group

        def forward(self, x):
            return sorted([1, 2], key=lambda _: self.group.recv(src=1))

    text = message(helper, size=2)
    assert "<lambda>, line " in text
    assert "return sorted([1, 2], key=lambda _: self.group.recv(src=1))" in text
    assert "site-packages" not in text


def test_the_line_is_the_reader_s_when_a_layer_of_the_library_calls_the_verb():
    from lib import reduce_from

    def program(group):
        if group.rank == 0:
            reduce_from(X, group)

    assert f"program, line {program.__code__.co_firstlineno + 2}: reduce_from(X, group)" in message(program)


@pytest.mark.parametrize(("size", "shown"), [(16, 16), (17, 10), (1000, 10)])
def test_a_long_table_is_shortened(size, shown):
    lines = message(lambda group: group.recv(src=0), size=size).splitlines()
    rows = [line.split()[0] for line in lines[2:-1]]
    assert lines[0] == f"no device can move: {size} of {size} wait for something that will never happen"
    if shown == size:
        assert rows == [str(r) for r in range(size)]
    else:
        assert rows == [*map(str, range(8)), "...", str(size - 2), str(size - 1)]
