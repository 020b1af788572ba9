"""The sizes of a GPT: published counts, exact, and what the live model holds."""

from math import prod

import pytest
from parallel.small_gpt import CONFIG

from lib.devices import Cluster
from lib.parallel.gpt.config import SIZES, GPTConfig
from lib.parallel.gpt.model import GPT


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("gpt3-175b", 174_604_259_328),
    ],
)
def test_published_sizes(name, parameters):
    assert GPTConfig.preset(name).parameters == parameters
    assert len(SIZES) == 5


def test_presets_are_those_of_the_papers():
    small, xl, large = (GPTConfig.preset(name) for name in ("gpt2", "gpt2-xl", "gpt3-175b"))
    assert small == GPTConfig(12, 768, 12, vocabulary=50257, positions=1024, dropout=0.0, approximate="tanh")
    assert small == GPTConfig(12, 768, 12)
    assert (xl.layers, xl.hidden, xl.heads, xl.positions) == (48, 1600, 25, 1024)
    assert (large.layers, large.hidden, large.heads, large.positions) == (96, 12288, 96, 2048)


def test_the_live_model_has_these_shapes():
    model = Cluster(1).run(lambda group: GPT(CONFIG, group))[0]
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == CONFIG.shapes()
    assert list(model.buffers()) == []
    assert CONFIG.parameters == sum(prod(shape) for shape in CONFIG.shapes().values())


def test_devices_that_do_not_divide_the_heads():
    with pytest.raises(ValueError) as refused:
        Cluster(5).run(lambda group: GPT(CONFIG, group))
    assert str(refused.value) == "12 heads cannot be split over 5 devices: possible are 1, 2, 3, 4, 6, 12"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": 0}, "GPTConfig: layers=0 must be an integer of at least 1"),
        ({"hidden": 24.0}, "GPTConfig: hidden=24.0 must be an integer of at least 1"),
        ({"heads": True}, "GPTConfig: heads=True must be an integer of at least 1"),
        ({"vocabulary": -1}, "GPTConfig: vocabulary=-1 must be an integer of at least 1"),
        ({"positions": 0}, "GPTConfig: positions=0 must be an integer of at least 1"),
        ({"heads": 5}, "GPTConfig: a hidden size of 24 cannot be divided into 5 heads"),
        ({"approximate": "gelu"}, "GPTConfig: approximate='gelu' must be 'none' or 'tanh'"),
    ],
)
def test_refused(wrong, message):
    with pytest.raises(ValueError) as refused:
        GPTConfig(**{"layers": 2, "hidden": 24, "heads": 12, **wrong})
    assert str(refused.value) == message


def test_a_size_of_one_is_a_size():
    assert GPTConfig(1, 1, 1, vocabulary=1, positions=1).parameters == 1 + 1 + 12 + 13 + 2


def test_unknown_size():
    with pytest.raises(ValueError) as refused:
        GPTConfig.preset("gpt4")
    assert str(refused.value).startswith(
        "there is no size 'gpt4'; the sizes are gpt2, gpt2-medium, gpt2-large, gpt2-xl"
    )
