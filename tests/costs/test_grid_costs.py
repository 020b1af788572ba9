"""What each axis sends, over which link, and how long that takes: held against the meters and the clock."""

from dataclasses import replace

import pytest
from parallel.small_model import one_thread  # noqa: F401

from lib import GPTConfig, ParallelConfig, RankGrid
from lib.costs.grid import axis_links, axis_seconds, axis_traffic, dry_step
from lib.devices.hardware import H100

SMALL = GPTConfig(layers=4, hidden=64, heads=8, vocabulary=64, positions=32)


@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(pp=3, tp=2, micro_batches=3, chunks=2, sequence_parallel=True),
        ParallelConfig(pp=3, cp=2, micro_batches=2),
    ],
    ids=str,
)
def test_bytes_by_axis_are_those_of_the_meters(config):
    model = replace(SMALL, layers=config.stages)
    step = dry_step(config, model, 6, 32)
    middle = RankGrid.of(config).groups("pp")[0][1]
    found = step.meters.by_axis(middle)
    expected = {axis: traffic.size for axis, traffic in axis_traffic(config, model, 6, 32).items()}
    if "dp x cp" in found:
        found["dp"] = found.pop("dp x cp") - 8  # the loss, a number of float64
    assert found == {axis: size for axis, size in expected.items() if size}


def test_the_wrong_order_costs_and_the_links_say_why():
    """The chapter asks the clock as well."""
    config = ParallelConfig(dp=2, tp=4)
    hardware = replace(H100, per_node=4)
    model = replace(SMALL, layers=1, hidden=1024)
    right, wrong = ("pp", "dp", "cp", "tp"), ("tp", "cp", "dp", "pp")
    assert axis_links(config, 4, right) == {"tp": "inside", "cp": "inside", "pp": "inside", "dp": "between"}
    assert axis_links(config, 4, wrong) == {"tp": "between", "cp": "inside", "pp": "inside", "dp": "inside"}
    seconds = [sum(axis_seconds(config, model, 32, 32, hardware, order).values()) for order in (right, wrong)]
    assert seconds[0] < seconds[1]
    with pytest.raises(ValueError, match="recompute='full'"):
        axis_traffic(replace(config, recompute="full"), model, 8, 32)
