"""The norm of the whole gradient and clipping by it, over sharded and replicated parameters, against PyTorch's."""

import copy
import math

import pytest
import torch
from covering import covering
from parallel.small_model import one_thread  # noqa: F401
from torch import nn
from torch.nn import functional as F

from lib import (
    GPT,
    ColumnParallelLinear,
    GPTConfig,
    Mesh,
    ParallelSelfAttention,
    RowParallelLinear,
    SequenceGPT,
    VocabParallelEmbedding,
    clip_gradients,
    gradient_norm,
    shard,
    unshard,
)
from lib.devices import Cluster

NORMS = [1, 2, 2.5, 3.0, math.inf]


def parameter(grad):
    p = nn.Parameter(torch.zeros_like(grad))
    p.grad = grad.clone()
    return p


def make_grads(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return [torch.randn(shape, dtype=dtype) for shape in [(5, 3), (7,), (2, 4), ()]]


def of_pytorch(grads, max_norm, norm_type):
    parameters = [parameter(g) for g in grads]
    norm = nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
    return norm.double(), [p.grad for p in parameters]


CUTS, SIZES = [set(), {0}, {1, 2}, {0, 1, 2}], [1, 2, 3, 6]  # on six, some hold nothing of what is cut


@pytest.mark.parametrize(("size", "cut", "norm_type", "max_norm"), covering(SIZES, CUTS, NORMS, [0.01, 1, 1e4]))
def test_any_mixture_of_sharded_and_replicated(size, cut, norm_type, max_norm):
    grads = make_grads(seed=size)
    norm, clipped = of_pytorch(grads, max_norm, norm_type)

    def program(group):
        parameters = [parameter(shard(g, group, 0) if i in cut else g) for i, g in enumerate(grads)]
        sharded = [parameters[i] for i in cut]
        found = clip_gradients(iter(parameters), group, max_norm, iter(sharded), norm_type)
        return found, [p.grad for p in parameters]

    outputs = Cluster(size).run(program)
    for found, _ in outputs:
        assert found.shape == ()
        assert found.dtype == torch.float64
        assert float(found) == pytest.approx(float(norm), rel=1e-12)
    for i, whole in enumerate(clipped):
        pieces = [output[1][i] for output in outputs]
        for mine in [unshard(pieces, 0)] if i in cut else pieces:
            assert torch.allclose(mine, whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("norm_type", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype, norm_type):
    grads = make_grads(dtype=dtype)
    norm, clipped = of_pytorch(grads, 0.5, norm_type)

    def program(group):
        parameters = [parameter(g) for g in grads]
        return clip_gradients(parameters, group, 0.5, norm_type=norm_type), [p.grad for p in parameters]

    for found, mine in Cluster(2).run(program):
        # PyTorch takes norms of bfloat16 in bfloat16.
        assert float(found) == pytest.approx(float(norm), rel=1e-6 if dtype == torch.float32 else 0.01)
        for a, b in zip(mine, clipped, strict=True):
            assert a.dtype == dtype
            assert torch.allclose(a, b, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("norm_type", NORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_are_taken_in_float32(dtype, norm_type):
    """300,000 cannot be said in float16: the norm would be infinite, and every gradient clipped to zero."""
    grads = [torch.full((100, 100), 3000.0, dtype=dtype), torch.full((7,), 10.0, dtype=dtype)]
    right = torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in grads]), norm_type)

    def program(group):
        parameters = [parameter(g) for g in grads]
        return float(clip_gradients(parameters, group, float(right) / 2, norm_type=norm_type)), parameters[0].grad

    for found, grad in Cluster(2).run(program):
        assert found == pytest.approx(float(right), rel=1e-4)
        assert torch.allclose(grad, grads[0] / 2, rtol=0.01)


def test_large_gradients_in_half_precision_do_not_overflow_when_squared():
    def program(group):
        p = parameter(torch.tensor([3e4, 4e4], dtype=torch.float16))
        return float(gradient_norm([p], group, [p]))

    assert Cluster(4).run(program) == [pytest.approx(1e5, rel=1e-3)] * 4


@pytest.mark.parametrize("norm_type", [2, math.inf])
def test_tensor_parallel_layers(norm_type):
    torch.manual_seed(0)
    first, second = nn.Linear(5, 8, dtype=torch.float64), nn.Linear(8, 3, dtype=torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64)
    second(F.gelu(first(x))).square().sum().backward()
    dense = [*first.parameters(), *second.parameters()]

    def program(group):
        column, row = ColumnParallelLinear.from_dense(first, group), RowParallelLinear.from_dense(second, group)
        row(F.gelu(column(x))).square().sum().backward()
        everything = [*column.parameters(), *row.parameters()]
        norm = clip_gradients(everything, group, 0.1, sharded=everything[:3], norm_type=norm_type)
        return norm, row.bias.grad, row.weight.grad

    outputs = Cluster(4).run(program)
    norm = nn.utils.clip_grad_norm_(dense, 0.1, norm_type)
    for output in outputs:
        assert torch.allclose(output[0], norm, rtol=1e-12)
        assert torch.allclose(output[1], second.bias.grad, rtol=1e-12)
    assert torch.allclose(unshard([output[2] for output in outputs], 1), second.weight.grad, rtol=1e-12)


def test_gradients_that_are_missing_count_nothing():
    def program(group):
        a, b, c = parameter(torch.tensor([3.0])), parameter(torch.tensor([4.0])), nn.Parameter(torch.ones(2))
        if group.rank:
            b.grad = None  # this device's piece was not used
        return float(clip_gradients([a, b, c], group, 1.0, sharded=[b])), float(a.grad), b.grad, c.grad

    outputs = Cluster(3).run(program)
    assert [output[:2] for output in outputs] == [(5.0, pytest.approx(0.6, rel=1e-5))] * 3
    assert [output[2] is None for output in outputs] == [False, True, True]
    assert all(output[3] is None for output in outputs)


def test_a_small_gradient_is_left_as_it_is():
    def program(group):
        p = parameter(torch.tensor([0.3, 0.4]))
        clip_gradients([p], group, 1.0)
        return p.grad.tolist()

    assert Cluster(2).run(program) == [torch.tensor([0.3, 0.4]).tolist()] * 2


@pytest.mark.parametrize(("cut", "calls"), [(False, 0), (True, 1)])
def test_replicated_costs_nothing_and_sharded_eight_bytes(cut, calls):
    cluster = Cluster(2)

    def program(group):
        parameters = [parameter(torch.ones(6, dtype=torch.float32)) for _ in range(3)]
        clip_gradients(parameters, group, 1.0, sharded=parameters if cut else ())

    cluster.run(program)
    assert cluster.meters.count(0).calls == calls
    assert cluster.meters.count(0).bytes_sent == 8 * calls


def test_on_meta():
    def program(group):
        p = nn.Parameter(torch.empty(4, 4, device="meta"))
        p.grad = torch.empty(4, 4, device="meta")
        return clip_gradients([p], group, 1.0, [p]).is_meta

    assert Cluster(2).run(program) == [True, True]


@pytest.mark.parametrize("norm_type", [0, -1, -math.inf, math.nan])
def test_refuses_a_norm_that_is_none(norm_type):
    with pytest.raises(ValueError, match=r"gradient_norm on rank \d of 2: norm_type=.* must be above 0"):
        Cluster(2).run(lambda group: gradient_norm([parameter(torch.ones(2))], group, norm_type=norm_type))


@pytest.mark.parametrize("max_norm", [0, -1.0, math.nan])
def test_refuses_a_limit_of_nothing(max_norm):
    with pytest.raises(ValueError, match=r"clip_gradients on rank \d of 2: max_norm=.* must be above 0"):
        Cluster(2).run(lambda group: clip_gradients([parameter(torch.ones(2))], group, max_norm))


def test_refuses_a_sharded_parameter_that_is_not_among_all():
    with pytest.raises(ValueError, match=r"on rank \d of 2: sharded parameters of the shapes \[\(3,\)\] are not among"):
        Cluster(2).run(lambda g: clip_gradients([parameter(torch.ones(2))], g, 1.0, sharded=[parameter(torch.ones(3))]))


def test_refuses_a_generator_that_is_used_up():
    def program(group):
        parameters = nn.Linear(2, 2).parameters()
        list(parameters)
        clip_gradients(parameters, group, 1.0)

    with pytest.raises(ValueError, match=r"on rank \d of 2: there are no parameters. Was a generator used up"):
        Cluster(2).run(program)


# ---- copies: heads of keys and values that several devices hold ----


TEXT = torch.linspace(-1, 1, 160, dtype=torch.float64).view(2, 5, 16).sin()


def attention_gradients(group, kv_heads):
    torch.manual_seed(0)
    layer = ParallelSelfAttention(16, 4, group, kv_heads=kv_heads).double()
    layer(TEXT).square().sum().backward()
    return layer


@pytest.mark.parametrize(("size", "kv_heads", "norm_type"), covering([1, 2, 4], [4, 2, 1], [2.0, 1.0, math.inf]))
def test_copies_count_once(size, kv_heads, norm_type):
    alone = Cluster(1).run(attention_gradients, kv_heads)[0]
    wanted = float(torch.nn.utils.get_total_norm([p.grad for p in alone.parameters()], norm_type))

    def program(group, how):
        layer = attention_gradients(group, kv_heads)
        if how == "deep copy":
            layer = copy.deepcopy(layer)
            layer(TEXT).square().sum().backward()
        cut = [layer.qkv.weight, layer.qkv.bias, layer.out.weight]
        if how == "list":
            return float(gradient_norm(layer.parameters(), group, cut, norm_type))
        norm = float(clip_gradients(layer, group, wanted / 2, norm_type=norm_type))
        return norm, float(gradient_norm(layer, group, norm_type=norm_type))

    assert Cluster(size).run(program, "list") == [pytest.approx(wanted, rel=1e-12)] * size
    for how in ("module", "deep copy"):
        for before, after in Cluster(size).run(program, how):
            assert before == pytest.approx(wanted, rel=1e-12)
            assert after == pytest.approx(wanted / 2, rel=1e-5)


@pytest.mark.parametrize("kind", [GPT, SequenceGPT])
def test_a_whole_model_by_its_layouts(kind):
    def program(group):
        torch.manual_seed(0)
        model = kind(GPTConfig(layers=2, hidden=16, heads=4, vocabulary=7, positions=5), group).double()
        tokens = torch.arange(10).view(2, 5) % 7
        model(tokens, tokens.flip(1)).backward()
        return float(gradient_norm(model, group))

    wanted = Cluster(1).run(program)[0]
    for size in (2, 4):
        assert Cluster(size).run(program) == [pytest.approx(wanted, rel=1e-10)] * size


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_list_of_cut_parameters_has_the_norm_of_the_module(kv_heads):
    """What was cut says so itself, but only for the devices over which it was cut."""

    def program(group):
        torch.manual_seed(0)
        mesh = Mesh(group, dp=2, tp=group.size // 2)
        model = nn.Sequential(VocabParallelEmbedding(7, 8, mesh.tp), ParallelSelfAttention(8, 4, mesh.tp, kv_heads))
        model(torch.tensor([[1, 2, 6]])).square().sum().backward()
        some = list(model.parameters())
        if mesh.tp.size > 1:
            with pytest.raises(ValueError, match=r"a parameter \(\d, 8\), .* not cut over the devices"):
                gradient_norm(some, mesh.dp)
        return gradient_norm(model, mesh.tp).item(), gradient_norm(some, mesh.tp).item()

    right = Cluster(2).run(program)[0][0]
    for size in (2, 4, 8):
        assert Cluster(size).run(program) == [(pytest.approx(right, rel=1e-6),) * 2] * size
