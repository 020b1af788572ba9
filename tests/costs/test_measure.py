"""`measure` tells of one device what every counter on its own tells, by direction."""

from dataclasses import replace

import pytest
import torch
from parallel.dense_transformer import forward_and_backward
from torch import nn

from lib import (
    Cluster,
    ParallelMLP,
    Replicate,
    SequenceMLP,
    Shard,
    VocabParallelEmbedding,
    measure,
    shard,
)
from lib.costs.measure import Phase

B, S, H, P = 2, 8, 16, 4


@pytest.mark.parametrize("size", [1, 2, P])
@pytest.mark.parametrize(("make", "cut"), [(ParallelMLP, Replicate()), (SequenceMLP, Shard(1))], ids=["TP", "TP+SP"])
def test_an_mlp_in_numbers(make, cut, size):
    found = measure(lambda group: make(H, group), (B, S, H), devices=size, cut=cut)
    product = 2 * B * S * H * 4 * H // size
    assert found.parameters == (2 * H * 4 * H + 4 * H) // size + H
    assert (found.forward.flops, found.backward.flops, found.flops) == (2 * product, 4 * product, 6 * product)
    mine = S // size if cut == Shard(1) else S
    assert found.inputs == {"": (B, mine, H), "up": (B, mine, H), "down": (B, S, 4 * H // size)}
    assert found.outputs == {"": (B, mine, H), "up": (B, S, 4 * H // size), "down": (B, mine, H)}
    assert found.weights == {"up": (4 * H // size, H), "down": (H, 4 * H // size)}
    assert found.activations == 2 * B * (mine * H + 2 * S * 4 * H // size)  # the input, and GeLU's two sides


@pytest.mark.parametrize(("make", "cut"), [(ParallelMLP, None), (SequenceMLP, 1)], ids=["TP", "TP+SP"])
@pytest.mark.parametrize("rank", [0, P - 1])
def test_what_is_sent_is_told_by_direction(make, cut, rank):
    def run(group):
        x = torch.ones(B, S, H, dtype=torch.bfloat16)
        return make(H, group).bfloat16()((x if cut is None else shard(x, group, cut)).requires_grad_())

    found = measure(lambda g: make(H, g), (B, S, H), devices=P, cut=Replicate() if cut is None else Shard(1), rank=rank)
    for phase, expected in zip((found.forward, found.backward), forward_and_backward(P, run), strict=True):
        assert {verb: (count.calls, count.bytes_sent) for verb, count in phase.sent.items()} == expected
    assert found.bytes_sent == found.forward.bytes_sent + found.backward.bytes_sent
    assert sum(found.calls.values()) == sum(found.forward.calls.values()) + sum(found.backward.calls.values())


def test_tokens_are_taken_as_they_are_and_construction_is_not_counted():
    class Model(nn.Module):
        def __init__(self, group):
            super().__init__()
            group.broadcast(torch.ones(1))  # not a part of the step
            self.embedding = VocabParallelEmbedding(10, H, group)

        def forward(self, tokens):
            return self.embedding(tokens).sum()

    found = measure(Model, torch.zeros(B, S, dtype=torch.long), devices=2)
    assert found.forward.calls == {"all_reduce": 1}
    assert found.backward.calls == {}
    assert found.inputs[""] == (B, S)
    assert found.outputs[""] == ()


def test_other_numbers_and_places():
    as_float = measure(lambda g: ParallelMLP(H, g), (B, S, H), devices=2, dtype=torch.float32, device="cpu")
    as_half = measure(lambda g: ParallelMLP(H, g), (B, S, H), devices=2)
    assert (as_float.bytes_sent, as_float.activations) == (2 * as_half.bytes_sent, 2 * as_half.activations)
    assert as_float.flops == as_half.flops


@pytest.mark.parametrize("rank", [0, 1])
def test_without_a_backward_the_forward_is_told_as_with_it(rank):
    make = lambda group: SequenceMLP(H, group)  # noqa: E731
    both, alone = (measure(make, (B, S, H), devices=2, cut=Shard(1), rank=rank, backward=b) for b in (True, False))
    assert alone == replace(both, backward=Phase(0, {}))
    assert both.backward.flops
    assert both.backward.sent


def test_what_goes_wrong_on_a_device_is_told():
    with pytest.raises(ValueError, match="an inner size of 64 cannot be split over 3 devices"):
        measure(lambda group: ParallelMLP(H, group), (B, S, H), devices=3)
    assert Cluster(1).run(lambda group: group.size) == [1]
