"""The alpha and beta of your own machine: time a verb between real processes, and fit a `Link` to what you see.

    sizes = [1_000, 10_000, 100_000, 1_000_000]
    seconds = Processes(2).run(time_conversation, ping_pong, sizes)[0]
    link = fit_link(2, [2 * size for size in sizes], seconds)       # there and back: 2 messages
    link.seconds(2, 2 * 300_000)                                    # a prediction for a size that was not measured

What is timed is the verb as a program calls it: gloo, and what our own code adds to it. Call torch.set_num_threads(1)
before: PyTorch copies more than 32 kB with several threads, and waking them takes longer than a message.
"""

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from lib.devices import Group, Link

Conversation = Callable[[Group, Tensor], None]


def ping_pong(group: Group, x: Tensor) -> None:
    """One message from device 0 to device 1, and one back."""
    if group.rank == 0:
        group.send(x, 1)
        group.recv(1)
    elif group.rank == 1:
        group.send(group.recv(0), 0)


def all_reduce(group: Group, x: Tensor) -> None:
    """A ring of P devices: 2(P-1) messages from each, 2(P-1)/P times the bytes of `x` in all."""
    group.all_reduce(x)


def time_conversation(group: Group, conversation: Conversation, sizes: Sequence[int], repeats: int = 30) -> list[float]:
    """Seconds of `conversation` with a tensor of each of `sizes` (bytes): the median over `repeats`, of the device that
    took longest. The same on all devices.
    """
    tensors = [torch.ones(size, dtype=torch.uint8) for size in sizes]
    taken = torch.zeros(repeats, len(sizes), dtype=torch.float64)
    for x in tensors:
        conversation(group, x)  # the first time also makes connections and takes memory
    for row in taken:  # all sizes in turn, so that a busy moment of the machine cannot hit one size alone
        for i, x in enumerate(tensors):
            group.barrier()
            start = perf_counter()
            conversation(group, x)
            row[i] = perf_counter() - start
    slowest = group.all_reduce(taken, op="max")  # (repeats, sizes)  Replicate
    return [median(column) for column in slowest.T.tolist()]


def fit_link(messages: int, sizes: Sequence[float], seconds: Sequence[float]) -> Link:
    """The link on which `messages` messages of sizes[i] bytes in all take most nearly seconds[i].

    Least squares of the relative errors: of the errors in seconds, those of the largest size would drown all others.
    Raises ValueError for fewer than two different sizes, times that are not above 0 or that do not grow with the size.
    """
    n, t = (torch.tensor(list(numbers), dtype=torch.float64) for numbers in (sizes, seconds))
    if messages < 1 or n.shape != t.shape or len(n.unique()) < 2 or not n.isfinite().all() or n.min() < 0:
        raise ValueError(
            f"fit_link(messages={messages}) of {len(n)} sizes and {len(t)} times: it needs at least one message, a "
            "time for each size, and two different sizes at least"
        )
    if not t.isfinite().all() or t.min() <= 0:
        raise ValueError(f"fit_link: these times are not all above 0: {t.tolist()}")
    shares = torch.stack([messages / t, n / t], dim=1)  # times (latency, 1 / bandwidth), each row shall be 1
    latency, per_byte = torch.linalg.lstsq(shares, torch.ones_like(t)[:, None]).solution[:, 0].tolist()
    if latency < 0:  # no link has a negative one: the best of those that have none
        latency, per_byte = 0.0, (shares[:, 1].sum() / shares[:, 1].square().sum()).item()
    if per_byte <= 0:
        raise ValueError(
            f"fit_link: the times do not grow with the sizes: {t.tolist()} seconds for {n.tolist()} bytes. Measure "
            "larger sizes, or more repeats on a quieter machine"
        )
    return Link(latency, 1 / per_byte)


def crowded(link: Link, processes: int, cores: int) -> Link:
    """The link as each of `processes` finds it when all talk at once on `cores` cores. A message through the memory of
    one machine is work of the processor, and two processes of a ping-pong never work at the same time: they had a core
    to themselves. Here a core serves processes / cores of them in turn; with a core for each, nothing changes.
    """
    if processes < 1 or cores < 1:
        raise ValueError(f"crowded: {processes} processes on {cores} cores; there must be at least one of each")
    turns = max(1.0, processes / cores)
    return Link(turns * link.latency, link.bandwidth / turns)


def all_reduce_seconds(link: Link, processes: int, nbytes: int, cores: int) -> float:
    """A prediction of `all_reduce` between `processes` on one machine: the ring's 2(P-1) messages, and P-1 more for the
    announcements that our processes exchange before each collective, on a `crowded` link."""
    messages = 3 * (processes - 1)
    return crowded(link, processes, cores).seconds(messages, 2 * (processes - 1) / processes * nbytes)
