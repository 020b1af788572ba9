"""Memory over time: what each device holds, named by its use, against what autograd and arithmetic say."""

import gc
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lib import ColumnParallelLinear, RowParallelLinear
from lib.devices import Cluster, Hardware, Link
from lib.devices.memory import USES

SLOW = Hardware("slow", 1e3, 1e3, 1e9, Link(1.0, 1e3))
N, D, H = 6, 8, 32  # tokens, width, hidden
EIGHT = 8  # bytes of a float64
optimizers = sys.modules[torch.optim.Optimizer.__module__]


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def trace_of(program, *args, devices=1, hardware=SLOW):
    cluster = Cluster(devices, hardware=hardware)
    cluster.run(program, *args)
    return cluster.trace


def mlp(group, x):
    a, b = ColumnParallelLinear(D, H, group), RowParallelLinear(H, D, group)
    y = b(F.gelu(a(x)))
    y.sum().backward()
    return a, b


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_parameters_and_gradients_of_an_mlp(devices):
    trace = trace_of(mlp, torch.randn(N, D), devices=devices)
    mine = (D * H + H + H * D) // devices + D
    for rank in range(devices):
        assert trace.held(rank, "parameters")[-2][1] == EIGHT * mine  # -1 is the end of the run
        assert trace.peak(rank, "gradients") == EIGHT * mine
        assert trace.held(rank, "gradients")[-2][1] == EIGHT * mine


def saved_by_autograd(run):
    """Bytes of the distinct storages that autograd keeps, counted without the book's library."""
    storages = {}

    def pack(x):
        if not isinstance(x, nn.Parameter) and not (x._base is not None and isinstance(x._base, nn.Parameter)):
            storages[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = run()
    return sum(storages.values()), kept


def test_activations_are_what_autograd_saves():
    layers = nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D))
    x = torch.randn(N, D)
    saved, _ = saved_by_autograd(lambda: layers(x))
    assert saved == EIGHT * (N * D + 2 * N * H)  # the inputs of the two products and of the GELU
    assert trace_of(lambda group: layers(x)).peak(0, "activations") == saved


