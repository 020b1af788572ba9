"""Devices in a grid: `Mesh(group, dp=2, tp=4)` gives each device one named sub-group per axis."""

import math

import torch

from lib.devices.counts import counted, is_count
from lib.devices.group import Group


class Mesh:
    """Cuts `group` into a grid. `mesh.tp` is the sub-group of the devices that differ from this one only along `tp`.

    Ranks run through the grid like the numbers in a printed page: the last axis fastest. So the devices of the last
    axis have neighboring ranks; give that place to the axis that talks most (Megatron-LM: tensor parallelism).

    Raises ValueError when the sizes do not multiply to the size of the group.
    """

    def __init__(self, group: Group, **axes: int):
        if group.rank is None:
            raise ValueError("Mesh: this device is not a member of the group; guard with `if group.rank is not None`")
        for name, size in axes.items():
            if name in ("axes", "coordinates"):
                raise ValueError(
                    f"Mesh: an axis cannot be called {name!r}, a mesh has that already; choose another name"
                )
            if not is_count(size):
                raise ValueError(
                    f"Mesh: {name}={size!r} is not a number of devices; it must be an integer of at least 1"
                )
        product = math.prod(axes.values())
        if not axes or product != group.size:
            grid = " x ".join(f"{name}={size}" for name, size in axes.items()) or "no axes"
            raise ValueError(
                f"Mesh on rank {group.rank}: {grid} needs {counted(product, 'device')}, but the group has "
                f"{group.size}. The sizes of all axes must multiply to the size of the group"
            )
        self.group, self.axes = group, dict(axes)
        self.coordinates: dict[str, int] = {}
        self._groups: dict[str, Group] = {}
        grid = torch.arange(group.size, device="cpu").view(*axes.values())
        place = (grid == group.rank).nonzero()[0].tolist()
        for axis, (name, size) in enumerate(axes.items()):
            self.coordinates[name] = place[axis]
            lines = grid.movedim(axis, -1).reshape(-1, size)  # one row per line of the grid along this axis
            self._groups[name] = group.split(lines.tolist())

    def __getattr__(self, name: str) -> Group:
        groups = self.__dict__.get("_groups", {})
        if name not in groups:
            raise AttributeError(f"this mesh has no axis {name!r}; its axes are {', '.join(groups)}")
        return groups[name]

    def __repr__(self) -> str:
        return f"Mesh({', '.join(f'{name}={self.coordinates[name]} of {size}' for name, size in self.axes.items())})"
