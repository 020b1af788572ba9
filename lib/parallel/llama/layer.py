"""One layer of a Llama on P devices: attention and a gated MLP, each behind an RMSNorm and beside a residual.

Beside GPT-2's layer it has five differences, and the devices notice two of them. RMSNorm acts on each token, as
LayerNorm does. Rotary positions turn each head by itself. No biases: less to add. The two that change what a device
holds: heads that share keys and values (fewer of these than devices: copies), and an MLP whose first matrix is two,
[gate | up], each of which must be cut.

Touvron et al. 2023, arXiv 2302.13971; the gated MLP: Shazeer 2020, arXiv 2002.05202; RMSNorm: Zhang, Sennrich 2019,
arXiv 1910.07467.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lib.devices import Group
from lib.parallel.attention.cache import KVCache
from lib.parallel.attention.heads import ParallelQKV
from lib.parallel.attention.kernels import Attend, attend
from lib.parallel.gpt.block import Recompute
from lib.parallel.llama.config import LlamaConfig
from lib.parallel.llama.rotary import Turn, rotate
from lib.parallel.sequence.layers import SequenceRMSNorm
from lib.parallel.sharding.linear import ColumnParallelLinear, RowParallelLinear


class LlamaAttention(nn.Module):
    """One device's heads of causal self-attention. Queries and keys are turned by their positions.

    Input and output (batch, S, hidden) Replicate. Communication: as `ParallelSelfAttention`; with `qk_norm` also,
    backward, an all-reduce of (head_size,) for the weight of each of the two norms.
    """

    QKV, Row = ParallelQKV, RowParallelLinear

    def __init__(self, config: LlamaConfig, group: Group, recompute: bool = False, attend: Attend = attend):
        super().__init__()
        self.recompute, self.attend, self.head_size = recompute, attend, config.head_size
        self.qkv = self.QKV(
            config.hidden, config.heads, config.kv_heads, group, head_size=config.head_size, bias=config.qkv_bias
        )
        # A norm of heads: its weight is whole, and every device uses it for its own heads. So its gradient is a
        # partial sum, as that of a norm of a device's own tokens is, and the same class makes it whole.
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = SequenceRMSNorm(config.head_size, group, config.eps)
            self.k_norm = SequenceRMSNorm(config.head_size, group, config.eps)
        self.out = self.Row(config.heads * config.head_size, config.hidden, group, bias=False)

    def forward(self, x: Tensor, turn: Turn, cache: KVCache | None = None) -> Tensor:
        """(batch, S, hidden) -> (batch, S, hidden); `turn` is that of the S positions. `cache`: those before x."""
        own, common = self.qkv.widths
        q, k, v = (self._heads(y) for y in self.qkv(x).split([own, common, common], -1))  # (batch, heads/P, S, d)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, turn), rotate(k, turn)
        v = v.contiguous()  # as a view, it would keep all of the projection's output alive until the backward
        if cache is not None:  # keys are kept turned: their positions do not change
            k, v = cache.extend(k, v)
        if self.recompute:
            y = checkpoint(self.attend, q, k, v, use_reentrant=False)
        else:
            y = self.attend(q, k, v)  # (batch, heads/P, S, d)  Shard(1)
        return self.out(y.transpose(1, 2).flatten(2))  # (batch, S, heads d/P) Shard(-1) -> (batch, S, hidden)

    def _heads(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (-1, self.head_size)).transpose(1, 2)  # (batch, heads/P, S, d)


class GatedMLP(nn.Module):
    """One device's part of down(silu(gate(x)) * up(x)), called SwiGLU. Gate and up lie in one weight, [gate | up].

    Each of the two is cut by columns, so that column i of both is on the same device: the product needs both. Cut as
    one tensor, the first devices would have nothing but gates.

    Input and output (batch, S, hidden) Replicate. Communication: an all-reduce of (batch, S, hidden) forward, one
    backward; with two layers in the place of the fused one it would be two backward.
    """

    Column, Row = ColumnParallelLinear, RowParallelLinear

    def __init__(self, hidden: int, inner: int, group: Group):
        super().__init__()
        if inner % group.size:
            raise ValueError(f"GatedMLP: an inner size of {inner} cannot be split over {group.size} devices")
        self.gate_up = self.Column(hidden, 2 * inner, group, bias=False, blocks=2)
        self.down = self.Row(inner, hidden, group, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, S, hidden) -> (batch, S, hidden)."""
        gate, up = self.gate_up(x).chunk(2, -1)  # (batch, S, inner/P) each, the same columns: Shard(-1)
        return self.down(F.silu(gate) * up)


class LlamaBlock(nn.Module):
    """x + attention(norm(x)), then y + mlp(norm(y)).

    Input and output (batch, S, hidden) Replicate. Communication: 2 all-reduces of (batch, S, hidden) forward and 2
    backward, as in GPT-2's layer. `recompute` and `attend` are those of `ParallelBlock`; `attend` is called with
    queries, keys and values alone: there is no dropout.
    """

    Attention, MLP = LlamaAttention, GatedMLP

    def __init__(self, config: LlamaConfig, group: Group, recompute: Recompute | None = None, attend: Attend = attend):
        super().__init__()
        if recompute not in (None, "selective", "full"):
            raise ValueError(f"{type(self).__name__}: recompute={recompute!r} must be None, 'selective' or 'full'")
        self.group, self.recompute = group, recompute
        self.norm1 = self.rms_norm(config)
        self.attention = self.Attention(config, group, recompute == "selective", attend)
        self.norm2 = self.rms_norm(config)
        self.mlp = self.MLP(config.hidden, config.inner, group)

    def rms_norm(self, config: LlamaConfig) -> nn.RMSNorm:
        """An RMSNorm for the tokens that this device has."""
        return nn.RMSNorm(config.hidden, config.eps)

    def forward(self, x: Tensor, turn: Turn, cache: KVCache | None = None) -> Tensor:
        """(batch, S, hidden) -> the same shape and placement."""
        if self.recompute == "full":
            if cache is not None and torch.is_grad_enabled():
                raise ValueError(
                    f"{type(self).__name__}: recompute='full' would put keys and values in the cache a second time in "
                    "the backward; use the cache under torch.no_grad(), or train without one"
                )
            return checkpoint(self._layer, x, turn, cache, use_reentrant=False)
        return self._layer(x, turn, cache)

    def _layer(self, x: Tensor, turn: Turn, cache: KVCache | None) -> Tensor:
        x = x + self.attention(self.norm1(x), turn, cache)
        return x + self.mlp(self.norm2(x))
