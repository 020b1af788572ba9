"""Guests without data beside the same guests with it: the same bytes, FLOPs, times and memory, and no number."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from lib.devices import Cluster
from lib.guest.no_data import NoValues, no_data
from lib.guest.no_gpu import no_gpu
from lib.guest.program import guest

P, WIDTH = 2, 16


def by_ddp(model):
    return DistributedDataParallel(model)


def by_fsdp(model):
    for layer in model:
        fully_shard(layer)
    return fully_shard(model)


def by_tp(model):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        parallelize_module(layer, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return model


def train(wrap, width=WIDTH, layers=2):
    """Two steps; the losses."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))  # noqa: E731
    model = wrap(nn.Sequential(*[block() for _ in range(layers)]))
    optimizer = torch.optim.AdamW(model.parameters())
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(torch.randn(8, width)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def counted(program, say=len):
    """The output of rank 0, its counts by verb, and its trace."""
    cluster = Cluster(P, "H100")
    output = cluster.run(program)[0]
    return output, {verb: cluster.meters.count(0, verb) for verb in cluster.meters.verbs()}, cluster.trace


@pytest.mark.parametrize("wrap", [by_ddp, by_fsdp, by_tp])
def test_bytes_flops_and_times_are_those_of_the_run_with_data(wrap):
    said = []
    _, bytes_with, trace_with = counted(guest(train, wrap))
    losses, bytes_without, trace_without = counted(no_data(guest(train, wrap), said.append))
    assert bytes_without == bytes_with
    assert trace_without.flops(0) == trace_with.flops(0) > 0
    assert trace_without.seconds == pytest.approx(trace_with.seconds, rel=1e-3)
    assert trace_without.peak(0) == trace_with.peak(0)
    assert all(loss != loss for loss in losses)  # nan
    assert said == ["Without data, a number such as a loss is not known: .item() gives nan."]


@pytest.mark.parametrize("wrap", [by_ddp, by_fsdp])
def test_a_model_that_no_laptop_holds(wrap):
    """2 layers of width 65,536 have 68.7 billion parameters, and Adam's state three times as much."""
    _, counts, trace = counted(no_data(guest(train, wrap, 2**16), len))
    parameters = 4 * 2 * (2 * 4 * 2**32 + 5 * 2**16)
    if wrap is by_ddp:
        assert counts["all_reduce"].bytes_sent == 2 * 2 * parameters * (P - 1) // P
    else:
        moved = sum(counts[verb].bytes_sent for verb in ("all_gather", "reduce_scatter"))
        assert moved == 2 * 3 * parameters * (P - 1) // P
    assert trace.peak(0) > parameters * 4 / P


def test_integers_have_their_data_and_so_has_what_comes_from_outside():
    outside = torch.tensor([0.5, 1.5]).numpy()

    def program():
        dist.init_process_group("gloo")
        rank = torch.tensor([dist.get_rank()])
        dist.all_reduce(rank)
        objects = [None] * dist.get_world_size()
        dist.all_gather_object(objects, {"rank": dist.get_rank()})
        tokens = torch.randint(10, (4,))
        out = nn.Embedding(10, 3)(tokens)
        return rank.item(), objects[-1], (tokens < 10).all().item(), torch.from_numpy(outside).sum().item(), out.shape

    for rank, last, tokens, floats, shape in Cluster(P).run(no_data(guest(program), len)):
        assert (rank, last, tokens, floats, tuple(shape)) == (1, {"rank": P - 1}, True, 2.0, (4, 3))


@pytest.mark.parametrize(
    ("needs", "why"),
    [
        (lambda x: bool(x.sum() > 0), "decides by the value of a tensor"),
        (lambda x: x[x > 0], "needs the values of a tensor"),
        (lambda x: torch.unique(x), "needs the values of a tensor"),
    ],
)
def test_what_needs_values_is_refused(needs, why):
    with pytest.raises(NoValues, match=why) as caught:
        Cluster(2).run(no_data(guest(lambda: needs(torch.randn(4))), len))
    assert "raised on rank 0 of 2" in caught.value.__notes__


def test_types_change_and_layers_begin_on_the_meta_device():
    def program():
        with torch.device("meta"):
            layer = nn.Linear(4, 4)
        layer.to_empty(device="cuda").to(torch.bfloat16)
        x = torch.randn(2, 4, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            y = layer(x)
        y.sum().backward()
        with pytest.raises(RuntimeError):
            x + torch.randn(3, 5)  # shapes are checked
        with pytest.raises(RuntimeError):
            x.add_(torch.randn(3, 5))
        return layer.weight.grad.dtype, y.dtype

    both = no_gpu(no_data(guest(program), len), say=len)
    assert Cluster(2).run(both) == [(torch.bfloat16, torch.bfloat16)] * 2


def test_messages_travel_without_data():
    def program():
        dist.init_process_group("gloo")
        if dist.get_rank() == 0:
            dist.send(torch.ones(1000), 1)
        elif dist.get_rank() == 1:
            dist.recv(torch.empty(1000), 0)

    cluster = Cluster(2)
    cluster.run(no_data(guest(program), len))
    assert cluster.meters.count(1, "recv").bytes_received == 4000
