"""Virtual time: every verb against its alpha-beta formula, and compute against counted FLOPs and bytes.

All figures of the toy hardware are powers of two or whole, so that times are exact and compared with ==.
P is the number of devices, N the bytes of the whole tensor, alpha seconds per message, beta seconds per byte.
"""

from math import ceil, inf, log2

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from lib.devices import Cluster, Hardware, Link

ALPHA, BETA = 1000.0, 2.0
PURE_LINK = Hardware("Pure link", inf, inf, 1.0, Link(ALPHA, 1 / BETA), per_node=1024)
FREE_LINK = Hardware("Free link", 4.0, 0.5, 1.0, Link(0.0, inf), per_node=1024)
FP32 = 4


def timed(size, program, hardware=PURE_LINK):
    """The trace of a run."""
    cluster = Cluster(size, hardware)
    cluster.run(program)
    return cluster.trace


def communication(trace, rank=0):
    return [event for event in trace.events if event.rank == rank and event.kind == "communication"]


def pieces(length, parts):
    """tensor_split's rule, asked of PyTorch itself."""
    return [len(piece) for piece in torch.empty(length).tensor_split(parts)]


# ---- every verb, against a formula of its own ----


def all_reduce(parts, length):
    steps, sizes = 2 * (parts - 1), pieces(length, parts)
    least_left_out = min(sizes[r - 1] + sizes[r] for r in range(parts))  # a device leaves out two neighboring pieces
    return steps * ALPHA + (2 * length - least_left_out) * FP32 * BETA


def one_trip(parts, length):
    return (parts - 1) * ALPHA + (length - min(pieces(length, parts))) * FP32 * BETA


def chain(parts, length):
    return (parts - 1) * ALPHA + length * FP32 * BETA


def star(root):
    return lambda parts, length: (parts - 1) * ALPHA + (length - pieces(length, parts)[root(parts)]) * FP32 * BETA


def barrier(parts, length):
    return ceil(log2(parts)) * ALPHA


def all_to_all(parts, length):
    """Every device brings P rows of `length`. Who keeps least sends most; who is given most receives most."""
    sizes = [size * parts * FP32 for size in pieces(length, parts)]
    sent = [sum(sizes) - size for size in sizes]
    received = [(parts - 1) * size for size in sizes]
    return (parts - 1) * ALPHA + max(*sent, *received) * BETA


def own(group, length):
    """This device's piece of a tensor of `length` numbers."""
    return torch.zeros(pieces(length, group.size)[group.rank])


