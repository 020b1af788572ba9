"""The shape of a transformer: all that its costs depend on, and the shapes of models that were published.

One class for GPT-2's layer and for today's. They differ in the norm, the MLP, the heads of keys and values, the biases,
the positions, and in whether the head is a matrix of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.devices.counts import check_counts, is_count
from lib.parallel.gpt.files import read_json

SIZES = ("layers", "hidden", "heads", "kv_heads", "head_size", "inner", "vocabulary", "experts", "active_experts")


@dataclass(frozen=True)
class ModelShape:
    """Sizes are numbers of elements. `inner` is the width of the MLP (of one expert, where there are several).

    `gated`: the MLP has three matrices, gate, up and down, as in Llama; else two. `learned_positions` is the longest
    text of a model that has a vector for each position, as GPT-2; 0 for one that rotates queries and keys and has no
    such parameters. `tied`: the head is the embedding once more. Of `experts` MLPs a token passes `active_experts`.

    Raises ValueError for sizes that cannot be, naming them.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    head_size: int
    learned_positions: int = 0
    gated: bool = True
    bias: bool = False  # every linear layer and norm has one
    qkv_bias: bool = False  # only queries, keys and values have one, as in Qwen 2
    qk_norm: bool = False  # queries and keys are normalized head by head, as in Qwen 3
    tied: bool = False
    experts: int = 1
    active_experts: int = 1

    def __post_init__(self) -> None:
        sizes = SIZES + ("learned_positions",) * (self.learned_positions != 0)
        check_counts("ModelShape", {name: getattr(self, name) for name in sizes})
        if self.heads % self.kv_heads:
            raise ValueError(
                f"ModelShape: {self.heads} heads cannot share {self.kv_heads} heads of keys and values evenly"
            )
        if self.active_experts > self.experts:
            raise ValueError(
                f"ModelShape: active_experts={self.active_experts} of {self.experts} experts; all is the most"
            )

    @staticmethod
    def gpt(layers: int, hidden: int, heads: int, vocabulary: int = 50257, positions: int = 1024) -> "ModelShape":
        """The shape that GPT-2, GPT-3 and the book's GPT have: an MLP four times as wide, biases, a tied head."""
        return ModelShape(
            layers, hidden, heads, heads, 4 * hidden, vocabulary, _head_size(hidden, heads),
            learned_positions=positions, gated=False, bias=True, tied=True,
        )  # fmt: skip

    @staticmethod
    def llama(
        layers: int, hidden: int, heads: int, kv_heads: int, inner: int, vocabulary: int, **more: Any
    ) -> "ModelShape":
        """The shape of Llama and its relatives; `more` are the fields in which a relative differs."""
        if "head_size" not in more:
            more["head_size"] = _head_size(hidden, heads)
        return ModelShape(layers, hidden, heads, kv_heads, inner, vocabulary, **more)

    @staticmethod
    def preset(name: str) -> "ModelShape":
        """A published model by its name. Raises ValueError with the list of names for any other."""
        if name not in MODELS:
            raise ValueError(
                f"there is no model {name!r}; the models are {', '.join(MODELS)}. For any other, give the path of its "
                "config.json, or make a ModelShape(...)"
            )
        return MODELS[name]

    @staticmethod
    def from_config(settings: Mapping[str, Any] | str | Path) -> "ModelShape":
        """From a config of `transformers`: a dict, or the path of a config.json or of the folder that holds it.

        Known are GPT-2, Llama, Mistral, Mixtral, Qwen 2 and Qwen 3. Raises ValueError for any other `model_type`, and
        names a setting that is missing.
        """
        if not isinstance(settings, Mapping):
            path = Path(settings)
            path = path / "config.json" if path.is_dir() else path
            if not path.is_file():
                raise FileNotFoundError(f"{path} is not there; give a config.json, or the folder that holds one")
            settings = read_json(path)
        kind = settings.get("model_type")
        if kind not in tuple(_READERS):
            raise ValueError(f"model_type={kind!r} is not one of {', '.join(_READERS)}: make a ModelShape(...) by hand")
        try:
            return _READERS[kind](settings)
        except KeyError as missing:
            raise ValueError(f"the config of a {kind} must say {missing.args[0]!r}, and this one does not") from None

    def parameters_by_part(self) -> dict[str, int]:
        """How many parameters each part has, all layers together. An exact count."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        matrices = 3 if self.gated else 2
        attention = self.hidden * (queries + 2 * keys) + queries * self.hidden
        attention += (queries + 2 * keys) * (self.bias or self.qkv_bias) + self.hidden * self.bias
        attention += 2 * self.head_size * self.qk_norm
        mlp = matrices * self.hidden * self.inner
        mlp += ((matrices - 1) * self.inner + self.hidden) * self.bias
        router = self.hidden * self.experts * (self.experts > 1)
        norm = self.hidden * (1 + self.bias)
        return {
            "embedding": self.vocabulary * self.hidden,
            "positions": self.learned_positions * self.hidden,
            "attention": self.layers * attention,
            "MLP": self.layers * (self.experts * mlp + router),
            "norms": (2 * self.layers + 1) * norm,
            "head": 0 if self.tied else self.vocabulary * self.hidden,
        }

    @property
    def parameters(self) -> int:
        """How many parameters the whole model has."""
        return sum(self.parameters_by_part().values())

    @property
    def active_parameters(self) -> int:
        """How many parameters one token passes: of the experts only those that it is sent to."""
        idle = (3 if self.gated else 2) * self.hidden * self.inner * (self.experts - self.active_experts)
        return self.parameters - self.layers * idle


def _head_size(hidden: int, heads: int) -> int:
    if not is_count(heads) or not is_count(hidden) or hidden % heads:
        raise ValueError(f"ModelShape: a hidden size of {hidden!r} cannot be divided into heads={heads!r}")
    return hidden // heads


def _gpt2(settings: Mapping[str, Any]) -> ModelShape:
    hidden = settings["n_embd"]
    shape = ModelShape.gpt(
        settings["n_layer"], hidden, settings["n_head"], settings["vocab_size"], settings["n_positions"]
    )
    inner = settings.get("n_inner") or 4 * hidden
    return ModelShape(**{**vars(shape), "inner": inner, "tied": settings.get("tie_word_embeddings", True)})


def _llama(settings: Mapping[str, Any]) -> ModelShape:
    heads, kind = settings["num_attention_heads"], settings["model_type"]
    more: dict[str, Any] = {}
    if settings.get("head_dim"):
        more["head_size"] = settings["head_dim"]
    if settings.get("mlp_bias"):
        raise ValueError("mlp_bias=true is not known here: no published Llama has it")
    if kind == "mixtral":
        more |= {"experts": settings["num_local_experts"], "active_experts": settings["num_experts_per_tok"]}
    if settings.get("attention_bias"):
        raise ValueError("attention_bias=true gives the output projection a bias too, which is not known here")
    return ModelShape.llama(
        settings["num_hidden_layers"],
        settings["hidden_size"],
        heads,
        settings.get("num_key_value_heads") or heads,
        settings["intermediate_size"],
        settings["vocab_size"],
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tied=settings.get("tie_word_embeddings", False),
        **more,
    )


_READERS = {"gpt2": _gpt2, **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3"), _llama)}

# GPT-2: Radford et al. 2019 and its released weights; GPT-3: Brown et al. 2020, arXiv 2005.14165, table 2.1; the model
# of 1T parameters: Narayanan et al. 2021, arXiv 2104.04473, table 1; Llama: arXiv 2307.09288 and 2407.21783, table 3;
# Mistral and Mixtral: arXiv 2310.06825 and 2401.04088; Qwen 2.5: arXiv 2412.15115.
MODELS = {
    "gpt2": ModelShape.gpt(12, 768, 12),
    "gpt2-medium": ModelShape.gpt(24, 1024, 16),
    "gpt2-large": ModelShape.gpt(36, 1280, 20),
    "gpt2-xl": ModelShape.gpt(48, 1600, 25),
    "gpt3-175b": ModelShape.gpt(96, 12288, 96, positions=2048),
    "gpt-1t": ModelShape.gpt(128, 25600, 160, vocabulary=51200, positions=2048),
    "llama-2-7b": ModelShape.llama(32, 4096, 32, 32, 11008, 32000),
    "llama-2-13b": ModelShape.llama(40, 5120, 40, 40, 13824, 32000),
    "llama-2-70b": ModelShape.llama(80, 8192, 64, 8, 28672, 32000),
    "llama-3-8b": ModelShape.llama(32, 4096, 32, 8, 14336, 128256),
    "llama-3-70b": ModelShape.llama(80, 8192, 64, 8, 28672, 128256),
    "llama-3-405b": ModelShape.llama(126, 16384, 128, 8, 53248, 128256),
    "mistral-7b": ModelShape.llama(32, 4096, 32, 8, 14336, 32000),
    "mixtral-8x7b": ModelShape.llama(32, 4096, 32, 8, 14336, 32000, experts=8, active_experts=2),
    "qwen2.5-7b": ModelShape.llama(28, 3584, 28, 4, 18944, 152064, qkv_bias=True),
}
