"""A Llama on one device, written with PyTorch's own parts: what the memory formula is held against."""

import torch
from torch import nn
from torch.nn import functional as F

from lib.costs.shapes import ModelShape


class Layer(nn.Module):
    def __init__(self, shape: ModelShape):
        super().__init__()
        self.shape, d = shape, shape.head_size
        self.norm1, self.norm2 = nn.RMSNorm(shape.hidden, eps=1e-6), nn.RMSNorm(shape.hidden, eps=1e-6)
        self.q = nn.Linear(shape.hidden, shape.heads * d, bias=False)
        self.k = nn.Linear(shape.hidden, shape.kv_heads * d, bias=False)
        self.v = nn.Linear(shape.hidden, shape.kv_heads * d, bias=False)
        self.o = nn.Linear(shape.heads * d, shape.hidden, bias=False)
        self.gate = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x, cos, sin):
        y = self.norm1(x)  # (B, S, hidden)
        q, k, v = (
            projected.unflatten(-1, (-1, self.shape.head_size)).transpose(1, 2)  # (B, heads, S, d)
            for projected in (self.q(y), self.k(y), self.v(y))
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.shape.heads != self.shape.kv_heads)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class PlainLlama(nn.Module):
    def __init__(self, shape: ModelShape):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=1e-6)
        self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)

    def forward(self, tokens, targets):
        half = self.shape.head_size // 2
        angles = torch.arange(tokens.shape[1]).outer(10_000 ** (-torch.arange(half) / half))
        cos, sin = (part.to(self.norm.weight.dtype) for part in (angles.cos(), angles.sin()))  # (S, d/2)
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = self.head(self.norm(x))  # (B, S, V)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def rotate(x, cos, sin):
    """Rotary positions: the first half of a head and the second are the two coordinates of its planes."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
