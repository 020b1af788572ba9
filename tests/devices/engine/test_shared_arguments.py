"""All devices are handed the same objects: whoever writes into one is told, for the numbers do not show it."""

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn

from lib import Cluster
from lib.parallel.data.average import average_gradients, averaging
from lib.parallel.zero.fully_sharded import FullySharded


def model():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def train(group, module, x, how=None):
    if how == "own":
        module = copy.deepcopy(module)
    module(x).square().sum().backward()
    average_gradients(module, group)


def test_a_gradient_in_a_module_of_all_devices_is_named():
    with pytest.raises(RuntimeError) as caught:
        Cluster(3).run(train, model().eval(), torch.randn(4, 3))
    assert "a device changed the gradient of 0.weight of argument 1, shape (2, 3). All 3 devices" in str(caught.value)
    assert "copy.deepcopy(model)" in str(caught.value)


def test_a_second_gradient_added_to_one_that_was_there_is_named():
    module, x = model().eval(), torch.randn(4, 3)
    module(x).sum().backward()
    with pytest.raises(RuntimeError, match=r"the gradient of 0\.weight of module"):
        Cluster(2).run(train, module=module, x=x)


def test_a_buffer_that_a_forward_updates_is_named():
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"changed 1\.num_batches_tracked of argument 1"):
        Cluster(2).run(lambda group, module, x: module(x), model(), torch.randn(4, 3))


def test_a_tensor_that_is_changed_in_place_is_named():
    with pytest.raises(RuntimeError, match=r"a device changed x, shape \(4,\)"):
        Cluster(2).run(lambda group, x: x.add_(1), x=torch.zeros(4))


def test_what_stands_around_the_program_counts_too():
    module, x = model().eval(), torch.randn(4, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"the gradient of 0\.weight of module"):
        Cluster(2).run(lambda group: module(x.detach()).sum().backward())
    with pytest.raises(RuntimeError, match=r"the gradient of x, shape \(4, 3\)"):
        Cluster(2).run(lambda group: x.sum().backward())


def test_a_model_whose_pieces_refuse_to_be_computed_with_may_be_handed_on():
    def shard(group):
        layer = nn.Linear(3, 2)
        FullySharded(layer, group)
        return layer

    cluster = Cluster(2)
    pieces = cluster.run(shard)
    assert cluster.run(lambda group, layers: layers[group.rank].weight.shape, pieces) == [(4,), (2,)]


def test_the_fix_that_the_error_names_is_one():
    x = torch.randn(4, 3, requires_grad=True)
    Cluster(3).run(train, model().eval(), x.detach(), "own")
    Cluster(3).run(lambda group: x.detach().clone().requires_grad_().sum().backward())
    assert x.grad is None


def test_one_device_may_do_as_it_likes():
    module = model()
    Cluster(1).run(train, module, torch.randn(4, 3))
    assert module[0].weight.grad is not None


def test_reading_is_no_change():
    module, x = model().eval(), torch.randn(4, 3)
    module(x).sum().backward()
    found = Cluster(2).run(lambda group, module, x: module(x) + module[0].weight.grad.sum(), module, x)
    assert torch.equal(found[0], found[1])
    with torch.inference_mode():
        x = torch.randn(4, 3)
        assert all(y.shape == (4, 2) for y in Cluster(2).run(lambda group, x: module(x), x))


def test_each_device_may_change_its_own_of_a_list():
    xs = [torch.zeros(2) for _ in range(3)]
    Cluster(3).run(lambda group, xs: xs[group.rank].add_(group.rank), xs)
    assert [x[0].item() for x in xs] == [0, 1, 2]


def test_programs_that_are_no_plain_functions_run():
    def later(group):
        return undefined if group.rank < 0 else group.rank

    assert Cluster(2).run(later) == [0, 1]
    assert Cluster(2).run(functools.partial(later)) == [0, 1]
    undefined = None


def test_an_error_of_the_program_comes_first():
    def fails(group, x):
        x.add_(1)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Cluster(2).run(fails, torch.zeros(2))


