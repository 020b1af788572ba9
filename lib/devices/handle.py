"""A collective that was started and not yet waited for."""

from collections.abc import Callable

from torch import Tensor


class Handle:
    """What a verb returns with `async_op=True`: the device goes on, and `wait()` gives the result later.

    Between the two, the program must not change the tensor that it passed. Every handle must be waited for, once.
    """

    def __init__(self, call: str, collect: Callable[[], Tensor | None]):
        self._call, self._collect = call, collect
        self._waited = False

    def wait(self) -> Tensor | None:
        """The result of the verb; waits until all devices of the group have come."""
        if self._waited:
            raise RuntimeError(
                f"wait() was called twice on the handle of {self._call}: keep the result of the first call"
            )
        self._waited = True
        return self._collect()

    def __repr__(self) -> str:
        return f"Handle({self._call}, {'waited for' if self._waited else 'not yet waited for'})"
