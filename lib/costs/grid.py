"""What each axis of a grid sends in a step, over which link, and how long that takes if nothing hides it.

The numbers are those of a device in the middle of the pipeline, which has layers and nothing else: the embedding, the
head and the loss of the first and last stage come on top. Per micro-batch of b texts, n = S / cp tokens of each:

    tp   4 all-reduces of b n h per layer (with sequence parallelism as many bytes, and a quarter more)
    cp   3 (cp - 1) pieces of keys and values per layer, 2 b n h / tp each
    pp   b n h to the next stage, and to the one before
    dp   once a step: an all-reduce of the gradients of this device's weights, over dp x cp

So tp and cp grow with the work, pp with the number of stages of a device, and dp does not grow with the batch at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from lib.costs.tensor import layer_parameters
from lib.devices import Cluster, Group, Hardware
from lib.devices.network import Ways
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.grid.config import AXES, ParallelConfig
from lib.parallel.grid.meters import AxisMeters
from lib.parallel.grid.ranks import GridGroups, RankGrid
from lib.parallel.grid.trainer import GridTrainer

GROUPS = {"tp": ("tp",), "cp": ("cp",), "pp": ("pp",), "dp": ("dp", "cp")}  # who talks, by the axis that names it


@dataclass(frozen=True)
class AxisTraffic:
    """What one device sends along an axis in a step: `size` bytes in `trips` round the ring, or messages."""

    size: float
    trips: int


def axis_traffic(
    config: ParallelConfig, model: GPTConfig, batch: int, length: int, itemsize: int = 2
) -> dict[str, AxisTraffic]:
    """By axis, for a device in the middle of the pipeline; a number has `itemsize` bytes.

    Raises ValueError for recompute="full", which repeats the tensor-parallel calls of the forward, and for experts,
    whose traffic the data decides.
    """
    if config.recompute == "full" or config.ep > 1:
        raise ValueError(f"axis_traffic: recompute={config.recompute!r} and ep={config.ep}; it knows neither")
    tp, cp, m = config.tp, config.cp, config.micro_batches
    layers = model.layers // config.pp
    piece = batch // config.dp // m * (length // cp) * model.hidden * itemsize  # b n h
    per_layer = (4 + config.sequence_parallel) * 2 * piece + 12 * model.hidden * itemsize * config.sequence_parallel
    shared = config.dp * cp
    gradients = layers * layer_parameters(model.hidden, tp) * itemsize
    return {
        "tp": AxisTraffic(m * layers * per_layer * (tp - 1) / tp, m * layers * 8 if tp > 1 else 0),
        "cp": AxisTraffic(m * layers * 3 * (cp - 1) * 2 * piece / tp, m * layers * 3 * (cp - 1)),
        "dp": AxisTraffic(2 * gradients * (shared - 1) / shared, 2 if shared > 1 else 0),
        "pp": AxisTraffic(
            2 * m * config.chunks * piece / (tp if config.sequence_parallel else 1) if config.pp > 1 else 0,
            2 * m * config.chunks if config.pp > 1 else 0,
        ),
    }


def axis_links(config: ParallelConfig, per_node: int, order: Sequence[str] = AXES) -> dict[str, str]:
    """By axis: "inside" when no group along it leaves its node, else "between"."""
    grid = RankGrid.of(config, order)
    return {
        axis: "inside" if grid.stays_in_nodes(*axes, per_node=per_node) else "between" for axis, axes in GROUPS.items()
    }


def axis_seconds(
    config: ParallelConfig,
    model: GPTConfig,
    batch: int,
    length: int,
    hardware: Hardware,
    order: Sequence[str] = AXES,
    itemsize: int = 2,
) -> dict[str, float]:
    """By axis, the seconds of a step in which a device talks along it, if nothing else happens meanwhile. Groups that
    cross nodes share the cards of a node as the clock has it (`Ways`)."""
    grid = RankGrid.of(config, order)
    found = {}
    for axis, traffic in axis_traffic(config, model, batch, length, itemsize).items():
        ranks = grid.group_of(0, *GROUPS[axis])
        if not traffic.trips:
            found[axis] = 0.0
        elif axis == "pp":
            found[axis] = hardware.link(ranks[:2]).seconds(traffic.trips, traffic.size)
        elif axis == "cp":
            found[axis] = hardware.link(ranks).seconds(traffic.trips, traffic.size)
        else:
            found[axis] = Ways(hardware, ranks).ring(traffic.trips, traffic.size)
    return found


@dataclass(frozen=True)
class DryStep:
    """One step as it was run on shapes alone: the bytes that each device sent, by axis; the parameters that it holds;
    and the seconds of the step on the clock, None without hardware."""

    meters: AxisMeters
    held: Sequence[int]
    seconds: float | None


def dry_step(
    config: ParallelConfig,
    model: GPTConfig,
    batch: int,
    length: int,
    hardware: Hardware | None = None,
    order: Sequence[str] = AXES,
) -> DryStep:
    """A whole training step on the meta device in bfloat16: every device, every call, no numbers. SGD, so that it fits.

    It takes some 50 to 100 ms of a core for each device and layer of it.
    """
    meters = AxisMeters()

    def program(group: Group) -> tuple[int, float]:
        with torch.device("meta"):
            groups = GridGroups(group, RankGrid.of(config, order), meters)
            trainer = GridTrainer(group, config, model, batch, length, _stay, groups=groups)
            trainer.gpt.bfloat16()
            tokens = torch.zeros(batch, length, dtype=torch.long)
            group.barrier()
            start = group.now()
            trainer.step(tokens, tokens)
        return sum(prod(owner.parameter.shape) for owner in trainer.owners), group.now() - start

    held, seconds = zip(*Cluster(config.devices, hardware).run(program), strict=True)
    return DryStep(meters, held, max(seconds) if hardware else None)


def _stay(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)
