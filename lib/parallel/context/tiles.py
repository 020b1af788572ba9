"""Long texts on few devices: what is not attention, in tiles of tokens, and layers whose input waits on the host.

Once attention is split and its scores are never stored, the largest things on a device are the inside of the MLP and
the logits. Both are computed token by token. So take a tile of tokens at a time, keep only its input, and compute the
inside anew in the backward: then the inside of one tile is all that is ever there. The inputs of the layers remain.
They are needed once, late, and so may wait in the memory of the host.

With Ulysses for the attention, this is "ALST": Bekman et al. 2025, arXiv 2506.13996.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.checkpoint import checkpoint

from lib.parallel.attention.cache import KVCache
from lib.parallel.context.gpt import ContextGPT
from lib.parallel.gpt.block import ParallelBlock
from lib.parallel.tensor.mlp import ParallelMLP


def in_tiles(function: Callable[..., Tensor], tiles: int, *inputs: Tensor) -> Tensor:
    """function(*inputs), which must act on each token alone, for `tiles` pieces of the tokens (dim 1), one by one.

    Only the inputs are kept. In the backward each piece is computed once more, and forgotten before the next.
    """
    pieces = zip(*(x.tensor_split(min(tiles, x.shape[1]), 1) for x in inputs), strict=True)
    return torch.cat([checkpoint(function, *piece, use_reentrant=False) for piece in pieces], 1)


class Host:
    """The memory of the host: while entered, what this device keeps for its backward goes there. `size` in bytes.

    The way there and back is not charged to the clock.
    """

    def __init__(self) -> None:
        self.size = 0
        self._hooks = saved_tensors_hooks(self._away, lambda tensor: tensor.clone())

    def _away(self, x: Tensor) -> Tensor:
        with _disable_current_modes():  # a copy that is not the device's: its own may be freed
            self.size += x.untyped_storage().nbytes()
            return x.detach().clone()

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


class TiledMLP(ParallelMLP):
    """A `ParallelMLP` that takes one of `tiles` pieces of the tokens at a time."""

    tiles = 4

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, hidden) -> (batch, n, hidden)."""
        return in_tiles(super().forward, self.tiles, x)


class TiledBlock(ParallelBlock):
    """A layer of which nothing stays on the device: its input is on the `host`, all else is computed anew."""

    MLP = TiledMLP

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options | {"recompute": "full"})
        self.host = Host()

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(batch, n, hidden) -> the same shape and placement."""
        with self.host:
            return super().forward(x, cache)


class TiledContextGPT(ContextGPT):
    """A `ContextGPT` of layers like `TiledBlock`, whose logits are never whole: a tile of tokens at a time, of `tiles`.

    Its arguments are else those of `ContextGPT`; it recomputes all in any case.
    """

    Block = TiledBlock

    def __init__(self, *args: Any, tiles: int = TiledMLP.tiles, **options: Any):
        super().__init__(*args, **options)
        self.tiles = tiles
        for block in self.blocks:
            block.mlp.tiles = tiles

    def losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """As of `ContextGPT`: the logits of a tile are gone before those of the next are there."""
        return in_tiles(super().losses, self.tiles, x, targets)
