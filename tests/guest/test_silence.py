"""What would go wrong in silence: it is said aloud, with the rank, the line of the guest's code, and what to do."""

import threading
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from guest import library_rows
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

from lib.devices import Cluster, DeadlockError, MismatchError
from lib.guest.program import guest


def run(program, size=2, **cluster):
    """`program(rank)` on each device, in a process group."""

    def main():
        dist.init_process_group("gloo")
        return program(dist.get_rank())

    try:
        return Cluster(size, **cluster).run(guest(main))
    finally:
        assert not dist.is_initialized()


# ---- devices that do not agree ----


def fsdp_a_batch_short(rank):
    model = fully_shard(nn.Linear(4, 4))
    for _ in range(1 + (rank == 0)):
        model(torch.ones(2, 4)).sum().backward()


def ddp_a_batch_short(rank):
    model = DDP(nn.Linear(4, 4))
    for _ in range(2 + (rank == 0)):
        loss = model(torch.ones(2, 4)).sum()
        loss.backward()


def skips_the_barrier(rank):
    if rank:
        dist.barrier()


def both_send_first(rank):
    dist.send(torch.ones(3), 1 - rank)
    dist.recv(torch.ones(3), 1 - rank)


def both_wait_for_their_sends(rank):
    work = dist.isend(torch.ones(3), 1 - rank)
    work.wait()
    dist.recv(torch.ones(3), 1 - rank)


def both_receive_first(rank):
    dist.recv(torch.ones(3), 1 - rank)
    dist.send(torch.ones(3), 1 - rank)


@pytest.mark.parametrize(
    ("program", "cluster", "words"),
    [
        (ddp_a_batch_short, {}, r"0  all_reduce.* ddp_a_batch_short, line \d+: loss.backward\(\)\n +1  \(has ended\)"),
        (fsdp_a_batch_short, {}, r"0  all_gather.*fsdp_a_batch_short, line \d+: model\(.*\n +1  \(has ended\)"),
        (skips_the_barrier, {}, r"0  \(has ended\) *\n +1  barrier\(\) in group \(0, 1\) +skips_the_barrier, line"),
        (
            both_send_first,
            {"rendezvous": True},
            r"0  send\(dst=1.*both_send_first, line \d+: dist.send(.|\n)*rendezvous",
        ),
        (both_wait_for_their_sends, {"rendezvous": True}, r"line \d+: work.wait\(\)"),
        (both_receive_first, {}, "all wait to receive before anyone has sent"),
    ],
)
def test_a_deadlock_is_named_with_the_line(program, cluster, words):
    with pytest.raises(DeadlockError, match=words):
        run(program, **cluster)


def other_dtype(rank):
    dist.all_reduce(torch.ones(2, dtype=torch.float64 if rank else torch.float32))


def other_call(rank):
    x = torch.ones(2)
    (dist.all_reduce if rank else dist.barrier)(*([x] if rank else []))


def other_op(rank):
    dist.all_reduce(torch.ones(2), op=dist.ReduceOp.MAX if rank else dist.ReduceOp.SUM)


def shorter_message(rank):
    x = torch.ones(3 - rank)
    dist.send(x, 1) if rank == 0 else dist.recv(x, 0)


def message_of_another_dtype(rank):
    x = torch.ones(3, dtype=torch.float64 if rank else torch.float32)
    dist.send(x, 1) if rank == 0 else dist.recv(x, 0)


def nobody_receives(rank):
    if rank == 0:
        dist.send(torch.ones(3), 1)


def wrong_lengths(rank):
    dist.all_to_all_single(torch.zeros(4), torch.ones(4), [2, 2], [1, 3])


def the_lengths_of_another_order(rank):
    dist.all_gather([torch.empty(2 + rank), torch.empty(3 - rank)], torch.ones(2 + rank))  # 2 and 3 elements come


def lengths_that_add_up(rank):
    dist.all_gather([torch.empty(3), torch.empty(3)], torch.ones(2 + 2 * rank))


def one_length_for_all(rank):
    dist.all_gather_single(torch.empty(6), torch.ones(2 + 2 * rank))


