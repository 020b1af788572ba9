"""What a parallel layer does, seen from outside: the shapes that pass its parts, and what each device sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from book.pictures.kit.axis import readable
from book.pictures.kit.holders import check_devices, count
from lib.devices import Cluster, Group
from lib.parallel.sharding.shards import shard_sizes

Shape = tuple[int, ...]
MOST_DEVICES = 8


@dataclass
class Seen:
    """Of one device: the shapes into and out of every submodule by name, without the batch dimension.

    `forward` and `backward` say what it sends: verb -> (calls, bytes).
    """

    inputs: dict[str, Shape] = field(default_factory=dict)
    outputs: dict[str, Shape] = field(default_factory=dict)
    weights: dict[str, Shape] = field(default_factory=dict)
    forward: dict[str, tuple[int, int]] = field(default_factory=dict)
    backward: dict[str, tuple[int, int]] = field(default_factory=dict)


def observe(
    make: Callable[[Group], nn.Module], sequence: int, hidden: int, devices: int, sequence_parallel: bool = False
) -> Seen:
    """What device 0 sees when the layer `make(group)` is run forward and backward on one sequence, in bfloat16.

    The whole input is (1, sequence, hidden); with `sequence_parallel`, each device has its own tokens of it. There is
    no data: shapes and bytes are those of a real run.

    Errors: ValueError for more than 8 devices.
    """
    check_devices(devices, MOST_DEVICES)
    seen = Seen()

    def forward(group: Group, watch: bool = False) -> torch.Tensor:
        layer = make(group).bfloat16()
        if watch and group.rank == 0:
            _watch(layer, seen)
        tokens = shard_sizes(sequence, group.size)[group.rank] if sequence_parallel else sequence
        x = torch.empty(1, tokens, hidden, dtype=torch.bfloat16, requires_grad=True)  # (1, S or S/P, hidden)
        return layer(x)  # (1, S or S/P, hidden)

    with torch.device("meta"):
        once, twice = Cluster(devices), Cluster(devices)
        once.run(forward, watch=True)
        twice.run(lambda group: forward(group).sum().backward())
    seen.forward, both = _sent(once), _sent(twice)
    for verb, (calls, size) in both.items():
        before = seen.forward.get(verb, (0, 0))
        if before != (calls, size):
            seen.backward[verb] = calls - before[0], size - before[1]
    return seen


def sentence(sent: Mapping[str, tuple[int, int]]) -> str:
    """In words: "2 all-reduces, 9.44 MB"."""
    if not sent:
        return "nothing"
    calls = ", ".join(count(calls, verb.replace("_", "-")) for verb, (calls, _) in sorted(sent.items()))
    return f"{calls}: {readable(sum(size for _, size in sent.values()), 'B')}"


def _watch(layer: nn.Module, seen: Seen) -> None:
    def note(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            seen.inputs[name], seen.outputs[name] = tuple(inputs[0].shape[1:]), tuple(output.shape[1:])

        return hook

    for name, module in layer.named_modules():
        module.register_forward_hook(note(name))
        if isinstance(getattr(module, "weight", None), torch.Tensor):
            seen.weights[name] = tuple(reversed(module.weight.shape))  # stored as (out, in), written as (in, out)


def _sent(cluster: Cluster) -> dict[str, tuple[int, int]]:
    """What device 0 sent: verb -> (calls, bytes)."""
    counts = {verb: cluster.meters.count(0, verb) for verb in cluster.meters.verbs()}
    return {verb: (count.calls, count.bytes_sent) for verb, count in counts.items() if count.bytes_sent}
