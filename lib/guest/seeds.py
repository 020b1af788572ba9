"""A process that sets no seed draws numbers that no other draws: PyTorch takes its seed from the system.

Devices begin with one stream, the caller's. For a guest that would hide a mistake: without a seed, all would build the
same model, and nobody would miss the broadcast of the parameters. So each device begins elsewhere.
"""

import zlib

import torch


class Seeds:
    """Owner of where each device's stream of PyTorch begins: rank 0 at the caller's, the others at places of their own
    that the caller's stream decides. Those of `random` and NumPy begin alike: to set them would cost at every turn."""

    def __init__(self, size: int):
        self._seed = zlib.crc32(bytes(torch.default_generator.get_state().tolist()))
        self._to_begin = set(range(1, size))

    def take_up(self, rank: int) -> None:
        """At the first turn of `rank`, its stream begins."""
        if rank in self._to_begin:
            self._to_begin.remove(rank)
            torch.default_generator.manual_seed((self._seed + 0x9E3779B9 * rank) % 2**32)  # it looks at 32 bits

    lay_aside = None  # the engine keeps the stream

    def give_back(self, failed: bool) -> None:
        """The engine gives the caller's stream back."""
