"""Simulated devices and real processes side by side."""

import torch
from torch.utils._pytree import tree_flatten

from lib.devices import Cluster
from lib.real.processes import Processes


def agree(program, size, *args, atol=1e-12):
    """Runs `program` on both: values within `atol`, the same bytes on the meters, the random stream left at the same
    place. Returns the simulated outputs."""
    simulated, real = Cluster(size), Processes(size)
    stream = torch.get_rng_state()
    ours = simulated.run(program, *args)
    afterwards = torch.get_rng_state()
    torch.set_rng_state(stream)
    theirs = real.run(program, *args)
    assert torch.equal(afterwards, torch.get_rng_state())
    for rank, pair in enumerate(zip(ours, theirs, strict=True)):
        compare(*pair, f"rank {rank}", atol)
    assert simulated.meters.rows() == real.meters.rows()
    return ours


def compare(some, others, who, atol):
    """Equal in structure, shapes and dtypes, the values within `atol`."""
    (some, structure), (others, other_structure) = tree_flatten(some), tree_flatten(others)
    assert structure == other_structure, who
    for number, (x, y) in enumerate(zip(some, others, strict=True)):
        if not isinstance(x, torch.Tensor):
            assert x == y or abs(x - y) <= atol, (who, number, x, y)
            continue
        assert (x.dtype, x.shape, x.is_meta) == (y.dtype, y.shape, y.is_meta), (who, number)
        if not x.is_meta:
            assert torch.allclose(x.cpu(), y.cpu(), rtol=0, atol=atol), (who, number, x, y)
