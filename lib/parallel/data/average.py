"""Data parallelism: every device holds the whole model and works on its own part of the batch.

The gradient of a mean over samples is the mean of the samples' gradients. So the devices may compute it in parts and
add them up, and if all begin with the same parameters and take the same steps, they stay the same for ever.

    broadcast_parameters(model, group)                          # once: all begin alike
    x, y = shard_batch(batch, group), shard_batch(target, group)
    loss_function(model(x), y).backward()
    average_gradients(model, group, share=len(x) / len(batch))
    optimizer.step()

With `averaging` around the backward instead, the gradients travel while the backward still computes.
Li et al. 2020, arXiv 2006.15704.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from lib.devices import Group, Handle
from lib.parallel.data.buckets import BUCKET_BYTES, pack, plan_buckets, unpack
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


def broadcast_parameters(module: nn.Module, group: Group, src: int = 0) -> None:
    """Device `src` gives its parameters and buffers to all; they are written into the tensors of each `module`."""
    with torch.no_grad():
        for x in chain(module.parameters(), module.buffers()):
            x.copy_(group.broadcast(x, src))


def check_same_parameters(module: nn.Module, group: Group) -> None:
    """Compares names, shapes and every bit of all parameters by a checksum: 8 bytes per parameter and device.

    Raises ValueError that names the first parameter that differs, and who holds what. Without data (device="meta"),
    there is nothing to compare.
    """
    named = list(module.named_parameters())
    if not named:
        return
    mine = torch.tensor([[_checksum(name, p) for name, p in named]], device=named[0][1].device)  # (1, n)
    sums = group.all_gather(mine, dim=0)  # (P, n)  Replicate
    if sums.is_meta or bool((sums == sums[0]).all()):
        return
    for (name, p), column in zip(named, sums.T.tolist(), strict=True):
        holders = [[rank for rank, other in enumerate(column) if other == value] for value in dict.fromkeys(column)]
        if len(holders) > 1:
            raise ValueError(
                f"check_same_parameters on rank {group.rank} of {group.size}: {name} {tuple(p.shape)} is not the same "
                f"on all devices. These ranks agree with each other: {'; '.join(map(str, holders))}. "
                "Call broadcast_parameters(module, group) before training, and step all devices with the same gradients"
            )


def _checksum(name: str, p: nn.Parameter) -> int:
    start = zlib.crc32(f"{name} {tuple(p.shape)} {p.dtype}".encode())
    return start if p.is_meta else zlib.crc32(p.detach().cpu().flatten().view(torch.uint8).numpy(), start)


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
    Raises ValueError when no parameter requires a gradient, or some gradient is missing.
    """
    who = f"average_gradients on rank {group.rank} of {group.size}"
    named, share = _trainable(module, who), _checked_share(share, group, who)
    used = _used(named, group, allow_unused, who)
    for bucket in plan_buckets(used, bucket_bytes):
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
    named, share = _trainable(module, who), _checked_share(share, group, who)
    buckets = plan_buckets(named.values(), bucket_bytes)
    missing = [set(bucket) for bucket in buckets]
    where = {p: missing[number] for number, bucket in enumerate(buckets) for p in bucket}
    under_way: list[Handle] = []

    def send_next() -> None:
        under_way.append(group.all_reduce(pack(buckets[len(under_way)], share), async_op=True))

    def arrived(p: nn.Parameter) -> None:
        if p not in where[p]:
            raise RuntimeError(
                f"{who}: a second gradient of a {tuple(p.shape)} parameter came, and the first may be under way. "
                "Put only the last backward() inside `with averaging(...)`, and give each device a module of its own"
            )
        where[p].remove(p)
        while len(under_way) < len(buckets) and not missing[len(under_way)]:
            send_next()

    hooks = [p.register_post_accumulate_grad_hook(arrived) for p in where]
    try:
        yield
        while len(under_way) < len(buckets):
            send_next()
        used = _used(named, group, allow_unused, who)  # after the last bucket on all devices: the order is the same
        for bucket, handle in zip(buckets, under_way, strict=True):
            unpack(handle.wait(), bucket)
    finally:
        for hook in hooks:
            hook.remove()
    for p in named.values():
        if p not in used:
            p.grad = None  # as on one device: an optimizer then leaves it alone


def _trainable(module: nn.Module, who: str) -> dict[str, nn.Parameter]:
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not named:
        count = len(list(module.parameters()))
        raise ValueError(
            f"{who}: none of the {count} parameters of {type(module).__name__} requires a gradient, so there is "
            "nothing to average. Unfreeze what is to be trained with requires_grad_(True)"
        )
    return named


def _checked_share(share: float | None, group: Group, who: str) -> float:
    if share is None:
        return 1 / group.size
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"{who}: share={share!r} is a part of the batch, samples here / samples in all: from 0 to 1")
    return share


def _used(named: dict[str, nn.Parameter], group: Group, allow_unused: bool, who: str) -> dict[nn.Parameter, None]:
    """The parameters that have a gradient on any device, in the order of the model, the same on all devices."""
    here = [p.grad is not None for p in named.values()]
    if allow_unused:
        device = next(iter(named.values())).device
        anywhere = group.all_reduce(torch.tensor(here, dtype=torch.uint8, device=device), op="max")  # (n,)  Replicate
        # Without data no device can branch on its data, so all use the same parameters.
        here = here if anywhere.is_meta else anywhere.tolist()
    elif not all(here):
        without = ", ".join(name for name, p in named.items() if p.grad is None)
        raise ValueError(
            f"{who}: no gradient reached {without}. Call backward() first; if the loss does not depend on them, pass "
            "allow_unused=True on all devices, or freeze them on all with requires_grad_(False)"
        )
    return dict.fromkeys(p for p, used in zip(named.values(), here, strict=True) if used)
