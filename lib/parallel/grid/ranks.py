"""Which rank stands where in a grid of devices, and who its partners are along each axis.

    ranks = torch.arange(P).view(pp, dp, cp, tp)

That line is the whole layout. A rank's coordinates are its place in this tensor, and its group along an axis is the
line through that place: the ranks that differ from it in this coordinate only. Ranks that follow each other lie in one
node, so what stands last in `view` gets the fast links, and what stands first the slow ones.

Megatron-LM names the same order from the inside, "tp-cp-ep-dp-pp" (its `--use-tp-pp-dp-mapping` swaps the last two):
github.com/NVIDIA/Megatron-LM, megatron/core/parallel_state.py, `initialize_model_parallel`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from lib.devices import Group
from lib.parallel.grid.config import AXES, ParallelConfig
from lib.parallel.grid.meters import AxisMeters

# ep cuts the data-parallel devices: the axis is really two, the copies of a set of experts and the parts of it.
PARTS = {"dp": ("edp", "ep")}


@dataclass(frozen=True)
class RankGrid:
    """The names and sizes of the axes, outermost first: their order is that of `view`."""

    axes: tuple[tuple[str, int], ...]

    @staticmethod
    def of(config: ParallelConfig, order: Sequence[str] = AXES) -> "RankGrid":
        """The grid of `config`, with the axes pp, dp, cp, tp in this order, outermost first; dp is cut into edp x ep.

        Raises ValueError unless `order` names each of the four once.
        """
        if sorted(order) != sorted(AXES):
            raise ValueError(f"order={tuple(order)} must name {', '.join(AXES)}, each once, outermost first")
        sizes = {name: getattr(config, name) for name in AXES} | {"edp": config.dp // config.ep, "ep": config.ep}
        if sizes["edp"] * sizes["ep"] != config.dp:
            raise ValueError(f"ep={config.ep} must divide dp={config.dp}: experts are cut over data-parallel devices")
        return RankGrid(tuple((part, sizes[part]) for name in order for part in PARTS.get(name, (name,))))

    @property
    def size(self) -> int:
        """The number of devices."""
        return prod(size for _, size in self.axes)

    @cached_property
    def ranks(self) -> Tensor:
        """The ranks in their places."""
        return torch.arange(self.size, device="cpu").view(*(size for _, size in self.axes))

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where `rank` stands, by axis, "dp" among them. Raises ValueError when there is no such rank."""
        if not 0 <= rank < self.size:
            raise ValueError(f"there is no rank {rank} in a grid of {self.size}: ranks are 0 to {self.size - 1}")
        found = {}
        for name, size in reversed(self.axes):
            rank, found[name] = divmod(rank, size)
        sizes = dict(self.axes)
        return {name: found[name] for name, _ in self.axes} | {"dp": found["edp"] * sizes["ep"] + found["ep"]}

    def groups(self, *axes: str) -> list[list[int]]:
        """All groups along `axes` together, each in the order of the coordinates, the last axis named the fastest.

        groups("tp") are the devices that share a matrix, groups("dp", "cp") those with the same weights and other
        tokens. Raises ValueError for an axis that there is not.
        """
        wanted = [part for axis in axes for part in PARTS.get(axis, (axis,))]
        names = [name for name, _ in self.axes]
        if unknown := [axis for axis in wanted if axis not in names]:
            raise ValueError(f"there is no axis {', '.join(unknown)} in this grid; its axes are dp, {', '.join(names)}")
        rest = [name for name in names if name not in wanted]
        order = [names.index(name) for name in (*rest, *wanted)]
        size = prod(size for name, size in self.axes if name in wanted)
        return self.ranks.permute(order).reshape(-1, size).tolist()

    def group_of(self, rank: int, *axes: str) -> list[int]:
        """The group along `axes` that `rank` belongs to."""
        return next(group for group in self.groups(*axes) if rank in group)

    def stays_in_nodes(self, *axes: str, per_node: int) -> bool:
        """Whether no group along `axes` leaves its node of `per_node` neighboring ranks."""
        return all(len({rank // per_node for rank in group}) == 1 for group in self.groups(*axes))


def spoken(axes: Sequence[str]) -> str:
    """The name of several axes together: "dp" for edp and ep, "dp x cp" for these and cp."""
    whole = [axis for axis in axes if axis not in PARTS["dp"]]
    return " x ".join(["dp", *whole] if set(PARTS["dp"]) <= set(axes) else axes)


class GridGroups:
    """The groups of one device, made when they are asked for. All devices must ask for the same ones in one order.

    With `meters`, what is sent is counted by axis.
    """

    def __init__(self, group: Group, grid: RankGrid, meters: AxisMeters | None = None):
        if group.size != grid.size:
            raise ValueError(
                f"GridGroups on rank {group.rank} of {group.size}: the grid "
                f"{' x '.join(f'{name} {size}' for name, size in grid.axes)} needs {grid.size} devices"
            )
        self.everyone, self.grid, self.meters = group, grid, meters
        self.at = grid.coordinates(group.rank)
        self._made: dict[tuple[str, ...], Group] = {}

    def over(self, *axes: str) -> Group:
        """This device's group along these axes. Nothing is sent."""
        if axes not in self._made:
            made = self.everyone.split(self.grid.groups(*axes))
            self._made[axes] = made if self.meters is None else self.meters.on(made, spoken(axes))
        return self._made[axes]
