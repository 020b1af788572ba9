"""What data parallelism moves, in which buckets, and how much of it hides behind the backward."""

import math

import pytest
import torch
from parallel.small_model import make_batches, make_model, one_thread  # noqa: F401
from torch import nn

from lib import average_gradients, averaging, shard_batch
from lib.devices import Cluster, Hardware, Link
from lib.parallel.data.buckets import BUCKET_BYTES, plan_buckets

BATCHES = make_batches([8] * 3)


def ring_bytes(elements, size, each):
    """What device 0 sends in a ring all-reduce of `elements` elements of `each` bytes."""
    pieces = [elements // size + (r < elements % size) for r in range(size)]
    return each * (2 * elements - pieces[0] - pieces[1 % size])


def trained_elements(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)  # tied ones are listed once


@pytest.mark.parametrize("how", ["after", "during"])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_step_moves_each_gradient_once_whatever_the_micro_batches(size, micro_batches, how):
    cluster = Cluster(size)

    def program(group):
        model = make_model()
        model.never.requires_grad_(False)
        for batch in BATCHES:
            model.zero_grad()
            model.rare(torch.zeros(1, 12, dtype=torch.float64)).sum().backward()  # else unused on some
            mine = [shard_batch(x, group).chunk(micro_batches) for x in batch]
            *first, last = zip(*mine, strict=True)
            for micro in first:
                model.loss(*micro).backward()
            if how == "during":
                with averaging(model, group):
                    model.loss(*last).backward()
            else:
                model.loss(*last).backward()
                average_gradients(model, group)

    cluster.run(program)
    model = make_model()
    model.never.requires_grad_(False)
    elements, steps = trained_elements(model), len(BATCHES)
    assert cluster.meters.verbs() == ["all_reduce"]
    for rank in range(size):
        assert cluster.meters.count(rank).calls == steps
    assert cluster.meters.count(0).bytes_sent == steps * ring_bytes(elements, size, 8)
    assert cluster.meters.count().bytes_sent == steps * 2 * (size - 1) * elements * 8  # 2(P-1)/P each, P devices


@pytest.mark.parametrize("bucket_bytes", [0, 500, math.inf])
def test_one_all_reduce_per_bucket(bucket_bytes):
    cluster = Cluster(4)

    def program(group):
        model = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(9)])  # 64 bytes each
        with averaging(model, group, bucket_bytes=bucket_bytes):
            model(torch.ones(1, 4)).sum().backward()

    cluster.run(program)
    assert cluster.meters.count(0).calls == {0: 9, 500: 2, math.inf: 1}[bucket_bytes]
    assert cluster.meters.count(0).bytes_sent == 2 * 3 * 9 * 64 // 4


@pytest.mark.parametrize("how", ["after", "during"])
def test_allowing_unused_parameters_costs_a_byte_for_each(how):
    cluster = Cluster(2)

    def program(group):
        model = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(10)])
        if how == "during":
            with averaging(model, group, allow_unused=True):
                model[0](torch.ones(1, 4)).sum().backward()
        else:
            model[0](torch.ones(1, 4)).sum().backward()
            average_gradients(model, group, allow_unused=True)

    cluster.run(program)
    # While the backward runs nobody can know that the other devices have nothing either: all is sent.
    assert cluster.meters.count(0).bytes_sent == 10 + 64 * (10 if how == "during" else 1)
    assert cluster.meters.count(0).calls == 2


def names_of(buckets, model):
    name = {p: n for n, p in model.named_parameters()}
    return [[name[p] for p in bucket] for bucket in buckets]


def test_buckets_go_backward_and_are_full_at_their_size():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])  # a weight has 64 bytes, a bias 16
    assert names_of(plan_buckets(model.parameters(), 80), model) == [
        ["2.bias", "2.weight"],
        ["1.bias", "1.weight"],
        ["0.bias", "0.weight"],
    ]
    assert names_of(plan_buckets(model.parameters(), 81), model) == [
        ["2.bias", "2.weight", "1.bias"],
        ["1.weight", "0.bias", "0.weight"],
    ]
    assert names_of(plan_buckets(model.parameters(), 65), model) == [
        ["2.bias", "2.weight"],
        ["1.bias", "1.weight"],
        ["0.bias", "0.weight"],
    ]
    assert names_of(plan_buckets(model.parameters(), 100), model) == [
        ["2.bias", "2.weight", "1.bias", "1.weight"],
        ["0.bias", "0.weight"],  # what is left goes last
    ]
    assert [len(bucket) for bucket in plan_buckets(model.double().parameters(), 100)] == [2, 2, 2]
    assert [len(bucket) for bucket in plan_buckets(model.bfloat16().parameters(), 100)] == [6]
    assert len(plan_buckets(model.parameters(), 0)) == 6
    assert len(plan_buckets(model.parameters(), math.inf)) == len(plan_buckets(model.parameters())) == 1
    assert BUCKET_BYTES == 26_214_400


def test_a_bucket_holds_one_dtype():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4))
    assert names_of(plan_buckets(model.parameters(), math.inf), model) == [
        ["2.bias", "2.weight", "0.bias", "0.weight"],
        ["1.bias", "1.weight"],
    ]
    assert names_of(plan_buckets(model.parameters(), 40), model) == [
        ["2.bias", "2.weight"],
        ["1.bias", "1.weight"],
        ["0.bias", "0.weight"],
    ]


