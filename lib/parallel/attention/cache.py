"""What a text that is being written need not compute again: the keys and values of all positions seen so far.

Of each layer and text, a device keeps those of its own heads. One more token then costs one row of queries, keys and
values in place of all rows: a forward pass over one token, not over the whole text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """The keys and values of this device's heads for all positions seen so far: (batch, kv_heads/P, seen, d) each."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def seen(self) -> int:
        """How many positions are kept."""
        return 0 if self.keys is None else self.keys.shape[-2]

    @property
    def nbytes(self) -> int:
        """What this device keeps."""
        return 0 if self.keys is None else self.keys.nbytes + self.values.nbytes

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of new positions; returns those of all positions."""
        if self.keys is not None:
            if self.keys.shape[:2] != k.shape[:2]:
                raise ValueError(
                    f"KVCache: it holds (batch, heads) = {tuple(self.keys.shape[:2])}, and new keys come with "
                    f"{tuple(k.shape[:2])}; begin another text with a cache of its own"
                )
            k, v = torch.cat([self.keys, k], -2), torch.cat([self.values, v], -2)
        self.keys, self.values = k, v
        return k, v


def check_caches(caches: Sequence[KVCache] | None, layers: int, who: str, what: str) -> None:
    """Raises ValueError unless there is a cache for each layer, its own, and all have seen the same positions."""
    if caches is None:
        return
    if len({*map(id, caches)}) < len(caches):
        raise ValueError(f"{who}: one cache is there for several {what}s; give each {what} one of its own")
    if len(caches) != layers:
        raise ValueError(f"{who}: {len(caches)} caches for {layers} {what}s; give each {what} one of its own")
    seen = [cache.seen for cache in caches]
    if len({*seen}) > 1:
        raise ValueError(f"{who}: the caches have seen {seen} positions, and all must have seen the same; begin anew")
