"""What more devices gain: speedup and efficiency, the laws of Amdahl and Gustafson, and from which sizes on each way to
split a step is bound by its links.

Amdahl 1967, doi 10.1145/1465482.1465560; Gustafson 1988, doi 10.1145/42411.42415; McCandlish et al. 2018, arXiv
1812.06162, for the batch from which more texts no longer save steps.
"""

from collections.abc import Mapping

from lib.devices.hardware import Hardware, Link


def strong_efficiency(seconds: Mapping[int, float]) -> dict[int, float]:
    """The same work on more devices. devices -> speedup over the fewest, divided by how many times more they are."""
    fewest = _fewest(seconds)
    return {n: seconds[fewest] * fewest / (took * n) for n, took in seconds.items()}


def weak_efficiency(seconds: Mapping[int, float]) -> dict[int, float]:
    """As much work for each device, whatever their number. devices -> time of the fewest over their time."""
    fewest = _fewest(seconds)
    return {n: seconds[fewest] / took for n, took in seconds.items()}


def _fewest(seconds: Mapping[int, float]) -> int:
    for n, took in seconds.items():
        if n < 1 or not took > 0:
            raise ValueError(f"{took!r} seconds on {n!r} devices: both must be above 0")
    if not seconds:
        raise ValueError("no times are given: pass {devices: seconds}")
    return min(seconds)


def amdahl(serial: float, devices: int) -> float:
    """The speedup where a share `serial` of the time does not shrink: 1 / (serial + (1 - serial) / n)."""
    _check_share(serial)
    return 1 / (serial + (1 - serial) / devices)


def gustafson(serial: float, devices: int) -> float:
    """The speedup where the work grows with the devices, and a share `serial` of the time on n devices is serial."""
    _check_share(serial)
    return serial + (1 - serial) * devices


def serial_share(devices: int, efficiency: float) -> float:
    """The share that does not shrink, by Amdahl's law, where `devices` reach this `efficiency` (Karp and Flatt)."""
    if devices < 2:
        raise ValueError(f"devices={devices}: one device says nothing about scaling")
    return (1 / efficiency - 1) / (devices - 1)


def _check_share(serial: float) -> None:
    if not 0 <= serial <= 1:
        raise ValueError(f"serial={serial} is a share, between 0 and 1")


# ---- from which size on is a strategy bound by its links? Latency is left out, and all that is not a product. ----


def tokens_to_hide_gradients(hardware: Hardware, link: Link, devices: int, itemsize: int = 4) -> float:
    """Data parallelism: from how many tokens per device on the gradients' all-reduce takes no longer than the backward.

    With N parameters and T tokens the backward is 4 N T FLOPs, and a device sends 2 (d - 1) / d N gradients:

        T >= itemsize / 2 x (d - 1) / d x peak / bandwidth      (itemsize: bytes of a gradient)

    Neither the model nor, from some devices on, their number matters.
    """
    return itemsize / 2 * (devices - 1) / devices * hardware.reached / link.bandwidth


def hidden_to_feed_tensor(
    hardware: Hardware, link: Link, devices: int, matrices: float = 6, itemsize: int = 2
) -> float:
    """Tensor parallelism: from which hidden size on an all-reduce takes no longer than the products before it.

    In the forward, one all-reduce of T h numbers follows on `matrices` x h² weights, 2 T FLOPs each and cut in t: 6 h²
    for each of the two all-reduces of a block, 8 h² for its MLP alone, 2 (t - 1) / t trips:

        h >= itemsize (t - 1) / matrices x peak / bandwidth     (itemsize: bytes of an activation)

    The number of tokens does not matter, and twice the devices need twice the hidden size.
    """
    return itemsize * (devices - 1) / matrices * hardware.reached / link.bandwidth


def layers_to_feed_pipeline(hardware: Hardware, link: Link, hidden: int, itemsize: int = 2) -> float:
    """Pipeline parallelism: from how many layers per stage on a message takes no longer than the stage's forward.

    A message is T h numbers, a layer 24 T h² FLOPs, so

        layers >= itemsize / (24 h) x peak / bandwidth          (itemsize: bytes of an activation)

    far below one layer for any large model. What a pipeline pays with is its bubble.
    """
    return itemsize * hardware.reached / (24 * hidden * link.bandwidth)


def micro_batches_for(pipeline: int, efficiency: float, interleaved: int = 1) -> float:
    """How many micro-batches keep a pipeline's efficiency: m / (m + (p - 1) / v) at least so large."""
    if not 0 < efficiency < 1:
        raise ValueError(f"efficiency={efficiency} must be between 0 and 1: a bubble never vanishes")
    return efficiency / (1 - efficiency) * (pipeline - 1) / interleaved


# ---- more devices usually mean a larger batch, and that is not free ----


def steps_needed(batch: float, critical: float, fewest: float = 1.0) -> float:
    """Steps to a given loss with a batch of this size: fewest x (1 + critical / batch). McCandlish et al., eq. 2.11.

    Below the `critical` batch, twice the batch is nearly half of the steps; above, it is nearly as many.
    """
    if batch <= 0 or critical <= 0:
        raise ValueError(f"batch={batch} and critical={critical} must be above 0")
    return fewest * (1 + critical / batch)


def texts_needed(batch: float, critical: float, fewest: float = 1.0) -> float:
    """Data to the same loss: fewest x (1 + batch / critical)."""
    return steps_needed(batch, critical) * batch / critical * fewest
