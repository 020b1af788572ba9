"""The all-to-all of pieces of any length: where each row goes, and that its gradient comes back to it."""

import pytest
import torch

from lib import Cluster, all_to_all

TABLE = [[1, 0, 2], [3, 1, 0], [0, 0, 4]]  # TABLE[i][j] rows go from device i to device j


def rows(rank, width=2):
    """Rows that tell where they come from: 100 rank + number."""
    count = sum(TABLE[rank])
    return (100.0 * rank + torch.arange(count, dtype=torch.float64))[:, None].repeat(1, width)


def exchange(group, sizes, dim=0):
    x = rows(group.rank).movedim(0, dim).clone().requires_grad_()
    y = all_to_all(x, group, dim, dim, sizes=TABLE if sizes == "table" else TABLE[group.rank])
    y.backward(3 * y.detach() + group.rank)
    return y.detach().movedim(dim, 0), x.grad.movedim(dim, 0)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("sizes", ["table", "own lengths"])
def test_rows_arrive_and_their_gradients_come_back(sizes, dim):
    pieces = [rows(rank).split(TABLE[rank]) for rank in range(3)]
    for rank, (y, grad) in enumerate(Cluster(3).run(exchange, sizes, dim)):
        assert torch.equal(y, torch.cat([pieces[source][rank] for source in range(3)]))
        taken = torch.cat([torch.full((n,), float(to), dtype=torch.float64) for to, n in enumerate(TABLE[rank])])
        assert torch.equal(grad, 3 * rows(rank) + taken[:, None])


def test_the_backward_sends_what_the_forward_received():
    cluster = Cluster(3)
    cluster.run(exchange, "table")
    row = 2 * 8
    for rank in range(3):
        there = sum(TABLE[rank]) - TABLE[rank][rank]
        back = sum(line[rank] for line in TABLE) - TABLE[rank][rank]
        assert cluster.meters.count(rank, "all_to_all").bytes_sent == row * (there + back)


def test_a_program_of_one_device():
    def program(group):
        x = torch.ones(3, 2, requires_grad=True)
        all_to_all(x, group, 0, 0, sizes=[3]).sum().backward()
        return x.grad

    assert torch.equal(Cluster(1).run(program)[0], torch.ones(3, 2))
