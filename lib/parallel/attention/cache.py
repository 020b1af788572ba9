"""What a text that is being written need not compute again: the keys and values of all positions seen so far.

Of each layer and text, a device keeps those of its own heads. One more token then costs one row of queries, keys and
values in place of all rows: a forward pass over one token, not over the whole text.
"""

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
