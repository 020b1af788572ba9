"""Guests that say "cuda" throughout, as scripts for GPUs do, beside the same guests on the CPU."""

import os
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel import distributed as ddp_module

from lib.devices import Cluster
from lib.guest.no_gpu import no_gpu
from lib.guest.program import guest

P, WIDTH = 4, 8


def run(program, *args, hardware=None, size=P, **options):
    lines = []
    cluster = Cluster(size, hardware)
    outputs = cluster.run(no_gpu(guest(program, *args), say=lines.append, **options))
    assert lines == [f"No GPU: {options.get('per_node', size)} are pretended in each node. All runs on the CPU; "
                     "tensors say device='cpu'."]  # fmt: skip
    return outputs, cluster


def train(wrap, gpus):
    """Two steps as a script for GPUs takes them; with `gpus` False, the same on the CPU. The whole weights."""
    local = int(os.environ["LOCAL_RANK"])
    place = torch.device("cuda", local) if gpus else torch.device("cpu")
    dist.init_process_group("nccl" if gpus else "gloo", device_id=place if gpus else None)
    if gpus:
        torch.cuda.set_device(place)
        assert torch.cuda.device_count() == dist.get_world_size()
        assert torch.cuda.current_device() == local
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)).to(place)
    model = wrap(model, local if gpus else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(local)
    for _ in range(2):
        x = torch.randn(3, WIDTH).to(place, non_blocking=True)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    if gpus:
        torch.cuda.synchronize()
    dist.barrier(device_ids=[local] if gpus else None)
    with torch.no_grad():
        return model(torch.ones(1, WIDTH, device=place)).cpu()


def by_ddp(model, device):
    return DistributedDataParallel(model, device_ids=None if device is None else [device], output_device=device)


def by_fsdp1(model, device):
    return FullyShardedDataParallel(model, device_id=torch.device("cpu") if device is None else device)


def by_fsdp2(model, device):
    mesh = init_device_mesh("cpu" if device is None else "cuda", (dist.get_world_size(),))
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


@pytest.mark.parametrize("wrap", [by_ddp, by_fsdp1, by_fsdp2])
def test_programs_for_gpus_give_what_they_give_on_the_cpu(wrap):
    on_gpus, _ = run(train, wrap, True)
    on_cpu = Cluster(P).run(guest(train, wrap, False))
    for mine, his in zip(on_gpus, on_cpu, strict=True):
        assert torch.equal(mine, his)
    assert ddp_module.DistributedDataParallel.__init__.__module__ == "torch.nn.parallel.distributed"  # undone


def test_dtensors_on_a_mesh_of_gpus():
    def program():
        dist.init_process_group("nccl")
        mesh = init_device_mesh("cuda", (dist.get_world_size(),))
        x = distribute_tensor(torch.arange(float(2 * P)), mesh, [Shard(0)]).requires_grad_()
        (x * distribute_tensor(torch.ones(2 * P, device="cuda"), mesh, [Replicate()])).sum().full_tensor().backward()
        return x.to_local().tolist(), x.grad.full_tensor().tolist()

    outputs, _ = run(program)
    assert outputs == [([2.0 * r, 2.0 * r + 1], [1.0] * 2 * P) for r in range(P)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("place", [Shard(0), Shard(1), Replicate()], ids=str)
def test_attention_of_sharded_heads_is_that_of_all_heads(place, masked):
    """By heads, as tensor parallelism has them, and by the samples of a batch. With a mask, all have all of it."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, mask = [draw(P, P, 2 * P, 5) for _ in range(3)], draw(2 * P, 2 * P) if masked else None

    def attended(parts, mask):
        y = scaled_dot_product_attention(*parts, attn_mask=mask, is_causal=not masked)
        y.square().sum().backward()
        return y.detach(), [part.grad for part in parts]

    def program():
        dist.init_process_group("nccl")
        mesh = init_device_mesh("cuda", (dist.get_world_size(),))
        parts = [distribute_tensor(part.clone(), mesh, [place]).requires_grad_() for part in x]
        y, grads = attended(parts, distribute_tensor(mask.clone(), mesh, [Replicate()]) if masked else None)
        assert y.placements == (Replicate() if masked else place,)
        return [each.full_tensor() for each in (y, *grads)]

    y, grads = attended([part.clone().requires_grad_() for part in x], mask)
    for output in run(program)[0]:
        torch.testing.assert_close(output, [y, *grads], rtol=1e-12, atol=1e-12)


def test_synced_batch_norm_is_the_batch_norm_of_the_whole_batch():
    torch.manual_seed(0)
    whole = torch.randn(10, 3, 2, dtype=torch.float64)
    cut = [0, 1, 4, 6, 10]  # batches of several lengths

    def layer(kind):
        made = kind(3).double()
        with torch.no_grad():
            made.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        return made

    def program():
        dist.init_process_group("nccl")
        r = dist.get_rank()
        norm = nn.SyncBatchNorm.convert_sync_batchnorm(layer(nn.BatchNorm1d)).cuda()
        x = whole[cut[r] : cut[r + 1]].cuda().requires_grad_()
        y = norm(x)
        y.pow(3).sum().backward()
        dist.all_reduce(norm.weight.grad)
        return y.detach(), x.grad, norm.weight.grad, norm.running_mean, norm.running_var

    outputs, cluster = run(program)
    expected, x = layer(nn.BatchNorm1d), whole.clone().requires_grad_()
    y = expected(x)
    y.pow(3).sum().backward()
    for i, right in enumerate((y.detach(), x.grad)):
        torch.testing.assert_close(torch.cat([out[i] for out in outputs]), right, rtol=1e-10, atol=1e-10)
    for out in outputs:
        for mine, right in zip(
            out[2:], (expected.weight.grad, expected.running_mean, expected.running_var), strict=True
        ):
            torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-10)
    gathered = cluster.meters.count(0, "all_gather").bytes_received
    assert gathered == (P - 1) * (2 * 3 + 1) * 8  # PyTorch's own messages: mean, deviation and count


def test_a_norm_over_all_devices_trains_in_ddp():
    def program():
        dist.init_process_group("nccl")
        rank = dist.get_rank()
        norm = DistributedDataParallel(nn.SyncBatchNorm(1).cuda(), device_ids=[rank])
        norm(torch.tensor([[1.0], [3.0]], device="cuda") * (rank + 1)).pow(2).sum().backward()
        return norm.module.weight.grad.item()

    outputs, _ = run(program)
    whole = torch.tensor([[1.0], [3.0]] * P) * torch.arange(1, P + 1).repeat_interleave(2).unsqueeze(1)
    expected = nn.BatchNorm1d(1)
    expected(whole).pow(2).sum().backward()
    assert outputs == pytest.approx([expected.weight.grad.item() / P] * P, rel=1e-4)


def test_on_the_clock_events_tell_virtual_time_and_memory_is_known():
    def program():
        dist.init_process_group("nccl")
        torch.cuda.set_device(dist.get_rank())
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        x = torch.ones(256, 256, device="cuda")
        held = torch.cuda.memory_allocated()
        y = x @ x
        start.record()
        z = x @ y  # noqa: F841  it is held
        end.record()
        del y
        torch.cuda.synchronize()
        return (start.elapsed_time(end), held, torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(),
                torch.cuda.get_device_name(), torch.cuda.get_arch_list(), torch.cuda.mem_get_info())  # fmt: skip

    outputs, cluster = run(program, hardware="H100")
    kernel = max(event.seconds for event in cluster.trace.events if event.name == "mm")
    size = 4 * 256 * 256
    whole = int(cluster.hardware.memory)
    for milliseconds, held, now, peak, name, architectures, memory in outputs:
        assert milliseconds == pytest.approx(1e3 * kernel)
        assert (held, now, peak) == (size, 2 * size, 3 * size)
        assert (name, architectures) == ("H100 (pretended)", ["sm_90"])
        assert memory == (whole - 2 * size, whole)
    assert cluster.trace.peak(0) == 3 * size


def test_a_side_stream_works_beside_the_main_one():
    def program(beside):
        x = torch.ones(512, 512, device="cuda")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side if beside else torch.cuda.current_stream()):
            y = x @ x
        z = x @ x
        torch.cuda.current_stream().wait_stream(side)
        return (y + z).shape

    times = [run(program, beside, hardware="H100", size=2)[1].trace for beside in (True, False)]
    product = next(event.seconds for event in times[0].events if event.name == "mm")
    assert times[1].seconds - times[0].seconds == pytest.approx(product)


def test_gpus_may_be_more_than_devices_for_scripts_that_start_their_own_processes():
    assert run(lambda: torch.cuda.device_count(), size=2, per_node=8)[0] == [8, 8]


def test_a_device_that_is_not_there_is_named():
    def program():
        torch.cuda.set_device(dist.get_rank() + 1 if dist.is_initialized() else int(os.environ["RANK"]) + 1)

    with pytest.raises(RuntimeError, match="invalid device ordinal: cuda:4. The node has 4 pretended GPUs") as caught:
        run(program)
    assert "raised on rank 3 of 4" in caught.value.__notes__
    assert not torch.cuda.is_available()
