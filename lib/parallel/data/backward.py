"""What data parallelism and ZeRO need around a backward: which parameters train, and buckets that leave on time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lib.devices import Group
from lib.devices.engine.wording import short_ranks
from lib.parallel.data.samples import check_samples
from lib.parallel.sharding.dense import cut_parameters


@contextmanager
def leaving(
    buckets: list[list[nn.Parameter]],
    send: Callable[[list[nn.Parameter]], None],
    names: dict[nn.Parameter, str],
    who: str,
) -> Iterator[None]:
    """Around one backward: `send(bucket)` for each of `buckets` in their order, as soon as its last gradient is there.

    The order is the same on all devices, even when a parameter gets its gradient late or never on one: a bucket waits
    for those before it, and what is left at the end leaves then.
    """
    missing = [{p for p in bucket if p.requires_grad} for bucket in buckets]
    where = {p: missing[number] for number, bucket in enumerate(buckets) for p in bucket if p.requires_grad}
    sent = 0

    def send_next() -> None:
        nonlocal sent
        sent += 1
        send(buckets[sent - 1])

    def arrived(p: nn.Parameter) -> None:
        if p not in where[p]:
            raise RuntimeError(
                f"{who}: a second gradient of {names[p]} {tuple(p.shape)} came, and the first may be under way. "
                "Put one backward() inside each `with`, and give each device a module of its own"
            )
        where[p].remove(p)
        while sent < len(buckets) and not missing[sent]:
            send_next()

    hooks = [p.register_post_accumulate_grad_hook(arrived) for p in where]
    try:
        yield
        while sent < len(buckets):
            send_next()
    finally:
        for hook in hooks:
            hook.remove()


def used_anywhere(here: dict[str, bool], group: Group, device: torch.device, allow_unused: bool, who: str) -> set[str]:
    """The names of the parameters that have a gradient on any device; `here` tells which have one on this device.

    Asking the others costs one byte per parameter. Without `allow_unused` a missing gradient raises ValueError.
    """
    if allow_unused:
        mine = torch.tensor(list(here.values()), dtype=torch.uint8, device=device)
        anywhere = group.all_reduce(mine, op="max")  # (parameters,)  Replicate
        # Without data no device can branch on its data, so all use the same parameters.
        used = here.values() if anywhere.is_meta else anywhere.tolist()
        return {name for name, is_used in zip(here, used, strict=True) if is_used}
    if not all(here.values()):
        without = ", ".join(name for name, used in here.items() if not used)
        raise ValueError(
            f"{who}: no gradient reached {without}. Call backward() first; if the loss does not depend on them, pass "
            "allow_unused=True on all devices, or freeze them on all with requires_grad_(False)"
        )
    return set(here)


def trainable(module: nn.Module, group: Group, who: str, may_be_pieces: bool = False) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name. Raises ValueError when there are none, `group` has devices with
    other pieces of one, or a layer does not treat each sample by itself."""
    check_copies(module, group, who, may_be_pieces)
    check_samples(module, group, who)
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not named:
        count = len(list(module.parameters()))
        raise ValueError(
            f"{who}: none of the {count} parameters of {type(module).__name__} requires a gradient, so there is "
            "nothing to train. Unfreeze what is to be trained with requires_grad_(True)"
        )
    return named


def check_copies(module: nn.Module, group: Group, who: str, may_be_pieces: bool = False) -> None:
    """Raises ValueError when devices of `group` hold other pieces of a parameter, not copies: they would be mixed.
    Those of FullySharded are looked at unless they `may_be_pieces`."""
    found = [(name, cut.ranks) for name, groups in cut_parameters(module).items() for cut in groups]
    if not may_be_pieces:
        found += [(name, p.origin.ranks) for name, p in module.named_parameters() if hasattr(p, "origin")]
    for name, ranks in found:
        if len({*ranks} & {*group.ranks}) > 1:
            raise ValueError(
                f"{who}: {name} is cut over the devices {short_ranks(ranks)}, and this group has several of them: "
                "their pieces would be mixed. Pass the group of those with the same pieces, such as mesh.dp; where "
                "experts are cut, use sum_gradients(model, grid); gradients of FullySharded are means already"
            )


def checked_share(share: float | None, group: Group, who: str) -> float:
    """`share`, or an equal one for None. Raises ValueError when it is no part of a batch."""
    if share is None:
        return 1 / group.size
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"{who}: share={share!r} is a part of the batch, samples here / samples in all: from 0 to 1")
    return share