def attention(group, x, qkv, out):
    q, k, v = qkv(x).view(N, 3, 2, D // 2).permute(1, 2, 0, 3)  # (2, N, D/2) each
    weights = F.softmax(q @ k.transpose(1, 2) / 2, dim=-1)
    y = out((weights @ v).transpose(0, 1).reshape(N, D))
    if group is not None:
        y.sum().backward()
    return y


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_activations_of_an_attention_block(device):
    qkv, out = nn.Linear(D, 3 * D, device=device), nn.Linear(D, D, device=device)
    x = torch.randn(N, D, device=device)
    saved, _ = saved_by_autograd(lambda: attention(None, x, qkv, out))
    trace = trace_of(attention, x, qkv, out)
    assert trace.peak(0, "activations") == saved
    assert trace.held(0, "activations")[-1][1] == 0
    assert trace.peak(0, "parameters") == EIGHT * (3 * D * D + 3 * D + D * D + D)


def test_meta_and_real_tensors_give_the_same_memory():
    def run(device):
        layers = nn.Sequential(nn.Linear(D, H, device=device), nn.ReLU(), nn.Linear(H, D, device=device))
        return trace_of(lambda group, x: layers(x).sum().backward(), torch.ones(N, D, device=device)).memory

    assert run("cpu") == run("meta")


def test_a_step_by_hand():
    x, w = torch.randn(2, 3), nn.Parameter(torch.randn(3, 5))

    def program(group):
        y = x @ w
        z = y.relu()
        del y
        z.sum().backward()

    trace = trace_of(program)
    mm, relu = trace.events[:2]
    assert trace.held(0, "parameters") == [(0.0, 15 * EIGHT), (trace.seconds, 0)]
    # mm saves x; relu saves its result; y lives from the beginning of mm to the end of relu
    (y,) = [h for h in trace.memory if h.name == "mm" and h.size == 10 * EIGHT]
    assert (y.kind, y.start, y.end) == ("buffers", 0.0, relu.end)
    z, rest = [h for h in trace.memory if h.name == "relu"]
    assert (z.kind, z.start, z.size) == ("activations", relu.start, 10 * EIGHT)
    assert (rest.kind, rest.start, rest.end) == ("buffers", z.end, trace.seconds)  # z is a variable of the program
    (given,) = [h for h in trace.memory if h.name == "input (2, 3)"]
    assert (given.kind, given.size) == ("activations", 6 * EIGHT)
    (grad,) = [h for h in trace.memory if h.kind == "gradients"]
    assert (grad.size, grad.end) == (15 * EIGHT, trace.seconds)
    assert (mm.name, relu.name, mm.end) == ("mm", "relu", relu.start)


def test_an_activation_that_outlives_its_graph_is_a_buffer_again():
    x = torch.randn(4, requires_grad=True)

    def program(group):
        y = x * 2
        z = y.exp()  # saves z
        z.sum().backward()
        return z.detach() + 1, z

    kinds = [h.kind for h in trace_of(program).memory if h.name == "exp"]
    assert kinds == ["activations", "buffers"]


def test_optimizer_state():
    layer = nn.Linear(D, H)

    def program(group):
        optimizer = torch.optim.AdamW(layer.parameters())
        for _ in range(2):
            layer(torch.ones(N, D)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return optimizer

    trace = trace_of(program)
    elements = D * H + H
    steps = 2 * EIGHT  # AdamW counts its steps, for each of two parameters
    assert trace.peak(0, "optimizer") == 2 * elements * EIGHT + steps
    assert trace.held(0, "gradients")[-1][1] == 0


def test_an_averaged_gradient_is_a_gradient():
    def program(group):
        layer = nn.Linear(D, H, bias=False)
        optimizer = torch.optim.SGD(layer.parameters())
        layer(torch.ones(N, D)).sum().backward()
        layer.weight.grad = group.all_reduce(layer.weight.grad)
        optimizer.step()

    trace = trace_of(program, devices=2)
    assert [h.size for h in trace.memory if h.name == "all_reduce" and h.kind == "gradients"] == 2 * [D * H * EIGHT]


def test_views_share_their_memory_and_frozen_parameters_count():
    frozen = nn.Parameter(torch.ones(4, 4), requires_grad=False)

    def program(group):
        x = torch.ones(4, 4)
        return x[1:].T.reshape(2, 6).sum() + frozen[0, 0].exp(), x.view(16)

    trace = trace_of(program)
    assert trace.peak(0, "parameters") == 16 * EIGHT
    assert sum(h.size for h in trace.memory if h.name == "ones") == 16 * EIGHT


def test_what_a_collective_hands_out_belongs_to_the_device():
    trace = trace_of(lambda group, x: group.all_gather(x), torch.ones(4), devices=2)
    for rank in 0, 1:
        trace = trace_of(lambda group, x: group.all_gather(x * 2) + 1, torch.ones(4), devices=2)
        gathered = [h for h in trace.memory if h.rank == rank and h.name == "all_gather"]
        assert [h.size for h in gathered] == [8 * EIGHT]


def test_a_received_message_belongs_to_the_receiver():
    def program(group):
        if group.rank == 0:
            return group.send(torch.ones(4), 1)
        return group.recv(0) + 1

    assert [(h.rank, h.size) for h in trace_of(program, devices=2).memory if h.name == "recv"] == [(1, 4 * EIGHT)]


def test_recomputation_saves_memory_and_changes_no_gradient():
    layers = nn.Sequential(*[nn.Sequential(nn.Linear(D, D), nn.GELU()) for _ in range(6)])
    x = torch.randn(N, D)

    def program(group, again):
        h = x
        for layer in layers:
            h = checkpoint(layer, h, use_reentrant=False) if again else layer(h)
        h.sum().backward()
        grads = [p.grad.clone() for p in layers.parameters()]
        layers.zero_grad()
        return grads

    traces, grads = [], []
    for again in False, True:
        cluster = Cluster(1, hardware=SLOW)
        grads.append(cluster.run(program, again)[0])
        traces.append(cluster.trace)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    # Six inputs, six GELU inputs against six inputs, one GELU input (and, while it is made, its output).
    assert traces[0].peak(0, "activations") == 12 * N * D * EIGHT
    assert traces[1].peak(0, "activations") <= 8 * N * D * EIGHT


def test_a_change_in_place_is_still_noticed():
    def program(group):
        y = torch.ones(3, requires_grad=True).exp()
        with torch.no_grad():
            y += 1
        y.sum().backward()

    with pytest.raises(RuntimeError, match=r"rank 0: a tensor of shape \(3,\).* version 1, saved was version 0"):
        trace_of(program)


def test_double_backward():
    def program(group):
        x = torch.tensor(3.0, requires_grad=True)
        (first,) = torch.autograd.grad(x**3, x, create_graph=True)
        return torch.autograd.grad(first, x)[0]

    assert Cluster(1, hardware=SLOW).run(program)[0] == 18.0


def test_the_memory_of_a_failed_run_is_readable():
    def program(group):
        x = torch.ones(4) * 2
        if group.rank == 1:
            raise ValueError("stop")
        return group.all_reduce(x)

    cluster = Cluster(2, hardware=SLOW)
    with pytest.raises(ValueError):
        cluster.run(program)
    assert cluster.trace.peak(0) >= 4 * EIGHT
    assert "peak" in cluster.trace.memory_table()


def test_nothing_is_kept_alive_and_no_hook_stays():
    layer = nn.Linear(D, H)
    seen = []

    def program(group):
        x = torch.ones(N, D)
        seen.append(weakref.ref(x.untyped_storage()))
        layer(x).sum().backward()

    for fails in False, True:
        cluster = Cluster(1, hardware=SLOW)
        if fails:
            with pytest.raises(ZeroDivisionError):
                cluster.run(lambda group: (program(group), 1 / 0))
        else:
            cluster.run(program)
        gc.collect()
        assert seen.pop()() is None
        assert not layer.weight._post_accumulate_grad_hooks
        assert not optimizers._global_optimizer_post_hooks
        held = list(cluster.trace.memory)
        layer(torch.ones(N, D)).sum().backward()  # after the run nothing is recorded any more
        assert cluster.trace.memory == held
        layer.zero_grad()


def test_the_same_run_gives_the_same_memory():
    x = torch.randn(N, D)
    assert trace_of(mlp, x, devices=4).memory == trace_of(mlp, x, devices=4).memory


def test_the_kinds_add_up_at_every_moment():
    trace = trace_of(mlp, torch.randn(N, D), devices=2)
    curves = {kind: trace.held(1, kind) for kind in USES}
    for time, size in trace.held(1):
        assert size == sum([s for t, s in curve if t <= time][-1] for curve in curves.values())


def test_the_table_is_of_the_moment_of_the_peak():
    trace = trace_of(lambda group: (torch.ones(1000).sum(), torch.ones(10)))
    head, row = trace.memory_table().splitlines()
    assert head.split() == ["rank", "at", "us", *USES, "peak"]
    assert row.split()[-1] == f"{1000 * EIGHT + EIGHT:,}" == row.split()[-2]


def test_an_empty_trace_holds_nothing():
    trace = trace_of(lambda group: None)
    assert trace.held(0) == [(0.0, 0)]
    assert trace.peak(0) == 0
