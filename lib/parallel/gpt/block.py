"""One layer of a transformer on P devices: attention and MLP, each behind a LayerNorm and beside a residual."""

from typing import Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib.devices import Group
from lib.parallel.attention.attention import KVCache, ParallelSelfAttention
from lib.parallel.sequence.layers import SequenceLayerNorm
from lib.parallel.tensor.dropout import ParallelDropout
from lib.parallel.tensor.mlp import ParallelMLP

Recompute = Literal["selective", "full"]


class ParallelBlock(nn.Module):
    """x + dropout(attention(norm(x))), then y + dropout(mlp(norm(y))): a pre-norm layer, as in GPT-2.

    Input and output (batch, S, hidden) Replicate: everything outside of the two parallel regions is done on every
    device. With `sequence_dim` both are Shard(sequence_dim), and each device does its own tokens.
    Communication: 2 all-reduces of (batch, S, hidden) forward and 2 backward. With `sequence_dim`, 2 all-gathers and 2
    reduce-scatters forward; backward as many, 2 more all-gathers, and the small gradients of LayerNorm and bias.

    `recompute` trades time for memory: "selective" computes the attention scores anew in the backward, "full" the
    whole layer, from its input.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        group: Group,
        kv_heads: int | None = None,
        dropout: float = 0.0,
        approximate: Literal["none", "tanh"] = "none",
        sequence_dim: int | None = None,
        recompute: Recompute | None = None,
    ):
        super().__init__()
        if recompute not in (None, "selective", "full"):
            raise ValueError(f"ParallelBlock: recompute={recompute!r} must be None, 'selective' or 'full'")
        self.group, self.recompute = group, recompute
        self.norm1 = layer_norm(hidden, group, sequence_dim)
        self.attention = ParallelSelfAttention(
            hidden,
            heads,
            group,
            kv_heads,
            dropout=dropout,
            sequence_dim=sequence_dim,
            recompute=recompute == "selective",
        )
        self.norm2 = layer_norm(hidden, group, sequence_dim)
        self.mlp = ParallelMLP(hidden, group, approximate=approximate, sequence_dim=sequence_dim)
        self.dropout = ParallelDropout(dropout, group, sharded=sequence_dim is not None)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(batch, S, hidden) -> the same shape and placement."""
        if x.ndim != 3 or x.shape[-1] != self.norm1.weight.numel():
            raise ValueError(
                f"ParallelBlock on rank {self.group.rank} of {self.group.size} got an input of shape {tuple(x.shape)}; "
                f"it must be (batch, S, {self.norm1.weight.numel()}): tokens may be cut, hidden dimensions not"
            )
        if self.recompute == "full":
            return checkpoint(self._layer, x, cache, use_reentrant=False)
        return self._layer(x, cache)

    def _layer(self, x: Tensor, cache: KVCache | None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), cache))
        return x + self.dropout(self.mlp(self.norm2(x)))


def layer_norm(hidden: int, group: Group, sequence_dim: int | None) -> nn.LayerNorm:
    """Of replicated tokens, or of this device's own."""
    return nn.LayerNorm(hidden) if sequence_dim is None else SequenceLayerNorm(hidden, group)
