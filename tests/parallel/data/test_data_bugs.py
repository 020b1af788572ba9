"""Negative controls: each mistake of data parallelism changes the weights, though the loss curve still looks healthy.

Without them, the tests of equality could pass on a problem that has one answer whatever one does.
"""

import pytest
import torch
from parallel.small_model import OPTIMIZERS, distance, make_batches, make_model, one_thread, train_alone, weights  # noqa: F401

from lib import (
    average_gradients,
    broadcast_parameters,
    check_same_parameters,
    shard_batch,
)
from lib.devices import Cluster

UNEVEN = make_batches([8, 8, 5] * 7)
EVEN = make_batches([8] * 21)


def train(group, optimizer, batches, bug):
    """Returns what a reader looks at, the mean loss of every step, and the weights of this device."""
    model = make_model(seed=group.rank)
    if bug != "no broadcast":
        broadcast_parameters(model, group)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    losses = []
    for batch, whole_target in batches:
        tokens, target = shard_batch(batch, group), shard_batch(whole_target, group)
        share = {"sum": 1.0, "equal shares": None}.get(bug, len(tokens) / len(batch))
        optimizer.zero_grad()
        loss = model.loss(tokens, target)
        loss.backward()
        if bug != "no synchronization":
            average_gradients(model, group, share, allow_unused=True)
        optimizer.step()
        losses.append(float(group.all_reduce(loss.detach()) / group.size))
    return losses, weights(model)


def compare(bug, optimizer, batches):
    """(weights' distance to one device, weights' distance between devices, losses alone, losses with the bug)."""
    alone, right = train_alone(make_model(), optimizer, batches)
    outputs = Cluster(4).run(train, optimizer, batches, bug)
    to_right = max(distance(found, right) for _, found in outputs)
    between = max(distance(found, outputs[0][1]) for _, found in outputs)
    return to_right, between, alone, outputs[0][0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_a_bug_nothing_differs(optimizer):
    to_right, between, _, _ = compare(None, optimizer, UNEVEN)
    assert to_right <= 1e-12
    assert between == 0


BUGS = {
    # bug: (batches, replicas that differ from each other)
    "sum": (EVEN, False),
    "equal shares": (UNEVEN, False),
    "no broadcast": (EVEN, True),
    "no synchronization": (EVEN, True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bug", BUGS)
def test_each_bug_shows_in_the_weights_and_hides_in_the_loss(bug, optimizer):
    batches, replicas_differ = BUGS[bug]
    to_right, between, alone, losses = compare(bug, optimizer, batches)
    # AdamW divides by the gradient's size, so only its epsilon tells a sum from a mean.
    least = 1e-6 if (bug, optimizer) == ("sum", "AdamW") else 0.03
    assert to_right > least
    assert (between > 0.3) == replicas_differ
    assert between == 0 or replicas_differ
    assert sum(losses[-3:]) / 3 < 0.8 * losses[0], "a curve that falls"
    assert max(losses) < 1.05 * alone[0], "and that never rises"


def test_a_sum_learns_even_faster_here_since_the_steps_are_longer():
    _, _, alone, losses = compare("sum", "SGD", EVEN)
    assert losses[-1] < alone[-1] / 2


def test_a_sum_is_the_mean_with_a_learning_rate_times_the_devices():
    def program(group, share, lr):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        for batch in EVEN[:5]:
            optimizer.zero_grad()
            model.loss(*(shard_batch(x, group) for x in batch)).backward()
            average_gradients(model, group, share, allow_unused=True)
            optimizer.step()
        return weights(model)

    summed, averaged = Cluster(4).run(program, 1.0, 0.1)[0], Cluster(4).run(program, None, 0.4)[0]
    assert distance(summed, averaged) <= 1e-12


@pytest.mark.parametrize("bug", ["no broadcast", "no synchronization"])
def test_the_check_finds_replicas_that_have_come_apart(bug):
    def program(group):
        model = make_model(seed=group.rank if bug == "no broadcast" else 0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
        tokens, target = (shard_batch(x, group) for x in EVEN[1])
        model.loss(tokens, target).backward()
        if bug == "no broadcast":
            average_gradients(model, group, allow_unused=True)
        optimizer.step()
        check_same_parameters(model, group)

    with pytest.raises(ValueError, match=r"embed.weight \(11, 6\) is not the same.*\[0\]; \[1\]; \[2\]; \[3\]"):
        Cluster(4).run(program)
