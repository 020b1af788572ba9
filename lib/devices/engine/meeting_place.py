"""What may stand behind a `Group`: everything that a program asks of its group comes down to these few calls."""

from typing import Any, Protocol

from torch import Tensor

from lib.devices.collectives import Collective
from lib.devices.handle import Handle


class MeetingPlace(Protocol):
    """Where the devices of a run meet: simulated (`Exchange`), real, or another one seen through a stopwatch.

    A group is named by `key` and `ranks` (the ranks of the cluster, in the order of the group); `rank`, `src` and `dst`
    count within the group. What `join` returns belongs to the meeting place: it is handed back as it is.
    """

    def key_for(self, parent: int, ranks: tuple[int, ...], times: int) -> int:
        """The key of a sub-group: the same on all its members, without a word between them."""

    def join(self, key: int, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None) -> Any:
        """Device `rank` comes to a collective with `x`, and does not wait."""

    def collect(self, joined: Any, ranks: tuple[int, ...], rank: int, verb: Collective) -> Tensor | None:
        """What device `rank` gets from the collective that it joined; waits until all have come."""

    def hand_out(self, joined: Any, ranks: tuple[int, ...], rank: int, verb: Collective) -> Handle:
        """A handle whose `wait()` collects."""

    def send(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Tensor) -> None:
        """Device `rank` sends `x` to `dst`."""

    def recv(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Tensor:
        """The oldest message from `src` under `tag`; waits until there is one."""

    def expect(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Handle:
        """A handle whose `wait()` is that `recv`; the message comes in meanwhile."""

    def now(self, me: int) -> float:
        """The time of the device with rank `me` in the cluster, in seconds."""

    def note(self, me: int, name: str, start: float) -> None:
        """Device `me` calls the time from `start` to now `name`."""
