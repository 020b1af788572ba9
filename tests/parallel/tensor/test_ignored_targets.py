"""Targets that do not count are left out as by PyTorch's cross-entropy, value and gradient; targets of any type."""

import pytest
import torch
from torch.nn import functional as F

from lib import (
    GPT,
    Cluster,
    GPTConfig,
    PaddedShard,
    load_dense,
    mean_loss,
    vocab_parallel_cross_entropy,
)

V = 7
LOGITS = torch.randn(2, 5, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([[1, 2, 3, -100, -100], [0, 6, 5, 4, -100]])
NONE = torch.full((2, 5), -100)


def split(group, targets, ignore_index=-100):
    mine = PaddedShard(V).piece(LOGITS.permute(2, 0, 1), group.size, group.rank).permute(1, 2, 0)
    mine = mine.clone().requires_grad_()
    losses = vocab_parallel_cross_entropy(mine, targets, group, V, ignore_index)
    loss = mean_loss(losses, targets, ignore_index)
    loss.backward()
    return losses.detach(), loss.detach(), mine.grad


def dense(targets, ignore_index=-100):
    logits = LOGITS.clone().requires_grad_()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=ignore_index)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=ignore_index)
    loss.backward()
    return losses.view(2, 5), loss.detach(), logits.grad


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("targets", "ignore_index"), [(TARGETS, -100), (TARGETS.clamp(min=0), 0), (TARGETS.clamp(min=0), 6), (NONE, -100)]
)
def test_as_pytorchs(devices, targets, ignore_index):
    right_losses, right, right_grad = dense(targets, ignore_index)
    outputs = Cluster(devices).run(split, targets, ignore_index)
    for losses, loss, _ in outputs:
        assert torch.allclose(losses, right_losses, rtol=0, atol=1e-12)
        assert torch.allclose(loss, right, rtol=0, atol=1e-12, equal_nan=True)
    grad = torch.cat([grad for *_, grad in outputs], -1)[..., :V]
    assert torch.allclose(grad, right_grad, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_whole_numbers_of_any_type(dtype):
    targets = TARGETS.clamp(min=0)
    for ours, plain in zip(Cluster(2).run(split, targets.to(dtype)), Cluster(2).run(split, targets), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_what_are_no_numbers_of_tokens(dtype):
    with pytest.raises(TypeError, match="targets are numbers of tokens, not torch"):
        Cluster(2).run(split, TARGETS.to(dtype))


def test_another_number_outside_of_the_vocabulary_is_still_refused():
    with pytest.raises(IndexError, match="token -1 is not in a vocabulary of 7"):
        Cluster(2).run(split, TARGETS.clamp(min=-1))
    with pytest.raises(IndexError, match="token -100 is not in a vocabulary of 7"):
        Cluster(2).run(split, TARGETS, 3)


@pytest.mark.parametrize("devices", [1, 2])
def test_the_loss_of_a_gpt(devices):
    config = GPTConfig(1, 8, 2, vocabulary=V, positions=5)
    state = {name: torch.randn(shape, dtype=torch.float64) for name, shape in config.shapes().items()}

    def program(group):
        model = GPT(config, group).double()
        load_dense(model, state, group)
        tokens = TARGETS.clamp(min=0)
        return model(tokens, TARGETS).detach(), model.whole_logits(model(tokens)).detach()

    for loss, logits in Cluster(devices).run(program):
        assert torch.allclose(loss, F.cross_entropy(logits.flatten(0, 1), TARGETS.flatten()), rtol=0, atol=1e-12)


def test_targets_that_are_bytes():
    """156 is what -100 is as a byte: PyTorch takes them for equal."""
    targets = torch.tensor([[156, 3, 255, 156]])
    losses = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert mean_loss(losses, targets.to(torch.uint8)) == mean_loss(losses, targets) == 2.5


@pytest.mark.parametrize("shape", [(2, 4), (1, 5), (2, 1), (5,), (2, 5, 1)])
def test_targets_of_another_shape_are_not_broadcast(shape):
    with pytest.raises(ValueError, match=r"on rank \d of 2: targets \(.*\) for logits \(2, 5, 4\).* token: \(2, 5\)"):
        Cluster(2).run(split, torch.ones(shape, dtype=torch.long))
