"""What stands behind a group when its run has ended: every call is refused, with the reason."""

from typing import Any, NoReturn

from lib.devices.collectives import Collective
from lib.devices.engine.mail import Message


class Over:
    """Stands behind a group that has come from another process."""

    def __init__(self, rank: int):
        self.rank = rank

    def key_for(self, parent: int, ranks: tuple[int, ...], times: int) -> int:
        return 0  # nobody will ask for it

    def join(self, key: int, ranks: tuple[int, ...], rank: int, verb: Collective, x: Any) -> NoReturn:
        refuse(self.rank, verb)

    def send(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Any) -> NoReturn:
        refuse(self.rank, Message("send", dst, tag))

    def recv(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> NoReturn:
        refuse(self.rank, Message("recv", src, tag))

    def expect(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> NoReturn:
        refuse(self.rank, Message("recv", src, tag))

    def collect(self, joined: Any, ranks: tuple[int, ...], rank: int, verb: Collective) -> NoReturn:
        refuse(self.rank, verb)

    def hand_out(self, joined: Any, ranks: tuple[int, ...], rank: int, verb: Collective) -> NoReturn:
        refuse(self.rank, verb)

    def now(self, me: int) -> NoReturn:
        refuse(self.rank, "now()")

    def note(self, me: int, name: str, start: float) -> NoReturn:
        refuse(self.rank, f"span({name!r})")


def refuse(rank: int, call: object) -> NoReturn:
    """Raises RuntimeError: `call` came too late."""
    raise RuntimeError(
        f"rank {rank} called {call} after its run had ended. Groups live as long as the run: call backward() and all "
        "verbs inside the program"
    )
