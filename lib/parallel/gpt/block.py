"""One layer of a transformer on P devices: attention and MLP, each behind a LayerNorm and beside a residual."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib.devices import Group
from lib.parallel.attention.attention import ParallelSelfAttention
from lib.parallel.attention.cache import KVCache
from lib.parallel.attention.kernels import Attend, attend
from lib.parallel.tensor.dropout import ParallelDropout
from lib.parallel.tensor.mlp import ParallelMLP

Recompute = Literal["selective", "full"]


class ParallelBlock(nn.Module):
    """x + dropout(attention(norm(x))), then y + dropout(mlp(norm(y))): a pre-norm layer, as in GPT-2.

    Input and output (batch, S, hidden) Replicate: everything outside of the two parallel regions is done on every
    device. Communication: 2 all-reduces of (batch, S, hidden) forward and 2 backward.

    `recompute` trades time for memory: "selective" computes the attention scores anew in the backward, "full" the
    whole layer, from its input. `attend` is that of `ParallelSelfAttention`.
    """

    Attention, MLP = ParallelSelfAttention, ParallelMLP
    cut_tokens = False  # between the two regions, every device has all tokens

    def __init__(
        self,
        hidden: int,
        heads: int,
        group: Group,
        kv_heads: int | None = None,
        dropout: float = 0.0,
        approximate: Literal["none", "tanh"] = "none",
        recompute: Recompute | None = None,
        attend: Attend = attend,
    ):
        super().__init__()
        if recompute not in (None, "selective", "full"):
            raise ValueError(f"{type(self).__name__}: recompute={recompute!r} must be None, 'selective' or 'full'")
        self.group, self.recompute = group, recompute
        self.norm1 = self.layer_norm(hidden)
        self.attention = self.Attention(
            hidden, heads, group, kv_heads, dropout=dropout, recompute=recompute == "selective", attend=attend
        )
        self.norm2 = self.layer_norm(hidden)
        self.mlp = self.MLP(hidden, group, approximate=approximate)
        self.dropout = ParallelDropout(dropout, group, sharded=self.cut_tokens)

    def layer_norm(self, hidden: int) -> nn.LayerNorm:
        """A LayerNorm for the tokens that this device has."""
        return nn.LayerNorm(hidden)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(batch, S, hidden) -> the same shape and placement."""
        if x.ndim != 3 or x.shape[-1] != self.norm1.weight.numel():
            raise ValueError(
                f"{type(self).__name__} on rank {self.group.rank} of {self.group.size} got an input of shape "
                f"{tuple(x.shape)}; it must be (batch, S, {self.norm1.weight.numel()}): tokens may be cut, hidden "
                "dimensions not"
            )
        if self.recompute == "full":
            if cache is not None and torch.is_grad_enabled():
                raise ValueError(
                    f"{type(self).__name__}: recompute='full' would put keys and values in the cache a second time in "
                    "the backward; use the cache under torch.no_grad(), or train without one"
                )
            return checkpoint(self._layer, x, cache, use_reentrant=False)
        return self._layer(x, cache)

    def _layer(self, x: Tensor, cache: KVCache | None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), cache))
        return x + self.dropout(self.mlp(self.norm2(x)))
