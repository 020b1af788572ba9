"""How a GPT is trained: all that is not the model and not the text."""

import math
from dataclasses import dataclass

import torch

from lib.devices.counts import counted
from lib.devices.pieces import shard_sizes
from lib.parallel.gpt.block import Recompute

STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Recipe:
    """`batch` counts the texts of a step, for all replicas and micro-batches together, each of `length` tokens.

    A replica is cut into `pipeline_parallel` stages, which take the `accumulate` micro-batches in the order of 1F1B.
    `rate` is the highest learning rate. `zero` is the stage of ZeRO over the replicas. `clip` is the largest norm of
    the gradients, None for any. With `master_weights`, a model of bfloat16 is stepped in float32.
    """

    steps: int = 100
    data_parallel: int = 1
    pipeline_parallel: int = 1
    batch: int = 16
    length: int = 64
    rate: float = 1e-2
    seed: int = 0
    accumulate: int = 1
    clip: float | None = None
    zero: int = 0
    recompute: Recompute | None = None
    sequence_parallel: bool = False
    dtype: torch.dtype = torch.float32
    master_weights: bool = True

    def check(self, size: int) -> None:
        """Raises ValueError, which names the option, when `size` devices cannot train so."""
        if size % self.data_parallel:
            raise ValueError(
                f"{size} devices cannot be divided into {self.data_parallel} equal replicas; data_parallel must divide "
                f"{size}"
            )
        if size // self.data_parallel % self.pipeline_parallel:
            raise ValueError(
                f"the {counted(size // self.data_parallel, 'device')} of a replica cannot be divided into "
                f"{self.pipeline_parallel} equal stages; pipeline_parallel must divide them"
            )
        if self.pipeline_parallel > 1 and self.zero:
            raise ValueError(
                f"zero={self.zero} with pipeline_parallel={self.pipeline_parallel}: this trainer does not put the two "
                "together. Take zero=0, or one stage"
            )
        if self.zero not in STAGES:
            raise ValueError(f"zero={self.zero}: the stages of ZeRO are 0 (none), 1, 2 and 3")
        if self.zero == 3 and self.recompute == "full":
            raise ValueError(
                "zero=3 with recompute='full': what is computed again would find its parameters freed. Take zero=2, or "
                "recompute='selective'"
            )
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate={self.rate} must be above 0")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip={self.clip} must be above 0; leave it out to clip nothing")
        fewest = min(shard_sizes(self.batch, self.data_parallel))
        if fewest < self.accumulate:
            raise ValueError(
                f"a batch of {counted(self.batch, 'text')} over {counted(self.data_parallel, 'replica')} leaves one "
                f"with {fewest}, which cannot be cut into {counted(self.accumulate, 'micro-batch')}. Take a batch of "
                f"at least {self.accumulate * self.data_parallel}"
            )

    @property
    def tokens(self) -> int:
        """How many a step trains with."""
        return self.batch * self.length

    @property
    def has_masters(self) -> bool:
        """Whether the parameters are stepped in float32, and rounded from it."""
        return self.master_weights and self.dtype.itemsize < 4
