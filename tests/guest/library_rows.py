"""Small trainings with what PyTorch brings for many devices. A file that real processes import.

Each returns what it has learned. In float64, sums in another order differ in the last digits only.
"""

from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, ShardingStrategy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.nn.utils import clip_grad_norm_
from torch.optim.optimizer import register_optimizer_step_post_hook

WIDTH = 8


class Block(nn.Module):
    """An MLP with a norm before it, and a layer that only some samples need."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.rare = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, rare=False):
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return self.rare(x) if rare else x


def make(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(Block(), Block()).to(dtype)


def batch(step, rank=None, dtype=torch.float64):
    stream = torch.Generator().manual_seed(10 * step + (dist.get_rank() if rank is None else rank))
    return torch.randn(4, 6, WIDTH, generator=stream, dtype=torch.float64).to(dtype)


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, foreach=False)


def train(model, optimizer, steps=2, clip=None, rank=None, dtype=torch.float64):
    """The losses, and the norms that were clipped."""
    found = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(batch(step, rank, dtype)).square().mean()
        loss.backward()
        found.append(loss.item())
        if clip:
            norm = clip_grad_norm_(model.parameters(), clip)
            found.append((norm.full_tensor() if isinstance(norm, DTensor) else norm).item())
        optimizer.step()
    return found


def whole(model):
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def without_rare(model):
    for block in model:
        block.rare.requires_grad_(False)
    return model


# ---- DistributedDataParallel ----


def ddp():
    """Small buckets, two micro-batches, weights that begin apart."""
    model = DDP(without_rare(make(dist.get_rank())), bucket_cap_mb=0.001)
    optimizer = sgd(model.parameters())
    for step in range(2):
        optimizer.zero_grad()
        for number, micro in enumerate(batch(step).chunk(2)):
            with nullcontext() if number else model.no_sync():
                model(micro).square().mean().backward()
        clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return whole(model.module)


class Sometimes(nn.Module):
    """Rank 0 does not use the layer `rare`, the others do."""

    def __init__(self):
        super().__init__()
        self.block = make()[0]
        self.norm = nn.BatchNorm1d(6).double()

    def forward(self, x):
        return self.norm(self.block(x, dist.get_rank() > 0))


def ddp_unused():
    """Parameters that not all use, and buffers that rank 0 tells the others."""
    model = DDP(Sometimes(), find_unused_parameters=True, gradient_as_bucket_view=True)
    losses = train(model, sgd(model.parameters()), 3)
    return losses, whole(model.module), {name: b.clone() for name, b in model.module.named_buffers()}


def ddp_sparse():
    """Of a table, only the gradients of the rows that were looked up travel."""
    torch.manual_seed(0)
    table = nn.Embedding(8, WIDTH, sparse=True, dtype=torch.float64)
    model = DDP(nn.Sequential(table, nn.Linear(WIDTH, 2, dtype=torch.float64)))
    rank = dist.get_rank()
    for step in range(2):
        model.zero_grad()
        model(torch.tensor([rank, 7, rank + step])).square().mean().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    return [*whole(model.module).values(), table.weight.grad.to_dense(), table.weight.grad.coalesce().indices()]


def _own_hook(state, bucket):
    state.append(bucket.buffer().numel())
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda f: f.value()[0] / len(state))


def ddp_hooks():
    found = []
    power = powerSGD_hook.PowerSGDState(dist.group.WORLD, matrix_approximation_rank=1, start_powerSGD_iter=2)
    for state, hook in (
        (None, default_hooks.allreduce_hook), ([], _own_hook), (power, powerSGD_hook.powerSGD_hook),
    ):  # fmt: skip
        model = DDP(without_rare(make()))
        model.register_comm_hook(state, hook)
        found.append((train(model, sgd(model.parameters()), 3), whole(model.module)))
    return found


def ddp_in_half():
    """Gradients travel in float16: another order of additions is seen in the fourth digit."""
    model = DDP(without_rare(make()))
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return train(model, sgd(model.parameters())), whole(model.module)


def ddp_join():
    """Some have more batches than others."""
    model = DDP(without_rare(make()))
    optimizer = sgd(model.parameters())
    with Join([model]):
        losses = train(model, optimizer, 1 + dist.get_rank() % 2)
    return losses, whole(model.module)


def ddp_join_those_left():
    """The mean is over those that still have batches."""
    model = DDP(without_rare(make()))
    with model.join(divide_by_initial_world_size=False):
        losses = train(model, sgd(model.parameters()), 1 + dist.get_rank() % 2)
    return losses, whole(model.module)


class Counts(nn.Module):
    """A layer with a buffer that the forward changes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.register_buffer("seen", torch.ones(2, dtype=torch.float64))

    def forward(self, x):
        self.seen += dist.get_rank() + 1
        return (self.weight * x).sum()