VERBS = {
    "all_reduce": (lambda group, n: group.all_reduce(torch.zeros(n)), all_reduce),
    "all_gather": (lambda group, n: group.all_gather(own(group, n)), one_trip),
    "reduce_scatter": (lambda group, n: group.reduce_scatter(torch.zeros(n)), one_trip),
    "all_to_all": (lambda group, n: group.all_to_all(torch.zeros(group.size, n), 1, 0), all_to_all),
    "broadcast": (lambda group, n: group.broadcast(torch.zeros(n), src=group.size - 1), chain),
    "reduce": (lambda group, n: group.reduce(torch.zeros(n), dst=group.size // 2), chain),
    "scatter": (lambda group, n: group.scatter(torch.zeros(n), src=group.size - 1), star(lambda parts: parts - 1)),
    "gather": (lambda group, n: group.gather(own(group, n), dst=0), star(lambda parts: 0)),
    "barrier": (lambda group, n: group.barrier(), barrier),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_takes_its_formula(verb):
    call, formula = VERBS[verb]
    for parts in (1, 2, 3, 5, 8):
        for length in (0, 1, 5, 843):  # uneven: even sizes have a test of their own
            trace = timed(parts, lambda group, n=length: call(group, n))
            expected = formula(parts, length) if parts > 1 else 0.0
            assert trace.seconds == expected, (parts, length)
            assert len(communication(trace)) == (1 if parts > 1 else 0)


@pytest.mark.parametrize("parts", range(2, 9))
def test_even_sizes_take_the_formula_of_the_textbook(parts):
    """MPICH's comments (ring, pairwise); Patarasuk and Yuan 2009 for all-reduce."""
    whole = 840 * FP32
    share = whole * (parts - 1) / parts * BETA
    # an all_to_all tensor is P rows here: every device brings N = P * whole bytes
    textbook = {
        "all_reduce": 2 * (parts - 1) * ALPHA + 2 * share,
        "all_gather": (parts - 1) * ALPHA + share,
        "reduce_scatter": (parts - 1) * ALPHA + share,
        "all_to_all": (parts - 1) * ALPHA + parts * share,
        "broadcast": (parts - 1) * ALPHA + whole * BETA,
        "reduce": (parts - 1) * ALPHA + whole * BETA,
        "scatter": (parts - 1) * ALPHA + share,
        "gather": (parts - 1) * ALPHA + share,
        "barrier": {2: 1, 3: 2, 4: 2, 5: 3, 6: 3, 7: 3, 8: 3}[parts] * ALPHA,
    }
    assert set(textbook) == set(VERBS)
    for verb, expected in textbook.items():
        assert timed(parts, lambda group, verb=verb: VERBS[verb][0](group, 840)).seconds == expected, verb


@pytest.mark.parametrize("root", range(5))
def test_every_root_takes_the_same_time(root):
    for call, bytes_of_root in (
        (lambda group: group.broadcast(torch.zeros(10), src=root), 40),
        (lambda group: group.reduce(torch.zeros(10), dst=root), 40),
        (lambda group: group.scatter(torch.zeros(10), src=root), 32),
        (lambda group: group.gather(torch.zeros(2), dst=root), 32),
    ):
        assert timed(5, call).seconds == 4 * ALPHA + bytes_of_root * BETA


# nccl-tests, doc/PERFORMANCE.md: bus bandwidth = factor * (S / time), made to equal the bandwidth of the links. S is
# the buffer of a device; for all_gather the output, for reduce_scatter the input.
BUS_FACTORS = {
    "all_reduce": lambda parts: 2 * (parts - 1) / parts,
    "reduce_scatter": lambda parts: (parts - 1) / parts,
    "all_gather": lambda parts: (parts - 1) / parts,
    "all_to_all": lambda parts: (parts - 1) / parts,
    "broadcast": lambda parts: 1,
    "reduce": lambda parts: 1,
}


@pytest.mark.parametrize("verb", BUS_FACTORS)
@pytest.mark.parametrize("parts", range(2, 9))
def test_bus_bandwidth_is_that_of_the_link(verb, parts):
    hardware = Hardware("No latency", inf, inf, 1.0, Link(0.0, 450e9))
    whole = 840 * FP32 * (parts if verb == "all_to_all" else 1)
    seconds = timed(parts, lambda group: VERBS[verb][0](group, 840), hardware).seconds
    assert BUS_FACTORS[verb](parts) * whole / seconds == pytest.approx(450e9, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8])
def test_bytes_not_numbers_are_charged(dtype):
    trace = timed(2, lambda group: group.broadcast(torch.zeros(10, dtype=dtype)))
    assert trace.seconds == ALPHA + 10 * dtype.itemsize * BETA


# ---- who waits for whom ----


def busy(seconds):
    """Computes for so long on FREE_LINK and TOY: 4 bytes written (and nothing else) take 8 seconds."""
    assert seconds % 8 == 0
    if seconds:
        torch.zeros(seconds // 8)


TOY = Hardware("Toy", inf, 0.5, 1.0, Link(ALPHA, 1 / BETA), per_node=1024)


def test_a_collective_begins_when_the_last_device_comes_and_brings_all_clocks_together():
    came = [16, 80, 0, 40]

    def program(group):
        busy(came[group.rank])
        group.barrier()
        busy(8)

    trace = timed(4, program, TOY)
    end = 80 + 2 * ALPHA
    waiting = {event.rank: (event.start, event.end) for event in trace.events if event.kind == "waiting"}
    assert waiting == {0: (16, 80), 2: (0, 80), 3: (40, 80)}, "the last one waits for nobody"
    assert {event.name for event in trace.events if event.kind == "waiting"} == {"barrier"}
    for rank in range(4):
        assert [(event.start, event.end) for event in communication(trace, rank)] == [(80, end)]
        after = [event for event in trace.events if event.rank == rank][-1]
        assert (after.kind, after.start, after.end) == ("compute", end, end + 8)


def test_nobody_waits_when_all_come_together():
    trace = timed(4, lambda group: (busy(8), group.barrier()), TOY)
    assert trace.total(kind="waiting") == 0


def test_collectives_follow_one_another():
    trace = timed(3, lambda group: [group.barrier() for _ in range(4)])
    assert [event.start for event in communication(trace, 2)] == [0, 2000, 4000, 6000]


def test_a_group_of_one_costs_nothing():
    def program(group):
        alone = group.split(group.size)
        x = torch.zeros(5)
        for verb in (alone.all_reduce, alone.all_gather, alone.reduce_scatter, alone.broadcast, alone.gather):
            verb(x)
        alone.all_reduce(x, async_op=True).wait()
        alone.barrier()

    trace = timed(3, program)
    assert (trace.seconds, communication(trace)) == (0, [])


def test_disjoint_groups_do_not_delay_each_other():
    def program(group):
        half = group.split(2)
        if group.rank < 2:
            busy(800)
        for _ in range(1 + 2 * (group.rank // 2)):
            half.barrier()

    trace = timed(4, program, TOY)
    assert [(event.start, event.end) for event in communication(trace, 1)] == [(800, 1800)]
    assert [(event.start, event.end) for event in communication(trace, 3)] == [(0, 1000), (1000, 2000), (2000, 3000)]
    assert not any(event.kind == "waiting" for event in trace.events)


def test_crossing_groups_meet_on_the_links_that_they_share():
    def program(group):
        rows, columns = group.split([[0, 1], [2, 3]]), group.split([[0, 2], [1, 3]])
        handles = rows.all_reduce(torch.zeros(1), async_op=True), columns.all_reduce(torch.zeros(1), async_op=True)
        for handle in handles:
            handle.wait()

    one = 2 * ALPHA + 4 * BETA
    assert timed(4, program).seconds == 2 * one


# ---- messages ----


def message(size):
    return ALPHA + size * BETA


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_message_takes_alpha_and_its_bytes(length):
    def program(group):
        if group.rank == 0:
            group.send(torch.zeros(length), 1)
            return
        group.recv(0)
        busy(8)

    trace = timed(2, program, TOY)
    end = (8 * length) + message(FP32 * length)  # zeros(length) takes 4 bytes / 0.5 each
    assert [(event.start, event.end) for event in communication(trace, 0)] == [(8 * length, end)]
    assert communication(trace, 0)[0].sent == FP32 * length
    waits = [(event.rank, event.name, event.start, event.end) for event in trace.events if event.kind == "waiting"]
    sent = 8 * length
    assert waits == ([(1, "recv from 0", 0, sent)] if length else []), "waiting ends when the message is on its way"
    assert [(e.name, e.start, e.end) for e in communication(trace, 1)] == [("recv from 0", sent, end)]
    assert trace.events[-1].start == end


def test_messages_of_one_sender_go_one_after_the_other():
    def program(group):
        if group.rank == 0:
            for dst in (1, 2, 3):
                group.send(torch.zeros(2), dst)
        else:
            group.recv(0)

    trace = timed(4, program)
    one = message(8)
    assert [event.end for event in communication(trace)] == [one, 2 * one, 3 * one]


def test_messages_to_one_receiver_arrive_one_after_the_other():
    def program(group):
        if group.rank:
            group.send(torch.zeros(2), 0)
        else:
            for src in (1, 2, 3):
                group.recv(src)

    assert timed(4, program).seconds == 3 * message(8)


def test_both_directions_work_at_once():
    def program(group):
        group.send(torch.zeros(2), 1 - group.rank)
        group.recv(1 - group.rank)

    assert timed(2, program).seconds == message(8)


def test_pairs_do_not_delay_each_other():
    def program(group):
        pair = group.split(2)
        if pair.rank == 0:
            pair.send(torch.zeros(2), 1)
        else:
            pair.recv(0)

    assert timed(4, program).seconds == message(8)


@pytest.mark.parametrize("seconds", [0, 8, 1000, 2000, 4000])
def test_a_message_travels_while_both_ends_compute(seconds):
    def program(group):
        x = torch.empty(2)
        if group.rank == 0:
            group.send(x, 1)
            busy(seconds)
        else:
            busy(seconds)
            group.recv(0)

    trace = timed(2, program, TOY)
    assert trace.seconds == max(seconds, message(8))
    assert trace.total(kind="waiting") == 0, "the sender goes on at once, and the message is on its way at once"
    assert trace.total(1, "communication") == message(8)


def test_a_message_waits_for_the_collective_that_fills_its_link():
    def program(group):
        handle = group.all_reduce(torch.zeros(1), async_op=True)
        if group.rank == 1:
            group.send(torch.zeros(1), 0)  # rank 0 has called by now: the collective is under way
        else:
            group.recv(1)
        handle.wait()

    assert timed(2, program).seconds == 2 * ALPHA + 4 * BETA + message(4)


def test_a_message_from_outside_waits_for_it_too():
    def program(group):
        pair = group.split([[0, 1]])
        if group.rank < 2:
            handle = pair.all_reduce(torch.zeros(1), async_op=True)
            if group.rank == 1:
                group.recv(2)
            handle.wait()
        else:
            group.send(torch.zeros(1), 1)  # its own link is free, that of rank 1 is not

    assert timed(3, program).seconds == 2 * ALPHA + 4 * BETA + message(4)


def test_a_message_sent_early_does_not_wait_for_one_sent_late():
    def program(group):
        if group.rank == 0:
            group.recv(2)
            group.recv(1)
        else:
            busy(8000 if group.rank == 1 else 0)  # the late one has its turn first
            group.send(torch.empty(2), 0)

    assert timed(3, program, TOY).seconds == 8000 + message(8)


# ---- compute ----


def kernels(program, device="cpu"):
    """(name, flops, bytes) of the kernels of a program on one device, and the time they took."""
    cluster = Cluster(1, FREE_LINK)
    cluster.run(lambda group: program(device))
    trace = cluster.trace
    assert all(e.seconds == max(e.flops / 4.0, e.moved / 0.5) for e in trace.events)
    assert trace.seconds == trace.total(0, "compute")
    return [(event.name, event.flops, event.moved) for event in trace.events]


DEVICES = pytest.mark.parametrize("device", ["cpu", "meta"])


@DEVICES
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 3, 5), (7, 4, 64)])
def test_a_matrix_product_costs_2mnk(device, m, n, k):
    a, b = torch.empty(m, k, device=device), torch.empty(k, n, device=device)
    assert kernels(lambda _: a @ b) == [("mm", 2 * m * n * k, FP32 * (m * k + k * n + m * n))]


@DEVICES
def test_products_of_all_kinds(device):
    def flops(*shapes, product=torch.matmul):
        tensors = [torch.empty(shape, device=device) for shape in shapes]
        return sum(count for _, count, _ in kernels(lambda _: product(*tensors)))

    assert flops((2, 3, 5), (5, 7)) == 2 * 6 * 5 * 7
    assert flops((2, 3, 5), (2, 5, 7)) == 2 * 2 * 3 * 5 * 7
    assert flops((4, 5), (5, 6), product=lambda a, b: torch.einsum("ik,kj->ij", a, b)) == 2 * 4 * 5 * 6
    assert flops((3, 7), (5, 7), (5,), product=lambda x, w, b: nn.functional.linear(x, w, b)) == 2 * 3 * 5 * 7


@DEVICES
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_backward_of_a_linear_layer_are_three_products(device, bias):
    m, k, n = 3, 4, 5

    def program(device):
        layer = nn.Linear(k, n, bias=bias, device=device)
        x = torch.empty(m, k, device=device, requires_grad=True)
        layer(x).backward(torch.empty(m, n, device=device))

    products = [count for _, count, _ in kernels(program, device) if count]
    assert products == [2 * m * n * k] * 3


def test_the_first_layer_needs_no_gradient_for_its_input():
    def program(device):
        nn.Linear(4, 5)(torch.empty(3, 4)).backward(torch.empty(3, 5))

    assert [count for _, count, _ in kernels(program) if count] == [2 * 3 * 4 * 5] * 2


@DEVICES
def test_elementwise_kernels_are_charged_by_the_bytes_that_they_read_and_write(device):
    x = torch.empty(6, 5, device=device)
    row = torch.empty(5, device=device)
    half = torch.empty(30, dtype=torch.bfloat16, device=device)
    assert kernels(lambda _: x + x) == [("add", 0, 3 * 120)]
    assert kernels(lambda _: x + row) == [("add", 0, 2 * 120 + 20)]
    assert kernels(lambda _: x.mul_(2)) == [("mul_", 0, 2 * 120)]
    assert kernels(lambda _: torch.add(x, row, out=x)) == [("add", 0, 2 * 120 + 20)]
    out = torch.empty(6, 5, device=device)
    assert kernels(lambda _: torch.add(x, row, out=out)) == [("add", 0, 2 * 120 + 20)], "out is written, not read"
    assert kernels(lambda _: half.exp()) == [("exp", 0, 2 * 60)]
    assert kernels(lambda _: x.sum()) == [("sum", 0, 120 + 4)]
    assert kernels(lambda _: torch.cat([x, x])) == [("cat", 0, 2 * 120 + 240)]


@DEVICES
def test_views_and_allocations_cost_nothing(device):
    x = torch.empty(6, 5, device=device)

    def program(device):
        x.view(5, 6), x.t(), x[1:], x[:, 0], x.expand(2, 6, 5), x.split(2), x.detach(), x.flatten(), x.contiguous()
        x.unsqueeze(0).squeeze(0).permute(1, 0)
        torch.empty(7, device=device), torch.empty_like(x), torch.empty_strided((2, 2), (1, 2), device=device)

    assert kernels(program) == []


@DEVICES
def test_views_and_allocations_inside_pytorch_cost_nothing_either(device):
    x, w = torch.empty(2, 3, 5, device=device), torch.empty(5, 7, device=device)
    assert [name for name, _, _ in kernels(lambda _: x @ w)] == ["mm"], "the product is reshaped, without a copy"
    assert kernels(lambda _: x.new_empty(4)) == []


def test_a_copy_costs_reading_and_writing():
    x = torch.empty(6, 5)
    assert kernels(lambda _: x.clone()) == [("clone", 0, 240)]
    assert kernels(lambda _: x.t().contiguous()) == [("clone", 0, 240)]


def test_the_engines_own_copies_and_sums_are_free():
    def program(group):
        x = torch.empty(6)
        group.all_reduce(x), group.all_gather(x), group.reduce_scatter(x), group.all_to_all(x), group.broadcast(x)
        group.reduce(x), group.scatter(x), group.gather(x), group.all_reduce(x, async_op=True).wait()
        group.send(x, (group.rank + 1) % group.size)
        group.recv((group.rank - 1) % group.size)
        x + x  # and charging goes on afterwards

    trace = timed(3, program)
    assert len(communication(trace)) == 11
    assert [(e.rank, e.name) for e in trace.events if e.kind == "compute"] == [(0, "add"), (1, "add"), (2, "add")]


def test_each_device_is_charged_for_its_own_work():
    def program(group):
        x = torch.empty(group.rank + 1, 8)
        group.barrier()
        return x @ torch.empty(8, 3)

    trace = timed(3, program, FREE_LINK)
    assert [trace.flops(rank) for rank in range(3)] == [2 * 3 * 8, 2 * 2 * 3 * 8, 3 * 2 * 3 * 8]


def test_after_the_run_nothing_is_charged():
    cluster = Cluster(1, FREE_LINK)
    cluster.run(lambda group: torch.empty(2) + 1)
    torch.ones(100) @ torch.ones(100)
    assert len(cluster.trace.events) == 1


def block(group, device):
    """A bit of everything: a layer forward and backward, its gradient reduced, and a message."""
    torch.manual_seed(0)
    x = torch.ones(4, 8, device=device)
    w = torch.ones(8, 16 + 8 * group.rank, device=device, requires_grad=True)
    y = torch.relu(x @ w).softmax(-1)
    y.backward(torch.ones_like(y))
    group.all_reduce(y.detach().sum(1))
    group.send(y.detach(), (group.rank + 1) % group.size)
    return group.recv((group.rank - 1) % group.size)


def test_meta_is_charged_as_real():
    real, meta = (timed(3, lambda group, d=device: block(group, d), FREE_LINK) for device in ("cpu", "meta"))
    assert [*real.events] == [*meta.events]
    assert real.seconds > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_flops_count_in_every_mode(mode):
    x, w, b = torch.ones(3, 4), torch.ones(5, 4), torch.ones(5)

    def flops(program):
        with mode():
            return sum(count for _, count, _ in kernels(lambda _: program()))

    assert flops(lambda: x @ w.t()) == 2 * 3 * 4 * 5
    assert flops(lambda: nn.functional.linear(x, w, b)) == 2 * 3 * 4 * 5


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_its_two_products(device):
    batch, heads, length, width = 2, 3, 8, 4

    def program(device):
        q = torch.empty(batch, heads, length, width, device=device)
        nn.functional.scaled_dot_product_attention(q, q, q)

    one = 2 * batch * heads * length * length * width
    assert sum(count for _, count, _ in kernels(program, device)) == 2 * one


# ---- no clock ----


def test_a_tensor_made_of_tensors_is_charged_for_its_parts():
    """DTensor is one: it makes kernels of its shards, and the whole is no kernel."""

    def program(group):
        layer = nn.Linear(4, 8, bias=False)
        x = TwoTensor(torch.ones(2, 4), torch.ones(2, 4))
        layer(x).sum().backward()

    flops = [event.flops for event in timed(1, program).events if event.flops]
    assert flops == [2 * 2 * 4 * 8] * 4  # forward and the gradient of the weight, each for both parts


def test_without_hardware_there_is_no_trace():
    cluster = Cluster(2)
    assert cluster.trace is None
    cluster.run(lambda group: group.all_reduce(torch.ones(1)))
    assert cluster.trace is None


def test_the_clock_changes_no_result():
    for mode in (None, PURE_LINK, "H100"):
        outputs = Cluster(3, mode).run(lambda group: block(group, "cpu"))
        expected = Cluster(3).run(lambda group: block(group, "cpu"))
        assert all(torch.equal(*pair) for pair in zip(outputs, expected, strict=True))


def test_a_run_begins_at_zero_again():
    cluster = Cluster(2, PURE_LINK)
    for _ in range(2):
        cluster.run(lambda group: group.barrier())
        assert cluster.trace.seconds == ALPHA


def test_bytes_of_the_trace_are_those_of_the_meters():
    cluster = Cluster(3, PURE_LINK)
    cluster.run(lambda group: block(group, "cpu"))
    for rank in range(3):
        assert sum(event.sent for event in communication(cluster.trace, rank)) == cluster.meters.count(rank).bytes_sent
