"""How a device leaves its program before the end."""

from typing import Any


class Exit(RuntimeError):
    """A device left its program by `sys.exit(code)`, and not with 0."""

    def __init__(self, rank: int, code: Any):
        self.rank, self.code = rank, code
        super().__init__(f"rank {rank} left the program by sys.exit({code!r})")
