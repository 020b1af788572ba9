"""DTensor's own rules beside ours: every operation, with every placement of its operands, on 2 and 4 processes.

Where types accept, DTensor finds the same placement and sends nothing. Where they refuse, it sends something inside
of the operation, or refuses too, or is in the list `SILENT`, with the reason.
"""

from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn import functional as F

import lib
from lib.devices import Cluster

ONE = ["R", "P", "S0", "S1", "S2"]
MATRIX = ["R", "P", "S0", "S1"]
CUBE, SQUARE = (8, 8, 8), (8, 8)

OPERATIONS = {  # how many operands: their shapes, and the operation
    "gelu": ([CUBE], F.gelu),
    "relu": ([CUBE], torch.relu),
    "exp": ([CUBE], torch.exp),
    "tanh": ([CUBE], torch.tanh),
    "neg": ([CUBE], torch.neg),
    "softmax": ([CUBE], lambda x: x.softmax(-1)),
    "layer_norm": ([CUBE], lambda x: F.layer_norm(x, (8,))),
    "sum": ([CUBE], lambda x: x.sum()),
    "sum of 1": ([CUBE], lambda x: x.sum(1)),
    "sum of 1, kept": ([CUBE], lambda x: x.sum(1, keepdim=True)),
    "mean of 1": ([CUBE], lambda x: x.mean(1)),
    "largest of 2": ([CUBE], lambda x: x.amax(2)),
    "transpose": ([CUBE], lambda x: x.transpose(0, 2)),
    "permute": ([CUBE], lambda x: x.permute(2, 0, 1)),
    "unsqueeze": ([CUBE], lambda x: x.unsqueeze(1)),
    "unflatten": ([CUBE], lambda x: x.unflatten(2, (-1, 2))),
    "flatten": ([CUBE], lambda x: x.flatten(0, 1)),
    "index of 1": ([CUBE], lambda x: x[:, 3]),
    "add": ([SQUARE, SQUARE], torch.add),
    "add a row": ([CUBE, (8,)], torch.add),
    "mul": ([SQUARE, SQUARE], torch.mul),
    "div": ([SQUARE, SQUARE], torch.div),
    "matmul": ([SQUARE, SQUARE], torch.matmul),
    "linear": ([CUBE, SQUARE], F.linear),
    "bmm": ([CUBE, CUBE], torch.bmm),
    "embedding": ([SQUARE, SQUARE], lambda t, w: F.embedding(t.long() % 8, w)),
}

SOONER = ("mean of 1", ("P",))  # the mean of a partial sum is one of the means; DTensor sums first
SILENT = {  # refused by types, and DTensor sends nothing: what it does instead, without a word
    "it cuts the operand that is whole, or shares it out as a partial sum": lambda name, places: "R" in places,
    "it keeps pieces that do not lie together, and remembers how": lambda name, places: name == "flatten",
}
ON_FOUR = ("gelu", "softmax", "sum", "unflatten", "add a row", "matmul", "embedding")  # the rest on two alone


def places_of(shape):
    return ["R", "P", *[f"S{d}" for d in range(len(shape))]]


def cases(size):
    for name, (shapes, _) in OPERATIONS.items():
        if size == 4 and name not in ON_FOUR:
            continue
        for places in product(*map(places_of, shapes)):
            yield name, places


def local(shape, place, size):
    if place[0] != "S":
        return torch.ones(shape)
    return torch.ones(shape).chunk(size, int(place[1]))[0]


def dtensors_say():
    """What DTensor makes of each case: (placement, how often it sends), or the error."""
    size = dist.get_world_size()
    mesh, said = init_device_mesh("cpu", (size,)), {}
    known = {"R": Replicate(), "P": Partial()}
    for name, places in cases(size):
        shapes, operation = OPERATIONS[name]
        given = [
            DTensor.from_local(local(s, p, size), mesh, [known.get(p) or Shard(int(p[1]))])
            for s, p in zip(shapes, places, strict=True)
        ]
        try:
            with CommDebugMode() as communication:
                found = operation(*given)
            (where,) = found.placements
            said[name, places] = (str(where), communication.get_total_counts())
        except Exception as error:
            said[name, places] = ("refused", type(error).__name__)
    return said


def ours_say(size):
    def program(group):
        said, known = {}, {"R": lib.Replicate(), "P": lib.Partial()}
        for name, places in cases(size):
            shapes, operation = OPERATIONS[name]
            with lib.Typed(tp=group) as types:
                given = [
                    types.give(local(s, p, group.size), tp=known.get(p) or lib.Shard(int(p[1])))
                    for s, p in zip(shapes, places, strict=True)
                ]
                try:
                    value = types.of(operation(*given))["tp"].value
                except lib.PlacementError as error:
                    said[name, places] = f"refused: {error}"
                except RuntimeError:
                    said[name, places] = "shapes"
                else:
                    said[name, places] = value
        return said

    return Cluster(size).run(program)[0]


def in_their_words(value):
    if isinstance(value, lib.Partial):
        return f"P({'avg' if value.op == 'mean' else value.op})"
    return "R" if value == lib.Replicate() else f"S({value.dim})"


@pytest.mark.parametrize("size", [2, 4])
def test_every_operation_with_every_placement(worlds, size):
    theirs, ours = worlds[size].run(dtensors_say)[0], ours_say(size)
    wrong, accepted, sends, silent = [], 0, 0, []
    for case, (where, count) in theirs.items():
        mine = ours[case]
        if not isinstance(mine, str):
            accepted += 1
            if case != SOONER and (where, count) != (in_their_words(mine), 0):
                wrong.append((case, in_their_words(mine), where, count))
        elif where != "refused" and not count:
            silent.append(case)
        else:
            sends += where != "refused"
    assert not wrong, wrong
    assert accepted > 30
    assert sends > 20
    assert silent
    for case in silent:
        assert any(reason(*case) for reason in SILENT.values()), (case, theirs[case], ours[case])
