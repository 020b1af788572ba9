"""GPT-2 and its block as one device has them: what the sharded ones are compared with."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseAttention(nn.Module):
    """Causal self-attention, with the mathematics of `lib.attend` written out."""

    def __init__(self, width: int, heads: int, tokens: int):
        super().__init__()
        self.head_size = width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        mask = torch.full((tokens, tokens), -torch.inf).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        scores = q / math.sqrt(self.head_size) @ k.transpose(-2, -1) + self.mask  # (B, heads, T, T)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))  # (B, T, D)


class DenseBlock(nn.Module):
    """Pre-norm; its weights have the names that `lib.ParallelBlock` gives them."""

    def __init__(self, width: int, heads: int, tokens: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), DenseAttention(width, heads, tokens)
        up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Sequential(OrderedDict(up=up, gelu=nn.GELU(), down=down))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))  # (B, T, D)
        return x + self.mlp(self.norm2(x))


class DenseGPT(nn.Module):
    """Embedding and head are one weight. Its weights have the names that `lib.parallel.gpt.model.GPT` gives them."""

    def __init__(self, width: int, heads: int, layers: int, vocabulary: int, tokens: int):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*(DenseBlock(width, heads, tokens) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.embedding(tokens) + self.positions.weight)  # (B, T, D)
        return F.linear(self.norm(x), self.embedding.weight)  # (B, T, V)
