"""Collectives of `torch.distributed` in which a device says how long the pieces are that it gets: what comes is joined,
and pieces of other lengths would be cut in the wrong places without a word."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lib.devices.collectives import AllGather, Collective
from lib.devices.errors import MismatchError
from lib.devices.rooted import Gather
from lib.devices.traffic import Traffic


@dataclass(frozen=True)
class KnownAllGather(AllGather):
    """Of flat tensors, which carry the lengths of what their devices `expect` (`expecting`)."""

    def results(self, tensors):
        _check(self.name, tensors)
        return super().results(tensors)


@dataclass(frozen=True)
class KnownGather(Gather):
    """The same, to one device, which alone expects something."""

    def results(self, tensors):
        _check(self.name, tensors)
        return super().results(tensors)


def expecting(x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """The flat tensor `x`, whose device gets `outputs`: none where it gets nothing."""
    x.expected = [out.numel() for out in outputs]
    return x


def _check(verb: str, tensors: Sequence[Tensor]) -> None:
    lengths = [x.numel() for x in tensors]
    for rank, x in enumerate(tensors):
        if x.expected and x.expected != lengths:
            raise MismatchError(
                f"{verb}: device {rank} of the group has room for pieces of {x.expected} elements, and pieces of "
                f"{lengths} come. Let each output be as long as what that device brings"
            )


@dataclass(frozen=True)
class UnevenAllToAll(Collective):
    """Piece j of each flat tensor goes to device j. The lengths come with the tensors: `sent` and `expected`."""

    name: ClassVar[str] = "all_to_all"

    @classmethod
    def of(cls, x: Tensor, sent: list[int], expected: list[int]) -> "UnevenAllToAll":
        """The verb for `x`, which carries the lengths (in elements) to the meeting."""
        x.sent, x.expected = sent, expected
        return cls()

    def may_differ(self):
        return 0

    def results(self, tensors):
        for j, x in enumerate(tensors):
            coming = [y.sent[j] for y in tensors]
            if coming != x.expected:
                raise MismatchError(
                    f"all_to_all: device {j} of the group expects pieces of {x.expected} elements from the others, who "
                    f"send it {coming}. Exchange the sizes first: output_split_sizes[i] is what device i sends"
                )
        pieces = [x.split(x.sent) for x in tensors]
        return [torch.cat(arrived) for arrived in zip(*pieces, strict=True)]

    def traffic(self, tensors):
        parts, to = len(tensors), self._bytes_to(tensors)
        return [
            Traffic(parts - 1, sum(to[r]) - to[r][r], parts - 1, sum(row[r] for row in to) - to[r][r])
            for r in range(parts)
        ]

    def seconds(self, tensors, ways):
        return ways.direct(self._bytes_to(tensors))

    def _bytes_to(self, tensors):
        return [[n * x.element_size() for n in x.sent] for x in tensors]  # [sender][receiver]
