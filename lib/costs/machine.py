"""What a step of training really gets out of a machine: a `Hardware`, and the few numbers that no data sheet tells.

They were found from measured runs (`lib.costs.calibrate`, `lib.costs.runs`), and each has a meaning:

    A100, two, from three tables of Megatron-LM:     products, passes
    H100, six, from the sweep of one code base:      products, layer_floor, gradient_hop, stall, and of the links
                                                     between nodes bandwidth and latency

Not fitted: `head`, the best that any product reaches ("MAMF" in Bekman's book), the links inside a node, measured by
others, and `accumulation`, which is counted. For memory there are two more, `copies` and `gathered`, and a `reserve`.
"""

from dataclasses import dataclass, replace

from lib.devices.hardware import A100, H100, NVLINK_HOP, Hardware, Link


@dataclass(frozen=True)
class Machine:
    """`products`: the share of the peak that the products of a layer reach, and `head` that of the much wider product
    with the vocabulary.

    `passes`: how often each activation that is kept crosses the memory in a forward: written, read, and read again.
    `layer_floor`: the least seconds of a layer, forward and backward, for the host cannot issue its kernels faster.
    `gradient_hop`: seconds of one hop of the ring that sums the gradients, all its messages together.
    `stall`: seconds that each rank adds to each collective of its tensor group when a pipeline spans nodes. It was
    seen in the runs, and nobody has explained it.
    `accumulation`: bytes of memory traffic per parameter when a micro-batch's gradients join the sum; 0 where the
    product itself adds them, as in Megatron-LM.

    For memory: `copies`, the activations kept as a multiple of the count; `gathered`, how many inputs each layer keeps
    whole that need not be, without a pipeline; and `reserve`, bytes for the driver and the communicators.
    """

    hardware: Hardware
    products: float = 0.6
    head: float = 0.8
    passes: float = 2.37
    layer_floor: float = 0.0
    gradient_hop: float = 14e-6
    stall: float = 0.0
    accumulation: float = 0.0
    copies: float = 1.0
    gathered: float = 0.0
    reserve: float = 2e9


A100_RUNS = Machine(replace(A100, inside=Link(NVLINK_HOP, 235e9)), products=0.679, head=0.869, passes=2.37)
H100_RUNS = Machine(
    replace(H100, inside=Link(NVLINK_HOP, 370e9), between=Link(80e-6, 16.3e9)),
    products=0.458, head=0.803, passes=2.37, layer_floor=4.41e-3, gradient_hop=396e-6, stall=270e-6,
    accumulation=2 + 2 + 4 + 4, copies=1.45, gathered=1, reserve=0.5e9,
)  # fmt: skip
