"""Keeping the memory that devices free, for the next device that asks.

glibc gives each thread a heap of its own and hands freed memory back to the system. With many devices that take turns,
every step would then fetch its large temporaries from the system again, page by page. With one heap that is kept, the
next device takes what the last one left.

This changes the allocator of the whole process, for good, since glibc cannot do it for some threads alone. It stays
because it was measured to be needed. Four steps of an MLP, forward and backward, with and without it in one run: on 4
devices 3 to 6 % less CPU time, on 12 devices 6 to 10 %, 70 page faults in place of 70,000, and a lower peak of memory.
"""

import ctypes
import sys
from functools import cache

# Names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


@cache  # once for a process
def keep_freed_memory() -> None:
    """One heap for all threads, of which up to 1 GiB stays with the process when freed. Does nothing without glibc."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_ARENA_MAX, 1)
            mallopt(M_TRIM_THRESHOLD, 2**30)
            mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that glibc allows