def ddp_buffers_by_hook():
    """A hook of the program sums up the buffers after the forward. DDP waits for it at the end of the backward."""
    model = DDP(Counts())
    group = model.process_group

    def hook(state, buffers):
        return [dist.all_reduce(x, group=group, async_op=True).get_future() for x in buffers.values()]

    model._register_buffer_comm_hook(None, hook)
    for step in range(2):
        model(torch.ones(2, dtype=torch.float64) * (step + dist.get_rank())).backward()
    return model.module.seen, model.module.weight.grad


def zero_redundancy():
    model = DDP(without_rare(make()))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, lr=0.01, foreach=False)
    losses = train(model, optimizer, 3)
    optimizer.consolidate_state_dict(to=0)
    state = optimizer.state_dict()["state"] if dist.get_rank() == 0 else {}
    return losses, whole(model.module), [value["exp_avg"] for value in state.values()]


def hooks_of_all():
    """Each process registers hooks for all modules and all optimizers, which are its own ones."""
    factor, seen = 1 + dist.get_rank(), []
    hooks = [
        register_module_forward_hook(lambda module, _, y: y * factor if isinstance(module, nn.Linear) else y),
        register_optimizer_step_post_hook(lambda *_: seen.append("step")),
    ]
    model = DDP(without_rare(make()))
    learned = train(model, sgd(model.parameters())), whole(model.module)
    dist.barrier()  # nobody removes its own while others train
    for hook in hooks:
        hook.remove()
    return learned, seen


# ---- fully sharded ----


def _by_fsdp1(**options):
    options |= {"device_id": torch.device("cpu"), "use_orig_params": True}
    blocks = [FullyShardedDataParallel(block, **options) for block in without_rare(make(dtype=torch.float32))]
    model = FullyShardedDataParallel(nn.Sequential(*blocks), **options)
    optimizer, losses = sgd(model.parameters()), []
    for step in range(2):
        optimizer.zero_grad()
        loss = model(batch(step, dtype=torch.float32)).square().mean()
        loss.backward()
        losses += [loss.item(), model.clip_grad_norm_(0.5).item()]
        optimizer.step()
    with FullyShardedDataParallel.summon_full_params(model):
        return losses, [p.detach().clone() for p in model.parameters()]


def fsdp1():
    strategies = (ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP, ShardingStrategy.NO_SHARD)
    return [_by_fsdp1(sharding_strategy=strategy) for strategy in strategies]


def fsdp1_hybrid():
    """Sharded within a group of devices, and the same in every group."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
    strategies = (ShardingStrategy.HYBRID_SHARD, ShardingStrategy._HYBRID_SHARD_ZERO2)
    return [_by_fsdp1(sharding_strategy=strategy, device_mesh=mesh) for strategy in strategies]


def _fully(model, mesh, **options):
    for block in without_rare(model):
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def fsdp2():
    found = []
    for options in ({}, {"reshard_after_forward": False}):
        model = _fully(make(), init_device_mesh("cpu", (dist.get_world_size(),)), **options)
        found.append((train(model, sgd(model.parameters()), clip=0.5), whole(model)))
    return found


def fsdp2_mixed():
    """Computes in bfloat16, reduces in float32. Two micro-batches, one sum of gradients."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = _fully(make(dtype=torch.float32), init_device_mesh("cpu", (dist.get_world_size(),)), mp_policy=policy)
    optimizer = sgd(model.parameters())
    found = train(model, optimizer, clip=0.5, dtype=torch.float32)
    model.set_requires_gradient_sync(False)
    model(batch(2, dtype=torch.float32)).square().mean().backward()
    model.set_requires_gradient_sync(True)
    model(batch(3, dtype=torch.float32)).square().mean().backward()
    return found, {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}


def hsdp():
    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard"))
    model = _fully(make(), mesh)
    return train(model, sgd(model.parameters()), clip=0.5), whole(model)


# ---- DTensor ----


def dtensors():
    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    x = batch(0, rank=0)[0].repeat(size, 1).requires_grad_()
    found = []
    for placement in (Shard(0), Shard(1), Replicate()):
        a = distribute_tensor(x, mesh, [placement])
        b = distribute_tensor(batch(1, rank=0)[0][:, :5].repeat(2, 1)[:WIDTH], mesh, [Shard(0)])
        y = torch.relu(a @ b).sum(0)
        found += [str(y.placements), y.full_tensor().detach(), a.to_local().detach()]
        y.full_tensor().sum().backward()
    odd = distribute_tensor(torch.arange(7.0), mesh, [Shard(0)])  # pieces of several lengths, the last may be empty
    part = DTensor.from_local(torch.ones(size, 2) * dist.get_rank(), mesh, [Partial()])
    turned = distribute_tensor(x.detach(), mesh, [Shard(0)]).redistribute(mesh, [Shard(1)])
    found += [
        odd.to_local(),
        (odd * 2).full_tensor(),
        part.redistribute(mesh, [Shard(0)]).to_local(),
        turned.to_local(),
    ]
    return found, x.grad, odd.max().full_tensor(), part.full_tensor()


