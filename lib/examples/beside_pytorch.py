"""The same training with this book's tools and with PyTorch's own: programs of one device, in pairs, for `Processes`.

    ours                 PyTorch's
    data_parallel        distributed_data_parallel    DistributedDataParallel
    fully_sharded        fsdp                         fully_shard (FSDP2)
    tensor_parallel      dtensor                      parallelize_module with ColwiseParallel, RowwiseParallel
    grid                 device_mesh                  fully_shard x parallelize_module on a DeviceMesh

Each takes (group, steps), trains the same MLP on the same data, and returns the losses of this device's samples and the
whole weights after the last step. `small_training.one_device` is the training that all of them stand for.
"""

import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from lib import FullySharded, average_gradients, broadcast_parameters
from lib.devices import Group, Mesh
from lib.examples.small_training import (
    Result,
    batches,
    dense_mlp,
    gathered,
    my_batches,
    parallel_mlp,
    train_mlp,
    weights,
)

PLAN = {"up": ColwiseParallel(), "down": RowwiseParallel()}

Program = Callable[[Group, int], Result]


def with_process_group(program: Program) -> Program:
    """PyTorch's tools talk through the one process group of a process. The program finds it made, of the members of
    its `group`, and it is destroyed afterwards. RuntimeError when the devices are not processes of their own.
    """

    @wraps(program)
    def with_one(group: Group, steps: int) -> Result:
        _join(group)
        try:
            return program(group, steps)
        finally:
            # A wrapper, so that the program's model is gone by now: a DistributedDataParallel that is freed after its
            # process group was destroyed may hang (github.com/pytorch/pytorch/issues/56297).
            dist.destroy_process_group()

    return with_one


def _join(group: Group) -> None:
    store, port = None, 0
    if group.rank == 0:  # port 0: the operating system chooses a free one
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = store.port
    processes, ports = group.all_gather(torch.tensor([[os.getpid(), port]])).unbind(1)  # (P,), (P,)  Replicate
    if len(set(processes.tolist())) < group.size:
        raise RuntimeError(
            f"{group.size} devices share a process, but PyTorch's tools need one each: run this program with "
            f"Processes({group.size}) in the place of Cluster({group.size})"
        )
    if store is None:
        store = dist.TCPStore("127.0.0.1", ports[0].item(), wait_for_workers=False)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo looks up the machine's name, which may fail
    dist.init_process_group("gloo", store=store, rank=group.rank, world_size=group.size)
    group.barrier()  # rank 0 keeps the store, and may not leave before all have read it


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Out of the shards, by name: a DTensor knows its layout."""
    return {name: p.full_tensor().detach() for name, p in model.named_parameters()}


# ---- data parallelism ----


def data_parallel(group: Group, steps: int) -> Result:
    """Ours: all begin with the weights of rank 0, and all-reduce the gradients before each step."""
    model = dense_mlp(seed=group.rank)
    broadcast_parameters(model, group)
    losses = train_mlp(model, my_batches(steps, group), lambda: average_gradients(model, group))
    return losses, weights(model)


@with_process_group
def distributed_data_parallel(group: Group, steps: int) -> Result:
    """PyTorch's: the wrapper does both."""
    model = DistributedDataParallel(dense_mlp(seed=group.rank))
    losses = train_mlp(model, my_batches(steps, group))
    return losses, weights(model.module)


# ---- fully sharded data parallelism ----


def fully_sharded(group: Group, steps: int) -> Result:
    """Ours: each parameter becomes this device's piece of it."""
    model = dense_mlp()
    sharded = FullySharded(model, group, layers=[model.up, model.down])
    losses = train_mlp(model, my_batches(steps, group))
    return losses, sharded.whole_parameters()


@with_process_group
def fsdp(group: Group, steps: int) -> Result:
    """PyTorch's: the same, the model itself last."""
    model, mesh = dense_mlp(), init_device_mesh("cpu", (group.size,))
    for layer in (model.up, model.down, model):
        fully_shard(layer, mesh=mesh)
    losses = train_mlp(model, my_batches(steps, group))
    return losses, whole_weights(model)


# ---- tensor parallelism ----


def tensor_parallel(group: Group, steps: int) -> Result:
    """Ours: layers that know their group."""
    model = parallel_mlp(group)
    losses = train_mlp(model, batches(steps))
    return losses, gathered(weights(model), model, group)


@with_process_group
def dtensor(group: Group, steps: int) -> Result:
    """PyTorch's: dense layers, and a plan by their names."""
    model, mesh = dense_mlp(), init_device_mesh("cpu", (group.size,))
    parallelize_module(model, mesh, PLAN)
    losses = train_mlp(model, batches(steps))
    return losses, whole_weights(model)


# ---- both at once: two replicas, each split over half of the devices ----


def grid(group: Group, steps: int) -> Result:
    """Ours: tensor parallel along one axis, fully sharded along the other."""
    mesh = Mesh(group, dp=2, tp=group.size // 2)
    model = parallel_mlp(mesh.tp)
    sharded = FullySharded(model, mesh.dp, layers=[model.up, model.down])
    losses = train_mlp(model, my_batches(steps, mesh.dp))
    return losses, gathered(sharded.whole_parameters(), model, mesh.tp)


@with_process_group
def device_mesh(group: Group, steps: int) -> Result:
    """PyTorch's: first the plan, then the shards of the shards."""
    data = my_batches(steps, Mesh(group, dp=2, tp=group.size // 2).dp)
    mesh = init_device_mesh("cpu", (2, group.size // 2), mesh_dim_names=("dp", "tp"))
    model = parallelize_module(dense_mlp(), mesh["tp"], PLAN)
    for layer in (model.up, model.down, model):
        fully_shard(layer, mesh=mesh["dp"])
    # PyTorch warns that nobody may write into what RowwiseParallel returns, and nobody does.
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        losses = train_mlp(model, data)
    for layer in (model.up, model.down):
        layer.unshard()  # whole over dp; over both axes at once, PyTorch would warn that this takes two collectives
    return losses, whole_weights(model)


PAIRS = {
    "data parallel": (data_parallel, distributed_data_parallel),
    "fully sharded": (fully_sharded, fsdp),
    "tensor parallel": (tensor_parallel, dtensor),
    "data x tensor": (grid, device_mesh),
}


def side_by_side(group: Group, steps: int) -> dict[str, dict[str, Tensor]]:
    """All of them, one after another in the same processes: the whole weights by name, by name of the program."""
    return {program.__name__: program(group, steps)[1] for pair in PAIRS.values() for program in pair}
