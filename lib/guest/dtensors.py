"""What DTensor keeps once for a process: each device has it for itself.

These are the plans of redistributions, which depend on where in the mesh a device stands (and meshes of two devices
count as equal), and the operations that `loss_parallel` turns to its own while it is entered.
"""

import sys

from lib.guest import private_dtensors as private


class DTensors:
    """Owner of them. A program may import DTensor late: until then there is nothing to own."""

    def __init__(self, size: int):
        self._caller: private.OfDTensor | None = None
        self._mine: list[private.OfDTensor] = []
        self._size = size

    def take_up(self, rank: int) -> None:
        """DTensor knows what device `rank` has told it."""
        if self._there():
            private.set_dtensor(self._mine[rank])

    def lay_aside(self, rank: int) -> None:
        """It is kept."""
        if self._there():
            self._mine[rank] = private.of_dtensor()

    def give_back(self, failed: bool) -> None:
        """As before."""
        if self._caller is not None:
            private.set_dtensor(self._caller)

    def _there(self) -> bool:
        if self._caller is None and private.DTENSOR in sys.modules:
            self._caller = private.of_dtensor()
            self._mine = [self._caller.afresh() for _ in range(self._size)]
        return self._caller is not None
