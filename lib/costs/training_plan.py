"""How a model is trained: on which grid of devices, in which precision, with which optimizer, and what saves memory."""

from dataclasses import dataclass
from typing import Literal, get_args

from lib.costs.shapes import ModelShape
from lib.devices.counts import check_counts
from lib.parallel.attention.heads import check_heads
from lib.parallel.gpt.block import Recompute

SIZES = ("sequence", "micro_batch", "micro_batches", "data", "tensor", "pipeline", "every", "chunks")
Optimizer = Literal["sgd", "momentum", "adam", "adam-8bit", "adafactor"]


@dataclass(frozen=True)
class Precision:
    """Bytes of one number: of a `parameter`, of its `gradient`, of its float32 `master` copy (0: there is none), of
    what the `optimizer` keeps of it, and of an `activation`."""

    parameter: int
    gradient: int
    master: int
    optimizer: int
    activation: int


PRECISIONS = {
    "float32": Precision(4, 4, 0, 4, 4),
    "bfloat16": Precision(2, 2, 0, 2, 2),  # all of it, without master weights: small steps are rounded away
    "mixed": Precision(2, 2, 4, 4, 2),  # 16 bytes per parameter with Adam
    "mixed, float32 gradients": Precision(2, 4, 4, 4, 2),  # 18, as Megatron-LM with bfloat16
    "mixed, gradients twice": Precision(2, 2 + 4, 4, 4, 2),  # 20, as Megatron-LM with float16
}


@dataclass(frozen=True)
class TrainingPlan:
    """How a model is trained: the grid of `data` x `tensor` x `pipeline` devices, and what is done to save memory.

    A replica takes `micro_batches` micro-batches of `micro_batch` texts of `sequence` tokens for each step. `zero` is
    the stage of ZeRO over the replicas. `recompute`: "selective" computes the scores anew, "full" whole layers, from
    the input of every `every`-th. `fused_attention` never stores scores (FlashAttention). `cpu`: the kernels are
    those of PyTorch on a CPU (and on `meta`), which keep more: of an RMSNorm, whose steps they write out in float32,
    and of fused attention, whose output they copy. `chunks` cuts the tokens for the loss, so that only one chunk's
    logits exist at a time.

    Raises ValueError for what cannot be, naming it.
    """

    sequence: int
    micro_batch: int = 1
    micro_batches: int = 1
    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    zero: int = 0
    sequence_parallel: bool = False
    recompute: Recompute | None = None
    every: int = 1
    fused_attention: bool = True
    cpu: bool = False
    dropout: bool = False
    chunks: int = 1
    precision: str = "mixed"
    optimizer: Optimizer = "adam"

    def __post_init__(self) -> None:
        check_counts("TrainingPlan", {name: getattr(self, name) for name in SIZES})
        choices = {
            "zero": (0, 1, 2, 3),
            "recompute": (None, *get_args(Recompute)),
            "precision": tuple(PRECISIONS),
            "optimizer": get_args(Optimizer),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"TrainingPlan: {name}={getattr(self, name)!r} must be one of {allowed}")

    @property
    def devices(self) -> int:
        """All of them."""
        return self.data * self.tensor * self.pipeline

    @property
    def global_batch(self) -> int:
        """Texts per optimizer step, over all replicas."""
        return self.micro_batch * self.micro_batches * self.data

    def check(self, shape: ModelShape) -> None:
        """Raises ValueError when `shape` cannot be split so, naming the sizes."""
        for what, size in (("heads", shape.heads), ("inner", shape.inner)):
            if size % self.tensor:
                raise ValueError(f"tensor={self.tensor} devices cannot split {what}={size} evenly")
        check_heads(shape.heads * shape.head_size, shape.heads, shape.kv_heads, self.tensor)
        if self.pipeline > shape.layers:
            raise ValueError(f"pipeline={self.pipeline} stages need as many layers at least; there are {shape.layers}")
        if self.sequence_parallel and self.sequence % self.tensor:
            raise ValueError(f"a sequence of {self.sequence} cannot be cut over tensor={self.tensor} devices evenly")
        if shape.learned_positions and self.sequence > shape.learned_positions:
            raise ValueError(f"sequence={self.sequence}: the model has {shape.learned_positions} positions")