def gathered_lengths(rank):
    dist.gather(torch.ones(2 + 2 * rank), None if rank else [torch.empty(3), torch.empty(3)])


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (other_dtype, r"same dtype(.|\n)*rank 0: .*other_dtype, line \d+: dist(.|\n)*rank 1: .*other_dtype, line"),
        (other_call, r"same verbs in the same order(.|\n)*barrier(.|\n)*all_reduce"),
        (other_op, "same arguments"),
        (shorter_message, r"rank 1 receives from rank 0 .* float32 \(2,\), but what was sent is of float32 \(3,\)"),
        (message_of_another_dtype, r"into a tensor of float64 \(3,\), but what was sent is of float32"),
        (nobody_receives, "rank 0 sent to rank 1 .* what nobody received"),
        (the_lengths_of_another_order, r"device 1 .* room for pieces of \[3, 2\] elements, and .* of \[2, 3\] come"),
        (lengths_that_add_up, r"all_gather: device 0 .* room for pieces of \[3, 3\] elements, and .* of \[2, 4\] come"),
        (one_length_for_all, r"all_gather: device 0 .* room for pieces of \[2, 2\] elements, and .* of \[2, 4\] come"),
        (gathered_lengths, r"gather: device 0 .* room for pieces of \[3, 3\] elements, and .* of \[2, 4\] come"),
        (wrong_lengths, r"expects pieces of \[2, 2\] elements from the others, who send it"),
    ],
)
def test_a_mismatch_is_named(program, words):
    with pytest.raises(MismatchError, match=words):
        run(program)


# ---- one device alone ----


def gathers_into_too_little(rank):
    dist.all_gather_single(torch.zeros(3), torch.ones(2))


def bits_of_fractions(rank):
    dist.all_reduce(torch.ones(2), op=dist.ReduceOp.BAND)


def with_gaps(rank):
    dist.all_reduce(torch.arange(6.0)[::2])


def scatters_other_lengths(rank):
    dist.scatter(torch.empty(3), None if rank else [torch.ones(2), torch.ones(4)])


def splits_too_little(rank):
    dist.all_to_all_single(torch.empty(4), torch.ones(5), [2, 2], [2, 2])


def does_not_divide(rank):
    dist.all_to_all_single(torch.empty(5), torch.ones(4))


def sends_a_column(rank):
    dist.send(torch.ones(3, 2)[:, 0], 1 - rank)


def receives_a_turned_matrix(rank):
    dist.irecv(torch.ones(3, 2).T, 1 - rank)


def exchanges_into_a_turned_matrix(rank):
    dist.all_to_all_single(torch.ones(2, 2).T, torch.ones(2, 2))


def sends_turned_images(rank):
    dist.send(torch.ones(2, 3, 5, 4).mT, 1 - rank)


def exchanges_a_turned_matrix(rank):
    dist.all_to_all_single(torch.ones(2, 2), torch.ones(2, 2).T)


def from_anyone(rank):
    dist.recv(torch.ones(1))


def monitored(rank):
    dist.monitored_barrier()


def in_a_thread(rank):
    thread = threading.Thread(target=dist.all_reduce, args=(torch.ones(2),))
    thread.start()
    thread.join()


def group_in_a_thread(rank):
    thread = threading.Thread(target=dist.new_group, args=([0, 1],))
    thread.start()
    thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("program", "error", "words"),
    [
        (gathers_into_too_little, ValueError, r"rank 1 of .*: 4 elements come, .* has 3, shape \(3,\)"),
        (bits_of_fractions, TypeError, "rank 0: torch.float32 cannot be combined by 'band'"),
        (with_gaps, ValueError, r"lies with gaps in memory.* call x.copy_\(y\)"),
        (scatters_other_lengths, ValueError, r"rank 0 scatters pieces of \[2, 4\] elements.* Pad them"),
        (splits_too_little, ValueError, r"its input of 5 elements is split into \[2, 2\]"),
        (does_not_divide, ValueError, r"its output of 5 elements .* without splits 2 divide"),
        (sends_a_column, ValueError, r"rank \d: send of a tensor of shape \(3,\).* Send x.contiguous\(\)"),
        (receives_a_turned_matrix, ValueError, r"rank \d: recv of .* receive into a new tensor"),
        (exchanges_into_a_turned_matrix, ValueError, r"rank \d: all_to_all_single of .*real processes refuse"),
        (sends_turned_images, ValueError, r"rank \d: send of a tensor of shape \(2, 3, 4, 5\)"),
        (exchanges_a_turned_matrix, ValueError, r"rank \d: all_to_all_single of .*real processes refuse"),
        (from_anyone, NotImplementedError, r"Name it: recv\(x, src=...\)"),
        (monitored, Exception, "dist.barrier"),
        (in_a_thread, RuntimeError, "called all_reduce in a thread of its own"),
        (group_in_a_thread, RuntimeError, "thread"),
    ],
)
def test_what_cannot_work_is_refused(program, error, words):
    with pytest.raises(error, match=words):
        run(program)


