"""Attention over a sequence that is cut over a group: what all ways to do it have in common.

Everything else in a transformer works token by token and needs no other device, so attention is all that changes. An
object of such a class is handed to `ParallelSelfAttention`, `Llama` or `ContextGPT` as `attend`.
"""

from torch import Tensor

from lib.devices import Group
from lib.parallel.context.blocks import Block, blocks_between
from lib.parallel.context.cut import CutTokens, Order, Places, token_places
from lib.parallel.sharding.named import named
from lib.parallel.sharding.shards import check_member
from lib.parallel.tensor.dropout import ParallelDropout


class ContextAttention:
    """Of a sequence of `length` tokens, device r of `group` has the queries, keys and values at `token_places(r)`.

    `documents` (length,) are numbers, the same on all devices: a token sees only tokens of its own document, as when
    short texts are packed into one sequence. Raises ValueError when there are fewer tokens than devices.
    """

    inner = 1  # how many neighbors share one piece of the cut

    def __init__(self, group: Group, length: int, order: Order = "zigzag", documents: Tensor | None = None):
        check_member(group, type(self).__name__)
        self.group, self.length, self.order, self.documents = group, length, order, documents
        self.everyone = [token_places(length, group.size, rank, order, self.inner) for rank in range(group.size)]
        if documents is not None and (documents.shape != (length,) or documents.is_floating_point()):
            raise ValueError(
                f"{self}: documents of shape {tuple(documents.shape)} and {documents.dtype}; it must be one whole "
                f"number for each of the {length} tokens of the sequence, the same on all devices"
            )

    def __repr__(self) -> str:
        who = f"rank {self.group.rank} of {self.group.size}"
        return f"{type(self).__name__}({self.length} tokens, {self.order}) on {who}"

    @property
    def cuts_sequence(self) -> bool:
        """Whether other devices have other tokens."""
        return self.group.size > 1

    @property
    def cut(self) -> CutTokens:
        """The placement of a tensor (batch, S, ...) whose tokens are cut in this way."""
        return CutTokens(self.order, 1, self.inner)

    def places(self, rank: int | None = None) -> Places:
        """The positions of the tokens of device `rank`, or of this one."""
        return self.everyone[self.group.rank if rank is None else rank]

    @named
    def own(self, x: Tensor, dim: int = 1) -> Tensor:
        """This device's tokens of a whole sequence: Replicate -> cut along `dim`. Nothing is sent."""
        if x.shape[dim] != self.length:
            raise ValueError(f"{self}: a tensor of shape {tuple(x.shape)} must have all {self.length} along dim {dim}")
        cut = CutTokens(self.order, dim, self.inner)
        return cut.piece(x, self.group.size, self.group.rank)

    def blocks(self, source: int, causal: bool) -> tuple[Block, ...]:
        """What this device's queries see of the keys of device `source`."""
        return blocks_between(self.places(), self.places(source), causal, self.documents)

    @named
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool = True, dropout: ParallelDropout | None = None
    ) -> Tensor:
        """q (batch, heads, n, d), k and v (batch, kv_heads, n, d) of this device's n tokens -> like q."""
        if getattr(dropout, "training", False) and dropout.p > 0:
            raise ValueError(
                f"{self}: dropout={dropout.p} on the attention weights; they are never kept, so set it to 0"
            )
        mine = sum(map(len, self.places()))
        if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[1] % k.shape[1] or q.shape[-1] != k.shape[-1]:
            raise ValueError(
                f"{self}: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: k and v must be alike, and the "
                "heads of q a multiple of theirs"
            )
        if not q.shape[2] == k.shape[2] == mine:
            raise ValueError(
                f"{self}: q {tuple(q.shape)} and k {tuple(k.shape)} must hold this device's {mine} tokens; cut the "
                "sequence with own(x), and use no cache"
            )
        return self.attend(q, k, v, causal)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """What each class does in its own way."""
        raise NotImplementedError
