"""Data beside tensor parallelism: what one transformer layer costs each device, in closed form.

For b samples of s tokens, hidden size h and P devices, in 16-bit numbers, on rings::

                            parameters held      all-reduced per step, elements     sent per device, bytes
    data parallel           12h² + 13h           12h² + 13h, the gradients          2 (P-1)/P · 2 (12h² + 13h)
    tensor parallel         (12h² + 7h)/P + 6h   4 sbh, the activations             4 · 2 (P-1)/P · 2 sbh

So data parallelism pays for parameters, whatever the batch, and tensor parallelism for activations, whatever the model.
"""

from dataclasses import dataclass, replace

from lib.costs.activations import LayerShape, activation_bytes

BYTES = 2  # of a 16-bit number


@dataclass(frozen=True)
class LayerCosts:
    """Of one `ParallelBlock`, on each device: parameters (their number), and bytes kept for the backward and sent."""

    parameters: float
    activations: float
    sent: float


def layer_parameters(hidden: int, devices: int = 1) -> float:
    """Parameters that each device holds: P times fewer weights, but all of the two LayerNorms and of two biases."""
    return (12 * hidden**2 + 7 * hidden) / devices + 6 * hidden


def data_parallel_costs(shape: LayerShape, devices: int) -> LayerCosts:
    """Every device has the layer and its share of the batch, and the gradients are all-reduced once.

    Raises ValueError when the devices do not divide the batch.
    """
    if shape.batch % devices:
        raise ValueError(f"a batch of {shape.batch} cannot be divided evenly over {devices} devices")
    parameters = layer_parameters(shape.hidden)
    mine = replace(shape, batch=shape.batch // devices)
    return LayerCosts(parameters, activation_bytes(mine), 2 * _trip(devices) * BYTES * parameters)


def tensor_parallel_costs(shape: LayerShape, devices: int, sequence_parallel: bool = False) -> LayerCosts:
    """Every device has all samples, and its share of the heads and of the MLP: 4 all-reduces of sbh per step.

    With `sequence_parallel`, 10 trips round the ring in the place of 8: the two in the backward that gather the input
    of a region once more. And an all-reduce of h for each of the 6 small parameters: LayerNorms and biases.

    Raises ValueError when the devices do not divide the heads, or with `sequence_parallel` the sequence.
    """
    activations = activation_bytes(shape, devices, sequence_parallel)
    sbh = shape.sequence * shape.batch * shape.hidden
    elements = 10 * sbh + 6 * 2 * shape.hidden if sequence_parallel else 4 * 2 * sbh
    return LayerCosts(layer_parameters(shape.hidden, devices), activations, _trip(devices) * BYTES * elements)


def _trip(devices: int) -> float:
    """The share of a tensor that each device sends on one trip round the ring."""
    return (devices - 1) / devices
