"""Layers that do not treat each sample by itself: with a part of the batch, they compute other numbers than one device.

Data parallelism rests on the mean over samples. A BatchNorm takes statistics of the batch, and no average of gradients
makes good for it; an embedding with `max_norm` shortens the rows that its own tokens look up, so copies come apart.
"""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lib.devices import Group


def check_samples(module: nn.Module, group: Group, who: str) -> None:
    """Raises ValueError when a layer of `module`, as it is now, would make another number of a part of a batch."""
    if group.size == 1:
        return
    for name, layer in module.named_modules():
        for does, instead in _faults(layer):
            raise ValueError(
                f"{who}: {name or 'the module'} ({type(layer).__name__}) {does} its batch, and a part of the batch is "
                f"here: the numbers would not be those of one device. {instead}"
            )


def _faults(layer: nn.Module) -> Iterator[tuple[str, str]]:
    """What `layer` does with its batch, and how to do without."""
    if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
        yield (
            "takes the statistics of",
            "Use a GroupNorm or a LayerNorm; with statistics that are there, call its eval()",
        )
    if isinstance(layer, _InstanceNorm) and layer.training and layer.running_mean is not None:
        yield "keeps the statistics of", "Set track_running_stats=False"
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        if layer.max_norm is not None:
            yield "shortens the rows that are looked up in", "Leave max_norm out, and shorten all rows after each step"
        if layer.scale_grad_by_freq:
            yield "counts the tokens of", "Leave scale_grad_by_freq out"
