"""What a layer's forward keeps: each storage once, named by the module that keeps it."""

import weakref

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from lib.costs.saved_tensors import SavedBlock, saved_activations, watch_saved


class Layer(nn.Module):
    """Runs `function(layer, x)`."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 4)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def saved(function, x=None, layer=None):
    x = torch.randn(3, 4, requires_grad=True) if x is None else x
    return [(block.module, block.shape, block.size) for block in saved_activations(layer or Layer(function), x)]


def test_blocks_are_named_by_the_module_that_keeps_them():
    blocks = saved(lambda layer, x: layer.second(layer.first(x).tanh()).exp())
    # tanh keeps its output for itself, and `second` the same storage as its input: counted where it came first
    assert blocks == [("first", (3, 4), 48), ("", (3, 6), 72), ("", (3, 4), 48)]


def test_a_view_counts_once_and_whole():
    assert saved(lambda layer, x: (y := layer.first(x))[:1].sin() + y[1:2].sin() + y[2:].sin()) == [
        ("first", (3, 4), 48),
        ("", (1, 6), 72),
    ]


def test_what_no_backward_needs_does_not_count():
    assert saved(lambda layer, x: x + 1) == []

    def forgets(layer, x):
        (x * 2).exp()  # its graph dies at once
        return x.sin()

    assert saved(forgets) == [("", (3, 4), 48)]


def test_without_gradients_nothing_is_kept():
    with torch.no_grad():
        assert saved(lambda layer, x: layer.first(x).tanh()) == []


def test_parameters_do_not_count():
    layer = Layer(lambda layer, x: x @ layer.first.weight.T @ layer.second.weight.T)
    assert saved(None, layer=layer) == [("", (3, 4), 48), ("", (3, 6), 72)]


def test_a_checkpoint_keeps_its_inputs():
    blocks = saved(lambda layer, x: checkpoint(lambda y: y.sin().exp().sin(), layer.first(x), use_reentrant=False))
    assert blocks == [("first", (3, 4), 48), ("", (3, 6), 72)]


@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 2), (torch.float64, 8)])
def test_on_meta_and_in_its_own_type(dtype, width):
    layer = Layer(lambda layer, x: layer.first(x).tanh()).to("meta", dtype)
    x = torch.empty(3, 4, device="meta", dtype=dtype)
    assert saved_activations(layer, x) == [
        SavedBlock("first", (3, 4), dtype, 12 * width),
        SavedBlock("", (3, 6), dtype, 18 * width),
    ]


def test_the_forward_is_thrown_away():
    made = []

    def keeps_outputs(layer, x):
        made.append(weakref.ref((y := layer.first(x).exp().softmax(-1)).untyped_storage()))
        return y

    assert len(saved(keeps_outputs)) == 3
    assert made[0]() is None


def test_leaves_nothing_behind():
    layer, x = Layer(lambda layer, x: layer.first(x).tanh()), torch.randn(3, 4)

    def fails(layer, x):
        raise RuntimeError("no forward")

    broken = Layer(fails)
    saved(None, x, layer)
    with pytest.raises(RuntimeError, match="no forward"):
        saved(None, x, broken)
    for module in (*layer.modules(), *broken.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    told = []
    with saved_tensors_hooks(lambda y: told.append(y) or y, lambda y: y):
        layer(x).sum().backward()  # and the hooks of others hold again
    assert told


def test_a_watched_forward_has_its_backward():
    x = torch.randn(3, 4)
    layer = Layer(lambda layer, x: layer.second(layer.first(x).tanh()))
    with watch_saved(layer) as kept:
        loss = layer(x).square().sum()
    sizes = [block.size for block in kept()]
    assert sizes == [48, 72, 48]  # x; tanh's output, which is the second's input; the second's output
    loss.backward()
    watched = [p.grad for p in layer.parameters()]
    layer.zero_grad()
    layer(x).square().sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(watched, layer.parameters(), strict=True))
    assert kept() == []  # the backward has used it up
