"""Guests on the virtual clock: what overlaps in PyTorch overlaps here, and FLOPs are those of the layers."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from lib.devices import Cluster
from lib.guest.no_data import no_data
from lib.guest.own import here
from lib.guest.program import guest

P, WIDTH, LAYERS, TOKENS = 2, 2048, 4, 8192


def by_ddp(model):
    return DistributedDataParallel(model, bucket_cap_mb=WIDTH * WIDTH * 4 / 2**20)  # a bucket for each layer


def by_fsdp(model):
    for layer in model:
        fully_shard(layer)
    return fully_shard(model)


def by_tp(model):
    plan = {str(i): RowwiseParallel() if i % 2 else ColwiseParallel() for i in range(LAYERS)}
    return parallelize_module(model, init_device_mesh("cpu", (dist.get_world_size(),)), plan)


def step_of(wrap):
    """The trace of the second step; compute and communication take about as long as each other."""

    def program():
        dist.init_process_group("gloo")
        model = wrap(nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]))
        for name in ("first", "second"):  # DDP makes its buckets in the first step
            with here().group.span(name):
                model(torch.empty(TOKENS, WIDTH)).sum().backward()

    cluster = Cluster(P, "H100")
    cluster.run(no_data(guest(program), len))
    return cluster.trace.during("second")


@pytest.mark.parametrize("wrap", [by_ddp, by_fsdp])
def test_what_overlaps_on_gpus_overlaps_here(wrap):
    trace = step_of(wrap)
    compute, communication = (trace.total(0, kind) for kind in ("compute", "communication"))
    hidden = compute + communication - trace.total(0)
    # All but the first or last layer's, and what stands before the step.
    assert hidden > communication / 2
    assert trace.flops(0) == (3 * LAYERS - 1) * 2 * TOKENS * WIDTH**2  # the input needs no gradient


def test_the_backward_of_ddp_ends_when_its_last_bucket_has_come():
    trace = step_of(by_ddp)
    last = max(event.end for event in trace.events if event.name == "all_reduce")
    assert trace.seconds >= last
    backward = [event for event in trace.events if event.rank == 0 and event.name == "mm"][LAYERS:]
    reduces = [event for event in trace.events if event.rank == 0 and event.name == "all_reduce"]
    assert len(reduces) == LAYERS
    assert reduces[0].start < backward[-1].start < reduces[-1].end


def test_the_next_layer_of_fsdp_is_gathered_while_one_computes():
    events = [event for event in step_of(by_fsdp).events if event.rank == 0]
    products = [event for event in events if event.name == "mm"]
    gathers = [event for event in events if event.name == "all_gather"]
    beside = [g for g in gathers if any(m.start < g.end and g.start < m.end for m in products)]
    assert len(beside) >= LAYERS - 1  # of 2 LAYERS gathers: all that prefetch a layer of the forward, at least


def test_a_dtensor_is_charged_for_its_shard():
    assert step_of(by_tp).flops(0) == (3 * LAYERS - 1) * 2 * TOKENS * WIDTH**2 // P


def test_afterwards_the_streams_of_the_cpu_are_empty_words_again():
    before = dict(vars(torch.cpu)), torch.UntypedStorage.resize_
    step_of(by_fsdp)
    assert (dict(vars(torch.cpu)), torch.UntypedStorage.resize_) == before


class Seen(TorchDispatchMode):
    """The names of the operations in a thread."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_what_the_links_write_is_no_work_of_a_device():
    """Neither the clock nor a mode of the program's own sees it. Nor do they see DDP look at a number of each other."""

    def program():
        dist.init_process_group("gloo")
        with Seen() as seen:
            everyones = [torch.empty(3) for _ in range(P)]
            dist.all_gather(everyones, torch.ones(3))
            DistributedDataParallel(nn.Linear(3, 3))
        return seen.names

    cluster = Cluster(P, "H100")
    seen = cluster.run(guest(program))[0]
    charged = [event.name for event in cluster.trace.events if event.rank == 0]
    for names in seen, charged:
        assert "uniform_" in names  # the weights
        assert "_local_scalar_dense" not in names
    assert seen.count("copy_") == charged.count("copy_") == 2  # the parameters, out of the bucket that was broadcast
