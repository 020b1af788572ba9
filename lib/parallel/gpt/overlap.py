"""A layer, and a GPT, that hide the two all-reduces of each layer's backward (see `lib.parallel.tensor.overlap`)."""

from lib.parallel.attention.attention import ParallelSelfAttention
from lib.parallel.attention.heads import ParallelQKV
from lib.parallel.gpt.block import ParallelBlock
from lib.parallel.gpt.model import GPT
from lib.parallel.tensor.overlap import OverlappedColumnLinear, OverlappedMLP


class OverlappedQKV(OverlappedColumnLinear, ParallelQKV):
    """The fused projection of `ParallelQKV`, entered as `OverlappedColumnLinear` is."""


class OverlappedSelfAttention(ParallelSelfAttention):
    """A `ParallelSelfAttention` that hides the all-reduce of its backward."""

    QKV = OverlappedQKV


class OverlappedBlock(ParallelBlock):
    """A `ParallelBlock` that hides both all-reduces of its backward."""

    Attention, MLP = OverlappedSelfAttention, OverlappedMLP


class OverlappedGPT(GPT):
    """A `GPT` of such layers."""

    Block = OverlappedBlock
