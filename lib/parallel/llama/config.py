"""The sizes of a Llama and of its relatives, and in what the published ones differ.

Llama 2: Touvron et al. 2023, arXiv 2307.09288; Llama 3: Grattafiori et al. 2024, arXiv 2407.21783, table 3; Mistral:
Jiang et al. 2023, arXiv 2310.06825; Qwen 2.5 and 3: arXiv 2412.15115 and 2505.09388. What their papers leave out is
from the config.json beside the weights.
"""

from dataclasses import dataclass
from math import prod

from lib.devices.counts import check_counts
from lib.parallel.llama.rotary import Llama3Scaling, Scaling


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes are numbers of elements. `inner` is the width of the MLP; `head_size` is hidden / heads unless given.

    `positions` is the longest text. `window`, if given, says why: the published model looks back at so many positions
    only; up to there, ours is the same. `eps` is that of the norms, `theta` and `scaling` those of the rotary positions
    (see `turn_of`). `tied`: the head is the embedding once more. `qkv_bias`: queries, keys and values have a bias (Qwen
    2). `qk_norm`: queries and keys are normalized, head by head (Qwen 3). `deviation` is that of the first weights.

    Raises ValueError for sizes that cannot be, naming them.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    head_size: int = 0
    positions: int = 4096
    window: int | None = None
    eps: float = 1e-5
    theta: float = 10_000.0
    scaling: Scaling | None = None
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    deviation: float = 0.02

    def __post_init__(self) -> None:
        if not self.head_size and self.heads:
            if self.hidden % self.heads:
                raise ValueError(
                    f"LlamaConfig: a hidden size of {self.hidden} cannot be divided into {self.heads} heads; give "
                    "head_size where it is not hidden / heads"
                )
            object.__setattr__(self, "head_size", self.hidden // self.heads)  # frozen, but not finished
        sizes = ("layers", "hidden", "heads", "kv_heads", "inner", "vocabulary", "head_size", "positions")
        check_counts("LlamaConfig", {name: getattr(self, name) for name in sizes})
        if self.window is not None and self.positions > self.window:
            raise ValueError(
                f"LlamaConfig: positions={self.positions} beyond window={self.window}: a sliding window is not "
                f"supported. Take positions={self.window}; up to there nothing is out of sight"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"LlamaConfig: {self.heads} heads cannot share {self.kv_heads} heads of keys and values: kv_heads must "
                "divide heads"
            )
        if self.head_size % 2:
            raise ValueError(f"LlamaConfig: head_size={self.head_size} must be even: two numbers make a plane to turn")

    @staticmethod
    def preset(name: str) -> "LlamaConfig":
        """One of the published models by its name. Raises ValueError with the list of names for any other."""
        if name not in LLAMAS:
            raise ValueError(f"there is no model {name!r}; the models are {', '.join(LLAMAS)}, or make a LlamaConfig")
        return LLAMAS[name]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight of the dense model, by name."""
        h, d = self.hidden, self.head_size
        fused = (self.heads + 2 * self.kv_heads) * d
        layer: dict[str, tuple[int, ...]] = {"norm1.weight": (h,), "attention.qkv.weight": (fused, h)}
        if self.qkv_bias:
            layer["attention.qkv.bias"] = (fused,)
        if self.qk_norm:
            layer |= {"attention.q_norm.weight": (d,), "attention.k_norm.weight": (d,)}
        layer |= {
            "attention.out.weight": (h, self.heads * d),
            "norm2.weight": (h,),
            "mlp.gate_up.weight": (2 * self.inner, h),
            "mlp.down.weight": (h, self.inner),
        }
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocabulary, h)}
        for i in range(self.layers):
            shapes |= {f"blocks.{i}.{name}": shape for name, shape in layer.items()}
        shapes["norm.weight"] = (h,)
        return shapes if self.tied else {**shapes, "head.weight": (self.vocabulary, h)}

    @property
    def parameters(self) -> int:
        """How many parameters the dense model has."""
        return sum(prod(shape) for shape in self.shapes().values())


def _config(layers: int, hidden: int, heads: int, kv_heads: int, inner: int, vocabulary: int, **more) -> LlamaConfig:
    return LlamaConfig(
        layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, inner=inner, vocabulary=vocabulary, **more
    )


_LLAMA_3 = {"theta": 500_000.0, "positions": 8192}
_LLAMA_31 = {"theta": 500_000.0, "positions": 131_072}
_QWEN = {"theta": 1_000_000.0, "eps": 1e-6}
LLAMAS = {
    "llama-2-7b": _config(32, 4096, 32, 32, 11008, 32000),
    "llama-2-70b": _config(80, 8192, 64, 8, 28672, 32000),
    "llama-3-8b": _config(32, 4096, 32, 8, 14336, 128256, **_LLAMA_3),
    "llama-3-70b": _config(80, 8192, 64, 8, 28672, 128256, **_LLAMA_3),
    "llama-3-405b": _config(126, 16384, 128, 8, 53248, 128256, **_LLAMA_31, scaling=Llama3Scaling(8.0)),
    "llama-3.2-1b": _config(16, 2048, 32, 8, 8192, 128256, **_LLAMA_31, scaling=Llama3Scaling(32.0), tied=True),
    "mistral-7b": _config(32, 4096, 32, 8, 14336, 32000, window=4096),
    "qwen2.5-7b": _config(28, 3584, 28, 4, 18944, 152064, **_QWEN, positions=32768, qkv_bias=True),
    "qwen3-0.6b": _config(
        28, 1024, 16, 8, 3072, 151936, **_QWEN, head_size=128, positions=40960, qk_norm=True, tied=True
    ),
    "qwen3-8b": _config(36, 4096, 32, 8, 12288, 151936, **_QWEN, head_size=128, positions=40960, qk_norm=True),
}
