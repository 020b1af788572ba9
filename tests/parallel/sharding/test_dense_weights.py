"""Dense weights into the shards of any number of devices, and out again, bit for bit."""

import pytest
import torch
from parallel.dense_transformer import DEVICES, HEADS, HIDDEN, DenseBlock, double, refuses  # noqa: F401
from torch import nn

from lib import (
    ColumnParallelLinear,
    ParallelBlock,
    Replicate,
    RowParallelLinear,
    Shard,
    VocabParallelEmbedding,
    dense_state,
    load_dense,
)
from lib.devices import Cluster
from lib.parallel.sharding.dense import layout_of


def loaded(size, make, state):
    """The modules of all devices after `load_dense`."""

    def program(group):
        module = make(group)
        load_dense(module, state, group)
        return module

    return Cluster(size).run(program)


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize("kv_heads", [12, 2, 1])
@pytest.mark.parametrize("size", [1, 2, 4, 12])
def test_a_block_goes_in_and_comes_out(size, kv_heads):
    state = DenseBlock(kv_heads=kv_heads).state_dict()
    assert same(dense_state(loaded(size, lambda g: ParallelBlock(HIDDEN, HEADS, g, kv_heads), state)), state)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_a_padded_embedding_goes_in_and_comes_out(size):
    state = nn.Embedding(11, 3).state_dict()
    modules = loaded(size, lambda g: VocabParallelEmbedding(11, 3, g), state)
    assert same(dense_state(modules), state)
    assert modules[-1].weight.shape == (-(-11 // size), 3)


@pytest.mark.parametrize("size", DEVICES)
def test_a_fresh_block_is_the_same_model_on_any_number_of_devices(size):
    torch.manual_seed(3)
    state = DenseBlock().state_dict()
    modules = Cluster(size).run(lambda g: (torch.manual_seed(3), ParallelBlock(HIDDEN, HEADS, g))[1])
    assert same(dense_state(modules), state)


def test_each_device_holds_its_piece_in_memory_of_its_own():
    column, row = nn.Linear(4, 6), nn.Linear(6, 4)
    state = {"0.weight": column.weight, "0.bias": column.bias, "1.weight": row.weight, "1.bias": row.bias}
    modules = loaded(3, lambda g: nn.Sequential(ColumnParallelLinear(4, 6, g), RowParallelLinear(6, 4, g)), state)
    for rank, module in enumerate(modules):
        mine = slice(2 * rank, 2 * rank + 2)
        assert torch.equal(module[0].weight, column.weight[mine])
        assert torch.equal(module[0].bias, column.bias[mine])
        assert torch.equal(module[1].weight, row.weight[:, mine])
        assert torch.equal(module[1].bias, row.bias)
        with torch.no_grad():
            module[0].weight.zero_()
        assert module[1].bias.requires_grad
        assert module[1].bias.grad_fn is None
    assert column.weight.all()


def test_how_a_parameter_is_cut():
    def program(group):
        block = ParallelBlock(HIDDEN, HEADS, group)
        return [layout_of(block, name) for name in ("mlp.up.weight", "mlp.down.weight", "mlp.down.bias", "norm1.bias")]

    assert Cluster(2).run(program)[0] == [Shard(0), Shard(1), Replicate(), Replicate()]


def test_another_dtype_is_converted():
    state = {name: value.float() for name, value in nn.Linear(4, 6).state_dict().items()}
    module = loaded(2, lambda g: ColumnParallelLinear(4, 6, g), state)[1]
    assert module.weight.dtype == torch.float64
    assert torch.equal(module.weight, state["weight"][3:].double())


def tied(group):
    module = nn.ModuleDict({"a": ColumnParallelLinear(2, 4, group), "b": ColumnParallelLinear(2, 4, group)})
    module["b"].weight = module["a"].weight
    return module


def test_a_tied_weight_has_both_its_names():
    dense = nn.ModuleDict({"a": nn.Linear(2, 4), "b": nn.Linear(2, 4)})
    dense["b"].weight = dense["a"].weight
    modules = loaded(2, tied, dense.state_dict())
    assert modules[1]["a"].weight is modules[1]["b"].weight
    assert same(dense_state(modules), dense.state_dict())


def test_what_comes_out_has_no_gradient_history():
    assert not any(value.requires_grad for value in dense_state(Cluster(2).run(tied)).values())


# ---- refusals ----


def refused(change, fragments, size=4, make=lambda g: ParallelBlock(HIDDEN, HEADS, g), dense=None):
    """After `change(state)` loading is refused, and no parameter is written to."""
    state = (dense or DenseBlock()).state_dict()
    change(state)

    def program(group):
        module = make(group)
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        try:
            load_dense(module, state, group)
        finally:
            assert same(before, dict(module.named_parameters()))

    refuses(fragments, program, size)


def test_missing_and_unknown_weights_are_named():
    def change(state):
        state["mlp.middle.weight"] = state.pop("mlp.up.weight")
        del state["mlp.up.bias"]

    fragments = [
        "load_dense on rank 0 of 4: missing in the state: mlp.up.bias, mlp.up.weight; unknown to the module: "
        "mlp.middle.weight"
    ]
    refused(change, fragments)


def test_only_what_is_wrong_is_said():
    def change(state):
        del state["norm1.bias"]

    with pytest.raises(ValueError) as error:
        loaded(1, lambda g: ParallelBlock(HIDDEN, HEADS, g), (lambda s: (change(s), s)[1])(DenseBlock().state_dict()))
    assert str(error.value) == "load_dense on rank 0 of 1: missing in the state: norm1.bias"


@pytest.mark.parametrize(
    ("name", "shape", "piece", "there"),
    [
        ("mlp.down.bias", (23,), (23,), (24,)),
        ("mlp.up.weight", (96, 23), (24, 23), (24, 24)),
        ("mlp.up.weight", (92, 24), (23, 24), (24, 24)),
        ("mlp.down.weight", (24, 92), (24, 23), (24, 24)),
        ("attention.qkv.weight", (36, 24), (9, 24), (18, 24)),
    ],
)
def test_a_weight_of_another_shape(name, shape, piece, there):
    def change(state):
        state[name] = torch.ones(shape)

    fragments = [
        f"load_dense on rank 0 of 4: {name} of shape {shape} gives this device a piece of {piece}, but the module has "
        f"{there} there"
    ]
    refused(change, fragments)


@pytest.mark.parametrize("length", [1, 5, 8, 10, 12])
def test_an_embedding_of_another_vocabulary(length):
    """8 rows and 3 of padding would give three of the four devices pieces of the right size."""

    def change(state):
        state["weight"] = torch.ones(length, 3)

    fragments = [
        f"load_dense on rank 0 of 4: weight: a tensor of shape ({length}, 3) does not have the 9 rows to cut",
    ]
    refused(change, fragments, make=lambda g: VocabParallelEmbedding(9, 3, g), dense=nn.Embedding(9, 3))


def test_a_fused_weight_that_is_not_made_of_the_heads():
    def change(state):
        state["attention.qkv.bias"] = torch.ones(71)

    fragments = [
        "load_dense on rank 0 of 4: attention.qkv.bias: a tensor of shape (71,) cannot be divided into 12 heads of "
        "queries and 2 x 12 of keys and values"
    ]
    refused(change, fragments)


def test_replicas_that_came_apart():
    modules = loaded(4, lambda g: ParallelBlock(HIDDEN, HEADS, g), DenseBlock().state_dict())
    with torch.no_grad():
        modules[2].norm2.weight[0] += 1e-12
    with pytest.raises(ValueError, match="dense_state: norm2.weight on rank 2 differs from the copies of it"):
        dense_state(modules)


@pytest.mark.parametrize("rows", [slice(6, 8), slice(8, 10)], ids=["keys", "values"])
def test_copies_of_keys_or_values_that_came_apart(rows):
    modules = loaded(4, lambda g: ParallelBlock(HIDDEN, HEADS, g, 2), DenseBlock(kv_heads=2).state_dict())
    with torch.no_grad():
        modules[3].attention.qkv.weight[rows] += 1e-12
    with pytest.raises(ValueError, match="dense_state: attention.qkv.weight on rank 3 differs from the copies of it"):
        dense_state(modules)


def test_what_has_diverged_is_still_a_copy():
    def program(group):
        layer = RowParallelLinear(4, 3, group)
        layer.bias.data[1] = torch.nan if group.rank == 0 or not apart else torch.inf
        return layer

    apart = False
    assert dense_state(Cluster(2).run(program))["bias"].isnan().tolist() == [False, True, False]
    apart = True
    with pytest.raises(ValueError, match="bias on rank 1 differs"):
        dense_state(Cluster(2).run(program))
