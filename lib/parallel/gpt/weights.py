"""Weights of GPT-2 as `transformers` and the model hubs keep them, to ours and back, without a changed bit.

Two things differ. The names; and their linear layers are of a kind called Conv1D, which holds (in, out): the transpose
of `nn.Linear`'s weight. The fused queries, keys and values lie in the same order in both.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.files import read_files, without_wrappers, write_file

LAYER_NAMES = {
    "norm1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "norm2": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
GELUS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}  # theirs -> ours
FIXED = {  # settings of theirs that change the model, and the values that ours has built in
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
ALIASES = {  # other names that `transformers` understands
    "n_layer": ("num_hidden_layers",),
    "n_embd": ("hidden_size",),
    "n_head": ("num_attention_heads",),
    "n_positions": ("max_position_embeddings", "n_ctx"),
}


def read_gpt2(source: nn.Module | str | Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The config and the dense state of a GPT-2, to be cut by `load_dense`.

    `source` is a `transformers` GPT2LMHeadModel or GPT2Model, or a path as downloaded from a hub: a folder, a
    .safetensors or .bin file, the index of many, or one of these, with config.json beside it. FileNotFoundError says
    which file is missing. Raises ValueError when a weight is missing, unknown, or of another shape, and when a setting
    asks for what our GPT does not have.
    """
    if isinstance(source, nn.Module):
        config = gpt2_config(source.config.to_dict())
        return config, from_gpt2(source.state_dict(), config)
    settings, weights = read_files(source)
    config = gpt2_config(settings)
    return config, from_gpt2(weights, config)


def write_gpt2(path: str | Path, config: GPTConfig, state: Mapping[str, Tensor]) -> None:
    """Writes a dense state, and config.json beside it: `GPT2LMHeadModel.from_pretrained(folder)` reads them.

    Raises OSError when a file cannot be written.
    """
    path = Path(path)
    weights = {name: x.contiguous() for name, x in to_gpt2(state, config).items() if name != "lm_head.weight"}
    write_file(weights, path)
    settings = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
        "n_layer": config.layers, "n_embd": config.hidden, "n_head": config.heads,
        "vocab_size": config.vocabulary, "n_positions": config.positions,
        "activation_function": {"none": "gelu", "tanh": "gelu_new"}[config.approximate],
        "resid_pdrop": config.dropout, "embd_pdrop": config.dropout, "attn_pdrop": config.dropout, **FIXED,
    }  # fmt: skip
    path.with_name("config.json").write_text(json.dumps(settings, indent=2), "utf-8")


def gpt2_config(settings: Mapping[str, Any]) -> GPTConfig:
    """Our config from theirs, a dict or what config.json holds. What it leaves out is as in GPT-2 small."""
    kind = settings.get("model_type", "gpt2")
    if kind != "gpt2":
        raise ValueError(f"gpt2_config: these are the settings of a {kind!r}, and our GPT is a 'gpt2'")
    settings = _without_aliases(settings)
    for name, value in FIXED.items():
        theirs = settings.get(name, value)
        if theirs != value and not (name == "n_inner" and theirs == 4 * settings.get("n_embd", 768)):
            raise ValueError(f"gpt2_config: {name}={theirs!r} is not supported; our GPT has {value!r} built in")
    activation = settings.get("activation_function", "gelu_new")
    if activation not in GELUS:
        raise ValueError(f"gpt2_config: activation_function={activation!r} is not one of {', '.join(GELUS)}")
    dropouts = {settings.get(name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if len(dropouts) > 1:
        raise ValueError(f"gpt2_config: our GPT has one dropout, not {sorted(dropouts)}: give the three the same value")
    return GPTConfig(
        layers=settings.get("n_layer", 12),
        hidden=settings.get("n_embd", 768),
        heads=settings.get("n_head", 12),
        vocabulary=settings.get("vocab_size", 50257),
        positions=settings.get("n_positions", 1024),
        dropout=dropouts.pop(),
        approximate=GELUS[activation],
    )


def _without_aliases(settings: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(settings)
    for name, others in ALIASES.items():
        for other in others:
            value = settings.pop(other, None)
            if value is not None and settings.setdefault(name, value) != value:
                raise ValueError(f"gpt2_config: {name}={settings[name]!r} and {other}={value!r} mean the same thing")
    return settings


def from_gpt2(weights: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Our dense state from theirs; matrices are views of theirs. With or without the prefix "transformer.", and those
    of DistributedDataParallel, torch.compile and FSDP."""
    weights = {name.removeprefix("transformer."): x for name, x in without_wrappers(weights).items()}
    for i in range(config.layers):  # older files also hold the causal mask
        for mask in ("bias", "masked_bias"):
            weights.pop(f"h.{i}.attn.{mask}", None)
    head = weights.pop("lm_head.weight", None)
    names = _names(config)
    missing, unknown = sorted(names.values() - weights.keys()), sorted(weights.keys() - names.values())
    if missing or unknown:
        found = (("missing", missing), ("unknown", unknown))
        raise ValueError("from_gpt2: " + "; ".join(f"{what}: {', '.join(some)}" for what, some in found if some))
    if head is not None and not torch.equal(head, weights["wte.weight"]):
        raise ValueError("from_gpt2: lm_head.weight differs from wte.weight; our GPT has one weight for both")
    state = {}
    for name, shape in config.shapes().items():
        theirs = weights[names[name]]
        expected = shape[::-1] if _is_conv1d(name, shape) else shape
        if not theirs.is_floating_point():
            raise ValueError(f"from_gpt2: {names[name]} is {theirs.dtype}: quantized weights are not read")
        if theirs.shape != expected:
            if theirs.shape == shape:
                raise ValueError(
                    f"from_gpt2: {names[name]} has shape {tuple(theirs.shape)}, that of nn.Linear, as nanoGPT keeps "
                    f"it; a GPT-2 has {expected}, the transpose. Transpose the four matrices of each layer"
                )
            raise ValueError(f"from_gpt2: {names[name]} has shape {tuple(theirs.shape)}; the config says {expected}")
        state[name] = theirs.detach().T if _is_conv1d(name, shape) else theirs.detach()
    return state


def to_gpt2(state: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Their state dict, for `GPT2LMHeadModel.load_state_dict`, from our dense state (see `dense_state`)."""
    shapes = config.shapes()
    weights = {
        f"transformer.{theirs}": state[ours].T if _is_conv1d(ours, shapes[ours]) else state[ours]
        for ours, theirs in _names(config).items()
    }
    return {**weights, "lm_head.weight": state["embedding.weight"]}


def _names(config: GPTConfig) -> dict[str, str]:
    """Our names of all weights -> theirs."""
    names = {"embedding.weight": "wte.weight", "positions.weight": "wpe.weight"}
    for i in range(config.layers):
        for ours, theirs in LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                names[f"blocks.{i}.{ours}.{kind}"] = f"h.{i}.{theirs}.{kind}"
    return {**names, "norm.weight": "ln_f.weight", "norm.bias": "ln_f.bias"}


def _is_conv1d(name: str, shape: tuple[int, ...]) -> bool:
    return name.startswith("blocks.") and len(shape) == 2