def test_averaging_a_module_that_all_share_is_refused():
    def overlapped(group, module, x):
        with averaging(module, group):
            module(x).sum().backward()

    with pytest.raises(RuntimeError, match="give each device a module of its own|build the model inside"):
        Cluster(2).run(overlapped, model().eval(), torch.randn(4, 3))


# ---- the ways in which one thing reaches all devices ----


def step(group, module):
    module(torch.ones(4, 3)).sum().backward()
    group.barrier()


class Trainer:
    def __init__(self, module):
        self.module = module

    def fit(self, group):
        step(group, self.module)

    __call__ = fit


def with_default(module):
    def program(group, module=module, *, again=None):
        step(group, module)

    return program


def with_keyword_only_default(module):
    def program(group, *, module=module):
        step(group, module)

    return program


def through_helpers(module):
    def helper(group):
        step(group, module)

    def other(group):
        return [helper(group) for _ in range(1)]

    return lambda group: other(group)


HELD = nn.Linear(3, 2)


def uses_a_global(group):
    step(group, HELD)


WAYS = {
    "a bound method": lambda m: (Trainer(m).fit,),
    "an object that can be called": lambda m: (Trainer(m),),
    "partial": lambda m: (functools.partial(step, module=m),),
    "a partial of a partial": lambda m: (functools.partial(functools.partial(step), module=m),),
    "a partial of a bound method": lambda m: (functools.partial(Trainer(m).fit),),
    "a default": lambda m: (with_default(m),),
    "a default of a keyword": lambda m: (with_keyword_only_default(m),),
    "helpers": lambda m: (through_helpers(m),),
    "a dict": lambda m: (lambda group, d: step(group, d["model"]), {"model": m}),
    "a list": lambda m: (lambda group, d: step(group, d[0]), [m]),
    "a tuple in a list": lambda m: (lambda group, d: step(group, d[0][1]), [(1, m)]),
    "a list around": lambda m: ((lambda held: lambda group: step(group, held[0]))([m]),),
    "an object in an object": lambda m: (lambda group, t: t.module.fit(group), Trainer(Trainer(m))),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_module_that_all_share_is_found(way):
    program, *args = WAYS[way](nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match=r"a device changed the gradient of weight of .*, shape \(2, 3\)"):
        Cluster(2).run(program, *args)


def test_a_module_that_is_a_global_of_a_helper_is_found():
    with pytest.raises(RuntimeError, match="the gradient of weight of HELD"):
        Cluster(2).run(lambda group: uses_a_global(group))
    HELD.zero_grad()


def test_an_optimizer_that_all_share_is_found():
    module = nn.Linear(3, 2)
    module.weight.grad = torch.ones(2, 3)
    optimizer = torch.optim.SGD([module.weight], lr=0.1)
    with pytest.raises(RuntimeError, match="a device changed parameter 0 of argument 1"):
        Cluster(2).run(lambda group, optimizer: optimizer.step(), optimizer)


def test_a_generator_that_all_draw_from_is_found():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(RuntimeError, match="a device changed generator"):
        Cluster(2).run(lambda group, generator: torch.rand(1, generator=generator), generator=generator)


def test_an_array_that_is_written_into_is_found():
    array = np.zeros((2, 3))

    def program(group, array):
        array[group.rank] += 1

    with pytest.raises(RuntimeError, match=r"a device changed argument 1, shape \(2, 3\)"):
        Cluster(2).run(program, array)


@pytest.mark.parametrize(
    "holder", [list, tuple, lambda xs: dict(enumerate(xs)), lambda xs: {f"r{r}": x for r, x in enumerate(xs)}]
)
def test_each_device_may_have_its_own_in_a_container(holder):
    modules = [nn.Linear(3, 2) for _ in range(3)]

    def program(group, held):
        mine = held[f"r{group.rank}"] if "r0" in held else held[group.rank]
        step(group, mine)
        step(group, mine)

    Cluster(3).run(program, holder(modules))
    assert all(module.weight.grad is not None for module in modules)
