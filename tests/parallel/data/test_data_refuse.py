"""What is refused, by words that name the rank, the shapes and the fix."""

import copy
import math

import pytest
import torch
from parallel.small_model import one_thread  # noqa: F401
from torch import nn

from lib import (
    average_gradients,
    averaging,
    broadcast_parameters,
    check_same_parameters,
    shard_batch,
)
from lib.devices import Cluster, MismatchError
from lib.parallel.data.buckets import plan_buckets


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4))


def step(model, group, **options):
    with averaging(model, group, **options):
        model(torch.ones(1, 3)).sum().backward()


@pytest.mark.parametrize("samples", [0, 3])
def test_a_batch_smaller_than_the_devices(samples):
    with pytest.raises(ValueError) as caught:
        Cluster(4).run(lambda group: shard_batch(torch.ones(samples, 5), group))
    assert f"on rank 0 of 4: a batch of shape ({samples}, 5) has {samples} samples, fewer than" in str(caught.value)
    assert "Take a batch of at least 4, or fewer devices" in str(caught.value)


def test_a_batch_without_dims_and_what_is_no_tensor():
    with pytest.raises(IndexError, match="rank 0"):
        Cluster(2).run(lambda group: shard_batch(torch.tensor(1.0), group))
    with pytest.raises(TypeError, match="rank 0"):
        Cluster(2).run(lambda group: shard_batch([1, 2, 3], group))


@pytest.mark.parametrize("how", ["after", "during"])
@pytest.mark.parametrize("model", [make().requires_grad_(False), nn.ReLU()], ids=["frozen", "empty"])
def test_a_model_whose_parameters_require_no_gradient(model, how):
    def program(group):
        if how == "after":
            average_gradients(model, group)
        else:
            with averaging(model, group):
                pytest.fail("it must be refused before the backward")

    count = len(list(model.parameters()))
    with pytest.raises(ValueError) as caught:
        Cluster(2).run(program)
    message = f"on rank 0 of 2: none of the {count} parameters of {type(model).__name__} requires a gradient"
    assert message in str(caught.value)
    assert "requires_grad_(True)" in str(caught.value)


@pytest.mark.parametrize("how", ["after", "during"])
@pytest.mark.parametrize("on_ranks", [[0, 1, 2], [1]], ids=["all", "one"])
def test_a_missing_gradient(on_ranks, how):
    def program(group):
        model = make()
        layers = model[:1] if group.rank in on_ranks else model
        if how == "during":
            with averaging(model, group):
                layers(torch.ones(1, 3)).sum().backward()
        else:
            layers(torch.ones(1, 3)).sum().backward()
            average_gradients(model, group)

    with pytest.raises(ValueError) as caught:
        Cluster(3).run(program)
    assert f"on rank {on_ranks[0]} of 3: no gradient reached 1.weight, 1.bias." in str(caught.value)
    assert "allow_unused=True" in str(caught.value)


@pytest.mark.parametrize("share", [3, -0.1, math.nan, True, "half", torch.tensor(0.5)], ids=str)
def test_a_share_that_is_none(share):
    with pytest.raises(ValueError, match=r"averaging on rank 0 of 2: share=.*samples here / samples in all: from 0 to"):
        Cluster(2).run(lambda group: step(make(), group, share=share))


@pytest.mark.parametrize("bucket_bytes", [-1, math.nan, "25MB", True, None])
def test_a_bucket_size_that_is_none(bucket_bytes):
    with pytest.raises(ValueError, match="bucket_bytes=.* must be a number of bytes, at least 0"):
        plan_buckets(make().parameters(), bucket_bytes)


@pytest.mark.parametrize("bucket_bytes", [0, math.inf])
def test_two_backwards_where_one_belongs(bucket_bytes):
    def program(group):
        model = make()
        with averaging(model, group, bucket_bytes=bucket_bytes):
            for _ in range(2):
                model(torch.ones(1, 3)).sum().backward()

    with pytest.raises(RuntimeError, match=r"a second gradient of 1.(weight|bias) \(.*\) came"):
        Cluster(2).run(program)


def test_one_module_for_all_devices():
    model = make()
    with pytest.raises(RuntimeError, match="on each device: build the model inside"):
        Cluster(2).run(lambda group: step(model, group))
    Cluster(2).run(lambda group: step(copy.deepcopy(model), group))


