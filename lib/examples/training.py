"""Training a GPT, data x tensor parallel: the program of one device."""

from collections.abc import Callable

import torch

from lib import average_gradients, shard_batch
from lib.devices import Group, Mesh
from lib.examples.text import Text
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT
from lib.parallel.sequence.model import SequenceGPT


def train(
    group: Group,
    config: GPTConfig,
    text: Text,
    steps: int,
    data_parallel: int = 1,
    batch: int = 16,
    length: int = 64,
    rate: float = 1e-2,
    sequence_parallel: bool = False,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[list[float], GPT]:
    """Returns the loss of every step (the mean over the whole batch, the same on all devices) and this device's GPT.

    The devices form a grid: `data_parallel` replicas, each of them split over the others. Neighboring ranks share a
    replica, since tensor parallelism talks most. Whatever the grid, the model and its updates are those of one device.

    The learning rate rises to `rate` and falls again. `progress(step, loss)` is called on rank 0 after each step. On
    the meta device, which has shapes and no numbers, there are no losses. Raises ValueError when the devices do not
    divide into so many replicas.
    """
    if group.size % data_parallel:
        raise ValueError(
            f"train on rank {group.rank}: {group.size} devices cannot be divided into {data_parallel} equal replicas; "
            f"data_parallel must divide {group.size}"
        )
    mesh = Mesh(group, dp=data_parallel, tp=group.size // data_parallel)
    torch.manual_seed(seed)  # every device draws the same dense weights, and keeps its shards
    model = (SequenceGPT if sequence_parallel else GPT)(config, mesh.tp).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, cycle_momentum=False)
    losses, here = [], torch.get_default_device()
    for step, (tokens, targets) in enumerate(text.batches(steps, batch, length, seed)):
        # Drawn on the CPU, where the text is; trained with where the model is.
        tokens, targets = tokens.to(here), targets.to(here)
        tokens, targets = shard_batch(tokens, mesh.dp), shard_batch(targets, mesh.dp)  # (B/dp, S)  Shard(0) over dp
        optimizer.zero_grad()
        loss = model(tokens, targets)
        loss.backward()
        share = len(tokens) / batch
        average_gradients(model, mesh.dp, share)
        optimizer.step()
        schedule.step()
        loss = mesh.dp.all_reduce(share * loss.detach())  # ()  Partial -> Replicate over dp
        if loss.is_meta:
            continue
        losses.append(loss.item())
        if progress is not None and group.rank == 0:
            progress(step, losses[-1])
    return losses, model
