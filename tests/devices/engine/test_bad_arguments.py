"""Arguments of the wrong kind: each is refused with a sentence that says what to pass."""

import pytest
import torch

from lib import Cluster, Mesh, all_to_all, shard, unshard
from lib.devices import Hardware, Link

X = torch.ones(4, 4)


def generator(group):
    yield group.rank


async def coroutine(group):
    return group.rank


@pytest.mark.parametrize(
    ("program", "error", "words"),
    [
        (lambda group: group.all_gather(X, dim="a"), TypeError, "all_gather on rank 0 of group (0, 1): dim='a'"),
        (lambda group: group.all_gather(X, dim=1.0), TypeError, "dim=1.0 must be an integer"),
        (lambda group: group.all_gather(X, dim=True), TypeError, "dim=True must be an integer"),
        (lambda group: group.all_reduce(X, op="mean"), ValueError, "all_reduce on rank 0 of group (0, 1): op='mean'"),
        (lambda group: group.all_reduce(X, op=["sum"]), ValueError, "op=['sum'] is not one of 'sum', 'max', 'min'"),
        (lambda group: group.split(2.0), TypeError, "split(2.0) on rank 0: pass a number of groups"),
        (lambda group: group.split([0, 1]), TypeError, "split([0, 1]) on rank 0: pass a number of groups"),
        (lambda group: group.split(True), TypeError, "split(True) on rank 0: pass a number of groups"),
        (lambda group: shard(X, 3, 0), TypeError, "needs the group that the program was given, not int"),
        (lambda group: shard(X, group, 0.0), TypeError, "shard on rank 0: dim=0.0 must be an integer"),
        (lambda group: shard(X, group, True), TypeError, "shard on rank 0: dim=True must be an integer"),
        (lambda group: shard(X, group.split([[1]]), 0), ValueError, "shard: this device is not a member"),
        (lambda group: Mesh(group.split([[1]]), tp=1), ValueError, "Mesh: this device is not a member"),
        (lambda group: Mesh(group, axes=2), ValueError, "an axis cannot be called 'axes'"),
        (lambda group: Mesh(group, coordinates=2), ValueError, "an axis cannot be called 'coordinates'"),
        (lambda group: all_to_all(X, group, 0, -2), ValueError, "split_dim=0 and concat_dim=-2 are the same dim"),
        (generator, TypeError, "generator is a generator or async function"),
        (coroutine, TypeError, "coroutine is a generator or async function"),
    ],
)
def test_is_refused(program, error, words):
    with pytest.raises(error) as caught:
        Cluster(2).run(program)
    assert words in str(caught.value)


def test_a_tensor_where_a_list_of_shards_belongs():
    with pytest.raises(TypeError, match="list of all pieces in rank order, not one tensor"):
        unshard(X, 0)


def test_a_verb_that_does_not_exist_is_not_counted_as_zero():
    cluster = Cluster(2)
    cluster.run(lambda group: group.barrier())
    assert cluster.meters.count(verb="all_reduce").calls == 0
    with pytest.raises(ValueError, match="no verb 'allreduce'; the verbs are all_gather, all_reduce, .*, send"):
        cluster.meters.count(verb="allreduce")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cluster(2, hardware=5),
        lambda: Link(latency=0.0, bandwidth="fast"),
        lambda: Link(latency=True, bandwidth=1.0),
        lambda: Hardware("x", "1", 1.0, 1.0, Link(0.0, 1.0)),
        lambda: Hardware("x", 1.0, 1.0, 1.0, inside=None),
        lambda: Hardware("x", 1.0, 1.0, 1.0, Link(0.0, 1.0), per_node=2.5),
    ],
)
def test_hardware_of_the_wrong_kind(make):
    with pytest.raises(TypeError, match="must be"):
        make()