def uneven_dtensors():
    """Pieces of pieces: how long those of a device are on its way depends on where it stands."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2))
    found = []
    for rows in (5, 7):
        x = distribute_tensor(torch.arange(3.0 * rows).view(rows, 3), mesh, [Shard(0), Shard(0)])
        for other in ([Shard(1), Shard(0)], [Shard(0), Shard(1)], [Replicate(), Shard(0)], [Shard(1), Shard(1)]):
            y = x.redistribute(mesh, other)
            found += [y.to_local(), y.redistribute(mesh, [Shard(0), Shard(0)]).to_local(), y.full_tensor()]
    return found


def tensor_parallel():
    model = without_rare(make())
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return train(model, sgd(model.parameters()), rank=0), whole(model)


def sequence_parallel():
    """Norms on pieces of the sequence; logits sharded by vocabulary, with a loss that leaves them so."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16)).double()
    plan = {
        "0": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "1": SequenceParallel(),
        "2": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
    }
    parallelize_module(model, mesh, plan)
    optimizer, losses = sgd(model.parameters()), []
    for step in range(2):
        tokens = torch.arange(2 * 8).view(2, 8).roll(step)
        optimizer.zero_grad()
        with loss_parallel():
            loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
            loss.backward()
        losses.append(loss.full_tensor().item())
        optimizer.step()
    return losses, whole(model)


def tensor_and_fully_sharded():
    """Both at once, on a mesh of two dimensions."""
    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("dp", "tp"))
    model = without_rare(make())
    for block in model:
        plan = {
            "norm": SequenceParallel(),
            "up": ColwiseParallel(input_layouts=Shard(1)),
            "down": RowwiseParallel(output_layouts=Shard(1)),
        }
        parallelize_module(block, mesh["tp"], plan)
    start = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Shard(1), use_local_output=True)
    parallelize_module(model[0], mesh["tp"], start)
    _fully(model, mesh["dp"])
    found = []
    optimizer = sgd(model.parameters())
    for step in range(2):
        optimizer.zero_grad()
        loss = model(batch(step, rank=dist.get_rank(mesh["dp"].get_group()))).square().mean()
        loss.backward()
        found.append(loss.item())
        clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return found, whole(model)


def several_ways():
    """Two stages of a pipeline, each fully sharded over the devices beside it, which have other batches."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("stage", "data"))
    number, data = mesh.get_local_rank("stage"), mesh["data"]
    model = fully_shard(without_rare(make())[number], mesh=data)
    stage = PipelineStage(model, number, 2, torch.device("cpu"), group=mesh.get_group("stage"))
    schedule = Schedule1F1B(stage, 2, loss_fn=nn.functional.mse_loss)
    optimizer, losses = sgd(p for p in model.parameters() if p.requires_grad), []
    for step in range(2):
        optimizer.zero_grad()
        x = batch(step, data.get_local_rank())
        schedule.step(*([] if number else [x]), **({"target": x.cos(), "losses": losses} if number else {}))
        optimizer.step()
    return [loss.item() for loss in losses], whole(model)


# ---- checkpoints ----


def save(folder, in_the_background=False):
    """A model and its optimizer, sharded over all who are here."""
    model = _fully(make(), init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
    for step in range(2):
        optimizer.zero_grad()
        model(batch(step, rank=0)).square().mean().backward()
        optimizer.step()
    weights, states = get_state_dict(model, optimizer)
    kept = {"model": weights, "optimizer": states, "step": 2}
    if in_the_background:
        checkpoint.async_save(kept, checkpoint_id=folder).result()
    else:
        checkpoint.save(kept, checkpoint_id=folder)
    return {name: value.full_tensor() for name, value in get_model_state_dict(model).items()}


def load(folder):
    """What others have saved, however many they were; and one step more."""
    model = _fully(make(seed=7), init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
    weights, states = get_state_dict(model, optimizer)
    kept = {"model": weights, "optimizer": states, "step": 0}
    checkpoint.load(kept, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=kept["model"], optim_state_dict=kept["optimizer"])
    loaded = {name: value.full_tensor().clone() for name, value in get_model_state_dict(model).items()}
    optimizer.zero_grad()
    model(batch(2, rank=0)).square().mean().backward()
    optimizer.step()
    return kept["step"], loaded, whole(model)


ROWS = [
    ddp, ddp_unused, ddp_sparse, ddp_hooks, ddp_in_half, ddp_join, ddp_join_those_left, ddp_buffers_by_hook,
    zero_redundancy, hooks_of_all, fsdp1, fsdp2, fsdp2_mixed, dtensors, tensor_parallel, sequence_parallel,
]  # fmt: skip
OF_GROUPS = [  # on two devices, these groups would have one
    fsdp1_hybrid, hsdp, uneven_dtensors, tensor_and_fully_sharded, several_ways,
]  # fmt: skip
