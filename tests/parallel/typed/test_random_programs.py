"""Random programs of 3 to 12 operations: what types accept equals one device, and what they refuse goes wrong when it
is run anyway. Which is which, nobody wrote down: the programs are drawn."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lib import (
    ENTERED,
    SUMMAND,
    WHOLE,
    Cluster,
    Kind,
    Partial,
    PlacementError,
    Replicate,
    Shard,
    Typed,
    all_gather,
    all_to_all,
    copy_to,
    gather_from,
    reduce_from,
    reduce_scatter,
    scatter_to,
    shard,
)

CUT = {
    "x": Replicate(),
    "w": Replicate(),
    "columns": Shard(1),
    "rows": Shard(0),
    "bias": Replicate(),
    "tokens": Shard(1),
}
SHAPES = {"x": (4, 8, 8), "w": (8, 8), "columns": (8, 8), "rows": (8, 8), "bias": (8,), "tokens": (4, 8, 8)}

STEPS = {
    "f": lambda y, p, g: copy_to(y, g),
    "g": lambda y, p, g: reduce_from(y, g),
    "times columns": lambda y, p, g: y @ p["columns"],
    "times rows": lambda y, p, g: y @ p["rows"],
    "times w": lambda y, p, g: y @ p["w"],
    "times w entered": lambda y, p, g: y @ copy_to(p["w"], g),
    "linear": lambda y, p, g: F.linear(y, p["w"], p["bias"]),
    "plus bias": lambda y, p, g: y + p["bias"],
    "plus bias entered": lambda y, p, g: y + copy_to(p["bias"], g),
    "g, with a P-th of bias": lambda y, p, g: reduce_from(y + p["bias"] / g.size, g),
    "g, with a P-th of bias entered": lambda y, p, g: reduce_from(y + copy_to(p["bias"], g) / g.size, g),
    "plus x": lambda y, p, g: y + p["x"],
    "plus tokens": lambda y, p, g: y + p["tokens"],
    "times x": lambda y, p, g: y * p["x"],
    "gelu": lambda y, p, g: F.gelu(y),
    "double": lambda y, p, g: 2 * y,
    "plus one": lambda y, p, g: y + 1,
    "layer_norm": lambda y, p, g: F.layer_norm(y, y.shape[-1:]),
    "norm with weight": lambda y, p, g: F.layer_norm(y, y.shape[-1:], p["bias"]),
    "softmax": lambda y, p, g: y.softmax(-1),
    "sum of tokens": lambda y, p, g: y.sum(1, keepdim=True),
    "mean of texts": lambda y, p, g: y.mean(0, keepdim=True),
    "transpose": lambda y, p, g: y.transpose(1, 2),
    "heads and back": lambda y, p, g: y.unflatten(-1, (-1, 2)).transpose(2, 3).transpose(2, 3).flatten(2),
    "to the front": lambda y, p, g: y.transpose(0, 1).flatten(0, 1).unflatten(0, (-1, 4)),
    "first half": lambda y, p, g: y.repeat_interleave(2, 1)[:, : y.shape[1]],
    "scatter tokens": lambda y, p, g: scatter_to(y, g, 1),
    "scatter hidden": lambda y, p, g: scatter_to(y, g, 2),
    "own tokens": lambda y, p, g: shard(y, g, 1),
    "own hidden": lambda y, p, g: shard(y, g, -1),
    "gather tokens": lambda y, p, g: gather_from(y, g, 1),
    "gather hidden": lambda y, p, g: gather_from(y, g, 2),
    "all-gather tokens": lambda y, p, g: all_gather(y, g, 1),
    "all-gather hidden": lambda y, p, g: all_gather(y, g, -1),
    "reduce-scatter tokens": lambda y, p, g: reduce_scatter(y, g, 1),
    "reduce-scatter hidden": lambda y, p, g: reduce_scatter(y, g, 2),
    "tokens to hidden": lambda y, p, g: all_to_all(y, g, 2, 1),
    "hidden to tokens": lambda y, p, g: all_to_all(y, g, 1, 2),
}


def whole_tensors():
    torch.manual_seed(0)
    return {name: torch.randn(shape, dtype=torch.float64) / 2 for name, shape in SHAPES.items()}


def own(group):
    return {
        name: CUT[name].piece(whole, group.size, group.rank).clone().requires_grad_()
        for name, whole in whole_tensors().items()
    }


def built(group, start, choices):
    """Takes for each choice the next step that types accept. The program, the kind of its end, and what was refused."""
    p, steps, refused = own(group), [], []
    with Typed(tp=group) as types:
        for name, x in p.items():
            types.give(x, tp=CUT[name])
        y = p[start]
        for choice in choices:
            names = list(STEPS)[choice:] + list(STEPS)[:choice]
            for name in names:
                try:
                    y = STEPS[name](y, p, group)
                except PlacementError as error:
                    refused.append(((*steps, name), str(error)))
                except (RuntimeError, ValueError):  # shapes that fit nowhere
                    continue
                else:
                    steps.append(name)
                    break
        return steps, types.of(y)["tp"], refused


def run(group, start, steps, end, upstream=None):
    """The program without types: its result, and the gradients, where the gradient from above is placed as `end`."""
    p = own(group)
    y = p[start]
    for name in steps:
        y = STEPS[name](y, p, group)
    if upstream is None:
        torch.manual_seed(1)
        upstream = torch.randn(y.shape, dtype=y.dtype)
    piece, times = upstream, 1
    if isinstance(end.value, Shard):
        piece = end.value.piece(upstream, group.size, group.rank)
    if end.value == Partial("mean") or end == ENTERED:
        times = group.size
    if piece.shape != y.shape:
        return y.detach(), None, upstream
    y.backward(piece / times)
    return y.detach(), {name: x.grad for name, x in p.items() if x.grad is not None}, upstream


def close(a, b):
    return a.shape == b.shape and float((a - b).abs().max()) <= 1e-9 * max(1.0, float(b.abs().max()))


def same_result(ys, y, end):
    match end.value:
        case Partial("mean"):
            return close(sum(ys) / len(ys), y)
        case Partial():
            return close(sum(ys), y)
        case Shard(dim):
            return dim < y.ndim and close(torch.cat(ys, dim), y)
    return all(close(each, y) for each in ys)


def equals_one_device(size, start, steps, end, one=None):
    """`one` is what one device has found, if it was asked before: it knows of no placement, so every end is alike."""
    y, grads, upstream = one or Cluster(1).run(run, start, steps, end)[0]
    found = Cluster(size).run(run, start, steps, end, upstream)
    return same_result([f[0] for f in found], y, end) and all(
        found[rank][1] is not None
        and found[rank][1].keys() == grads.keys()
        and all(close(g, CUT[name].piece(grads[name], size, rank)) for name, g in found[rank][1].items())
        for rank in range(size)
    )


PROGRAMS = {
    "size": st.sampled_from([2, 4]),
    "start": st.sampled_from(["x", "tokens"]),
    "choices": st.lists(st.integers(0, len(STEPS) - 1), min_size=3, max_size=12),
}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(**PROGRAMS)
def test_what_is_accepted_equals_one_device(size, start, choices):
    steps, end, _ = Cluster(size).run(built, start, choices)[0]
    assert equals_one_device(size, start, steps, end), (start, steps, end)


ENDS = [WHOLE, ENTERED, SUMMAND, Kind(Partial("mean"), Replicate()), *[Kind(Shard(d), Shard(d)) for d in range(3)]]
RIGHT_ALL_THE_SAME = {  # refused by types, and yet right on every device, with the reason
    (
        "own tokens",
        "own hidden",
    ): "gather_from, then a slice: backward, one takes what the other put in",
}


def right_anyway(size, start, steps):
    """Whether the program equals one device, whatever its end may be placed as. Gradients are asked for the ends alone
    with a right result."""
    try:
        one = Cluster(1).run(run, start, steps, WHOLE)[0]
        ys = [f[0] for f in Cluster(size).run(run, start, steps, WHOLE, torch.empty(0))]
    except (RuntimeError, ValueError, IndexError):  # it stops: no number is wrong, none is right
        return False
    for end in ENDS:
        try:
            if same_result(ys, one[0], end) and equals_one_device(size, start, steps, end, one):
                return True
        except (RuntimeError, ValueError, IndexError):
            continue
    return False


@settings(max_examples=8, deadline=None, derandomize=True)
@given(**PROGRAMS)
def test_what_is_refused_goes_wrong_when_it_is_run_anyway(size, start, choices):
    _, _, refused = Cluster(size).run(built, start, choices)[0]
    for steps, said in refused[:: max(1, len(refused) // 3)]:
        if "some would have nothing" in said:
            continue  # empty pieces are right, until a piece of length 1 is taken for one that all share
        if right_anyway(size, start, steps):
            assert any(steps[-1] in last for last in RIGHT_ALL_THE_SAME), (size, start, steps, said)
            assert any(step.startswith("gather") for step in steps), (size, start, steps, said)
