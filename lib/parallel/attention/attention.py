"""Self-attention on P devices: every device has whole heads, and heads do not talk.

    Q, K, V = X Wq, X Wk, X Wv               by columns, so that a device gets all columns of its heads
    head_i  = softmax(Q_i K_i^T / sqrt(d)) V_i   each device for its own heads
    output  = [head_1 | head_2 | ...] Wo     by rows: one all-reduce

Vaswani et al. 2017, arXiv 1706.03762; over devices: Shoeybi et al. 2019, arXiv 1909.08053, section 3; fewer heads of
keys and values than of queries: Ainslie et al. 2023, arXiv 2305.13245.
"""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib.devices import Group
from lib.parallel.attention.cache import KVCache
from lib.parallel.attention.heads import ParallelQKV
from lib.parallel.attention.kernels import Attend, attend
from lib.parallel.sharding.linear import RowParallelLinear
from lib.parallel.tensor.dropout import ParallelDropout


class ParallelSelfAttention(nn.Module):
    """One device's heads of causal multi-head self-attention, with one fused weight for queries, keys and values.

    With `kv_heads` below `heads`, groups of heads share keys and values. With fewer `kv_heads` than devices, several
    devices hold a copy of the same one.

    Input and output (batch, S, hidden) Replicate.
    Communication: as `ParallelMLP`; and, where devices share keys and values, an all-reduce of the gradient of their
    weights over those devices. `recompute` keeps the queries, keys and values for the backward, and computes the
    scores anew (selective recomputation, Korthikanti et al. 2022, section 5). What is done between the projections
    is handed in: `attend` writes every step out, `fused_attend` leaves it to PyTorch's kernel.

    Raises ValueError when the devices do not divide the heads.
    """

    QKV, Row = ParallelQKV, RowParallelLinear

    def __init__(
        self,
        hidden: int,
        heads: int,
        group: Group,
        kv_heads: int | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        recompute: bool = False,
        attend: Attend = attend,
    ):
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        self.causal, self.recompute, self.attend = causal, recompute, attend
        self.qkv = self.QKV(hidden, heads, kv_heads, group)
        self.head_size = hidden // heads
        self.out = self.Row(hidden, hidden, group)
        self.dropout = ParallelDropout(dropout, group, sharded=True)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(batch, S, hidden) -> (batch, S, hidden). With a `cache`, x are the positions that follow those in it."""
        own, common = self.qkv.widths
        q, k, v = (self._heads(y) for y in self.qkv(x).split([own, common, common], -1))  # (batch, heads/P, S, d)
        if cache is not None:
            k, v = cache.extend(k, v)
        if self.recompute:
            y = checkpoint(self.attend, q, k, v, self.causal, self.dropout, use_reentrant=False)
        else:
            y = self.attend(q, k, v, self.causal, self.dropout)  # (batch, heads/P, S, d)  Shard(1)
        return self.out(y.transpose(1, 2).flatten(2))  # (batch, S, hidden/P) Shard(-1) -> (batch, S, hidden)

    def _heads(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (-1, self.head_size)).transpose(1, 2)  # (batch, heads/P, S, d)
