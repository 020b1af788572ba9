"""Futures and works that a program hands to C++, which waits for them in a way of its own: with the turn in its hands.

So a future is fetched before it is handed over. And of a work that nobody in Python holds any more, C++ keeps the half
that cannot wait; it is held here as long as the reducer of DDP that may wait for it.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lib.guest import private
from lib.guest.private import patched
from lib.guest.work import Later, Work


@contextmanager
def fetched_before(size: int) -> Iterator[None]:
    """Around a run."""
    held: weakref.WeakKeyDictionary[Any, Work] = weakref.WeakKeyDictionary()
    reducer = private.reducer()
    collect_all, install, set_work = (
        private.collect_all(), reducer._install_post_backward_futures, reducer._set_forward_pass_work_handle,
    )  # fmt: skip

    def collect_all_fetched(futures: Sequence[torch.futures.Future]) -> torch.futures.Future:
        return collect_all(_fetched(futures))

    def install_fetched(self: Any, futures: Sequence[torch.futures.Future]) -> None:
        install(self, _fetched(futures))

    def set_held(self: Any, work: Work, static_world_size: bool) -> None:
        held[self] = work
        set_work(self, work, static_world_size)

    with (
        patched(torch._C, _collect_all=collect_all_fetched),
        patched(reducer, _install_post_backward_futures=install_fetched, _set_forward_pass_work_handle=set_held),
    ):
        yield


def _fetched(futures: Sequence[torch.futures.Future]) -> Sequence[torch.futures.Future]:
    for future in futures:
        if isinstance(future, Later):
            future.done()
    return futures
