"""What DTensor keeps once for a process: each device has it for itself.

These are the plans of redistributions, which depend on where in the mesh a device stands (and meshes of two devices
count as equal), and the operations that `loss_parallel` turns to its own while it is entered.
"""

import sys

from lib.guest.private_dtensors import DTENSOR, Keeper, OfDTensor


class DTensors:
    """Owner of them. A program may import DTensor late: until then there is nothing to own."""

    def __init__(self, size: int):
        self._keeper: Keeper | None = None
        self._caller: OfDTensor | None = None
        self._mine: list[OfDTensor] = []
        self._size = size

    def take_up(self, rank: int) -> None:
        """DTensor knows what device `rank` has told it."""
        if self._keeper is not None or DTENSOR in sys.modules and self._begin():
            self._keeper.write(self._mine[rank])

    def lay_aside(self, rank: int) -> None:
        """It is kept."""
        if self._keeper is not None or DTENSOR in sys.modules and self._begin():
            self._mine[rank] = self._keeper.read()

    def give_back(self, failed: bool) -> None:
        """As before."""
        if self._keeper is not None:
            self._keeper.write(self._caller)

    def _begin(self) -> bool:
        self._keeper = Keeper()
        self._caller = self._keeper.read()
        self._mine = [self._caller.afresh() for _ in range(self._size)]
        return True
