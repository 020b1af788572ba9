"""Data parallelism: every device holds the whole model and works on its own part of the batch.

The gradient of a mean over samples is the mean of the samples' gradients. So the devices may compute it in parts and
add them up, and if all begin with the same parameters and take the same steps, they stay the same for ever.

    broadcast_parameters(model, group)                          # once: all begin alike
    x, y = shard_batch(batch, group), shard_batch(target, group)
    loss_function(model(x), y).backward()
    average_gradients(model, group, share=len(x) / len(batch))
    optimizer.step()

With `averaging` around the backward instead, the gradients travel while the backward still computes.
Dropout must not drop the same elements of different samples: compute the loss inside `different_random(group)`.
Li et al. 2020, arXiv 2006.15704.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from lib.devices import Group, Handle
from lib.parallel.data.backward import check_copies, checked_share, leaving, trainable, used_anywhere
from lib.parallel.data.buckets import BUCKET_BYTES, pack, plan_buckets, unpack
from lib.parallel.sharding.named import named
from lib.parallel.sharding.shards import shard


def shard_batch(batch: Tensor, group: Group) -> Tensor:
    """This device's samples: (B, ...) -> (B/P, ...). Replicate -> Shard(0).

    Raises ValueError when there are fewer samples than devices: the mean over no samples is not a number.
    """
    mine = shard(batch, group, dim=0)  # (B/P, ...)  Shard(0)
    if len(batch) < group.size:
        raise ValueError(
            f"shard_batch on rank {group.rank} of {group.size}: a batch of shape {tuple(batch.shape)} has "
            f"{len(batch)} samples, fewer than devices. Take a batch of at least {group.size}, or fewer devices"
        )
    return mine


@named
def broadcast_parameters(module: nn.Module, group: Group, src: int = 0) -> None:
    """Device `src` gives its parameters and buffers to all; they are written into the tensors of each `module`.

    Raises ValueError when the devices hold other pieces of a parameter, not copies.
    """
    check_copies(module, group, f"broadcast_parameters on rank {group.rank} of {group.size}")
    with torch.no_grad():
        for x in chain(module.parameters(), module.buffers()):
            x.copy_(group.broadcast(x, src))


def check_same_parameters(module: nn.Module, group: Group) -> None:
    """Compares names, shapes and every bit of all parameters and buffers by a checksum: 8 bytes for each and device.

    Raises ValueError that names the first that differs, and who holds what. Without data (device="meta"), there is
    nothing to compare.
    """
    check_copies(module, group, f"check_same_parameters on rank {group.rank} of {group.size}")
    check_same_tensors(dict(module.named_parameters()) | dict(module.named_buffers()), group)


def check_same_tensors(named: Mapping[str, Tensor], group: Group) -> None:
    """`check_same_parameters` of these."""
    if not named:
        return
    device = next(iter(named.values())).device
    mine = torch.tensor([[_checksum(name, x) for name, x in named.items()]], device=device)  # (1, n)
    sums = group.all_gather(mine, dim=0)  # (P, n)  Replicate
    if sums.is_meta or bool((sums == sums[0]).all()):
        return
    for (name, x), column in zip(named.items(), sums.T.tolist(), strict=True):
        holders = [[rank for rank, other in enumerate(column) if other == value] for value in dict.fromkeys(column)]
        if len(holders) > 1:
            raise ValueError(
                f"check_same_parameters on rank {group.rank} of {group.size}: {name} {tuple(x.shape)} is not the same "
                f"on all devices. These ranks agree with each other: {'; '.join(map(str, holders))}. "
                "Call broadcast_parameters(module, group) before training, and step all devices with the same gradients"
            )


def _checksum(name: str, x: Tensor) -> int:
    start = zlib.crc32(f"{name} {tuple(x.shape)} {x.dtype}".encode())
    return start if x.is_meta else zlib.crc32(x.detach().cpu().flatten().view(torch.uint8).numpy(), start)


@named
def average_gradients(
    module: nn.Module,
    group: Group,
    share: float | None = None,
    bucket_bytes: float = BUCKET_BYTES,
    allow_unused: bool = False,
) -> None:
    """After the backward: every gradient becomes the mean over all samples. Partial -> Replicate.

    `share` is this device's part of the batch, samples here / samples in all; None when all have equally many. Each
    device's loss must be the mean over its own samples. A parameter that several layers use is sent once, and a frozen
    one not at all. With `allow_unused`, a parameter may have no gradient on some devices (it counts as zero there) or
    on all (it stays without); that costs one byte more per parameter.

    Communication: one all-reduce per bucket, in all 2(P-1)/P times the bytes of the gradients per device.
    Raises ValueError when no parameter requires a gradient, some gradient is missing, or layers are split over devices
    of this group: theirs are gradients of other pieces.
    """
    who = f"average_gradients on rank {group.rank} of {group.size}"
    named, share = trainable(module, group, who), checked_share(share, group, who)
    used = _used(named, group, allow_unused, who)
    for bucket in plan_buckets([p for name, p in named.items() if name in used], bucket_bytes):
        unpack(group.all_reduce(pack(bucket, share)), bucket)  # (n,)  Partial -> Replicate


@contextmanager
def averaging(
    module: nn.Module,
    group: Group,
    share: float | None = None,
    bucket_bytes: float = BUCKET_BYTES,
    allow_unused: bool = False,
) -> Iterator[None]:
    """Around one backward: `average_gradients`, but each bucket leaves as soon as its last gradient is there.

        for micro_batch in first_ones:
            loss(micro_batch).backward()            # outside: gradients add up on this device, nothing is sent
        with averaging(model, group):
            loss(last_one).backward()               # the sums are averaged, while this still computes

    Buckets leave in the same order on all devices, even when a parameter gets its gradient late or never on one: so
    a bucket waits for those before it. Inside, `group` can be used for nothing else.
    """
    who = f"averaging on rank {group.rank} of {group.size}"
    training, share = trainable(module, group, who), checked_share(share, group, who)
    buckets = plan_buckets(training.values(), bucket_bytes)
    under_way: list[Handle] = []

    @named
    def send_bucket(bucket: list[nn.Parameter]) -> None:
        under_way.append(group.all_reduce(pack(bucket, share), async_op=True))  # (n,)  Partial -> Replicate

    def finish() -> None:
        used = _used(training, group, allow_unused, who)  # after the last bucket on all devices: the order is the same
        for bucket, handle in zip(buckets, under_way, strict=True):
            unpack(handle.wait(), bucket)
        for name, p in training.items():
            if name not in used:
                p.grad = None  # as on one device: an optimizer then leaves it alone

    with leaving(buckets, send_bucket, {p: name for name, p in training.items()}, who):
        yield
    land_gradients(module, group, share, finish)


@named
def land_gradients(module: nn.Module, group: Group, share: float, finish: Callable[[], None]) -> None:
    """What `averaging` does after the backward, in one: as `average_gradients`, seen from outside."""
    finish()


def _used(named: dict[str, nn.Parameter], group: Group, allow_unused: bool, who: str) -> set[str]:
    here = {name: p.grad is not None for name, p in named.items()}
    return used_anywhere(here, group, next(iter(named.values())).device, allow_unused, who)
