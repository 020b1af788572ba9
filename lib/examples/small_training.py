"""What all programs of `beside_pytorch.py` have in common: a small MLP, its data, the loop that trains it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import ParallelMLP, shard_batch
from lib.devices import Group
from lib.parallel.sharding.dense import layout_of

HIDDEN, BATCH = 24, 24

Result = tuple[list[float], dict[str, Tensor]]
Batches = list[tuple[Tensor, Tensor]]


class MLP(nn.Module):
    """The dense model: Linear -> GeLU -> Linear, (B, h) -> (B, h)."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


def dense_mlp(seed: int = 0) -> MLP:
    """In float64; the same for the same seed."""
    torch.manual_seed(seed)
    return MLP().double()


def parallel_mlp(group: Group) -> ParallelMLP:
    """This device's shards of `dense_mlp()`: a parallel layer draws what the dense one draws."""
    torch.manual_seed(0)
    return ParallelMLP(HIDDEN, group).double()


def batches(steps: int) -> Batches:
    """`steps` times (input, target), each (B, h)."""
    x = torch.randn(steps, BATCH, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return list(zip(x, x.flip(-1).tanh(), strict=True))


def my_batches(steps: int, group: Group) -> Batches:
    """This device's samples of each batch, (B/P, h)  Shard(0). ValueError unless all have equally many."""
    if BATCH % group.size:
        raise ValueError(f"my_batches: {BATCH} samples cannot be split evenly over {group.size} devices")
    return [(shard_batch(x, group), shard_batch(target, group)) for x, target in batches(steps)]


def train_mlp(model: nn.Module, data: Batches, before_step: Callable[[], None] = lambda: None) -> list[float]:
    """The loop of all: AdamW, one step per batch. Returns the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for x, target in data:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        loss.backward()
        before_step()
        optimizer.step()
        losses.append(loss.item())
    return losses


def one_device(steps: int) -> Result:
    """The oracle: nothing is split."""
    model = dense_mlp()
    return train_mlp(model, batches(steps)), weights(model)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters, by name."""
    return {name: p.detach() for name, p in model.named_parameters()}


def gathered(state: Mapping[str, Tensor], model: nn.Module, group: Group) -> dict[str, Tensor]:
    """The whole weights, by name, from this device's pieces in `state`: each layer knows its layout."""
    return {
        name: layout_of(model, name).whole(group.all_gather(piece.detach()[None]).unbind())
        for name, piece in state.items()
    }
