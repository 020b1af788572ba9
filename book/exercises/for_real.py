"""The exercises of the chapter "For real". Each function is a solution: read it after your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from book.exercises.check.cost import Talk
from book.exercises.check.counting import counting
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input, OnRank0
from lib.devices import Group, Link
from lib.devices.collectives import AllReduce
from lib.devices.pieces import cut
from lib.devices.rooted import Scatter
from lib.examples.link import all_reduce_seconds
from lib.parallel.sharding.placement import Replicate, Shard
from lib.parallel.sharding.shards import shard


def same(x: Tensor) -> Tensor:
    return x


def dealt(parts: int, x: Tensor) -> Tensor:
    return torch.cat([x[rank::parts] for rank in range(parts)])


@exercise(
    oracle=same,
    inputs={"x": Input("rows columns", OnRank0())},
    returns={"the own rows": Shard(0)},
    forward=(Talk(Scatter(0, 0), "rows columns"),),
    slips={
        "each device cut its own x. Only rank 0 has read the file, and processes share no memory: the rows must be "
        "sent.": lambda group, x: shard(x, group, 0),
        "all of x went to everyone, and each device kept its rows. Send each device its own rows only.": (
            lambda group, x: shard(group.broadcast(x), group, 0)
        ),
        "the x of all devices were added up; only that of rank 0 counts.": (
            lambda group, x: group.reduce_scatter(x, dim=0)
        ),
    },
    mistakes={"the rows were dealt out one by one; each device gets neighboring rows, the first ones rank 0.": dealt},
    hints=(
        "Who has something to send, and to whom? What do the others call in the meantime?",
        "There is a verb by which one device hands out the pieces of its tensor. Every device calls it.",
        "group.scatter(x, src=0, dim=0). What the other devices hand in is not looked at, except for its shape.",
    ),
)
def hand_out(group: Group, x: Tensor) -> Tensor:
    """This device's rows of the x of rank 0.

    x (rows, columns) was read from a file on rank 0; the others hold something else of the same shape. Return
    (rows/P, columns), and send to each device its own rows only.
    """
    return group.scatter(x, 0, 0)  # (rows/P, columns)  Shard(0)


TOO_LARGE = 1.7


def all_or_none(w: Tensor, g: Tensor) -> Tensor:
    return w if g.abs().max() > TOO_LARGE else w - 0.1 * g


def step_if(fine: Callable[[Group, Tensor], bool | Tensor]) -> Callable[[Group, Tensor, Tensor], Tensor]:
    return lambda group, w, g: w - 0.1 * g if fine(group, g) else w


def each_for_itself(parts: int, w: Tensor, g: Tensor) -> Tensor:
    return torch.cat([all_or_none(*pieces) for pieces in zip(cut(w, parts, 0), cut(g, parts, 0), strict=True)])


def together(group: Group, w: Tensor, g: Tensor) -> Tensor:
    return w if group.all_reduce(g.abs().max(), op="max") > TOO_LARGE else w - 0.1 * g


def asks_only_if_fine(group: Group, w: Tensor, g: Tensor) -> Tensor:
    if g.abs().max() > 1.7:
        return w
    group.barrier()
    return w - 0.1 * g


@exercise(
    oracle=all_or_none,
    inputs={"w": Input("rows 3", Shard(0)), "g": Input("rows 3", Shard(0))},
    returns={"the new piece of w": Shard(0)},
    forward=(Talk(AllReduce("max"), ""),),
    limited=False,
    broken=asks_only_if_fine,
    slips={
        "the largest element is not the largest |element|: -3 is too large as well.": step_if(
            lambda group, g: group.all_reduce(g.max(), op="max") <= TOO_LARGE
        ),
        "the step is skipped only where every device has an overflow. One is enough.": step_if(
            lambda group, g: group.all_reduce(g.abs().max(), op="min") <= TOO_LARGE
        ),
        "skipped where no |element| is above 1.7: the largest ones were added up (all_reduce adds unless it is told "
        "op='max'), or it is no largest |element| at all.": step_if(
            lambda group, g: group.all_reduce(g.abs().max()) <= TOO_LARGE
        ),
        "the step goes uphill: subtract.": lambda group, w, g: 2 * w - together(group, w, g),
        "the rate 0.1 is missing.": lambda group, w, g: w + 10 * (together(group, w, g) - w),
    },
    mistakes={
        "each device decided for itself: some made the step and some did not, and this is no model of anyone.": (
            each_for_itself
        ),
        "only the elements that overflowed were left out. The whole step is skipped, on every device.": (
            lambda parts, w, g: torch.where(g.abs() > TOO_LARGE, w, w - 0.1 * g)
        ),
        "too large elements were cut off at 1.7. The whole step is skipped, on every device.": (
            lambda parts, w, g: w - 0.1 * g.clamp(-TOO_LARGE, TOO_LARGE)
        ),
        "the step is made always.": lambda parts, w, g: w - 0.1 * g,
        "the step is never made.": lambda parts, w, g: w,
        "it is the other way round: the step is skipped when nothing overflowed.": (
            lambda parts, w, g: w - 0.1 * g if g.abs().max() > TOO_LARGE else w
        ),
    },
    hints=(
        "The table says who waits at the barrier. Where have the others gone? And what would they have to know to go "
        "the same way?",
        "One device's overflow must be known to all. Which number does each device contribute, and how are the "
        "numbers of all devices joined?",
        "largest = group.all_reduce(g.abs().max(), op='max'), on every device and before the if. Then all take the "
        "same branch.",
    ),
)
def step_together(group: Group, w: Tensor, g: Tensor) -> Tensor:
    """w - 0.1 g, this device's piece of it; but w as it is, on ALL devices, if any |element| of any g is above 1.7.

    w and g (rows/P, 3) are this device's pieces of weights and gradient. A number above 1.7 stands for an overflow.
    """
    largest = group.all_reduce(g.abs().max(), op="max")  # ()  Replicate
    return w if largest > 1.7 else w - 0.1 * g  # (rows/P, 3)  Shard(0)


class Sizes(Input):
    """Bytes of a small and of a large message."""

    def draw(self, lengths: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Random numbers in float64, the second one larger."""
        return torch.tensor([1.0, 9.0], dtype=torch.float64) + super().draw(lengths, random).sigmoid()


