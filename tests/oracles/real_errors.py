"""Programs that go wrong, each in its way. In a file of their own, which other processes can import."""

import os
import signal
import sys
import threading
import time

import torch
from torch.utils.data import DataLoader, Dataset

from lib.real import processes


class OurOwnError(Exception):
    """Pickles as it is."""


class StubbornError(Exception):
    """Cannot be made again from its args, as pickle does it."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def last(group):
    return group.rank == group.size - 1


def raises(group, error, *args):
    """The others wait, for a collective or for a message, or compute and wait for nothing."""
    if last(group):
        raise error(*args)
    if group.rank == 1:
        group.all_reduce(torch.ones(2))
    elif group.rank == 2:
        group.recv(0)
    time.sleep(300)


def raises_beside_a_handle(group):
    started = group.all_reduce(torch.ones(2), async_op=True)
    if last(group):
        raise OurOwnError("no")
    return group.all_gather(started.wait())


def dies(group, number):
    """Number below 0: of that signal; else with that exit code."""
    group.barrier()
    if last(group):
        os.kill(os.getpid(), -number) if number < 0 else os._exit(number)
    group.barrier()


def writes_its_pid(group, folder):
    (folder / str(group.rank)).write_text(str(os.getpid()))
    group.barrier()


def waits_for_ever(group, folder):
    writes_its_pid(group, folder)
    time.sleep(300)


def is_a_parent(folder, said):
    """Not on a device: a process of its own, which starts two. What it complains of goes into the file `said`."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    processes._PRELOADED = ["lib.real.child"]  # its server's, which is one more
    processes.Processes(2).run(waits_for_ever, folder)


def ignores_signals(group, folder):
    """Nothing but SIGKILL ends such a process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    writes_its_pid(group, folder)
    raise OurOwnError("no")


def other_verb(group):
    return group.all_gather(torch.ones(2)) if last(group) else group.all_reduce(torch.ones(2))  # gloo does not mind


def other_arguments(group):
    return group.broadcast(torch.ones(2), src=1 if last(group) else 0)


def other_shape(group):
    return group.all_reduce(torch.ones(3 if last(group) else 2))


def other_shape_than_the_second(group):
    """The first brings nothing."""
    return group.broadcast(None if group.rank == 0 else torch.ones(3 if last(group) else 2), src=1)


def other_dtype(group):
    return group.all_gather(torch.ones(2, dtype=torch.int64 if last(group) else torch.float32))


def other_dims(group):
    return group.gather(torch.ones(2, 3 if last(group) else 4))


def other_in_a_small_group(group):
    pair = group.split([[group.size - 1, 0]])
    if pair.rank is not None:
        pair.reduce(torch.ones(1), op="max" if pair.rank else "sum")


def other_beside(group):
    handle = group.all_reduce(torch.ones(2), op="max" if last(group) else "min", async_op=True)
    return torch.ones(2), handle.wait()


def nothing_to_broadcast(group):
    return group.broadcast(None)


def too_many_dims(group):
    return group.all_reduce(torch.ones([1] * 30))


def sparse(group):
    return group.all_reduce(torch.eye(3).to_sparse())


def all_receive_first(group):
    x = group.recv((group.rank - 1) % group.size)
    group.send(x, (group.rank + 1) % group.size)


def one_ends_early(group):
    if not last(group):
        group.barrier()


def one_receives_instead(group):
    return group.recv(0) if last(group) else group.all_reduce(torch.ones(2))


def handle_of_one_alone(group):
    if group.rank == 0:
        return group.all_reduce(torch.ones(2), async_op=True).wait()
    return group.recv(0)


def is_late(group):
    """No mistake: the others wait for seconds, and must not call it a deadlock."""
    if last(group):
        time.sleep(4.5)
    return float(group.all_reduce(torch.ones(1)))


def never_received(group):
    for length in (3, 4, 5):
        group.send(torch.ones(2, length), (group.rank + 1) % group.size, tag=7)
    group.recv((group.rank - 1) % group.size, tag=7)


def never_waited_for(group):
    group.all_reduce(torch.ones(1), async_op=True)


def waited_for_twice(group):
    handle = group.all_reduce(torch.ones(1), async_op=True)
    return handle.wait(), handle.wait()


def returns_a_lock(group):
    return threading.Lock() if last(group) else None


def prints(group):
    for rank in range(group.size):
        if group.rank == rank:
            print("hello from", rank)
            print("unfinished", rank, end="")
        group.barrier()


def first_argument(group, x):
    return x


class Loud(Dataset):
    """Says what it does, in whichever process that is."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        print(f"item {i}")
        return float(i)


def loads_with_workers(group):
    """As many programs do; between the batches, the devices talk."""
    loader = DataLoader(Loud(), batch_size=2, num_workers=2)
    return [group.all_reduce(x).sum().item() for x in loader]


def dies_beside_workers(group):
    """While the workers live, and hold what they have got by the fork."""
    for _ in DataLoader(Loud(), batch_size=2, num_workers=1, persistent_workers=True):
        if last(group):
            os.kill(os.getpid(), signal.SIGKILL)
        group.barrier()


def leaves(group, code):
    if last(group):
        sys.exit(code)
    return group.all_reduce(torch.ones(1))
