"""Random numbers on many devices: the same everywhere, or different on each.

Every device has a random stream of its own. All start where the caller's stream stands (`torch.manual_seed` before the
run decides it), so as long as the devices draw alike they draw the same: right for what is replicated, such as the
initialization of a weight or the dropout of a replicated activation. Where each device holds its own piece, it must
draw its own numbers: that is what `different_random` is for. (Megatron-LM keeps two named generator states for this.)
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lib.devices.group import Group

_SEEDS = 2**63 - 1


@contextmanager
def different_random(group: Group) -> Iterator[None]:
    """Inside, each device of `group` draws numbers of its own; afterwards the stream goes on as if it had drawn one.

    Costs no communication. New numbers at every use; the same ones again after the same `torch.manual_seed`.
    """
    seed = int(torch.randint(_SEEDS, (), device="cpu"))
    with _stream((seed + 0x9E3779B97F4A7C15 * group.rank) % _SEEDS):  # seeds far apart, and rank 0 keeps `seed`
        yield


@contextmanager
def same_random(group: Group) -> Iterator[None]:
    """Inside, all devices of `group` draw the same numbers, even if their streams have come apart.

    Rank 0 sends the others a seed: one broadcast of 8 bytes.
    """
    seed = torch.randint(_SEEDS, (), device="cpu")
    with _stream(int(group.broadcast(seed))):
        yield


@contextmanager
def _stream(seed: int) -> Iterator[None]:
    # torch.manual_seed also seeds accelerators. Where there are none, it notes who asked: a millisecond.
    seed_all = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    with torch.random.fork_rng(devices=[]):
        seed_all(seed)
        yield
