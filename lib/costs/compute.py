"""FLOPs of a transformer from its shape, and whether a device computes them or waits for its memory.

A matrix product of (m, k) and (k, n) is 2 m k n FLOPs: a multiplication and an addition each. A backward pass is two
such products for each of the forward's, one for the input's gradient and one for the weight's: so a step is three
forwards. What is computed anew counts once more.

Kaplan et al. 2020, arXiv 2001.08361 (6 N D); Narayanan et al. 2021, arXiv 2104.04473, equation 3; Chowdhery et al.
2022, arXiv 2204.02311, appendix B (MFU).
"""

from dataclasses import dataclass
from typing import Literal

from lib.costs.shapes import ModelShape
from lib.devices.hardware import Hardware
from lib.parallel.gpt.block import Recompute


def forward_flops(shape: ModelShape, batch: int, sequence: int, causal_half: bool = False) -> dict[str, int]:
    """The FLOPs of the matrix products of one forward pass over `batch` texts of `sequence` tokens, part by part.

    Scores are counted whole, as most papers do; with `causal_half`, only the half that a causal mask keeps. A look-up
    in the embedding is no product. Of several experts only the active ones count.
    """
    tokens = batch * sequence
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    matrices = 3 if shape.gated else 2
    router = shape.experts if shape.experts > 1 else 0
    scores = 2 * 2 * tokens * sequence * queries * shape.layers  # QK^T, and the weights times V
    return {
        "projections": shape.layers * 2 * tokens * shape.hidden * (2 * queries + 2 * keys),
        "scores": scores // 2 if causal_half else scores,
        "MLP": shape.layers * 2 * tokens * shape.hidden * (matrices * shape.inner * shape.active_experts + router),
        "head": 2 * tokens * shape.hidden * shape.vocabulary,
    }


def step_flops(
    shape: ModelShape, batch: int, sequence: int, recompute: Recompute | None = None, causal_half: bool = False
) -> int:
    """The FLOPs of forward and backward: three forwards, and what is computed anew once more.

    `recompute`: None, "selective" (the scores) or "full" (every layer; the head is not).
    """
    if recompute not in (None, "selective", "full"):
        raise ValueError(f"recompute={recompute!r} must be None, 'selective' or 'full'")
    forward = forward_flops(shape, batch, sequence, causal_half)
    again = {"selective": forward["scores"], "full": sum(forward.values()) - forward["head"]}
    return 3 * sum(forward.values()) + again.get(recompute, 0)


def six_n_d(parameters: float, tokens: float, recompute: bool = False) -> float:
    """The rule of thumb: 6 FLOPs per parameter and token, 8 when every layer is computed anew.

    It leaves out the scores, and counts a look-up in the embedding as if it were a product.
    """
    return (8 if recompute else 6) * parameters * tokens


@dataclass(frozen=True)
class Work:
    """What a device does in one part of a layer: FLOPs, and the bytes that travel to and from its memory."""

    name: str
    flops: float
    moved: float

    @property
    def intensity(self) -> float:
        """FLOPs per byte. Above speed / bandwidth of the device the part is bound by compute, below by memory."""
        return self.flops / self.moved

    def seconds(self, hardware: Hardware) -> float:
        """By the roofline: the longer of computing and moving."""
        return hardware.compute_seconds(self.flops, self.moved)

    def bound(self, hardware: Hardware) -> Literal["compute", "memory"]:
        """What the part waits for on `hardware`."""
        return "compute" if self.intensity >= _border(hardware) else "memory"


def _border(hardware: Hardware) -> float:
    """FLOPs per byte at which computing takes as long as moving: of the speed that products reach, as `seconds`."""
    return hardware.reached / hardware.memory_bandwidth


def layer_work(shape: ModelShape, batch: int, new: int, seen: int = 0, itemsize: int = 2) -> list[Work]:
    """The parts of one layer's forward for `new` tokens of each of `batch` texts, after `seen` others (their keys and
    values lie in a cache). Training and prefill have `seen` = 0; a step of decoding has `new` = 1.

    Every tensor is read or written once by each part that uses it. Scores stay on the chip, as a fused kernel keeps
    them. Of several experts, all weights are read and the active ones computed.
    """
    tokens, length = batch * new, seen + new
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    h, inner, matrices = shape.hidden, shape.inner, 3 if shape.gated else 2

    def product(name: str, rows: int, columns: int, times: int = 1, held: int = 1) -> Work:
        weights = held * rows * columns
        return Work(name, 2 * tokens * rows * columns * times, itemsize * (weights + tokens * (rows + columns) * times))

    cache = 2 * batch * length * keys
    return [
        Work("norm 1", 4 * tokens * h, itemsize * 2 * tokens * h),
        product("queries, keys, values", h, queries + 2 * keys),
        Work("attention", 4 * tokens * length * queries, itemsize * (2 * tokens * queries + cache)),
        product("output projection", queries, h),
        Work("norm 2", 4 * tokens * h, itemsize * 2 * tokens * h),
        product("MLP in", h, (matrices - 1) * inner, shape.active_experts, shape.experts),
        Work("nonlinear function", 4 * tokens * inner, itemsize * matrices * tokens * inner * shape.active_experts),
        product("MLP out", inner, h, shape.active_experts, shape.experts),
    ]


def turning_batch(hardware: Hardware, itemsize: int = 2) -> float:
    """The batch at which decoding turns from memory-bound to compute-bound, for products with large weights.

    One token of each text meets every weight: 2 FLOPs for each of its `itemsize` bytes, times the batch. So the batch
    must reach speed / bandwidth x bytes / 2. Attention over the cache never turns: every text reads its own.
    """
    return _border(hardware) * itemsize / 2