class Seconds(Input):
    """Times there and back of the two: some more in every run, as on a machine that others use."""

    def draw(self, lengths: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Random numbers in float64, those of the large message larger."""
        return torch.tensor([3.0, 20.0], dtype=torch.float64) + super().draw(lengths, random).square()


def fit(sizes: Tensor, there_and_back: Tensor) -> Tensor:
    once = there_and_back / 2
    beta = (once[1] - once[0]) / (sizes[1] - sizes[0])
    return torch.stack([once[0] - beta * sizes[0], beta])


def fit_fastest(sizes: Tensor, seconds: Tensor) -> Tensor:
    return fit(sizes, seconds.amin(0))


def fit_with(
    quiet: Callable[[Group, Tensor], Tensor] = lambda group, seconds: group.all_reduce(seconds.amin(0), op="min"),
    line: Callable[[Tensor, Tensor], Tensor] = fit,
) -> Callable[[Group, Tensor, Tensor], Tensor]:
    return lambda group, sizes, seconds: line(sizes, quiet(group, seconds))


@exercise(
    oracle=fit_fastest,
    inputs={"sizes": Sizes("2"), "seconds": Seconds("runs 2", Shard(0))},
    returns={"alpha and beta": Replicate()},
    forward=(Talk(AllReduce("min"), "2"),),
    limited=False,
    slips={
        "there and back are two messages: half of the time is one.": fit_with(line=lambda n, t: fit(n, 2 * t)),
        "alpha is what is left of a message's time when its bytes are taken off: alpha = t - beta n.": fit_with(
            line=lambda n, t: torch.stack([t[0] / 2, fit(n, t)[1]])
        ),
        "beta is the time of a byte more, so it is a slope: from (t1 - t0) / (n1 - n0), not from t1 / n1.": fit_with(
            line=lambda n, t: torch.stack([t[0] / 2 - t[1] / 2 / n[1] * n[0], t[1] / 2 / n[1]])
        ),
        "this is the bandwidth, 1 / beta. beta is in seconds for each byte.": fit_with(
            line=lambda n, t: torch.stack([fit(n, t)[0], 1 / fit(n, t)[1]])
        ),
        "beta comes first here; asked for is (alpha, beta).": fit_with(line=lambda n, t: fit(n, t).flip(0)),
        "each device fitted its own runs. All devices must agree on one link.": fit_with(lambda group, t: t.amin(0)),
        "the slowest runs were fitted. What disturbs a message makes it slower, never faster: take the fastest.": (
            fit_with(lambda group, t: group.all_reduce(t.amax(0), op="max"))
        ),
        "the fastest runs of all devices were added up: all_reduce adds unless it is told op='min'.": fit_with(
            lambda group, t: group.all_reduce(t.amin(0))
        ),
        "the mean of the runs was fitted. What disturbs a message makes it slower, never faster: take the fastest.": (
            fit_with(lambda group, t: group.all_reduce(t.mean(0), op="min"))
        ),
        "a mean of all devices' fastest runs. Of all runs on all devices, the fastest is asked for.": fit_with(
            lambda group, t: group.all_reduce(t.amin(0)) / group.size
        ),
    },
    hints=(
        "Two steps: all devices agree on the fastest time of each size; then a line through two points.",
        "group.all_reduce(seconds.amin(0), op='min') are two times there and back. One message takes half of each.",
        "beta = (t[1] - t[0]) / (n[1] - n[0]) and alpha = t[0] - beta * n[0], for times t of one message. Return "
        "torch.stack([alpha, beta]).",
    ),
)
def fit_ping_pong(group: Group, sizes: Tensor, seconds: Tensor) -> Tensor:
    """alpha and beta of a link, (2,), the same on every device: from the fastest run of each size, on any device.

    sizes (2,) are the bytes of two messages. seconds (runs/P, 2) are this device's measurements, each of one message
    there AND one back.
    """
    fastest = group.all_reduce(seconds.amin(0), op="min")  # (2,)  Replicate
    once = fastest / 2
    beta = (once[1] - once[0]) / (sizes[1] - sizes[0])
    return torch.stack([once[0] - beta * sizes[0], beta])  # (2,)  Replicate


def of_the_model(processes: int, cores: int, size: int, latency: int, per_byte: int) -> tuple[int]:
    return (round(all_reduce_seconds(Link(latency, 1 / per_byte), processes, size, cores)),)


def _crowded(messages: int, processes: int, cores: int, *, sent: int, latency: int, per_byte: int) -> int:
    return max(cores, processes) * (messages * latency + sent * per_byte) // cores


def _predicted(p: int, c: int, n: int, a: int, b: int) -> int:
    return _crowded(3 * (p - 1), p, c, sent=2 * (p - 1) * n // p, latency=a, per_byte=b)


@counting(
    oracle=of_the_model,
    returns=("nanoseconds",),
    counted="lib/examples/link.py says",
    cases=(
        (4, 2, 8_000, 500, 2),
        (8, 4, 16_000, 300, 1),
        (8, 2, 8_000, 100, 3),
        (2, 2, 2_000, 500, 2),
        (2, 8, 64, 9, 1),
    ),
    slips={
        "nanoseconds": {
            "the announcements are left out: P-1 small messages more, before the collective.": (
                lambda p, c, n, a, b: _crowded(2 * (p - 1), p, c, sent=2 * (p - 1) * n // p, latency=a, per_byte=b)
            ),
            "the processes take turns: on fewer cores than processes, everything takes processes / cores times as "
            "long.": lambda p, c, n, a, b: 3 * (p - 1) * a + 2 * (p - 1) * n // p * b,
            "more cores than processes make nothing faster: the factor is at least 1.": (
                lambda p, c, n, a, b: (3 * (p - 1) * a + 2 * (p - 1) * n // p * b) * p / c
            ),
            "a ring sends in pieces: 2(P-1)/P times the bytes, not 2(P-1) times.": (
                lambda p, c, n, a, b: _crowded(3 * (p - 1), p, c, sent=2 * (p - 1) * n, latency=a, per_byte=b)
            ),
            "an all-reduce goes round the ring twice: 2(P-1)/P times the bytes.": (
                lambda p, c, n, a, b: _crowded(3 * (p - 1), p, c, sent=(p - 1) * n // p, latency=a, per_byte=b)
            ),
            "an all-reduce goes round the ring twice: 2(P-1) messages, and P-1 announcements.": (
                lambda p, c, n, a, b: _crowded(2 * (p - 1), p, c, sent=(p - 1) * n // p, latency=a, per_byte=b)
            ),
            "each process sends to P-1 others, not to P.": (
                lambda p, c, n, a, b: _crowded(3 * p, p, c, sent=2 * n, latency=a, per_byte=b)
            ),
            "only the bytes were crowded; a small message is work for a core, too.": (
                lambda p, c, n, a, b: 3 * (p - 1) * a + max(c, p) * (2 * (p - 1) * n // p * b) // c
            ),
        }
    },
    hints=(
        "Three parts: how many messages come one after the other, how many bytes a process sends, and how many "
        "processes share a core.",
        "A ring: 2(P-1) messages with 2(P-1)/P of the bytes. The announcements: P-1 messages more, almost empty.",
        "max(1, processes / cores) * (3 * (P - 1) * latency + 2 * (P - 1) / P * size * per_byte)",
    ),
)
def predict(processes: int, cores: int, size: int, latency: int, per_byte: int) -> int:
    """Nanoseconds of an all-reduce of `size` bytes between processes of one machine, by the chapter's model.

    `latency` and `per_byte` are in nanoseconds. Count the ring, the announcements, and the crowding.
    """
    messages = 3 * (processes - 1) * latency
    sent = 2 * (processes - 1) / processes * size * per_byte
    return max(1, processes / cores) * (messages + sent)
