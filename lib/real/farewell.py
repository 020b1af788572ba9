"""The end of a run of real processes: all tell each other what they did, and see whether anything is left over."""

from collections import Counter
from dataclasses import astuple
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lib.devices.counts import counted
from lib.devices.engine.wording import short_ranks
from lib.devices.errors import MismatchError
from lib.devices.meters import VERBS, Count, Meters
from lib.devices.traffic import Traffic
from lib.real import notes
from lib.real.lookout import Lookout, poll
from lib.real.mailbox import Address


class Report(NamedTuple):
    """What a process did. Of the `shapes` it sent to an address, the last may not have been received; `unfinished` are
    the handles that nobody waited for; `stream` is where its random stream stands."""

    counts: list[tuple[int, str, Count]]
    sent: Counter[Address]
    received: Counter[Address]
    shapes: dict[Address, list[tuple[int, ...]]]
    unfinished: list[str]
    stream: Tensor

    def encode(self) -> dict[str, Any]:
        """In lists, numbers and texts."""
        return {
            "counts": [[rank, verb, *astuple(count)] for rank, verb, count in self.counts],
            "sent": [[list(address), number] for address, number in self.sent.items()],
            "received": [[list(address), number] for address, number in self.received.items()],
            "shapes": [[list(address), shapes] for address, shapes in self.shapes.items()],
            "unfinished": self.unfinished,
            "stream": self.stream.numpy().tobytes().hex(),
        }

    @staticmethod
    def decode(note: dict[str, Any]) -> "Report":
        """The inverse of `encode`. Raises TypeError, ValueError or LookupError for what is no report."""
        counts, sent, received, shapes, unfinished, stream = (note[name] for name in Report._fields)
        return Report(
            [(_whole(rank), VERBS[VERBS.index(verb)], Count(*map(_whole, numbers))) for rank, verb, *numbers in counts],
            Counter({_address(*parts): _whole(number) for parts, number in sent}),
            Counter({_address(*parts): _whole(number) for parts, number in received}),
            {_address(*parts): [tuple(map(_whole, shape)) for shape in some] for parts, some in shapes},
            [str(text) for text in unfinished],
            torch.frombuffer(bytearray.fromhex(stream), dtype=torch.uint8),
        )


def _whole(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} is no count")
    return number


def _address(key: int, ranks: list, src: int, dst: int, tag: int) -> Address:
    return Address(key, tuple(ranks), src, dst, tag)


def part(mine: Report, store: dist.Store, lookout: Lookout, rank: int, size: int) -> tuple[Meters, Tensor]:
    """Waits until all have ended. Returns the meters of all, and where the random stream of rank 0 stands."""
    notes.write(store, f"report of {rank}", mine.encode())
    keys = [f"report of {r}" for r in range(size)]
    lookout.end(lambda seconds: poll(lambda: store.check(keys), seconds))
    reports = [_read(store, key, size) for key in keys]
    _check_nothing_left(reports)
    meters = Meters(size)
    for report in reports:
        for device, verb, count in report.counts:
            traffic = Traffic(count.messages_sent, count.bytes_sent, count.messages_received, count.bytes_received)
            meters.charge(device, verb, traffic, count.calls)
    return meters, reports[0].stream


def _read(store: dist.Store, key: str, size: int) -> Report:
    note = notes.read(store, key)
    try:
        report = Report.decode(note)
        if report.stream.shape != torch.get_rng_state().shape or any(rank >= size for rank, *_ in report.counts):
            raise ValueError("it belongs to another run")
    except (LookupError, TypeError, ValueError) as error:  # no report, or one of another form
        raise notes.foreign(key, note) from error
    return report


def _check_nothing_left(reports: list[Report]) -> None:
    for started in (text for report in reports for text in report.unfinished):
        raise MismatchError(f"{started}. Call wait() on it, or leave out async_op=True")
    received = sum((report.received for report in reports), Counter())
    for report in reports:
        for address, sent in report.sent.items():
            left = sent - received[address]
            if left:
                raise MismatchError(
                    f"in group {short_ranks(address.ranks)} rank {address.src} sent to rank {address.dst} "
                    f"(tag={address.tag}) what nobody received: {counted(left, 'message')}, the first of shape "
                    f"{report.shapes[address][-left]}. Add recv(src={address.src}, tag={address.tag}) to the program "
                    f"of rank {address.dst}, or take the send away"
                )
