"""Ulysses: an all-to-all changes tokens for heads, attention runs on whole heads, and another changes back.

    (batch, heads, S/P, d)  -- all-to-all -->  (batch, heads/P, S, d)  -- attention --  -- all-to-all -->  as before

Heads do not talk, so with all tokens of its heads a device needs nobody. Each device sends a P-th of what a ring does,
but there cannot be more devices than heads. So the two are combined: Ulysses among `heads` neighbors, and a ring of
such rows.

Jacobs et al. 2023, arXiv 2309.14509; both together: Fang and Zhao 2024, arXiv 2405.07719.
"""

from torch import Tensor

from lib.devices import Group
from lib.parallel.context.attention import ContextAttention
from lib.parallel.context.cut import Order
from lib.parallel.context.ring import RingAttention
from lib.parallel.sharding.conjugates import all_to_all


class UlyssesAttention(ContextAttention):
    """The heads are split over rows of `heads` neighbors (None: over all devices of the group), and the sequence over
    the rows, by a ring.

    Communication: an all-to-all for q, k, v each and one for the output, and the same backward; and the ring's, of the
    heads that a device has then. With fewer heads of keys and values than neighbors, each is sent as a copy to all
    that need it. Raises ValueError, when it is called, for heads that the neighbors do not divide.
    """

    def __init__(
        self,
        group: Group,
        length: int,
        order: Order = "contiguous",
        documents: Tensor | None = None,
        heads: int | None = None,
    ):
        self.inner = group.size if heads is None else heads
        super().__init__(group, length, order, documents)
        rows = group.size // self.inner
        self.neighbors = group.split(rows)
        across = group.split([list(range(column, group.size, self.inner)) for column in range(self.inner)])
        self.ring = RingAttention(across, length, order, documents)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """See `ContextAttention`."""
        heads, kv_heads = q.shape[1], k.shape[1]
        if heads % self.inner or (kv_heads % self.inner and self.inner % kv_heads):
            raise ValueError(
                f"{self}: {self.inner} devices cannot split {heads} heads of queries and {kv_heads} of keys and "
                "values; UlyssesAttention(heads=...) must divide the heads that are here, and the rest can be a ring"
            )
        if self.inner > kv_heads:
            k, v = (x.repeat_interleave(self.inner // kv_heads, 1) for x in (k, v))
        q, k, v = (all_to_all(x, self.neighbors, 1, 2) for x in (q, k, v))  # (batch, heads/P, S, d)  Shard(1)
        return all_to_all(self.ring.attend(q, k, v, causal), self.neighbors, 2, 1)  # (batch, heads, S/P, d)  Shard(2)
