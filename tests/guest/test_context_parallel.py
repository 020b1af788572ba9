"""`context_parallel` of PyTorch, which knows GPUs only, with pretended ones: the same as attention on one device."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._attention import context_parallel_unshard, set_rotate_method

from lib.devices import Cluster
from lib.guest import private
from lib.guest.no_data import no_data
from lib.guest.no_gpu import no_gpu
from lib.guest.program import guest

THEIRS = "torch.distributed.tensor.experimental._context_parallel._attention"


def options():
    return private.take(THEIRS, "_cp_options")


def state():
    return F.scaled_dot_product_attention, dict(private.take(THEIRS, "_replaced_functions")), str(options())


def attend(q, k, v, above, causal):
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    out.backward(above)
    return [out.detach(), q.grad, k.grad, v.grad]


def in_pieces(causal, rotate):
    """The largest difference from attention over all tokens, which each device takes before and afterwards."""
    dist.init_process_group("nccl")
    mesh = init_device_mesh("cuda", (dist.get_world_size(),))
    set_rotate_method(rotate)
    options().enable_load_balance = causal
    torch.manual_seed(0)
    tensors = [torch.randn(2, 3, 16, 8, device="cuda") for _ in range(4)]
    expected = attend(*tensors, causal)
    with context_parallel(mesh, buffers=tensors, buffer_seq_dims=[2] * 4):
        mine = attend(*tensors, causal)
        found = context_parallel_unshard(mesh, mine, [2] * 4)
    again = attend(*tensors, causal)
    assert [x.shape for x in again] == [x.shape for x in expected]
    return max((x - y).abs().max().item() for x, y in zip([*found, *again], expected * 2, strict=True))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rotate", ["allgather", "alltoall"])
@pytest.mark.parametrize("devices", [2, 4])
def test_it_is_attention_over_all_tokens(causal, rotate, devices):
    before = state()
    differences = Cluster(devices).run(no_gpu(guest(in_pieces, causal, rotate), say=lambda text: None))
    assert max(differences) < 1e-5
    assert state() == before


def shapes_in_pieces():
    dist.init_process_group("nccl")
    mesh = init_device_mesh("cuda", (dist.get_world_size(),))
    tensors = [torch.randn(2, 3, 16, 8, device="cuda") for _ in range(4)]
    with context_parallel(mesh, buffers=tensors, buffer_seq_dims=[2] * 4):
        return [tuple(x.shape) for x in attend(*tensors, causal=True)]


def test_without_data_the_same_bytes():
    sent = []
    for prepare in (lambda program: program, no_data):
        cluster = Cluster(4)
        shapes = cluster.run(prepare(no_gpu(guest(shapes_in_pieces), say=lambda text: None)))
        assert shapes == [[(2, 3, 4, 8)] * 4] * 4
        sent.append(cluster.meters.count(0).bytes_sent)
    assert sent[0] == sent[1] > 0
