"""The end of a run of real processes: all tell each other what they did, and see whether anything is left over."""

import pickle
from collections import Counter
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

from lib.devices.engine.wording import short_ranks
from lib.devices.errors import MismatchError
from lib.devices.meters import Count, Meters
from lib.devices.traffic import Traffic
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


def part(mine: Report, store: dist.Store, lookout: Lookout, rank: int, size: int) -> tuple[Meters, Tensor]:
    """Waits until all have ended. Returns the meters of all, and where the random stream of rank 0 stands."""
    store.set(f"report of {rank}", pickle.dumps(mine))
    keys = [f"report of {r}" for r in range(size)]
    lookout.end(lambda seconds: poll(lambda: store.check(keys), seconds))
    reports = [pickle.loads(store.get(key)) for key in keys]
    _check_nothing_left(reports)
    meters = Meters(size)
    for report in reports:
        for device, verb, count in report.counts:
            traffic = Traffic(count.messages_sent, count.bytes_sent, count.messages_received, count.bytes_received)
            meters.charge(device, verb, traffic, count.calls)
    return meters, reports[0].stream


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
                    f"(tag={address.tag}) what nobody received: {left} message(s), the first of shape "
                    f"{report.shapes[address][-left]}. Add recv(src={address.src}, tag={address.tag}) to the program "
                    f"of rank {address.dst}, or take the send away"
                )
