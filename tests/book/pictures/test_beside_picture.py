"""Data beside tensor parallelism: the bars are the formulas' numbers."""

from xml.etree import ElementTree

import pytest

from book import draw_data_and_tensor
from lib.costs.activations import LayerShape
from lib.costs.tensor import data_parallel_costs, tensor_parallel_costs

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize(
    "shape",
    [
        LayerShape(16, 8, 64, 8),
        LayerShape(2048, 8, 12288, 96),
        LayerShape(2048, 8, 3200, 32),  # GB on one device, MB on 8: one unit for all three bars
    ],
)
def test_bars_are_the_costs(shape, devices):
    picture = draw_data_and_tensor(shape, devices)
    ways = [
        data_parallel_costs(shape, devices),
        tensor_parallel_costs(shape, devices),
        tensor_parallel_costs(shape, devices, True),
    ]
    root = ElementTree.fromstring(picture.svg())
    texts = [n.text for n in root.iter(f"{SVG}text")]
    units = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1}
    written = [t.split() for t in texts if t.split()[-1] in units]
    bars = [float(number) for number, _ in written]
    values = [bar * units[unit] for bar, (_, unit) in zip(bars, written, strict=True)]
    assert values[:3] == pytest.approx([16 * way.parameters for way in ways], rel=1e-3)
    assert values[3:6] == pytest.approx([way.activations for way in ways], rel=1e-3)
    assert values[6:] == pytest.approx([way.sent for way in ways], rel=1e-3)
    assert [t for t in texts if t in ("DP", "TP", "TP + SP")] == ["DP", "TP", "TP + SP"] * 3
    assert all(1 <= max(bars[i : i + 3]) < 1000 or not any(bars[i : i + 3]) for i in (0, 3, 6))
    assert f"Sent in a step, by each of {devices} device" in picture.desc
    assert f"DP: {bars[0]:,.4g} " in picture.desc
    what = [title.split(",")[0] for title in texts if "each of" in title]
    assert what == ["Weights", "Activations kept", "Sent in a step"]


def test_some_hundred_bytes_are_bytes():
    shape = LayerShape(2, 2, 2, 2)
    ways = [data_parallel_costs(shape, 2), tensor_parallel_costs(shape, 2), tensor_parallel_costs(shape, 2, True)]
    assert all(100 < way.activations < 1000 for way in ways)
    dp, tp, sp = (f"{way.activations:.4g} B" for way in ways)
    desc = draw_data_and_tensor(shape, 2).desc
    assert f"Activations kept, on each of 2 devices. DP: {dp}; TP: {tp}; TP + SP: {sp}." in desc


def test_bad_input_is_passed_on():
    with pytest.raises(ValueError, match="a batch of 4 cannot be divided evenly over 8 devices"):
        draw_data_and_tensor(LayerShape(16, 4, 64, 8), 8)


def test_other_numbers_of_devices_share_the_scale():
    shape = LayerShape(2048, 8, 4096, 32)

    def bars(devices, **options):
        root = ElementTree.fromstring(draw_data_and_tensor(shape, devices, **options).svg())
        return [float(n.get("width")) for n in root.iter(f"{SVG}rect") if n.get("height") == "16"]

    alone, shared = bars(8), bars(8, scale_of=(2, 4, 8))
    of_two = bars(2, scale_of=(2, 4, 8))
    costs = [data_parallel_costs(shape, devices).activations for devices in (2, 8)]
    assert of_two[3] / shared[3] == pytest.approx(costs[0] / costs[1], rel=2e-2)
    assert shared[3] < alone[3]
