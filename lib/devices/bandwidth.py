"""The two bandwidths that benchmarks of collectives print, as nccl-tests defines them (its doc/PERFORMANCE.md).

The size S is that of the WHOLE tensor: what each device brings to an all-reduce, reduce-scatter, all-to-all, broadcast
or reduce, and what each has after an all-gather.
"""

import torch

from lib.devices.collectives import AllGather, AllReduce, AllToAll, Collective, ReduceScatter
from lib.devices.rooted import Broadcast, Reduce

VERBS: dict[str, Collective] = {
    verb.name: verb for verb in (AllReduce(), AllGather(0), ReduceScatter(0), AllToAll(0, 0), Broadcast(0), Reduce(0))
}


def algorithm_bandwidth(size: float, seconds: float) -> float:
    """Bytes/s of the tensor itself: what a program feels. `size` in bytes.

    Raises ValueError unless `seconds` is above 0.
    """
    if not seconds > 0:
        raise ValueError(f"seconds={seconds} must be above 0")
    return size / seconds


def bus_bandwidth(verb: str, size: float, seconds: float, devices: int) -> float:
    """Bytes/s over the busiest link: the algorithm bandwidth times the share of `size` that a device must send.

    It does not depend on the number of devices, so it can be compared with the link. Switches that add on the way
    can bring it above the link.

    Raises ValueError for an unknown verb, fewer than 2 devices, or seconds that are not above 0.
    """
    if verb not in VERBS:
        raise ValueError(f"no bus bandwidth for {verb!r}; there is one for {', '.join(VERBS)}")
    if devices < 2:
        raise ValueError(f"devices={devices}: one device alone has no bus; pass 2 or more")
    return algorithm_bandwidth(size, seconds) * bus_factor(VERBS[verb], devices)


def bus_factor(verb: Collective, devices: int) -> float:
    """The bytes that the busiest device sends, over the bytes of the whole tensor: 2(P-1)/P for an all-reduce."""
    elements = devices * devices
    mine = elements // devices if isinstance(verb, AllGather) else elements
    tensors = [torch.empty(mine, device="meta", dtype=torch.int8) for _ in range(devices)]
    return max(traffic.bytes_sent for traffic in verb.traffic(tensors)) / elements
