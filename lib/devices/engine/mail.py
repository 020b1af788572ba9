"""Messages between two devices: letters that wait for their recv, and recvs that wait for their letter.

What is sent under one address arrives in the order in which it was sent, and is given to the recvs in the order in
which they were called, whether their devices wait for them or not.
"""

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lib.devices.traffic import size_in_bytes


class Message(NamedTuple):
    """A send or a recv, as the errors show it."""

    verb: str
    peer: int
    tag: int

    def __str__(self) -> str:
        return f"{self.verb}({'dst' if self.verb == 'send' else 'src'}={self.peer}, tag={self.tag})"


class Address(NamedTuple):
    """From `src` to `dst`, ranks in the group that `key` stands for, under `tag`."""

    key: int
    src: int
    dst: int
    tag: int


@dataclass
class Letter:
    """A tensor on its way. `begin` and `end` (virtual time): when it leaves, and when it has left."""

    x: Tensor
    ranks: tuple[int, ...]  # of the group, in the cluster
    begin: float = 0.0
    end: float = 0.0
    taken: bool = False  # whether its recv was called
    sender_waits: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return size_in_bytes(self.x)


@dataclass
class Recv:
    """A recv that was `called` at a virtual time. `begin` and `end`: when its letter comes in, once there is one."""

    called: float = 0.0
    letter: Letter | None = None
    begin: float = 0.0
    end: float = 0.0
    waited_for: bool = False


class Mail:
    """What was sent and not asked for, and what was asked for and not sent."""

    def __init__(self) -> None:
        self.letters: dict[Address, deque[Letter]] = defaultdict(deque)
        self._recvs: dict[Address, deque[Recv]] = defaultdict(deque)

    def put(self, address: Address, letter: Letter) -> Recv | None:
        """The recv that the letter goes to; None when it has to wait for one."""
        if self._recvs[address]:
            return self._recvs[address].popleft()
        self.letters[address].append(letter)
        return None

    def ask(self, address: Address, recv: Recv) -> Letter | None:
        """The letter that the recv gets; None when it has to wait for one."""
        if self.letters[address]:
            return self.letters[address].popleft()
        self._recvs[address].append(recv)
        return None