def test_after_an_error_inside_no_hook_is_left():
    def program(group):
        model = make()
        with pytest.raises(ZeroDivisionError), averaging(model, group):
            raise ZeroDivisionError
        model(torch.ones(1, 3)).sum().backward()
        step(model, group)
        return model[1].bias.grad.tolist()

    cluster = Cluster(2)
    assert cluster.run(program) == [[2.0] * 4] * 2
    assert cluster.meters.count(0).calls == 1


def test_sparse_gradients():
    def program(group):
        model = nn.Embedding(5, 3, sparse=True)
        model(torch.tensor([1])).sum().backward()
        average_gradients(model, group)

    with pytest.raises(TypeError, match=r"the gradient of a \(5, 3\) parameter is sparse: use"):
        Cluster(2).run(program)


def test_frozen_on_one_device_only():
    def program(group):
        model = make()
        model[0].requires_grad_(group.rank > 0)
        step(model, group)

    with pytest.raises(MismatchError, match="same shape"):
        Cluster(2).run(program)


# ---- parameters that differ ----


def differing(group, change):
    model = make()
    with torch.no_grad():
        change(model, group.rank)
    check_same_parameters(model, group)


def one_bit(model, rank):
    if rank == 2:
        model[1].bias[3] = torch.nextafter(model[1].bias[3], torch.tensor(9.0))


def two_swapped(model, rank):
    if rank == 2:
        model[1].bias[:2] = model[1].bias[:2].flip(0)


def another_shape(model, rank):
    if rank == 2:
        model[1].bias = nn.Parameter(model[1].bias.reshape(2, 2))


def another_dtype(model, rank):
    model[1].bias = nn.Parameter(torch.zeros(4, dtype=torch.int32 if rank == 2 else torch.float32), rank != 2)


@pytest.mark.parametrize("change", [one_bit, two_swapped, another_shape, another_dtype])
def test_any_difference_is_found_and_named(change):
    with pytest.raises(ValueError) as caught:
        Cluster(4).run(differing, change)
    assert "of 4: 1.bias (" in str(caught.value)
    assert "These ranks agree with each other: [0, 1, 3]; [2]." in str(caught.value)
    assert "broadcast_parameters(module, group)" in str(caught.value)


def test_the_first_difference_is_named_and_everybody_s_group():
    def everything(model, rank):
        torch.manual_seed([5, 6, 5, 7][rank])
        model[0].weight.normal_()
        model[1].weight.normal_()

    with pytest.raises(ValueError, match=r"of 4: 0.weight \(2, 3\) is not.*: \[0, 2\]; \[1\]; \[3\]\."):
        Cluster(4).run(differing, everything)


def test_another_name_or_number_of_parameters():
    def renamed(group):
        check_same_parameters(nn.ModuleDict({"a" if group.rank else "b": nn.Linear(1, 1)}), group)

    def more(group):
        check_same_parameters(nn.Linear(1, 1, bias=group.rank > 0), group)

    with pytest.raises(ValueError, match=r"\[0\]; \[1\]"):
        Cluster(2).run(renamed)
    with pytest.raises(MismatchError, match="same shape"):
        Cluster(2).run(more)


def test_what_is_the_same_passes_and_costs_eight_bytes_a_parameter():
    def program(group):
        torch.manual_seed(group.rank)
        model = nn.ModuleList([make(), nn.Linear(2, 2).bfloat16(), nn.Embedding(1, 3), nn.Embedding(0, 3)])
        model.register_parameter("number", nn.Parameter(torch.tensor(math.nan, dtype=torch.complex128)))
        broadcast_parameters(model, group)
        before = cluster.meters.count(0, "all_gather").bytes_sent
        assert check_same_parameters(model, group) is None
        check_same_parameters(nn.ReLU(), group)
        return cluster.meters.count(0, "all_gather").bytes_sent - before

    cluster = Cluster(3)
    assert Cluster.run(cluster, program)[0] == 2 * 8 * 9


def test_without_data_there_is_nothing_to_compare():
    def program(group):
        with torch.device("meta"):
            model = make()
        check_same_parameters(model, group)
        broadcast_parameters(model, group)

    Cluster(2).run(program)
