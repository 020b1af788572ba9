"""What a program is given: kinds of inputs, each with the names of its dims, where it is, and how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.parallel.sharding.placement import Placement, Replicate

WHOLE = Replicate()


@dataclass(frozen=True)
class OnRank0:
    """Rank 0 holds the tensor; the others hold something else of its shape."""


@dataclass(frozen=True)
class Input:
    """One input: the names of its dims, e.g. "batch in", and where it is when the program starts."""

    dims: str
    at: Placement | OnRank0 = WHOLE

    def shape(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for given lengths; "in+1" is one more than "in", "4*heads" is four times "heads", "2" is 2."""
        named = (name.partition("+") for name in self.dims.split())
        return tuple(_product(name, lengths) + int(more or 0) for name, _, more in named)

    def draw(self, lengths: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Random numbers in float64, whole. Other kinds of inputs draw something else."""
        return drawn(self.shape(lengths), random)


def drawn(shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Random numbers in float64."""
    return torch.randn(tuple(shape), generator=random, dtype=torch.float64)


def _product(factors: str, lengths: Mapping[str, int]) -> int:
    return math.prod(int(factor) if factor.isdigit() else lengths[factor] for factor in factors.split("*"))


@dataclass(frozen=True)
class Tokens(Input):
    """Dims "tokens < 7*vocabulary": as many tokens as "tokens", each below "vocabulary"; the last one is among them."""

    def shape(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """The shape without the bound."""
        return Input(self.dims.partition("<")[0]).shape(lengths)

    def draw(self, lengths: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Random integers."""
        (bound,) = Input(self.dims.partition("<")[2]).shape(lengths)
        tokens = torch.randint(bound, self.shape(lengths), generator=random)
        tokens[-1] = bound - 1  # a token that is not in the vocabulary must come up where one is asked for
        return tokens


@dataclass(frozen=True)
class Vocabulary(Input):
    """The numbers 0, 1, 2, ...: cut, they are the tokens of each device's rows."""

    def draw(self, lengths: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Nothing is random."""
        return torch.arange(*self.shape(lengths))


@dataclass(frozen=True)
class Logits(Input):
    """Random numbers around 1000, whose exp is too large for float64: who forgets the maximum is told."""

    def draw(self, lengths: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Random numbers in float64."""
        return 1000 + super().draw(lengths, random)


@dataclass(frozen=True)
class Ties(Input):
    """Random numbers; in every row the largest one stands twice, in most rows."""

    def draw(self, lengths: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Random numbers in float64."""
        x = super().draw(lengths, random)
        again = torch.randint(x.shape[1], (len(x), 1), generator=random)
        return x.scatter(1, again, x.amax(1, keepdim=True))