# ---- calls that nobody waits for ----


def waits_for_the_last(rank):
    x, y = torch.ones(2), torch.ones(2)
    dist.all_reduce(x, async_op=True)
    work = dist.all_reduce(y, async_op=True)
    work.wait()
    return x.tolist()


def a_barrier_after(rank):
    x = torch.ones(2)
    dist.all_reduce(x, async_op=True)
    dist.barrier()
    return x.tolist()


def never_receives(rank):
    x = torch.zeros(2)
    dist.isend(torch.ones(2), 1 - rank)
    dist.irecv(x, 1 - rank)
    return x.tolist()


@pytest.mark.parametrize(
    ("program", "result"),
    [(waits_for_the_last, [2.0, 2.0]), (a_barrier_after, [2.0, 2.0]), (never_receives, [0.0] * 2)],
)
@pytest.mark.parametrize("rendezvous", [False, True])
def test_who_does_not_wait_is_warned_and_early_works_are_done_before_late_ones(program, result, rendezvous):
    with pytest.warns(UserWarning, match=rf"rank 1 started .* in {program.__name__}, line \d+: dist.* Call wait\(\)"):
        assert run(program, rendezvous=rendezvous) == [result, result]


def test_what_pytorch_starts_and_drops_is_not_the_programs_to_wait_for():
    """DDP within Join tells the devices that have no more batches to go on; nobody needs the answer."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="rank . started")
        run(lambda rank: library_rows.ddp_join())


def drops_a_functional_collective(rank):
    funcol.all_reduce(torch.ones(2), "sum", dist.group.WORLD)


def test_nor_is_a_functional_collective_dropped_without_a_word():
    with pytest.warns(UserWarning, match=r"rank 1 started .*all_reduce.* in drops_a_functional_collective, line"):
        run(drops_a_functional_collective)


def a_future(rank):
    x = torch.ones(2)
    future = dist.all_reduce(x, async_op=True).get_future()
    if rank == 0:
        dist.send(torch.ones(1), 1)  # rank 1 comes to the sum only afterwards
    else:
        dist.recv(torch.ones(1), 0)
    return future.then(lambda done: done.value()[0] + 1).wait().tolist(), x.tolist(), future.done()


def test_a_future_waits_when_it_is_asked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(a_future) == [([3.0, 3.0], [2.0, 2.0], True)] * 2


def values_of_futures(rank):
    """As NCCL gives them; gloo has none of a reduce-scatter, and speaks of pieces of the output of a gather."""
    out, whole = torch.empty(2), torch.empty(4)
    reduced = dist.reduce_scatter_tensor(out, torch.arange(4.0), async_op=True).get_future().wait()
    gathered = dist.all_gather_into_tensor(whole, out, async_op=True).get_future().wait()
    return [x.tolist() for x in (*reduced, *gathered)]


def test_the_value_of_a_future_is_a_list_of_tensors():
    assert run(values_of_futures) == [[[2.0 * 2 * rank, 2.0 * (2 * rank + 1)], [0.0, 2.0, 4.0, 6.0]] for rank in (0, 1)]


def exchange(rank):
    x = torch.zeros(2)
    works = [dist.isend(torch.full((2,), float(rank)), 1 - rank), dist.irecv(x, 1 - rank)]
    for work in works:
        work.wait()
    ops = [dist.P2POp(dist.isend, x, 1 - rank), dist.P2POp(dist.irecv, y := torch.zeros(2), 1 - rank)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    return x[0].item(), y[0].item()


@pytest.mark.parametrize("rendezvous", [False, True])
def test_started_sends_do_not_wait_for_each_other(rendezvous):
    assert run(exchange, rendezvous=rendezvous) == [(1.0, 0.0), (0.0, 1.0)]


def trains(model):
    dist.init_process_group("gloo")
    DDP(model)(torch.ones(1, 2)).sum().backward()


def test_a_model_that_all_devices_were_handed_is_not_one_for_each():
    """Real processes get copies of it. Here all devices would write into the same tensors."""
    with pytest.raises(RuntimeError, match="a device changed weight of argument 1"):
        Cluster(2).run(guest(trains, nn.Linear(2, 1)))


def exchanges_images(rank):
    """With the channels last, as convolutions have them: those are sent."""
    x = torch.full((2, 3, 4, 4), float(rank)).to(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    work = dist.isend(x, 1 - rank)
    dist.recv(y, 1 - rank)
    work.wait()
    return y.mean().item()


def test_images_with_channels_last_are_sent():
    assert run(exchanges_images) == [1.0, 0.0]
