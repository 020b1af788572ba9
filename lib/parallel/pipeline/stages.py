"""A GPT in stages: each device keeps some of the layers, the first the embedding too, the last the head.

The head is the embedding once more. If both ends lie on one device, they share the weight and autograd adds up both
gradients; if not, each end has a copy, and `reduce_tied` adds up the two gradients.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from lib.devices import Group
from lib.devices.pieces import shard_sizes
from lib.parallel.gpt.model import GPT
from lib.parallel.pipeline.steps import Schedule


def cut_layers(layers: int, stages: int, sizes: Sequence[int] | None = None) -> list[range]:
    """Which layers each stage has: as equal as possible, the first stages one more; or `sizes`, a number for each.

    Raises ValueError when a stage would have none, or the sizes do not add up.
    """
    sizes = shard_sizes(layers, stages) if sizes is None else list(sizes)
    if len(sizes) != stages or sum(sizes) != layers or min(sizes) < 1:
        raise ValueError(
            f"{layers} layers cannot be cut into {stages} stages of {sizes} layers: each needs at least one, and they "
            "must add up. Take fewer stages (devices times chunks), or more layers"
        )
    ends = [sum(sizes[: i + 1]) for i in range(stages)]
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def cut_gpt(
    gpt: GPT, schedule: Schedule, device: int, sizes: Sequence[int] | None = None
) -> dict[int, Callable[[Tensor], Tensor]]:
    """Takes out of `gpt` what does not lie on `device`, and returns the stages that do, for `run_pipeline`.

    The weights that stay keep their names and values. `sizes` are those of `cut_layers`. Stage 0 takes tokens
    (batch, S); the last gives logits (batch, S, padded V/P) Shard(-1); between them goes (batch, S, hidden).
    """
    layers = cut_layers(len(gpt.blocks), schedule.stages, sizes)
    mine, last = schedule.stages_of(device), schedule.stages - 1
    gpt.blocks = nn.ModuleDict({str(i): gpt.blocks[i] for stage in mine for i in layers[stage]})
    if 0 not in mine:
        gpt.positions = None
    if last not in mine:
        gpt.norm = None
    if not {0, last} & set(mine):
        gpt.embedding = None
    return {stage: partial(_stage, gpt, layers[stage], stage == 0, stage == last) for stage in mine}


def _stage(gpt: GPT, layers: range, first: bool, last: bool, x: Tensor) -> Tensor:
    if first:
        x = gpt.embed(x)  # (batch, S) -> (batch, S, hidden)
    for i in layers:
        x = gpt.blocks[str(i)](x)  # (batch, S, hidden)
    return gpt.head(x) if last else x


def reduce_tied(group: Group, schedule: Schedule, gpt: GPT) -> None:
    """Adds up the embedding's gradients of the first and the last stage, on both. All devices of `group` call it,
    after the last backward; a frozen embedding has none. Communication: one all-reduce between the two ends, if they
    lie on two devices."""
    first, last = schedule.device_of[0], schedule.device_of[schedule.stages - 1]
    if first == last:
        return
    ends = group.split([sorted((first, last))])
    if ends.rank is not None and gpt.embedding.weight.requires_grad:
        weight = gpt.embedding.weight
        weight.grad = ends.all_reduce(weight.grad)