# ---- on the clock ----

LAYERS, WIDTH = 6, 64
# A layer's gradient travels in 91 us, 30 of them latency; its backward computes for 131 us.
SLOW = Hardware("slow", flops=1e9, memory_bandwidth=1e15, memory=1e9, inside=Link(5e-6, 4e8))


def on_the_clock(bucket_bytes, during=True, unused_on=None):
    cluster = Cluster(4, hardware=SLOW)

    def program(group):
        model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])
        layers = model[:-1] if group.rank == unused_on else model
        options = {"bucket_bytes": bucket_bytes, "allow_unused": unused_on is not None}
        x = torch.ones(8, WIDTH)
        if during:
            with averaging(model, group, **options):
                layers(x).sum().backward()
        else:
            layers(x).sum().backward()
            average_gradients(model, group, **options)

    cluster.run(program)
    return cluster.trace


def hidden(trace):
    """The share of the communication of device 0 during which it computes."""
    communication = trace.total(0, "communication")
    return (trace.total(0, "compute") + communication - trace.total(0)) / communication


def events(trace, rank, kind):
    return [event for event in trace.events if event.rank == rank and event.kind == kind]


def test_after_the_backward_nothing_is_hidden():
    for bucket_bytes in (0, math.inf):
        assert hidden(on_the_clock(bucket_bytes, during=False)) == pytest.approx(0, abs=1e-9)


def test_one_bucket_for_all_leaves_when_the_backward_is_over():
    during, after = on_the_clock(math.inf), on_the_clock(math.inf, during=False)
    assert hidden(during) == pytest.approx(0, abs=1e-9)
    assert during.seconds == pytest.approx(after.seconds, rel=1e-9)


def test_buckets_hide_all_but_the_last():
    trace = on_the_clock(0)
    messages = events(trace, 0, "communication")
    end_of_backward = max(event.end for event in events(trace, 0, "compute"))
    assert len(messages) == LAYERS
    assert [event.start < end_of_backward for event in messages] == [True] * (LAYERS - 1) + [False]
    assert hidden(trace) > 0.5
    assert trace.seconds < 0.8 * on_the_clock(0, during=False).seconds


def test_a_bucket_leaves_at_the_moment_its_last_gradient_is_packed():
    trace = on_the_clock(2 * WIDTH * WIDTH * 4)
    first = events(trace, 0, "communication")[0]
    packed = [event for event in events(trace, 0, "compute") if event.end <= first.start + 1e-12]
    assert packed[-1].end == pytest.approx(first.start)
    assert packed[-1].name == "mul"
    assert [event.name for event in packed].count("mul") == 2


def test_the_time_has_its_minimum_between_the_extremes():
    small, middle, one = (on_the_clock(n * WIDTH * WIDTH * 4).seconds for n in (0, 1, math.inf))
    assert small == middle < one
    latency = Hardware("far", flops=1e9, memory_bandwidth=1e15, memory=1e9, inside=Link(2e-4, 2e8))
    times = []
    for bucket_bytes in (0, 3 * WIDTH * WIDTH * 4, math.inf):
        cluster = Cluster(4, hardware=latency)

        def program(group, bucket_bytes=bucket_bytes):
            model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])
            with averaging(model, group, bucket_bytes=bucket_bytes):
                model(torch.ones(64, WIDTH)).sum().backward()

        cluster.run(program)
        times.append(cluster.trace.seconds)
    assert times[1] < min(times[0], times[2])


def test_buckets_that_waited_for_another_leave_with_it():
    cluster = Cluster(4, hardware=SLOW)

    def program(group):
        a, b, c = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        with averaging(nn.ModuleList([a, b, c]), group, bucket_bytes=0):  # c's bucket is first, then b's
            b(c(a(torch.ones(64, WIDTH)))).sum().backward()  # but b's gradient comes first

    cluster.run(program)
    first, second, third = events(cluster.trace, 0, "communication")
    assert second.start == first.end < third.start
    assert second.start < max(event.end for event in events(cluster.trace, 0, "compute"))


@pytest.mark.parametrize("rank", range(4))
def test_where_one_device_does_not_use_the_last_layer_the_order_stays(rank):
    trace = on_the_clock(0, unused_on=rank)
    messages = events(trace, 0, "communication")
    assert len(messages) == LAYERS + 1
    # The first bucket is that of the unused layer: all others wait for the end of that device's backward.
    assert min(event.start for event in messages) >= max(e.end for e in events(trace, rank, "compute") if e.flops)


def test_on_meta_any_shape_goes():
    cluster = Cluster(8, hardware="H100")

    def program(group):
        with torch.device("meta"):
            model = nn.Sequential(*[nn.Linear(12288, 12288, dtype=torch.bfloat16) for _ in range(3)])
            x = torch.ones(2048, 12288, dtype=torch.bfloat16)
        for _ in range(2):
            model.zero_grad()
            with averaging(model, group, allow_unused=True):
                model[:2](x).sum().backward()
            assert model[2].weight.grad is None
            model(x).sum().backward()
            average_gradients(model, group)

    cluster.run(program)
    assert cluster.trace.total(0, "communication") > 0
