"""The sizes of a GPT: what must be known to build one, and how many parameters that makes.

GPT-2: Radford et al. 2019, table 2. GPT-3: Brown et al. 2020, arXiv 2005.14165, table 2.1; half of its layers attend
to a band of positions only, which changes no parameter and is left out here.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

from lib.devices.counts import check_counts

SIZES = {  # layers, hidden, heads, positions
    "gpt2": (12, 768, 12, 1024),
    "gpt2-medium": (24, 1024, 16, 1024),
    "gpt2-large": (36, 1280, 20, 1024),
    "gpt2-xl": (48, 1600, 25, 1024),
    "gpt3-175b": (96, 12288, 96, 2048),
}


@dataclass(frozen=True)
class GPTConfig:
    """`positions` is the longest text. `approximate` is the kind of GeLU: "tanh" in GPT-2, "none" for the exact one.

    `deviation` is that of the first random weights: 0.02 in GPT-2; narrower models learn sooner with more.
    """

    layers: int
    hidden: int
    heads: int
    vocabulary: int = 50257
    positions: int = 1024
    dropout: float = 0.0
    approximate: Literal["none", "tanh"] = "tanh"
    deviation: float = 0.02

    def __post_init__(self) -> None:
        sizes = ("layers", "hidden", "heads", "vocabulary", "positions")
        check_counts("GPTConfig", {name: getattr(self, name) for name in sizes})
        if self.hidden % self.heads:
            raise ValueError(f"GPTConfig: a hidden size of {self.hidden} cannot be divided into {self.heads} heads")
        if self.approximate not in ("none", "tanh"):
            raise ValueError(f"GPTConfig: approximate={self.approximate!r} must be 'none' or 'tanh'")

    @staticmethod
    def preset(name: str) -> "GPTConfig":
        """One of the published sizes by its name. Raises ValueError with the list of names for any other."""
        if name not in SIZES:
            raise ValueError(f"there is no size {name!r}; the sizes are {', '.join(SIZES)}, or make a GPTConfig(...)")
        layers, hidden, heads, positions = SIZES[name]
        return GPTConfig(layers, hidden, heads, positions=positions)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight of the dense model, by name. The output head is the embedding once more."""
        h = self.hidden
        layer = {
            "norm1": (h,),
            "attention.qkv": (3 * h, h),
            "attention.out": (h, h),
            "norm2": (h,),
            "mlp.up": (4 * h, h),
            "mlp.down": (h, 4 * h),
        }
        shapes: dict[str, tuple[int, ...]] = {
            "embedding.weight": (self.vocabulary, h),
            "positions.weight": (self.positions, h),
        }
        for i in range(self.layers):
            for name, shape in layer.items():
                shapes[f"blocks.{i}.{name}.weight"] = shape
                shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
        return {**shapes, "norm.weight": (h,), "norm.bias": (h,)}

    @property
    def parameters(self) -> int:
        """How many parameters the dense model has."""
        return sum(prod(shape) for shape in self.shapes().values())
