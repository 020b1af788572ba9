"""The memory figures of `torch.cuda`: known where the virtual clock watches the memory, else 0."""

from collections import defaultdict
from itertools import accumulate
from typing import Any

from lib.devices.memory import Held
from lib.guest.gpus.devices import Devices
from lib.guest.streams import clock_here


class Figures(Devices):
    """Bytes that this device holds and held. Peaks count from the last reset."""

    def memory_allocated(self, device: Any = None) -> int:
        self._index(device)
        return sum(block.size for block in self._held()[1])

    def max_memory_allocated(self, device: Any = None) -> int:
        self._index(device)
        past, now = self._held()
        since = getattr(self._here, "since", 0.0)
        changes = [(max(block.start, since), block.size) for block in (*past, *now)]
        changes += [(block.end, -block.size) for block in past]  # at one moment, what is freed goes first
        return max(accumulate(change for _, change in sorted(changes)), default=0)

    def _held(self) -> tuple[list[Held], list[Held]]:
        """What this device held in the past, since the peak was reset, and what it holds now."""
        clock, me = clock_here()
        if clock is None:
            return [], []
        since = getattr(self._here, "since", 0.0)
        past = [block for block in clock.trace.memory if block.rank == me and block.end > since]
        return past, clock.memory.held_now(me)

    # The allocator of PyTorch keeps more than it hands out; how much more is not simulated.
    memory_reserved = memory_cached = device_memory_used = memory_allocated
    max_memory_reserved = max_memory_cached = max_memory_allocated

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        clock, me = clock_here()
        self._here.since = clock.now[me] if clock else 0.0

    reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return self._total - self.memory_allocated(device), self._total

    def memory_stats(self, device: Any = None) -> dict[str, int]:
        now, most = self.memory_allocated(device), self.max_memory_allocated(device)
        figures = {f"{kind}_bytes.all.{when}": size for kind in ("allocated", "reserved", "active")
                   for when, size in (("current", now), ("peak", most))}  # fmt: skip
        return defaultdict(int, figures)

    def memory_summary(self, device: Any = None, abbreviated: bool = False) -> str:
        return f"pretended GPU: {self.memory_allocated():,} bytes held, {self.max_memory_allocated():,} at most"

    def memory_snapshot(self, mempool_id: Any = None) -> list:
        return []
