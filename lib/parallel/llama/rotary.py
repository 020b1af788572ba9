"""Rotary positions: queries and keys are turned by their positions, so that their product knows how far apart they are.

The numbers of a head are the coordinates of d/2 planes: number i is the first coordinate of plane i, number i + d/2 the
second. At position p, plane i is turned by the angle p / theta^(2i/d). Turned by p and q, two vectors have the product
of the same two turned by p - q and 0: only the distance counts. So a device that has some of the tokens must know where
they stand in the whole text. Heads are turned one by one: cutting them changes nothing.

Su et al. 2021, arXiv 2104.09864. Files from Meta itself keep the two coordinates of a plane side by side; those of the
model hubs are as here.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Turn = tuple[Tensor, Tensor]  # cosine and sine of all angles, (S, d/2) each


class Scaling(Protocol):
    """How the frequencies of a model are changed so that it takes longer texts than it was first trained with."""

    def scaled(self, frequencies: Tensor) -> Tensor:
        """(d/2,) -> (d/2,)."""


@dataclass(frozen=True)
class LinearScaling:
    """All planes turn `factor` times slower: positions are squeezed. Chen et al. 2023, arXiv 2306.15595."""

    factor: float

    def scaled(self, frequencies: Tensor) -> Tensor:
        """(d/2,) -> (d/2,)."""
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1: planes that turn less than `low` times in `positions` turn `factor` times slower, those that turn more
    than `high` times stay, and between the two it goes smoothly from one to the other."""

    factor: float
    low: float = 1.0
    high: float = 4.0
    positions: int = 8192

    def scaled(self, frequencies: Tensor) -> Tensor:
        """(d/2,) -> (d/2,)."""
        turns = self.positions / (2 * math.pi / frequencies)
        kept = (turns - self.low) / (self.high - self.low)  # the share of the old frequency
        between = (1 - kept) * frequencies / self.factor + kept * frequencies
        return torch.where(turns < self.low, frequencies / self.factor, between).where(turns <= self.high, frequencies)


def turn_of(positions: Tensor, head_size: int, theta: float = 10_000.0, scaling: Scaling | None = None) -> Turn:
    """Cosine and sine for tokens at `positions` (S,), counted from the beginning of the whole text: (S, d/2) each.

    In float32 whatever the type of the model: bfloat16 has 8 bits, and cannot tell position 1000 from 1001.
    """
    steps = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions.device)
    frequencies = 1.0 / theta ** (steps / head_size)  # (d/2,)
    if scaling is not None:
        frequencies = scaling.scaled(frequencies)
    angles = positions.float()[:, None] * frequencies  # (S, d/2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """x (batch, heads, S, d), queries or keys, turned by the angles of their positions. Any heads, on any device."""
    cos, sin = (part.to(x.dtype) for part in turn)
    a, b = x.chunk(2, -1)  # (batch, heads, S, d/2) each: the two coordinates of every plane
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
