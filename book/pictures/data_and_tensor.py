"""`draw_data_and_tensor`: what a device holds and sends for one layer under data and under tensor parallelism."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from book.pictures.bars import draw_bars
from book.pictures.kit.svg import Picture, stack
from lib.costs.activations import LayerShape
from lib.costs.tensor import LayerCosts, data_parallel_costs, tensor_parallel_costs
from lib.costs.zero import zero_bytes
from lib.devices.counts import counted

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))


def draw_data_and_tensor(shape: LayerShape, devices: int, scale_of: Sequence[int] = ()) -> Picture:
    """Bars for one transformer layer, device and training step: held (model state, activations) and sent.

    DP is data parallelism, TP tensor parallelism, TP + SP with sequence parallelism. The model state is that of
    mixed-precision Adam, 16 bytes per parameter. `scale_of`: other numbers of devices that have the same scale, so
    that the bars can be seen to shrink and to grow.

    Errors: ValueError when the devices do not divide the batch, the heads or the sequence.
    """
    on, mine = counted(devices, "device"), _bytes(shape, devices)
    all_states = [mine, *(_bytes(shape, other) for other in scale_of)]
    titles = (
        f"Weights, gradients, Adam, on each of {on}",
        f"Activations kept, on each of {on}",
        f"Sent in a step, by each of {on}",
    )
    return stack(
        f"Data beside tensor parallelism, one layer on {on}",
        *(
            _bars(mine[i], title, most=max(max(state[i].values()) for state in all_states))
            for i, title in enumerate(titles)
        ),
    )


def _bytes(shape: LayerShape, devices: int) -> list[dict[str, float]]:
    """Model state, activations and what is sent, each by the way."""
    ways: dict[str, LayerCosts] = {
        "DP": data_parallel_costs(shape, devices),
        "TP": tensor_parallel_costs(shape, devices),
        "TP + SP": tensor_parallel_costs(shape, devices, sequence_parallel=True),
    }
    return [
        {way: zero_bytes(costs.parameters, 1, stage=0).total for way, costs in ways.items()},
        {way: costs.activations for way, costs in ways.items()},
        {way: costs.sent for way, costs in ways.items()},
    ]


def _bars(values: Mapping[str, float], title: str, most: float) -> Picture:
    """Bytes as bars, in the unit of the end of the scale."""
    scale, unit = next(((s, u) for s, u in UNITS if most >= s), UNITS[-1])
    return draw_bars({way: value / scale for way, value in values.items()}, title, unit, most=most / scale)
