"""Weights of a Llama as `transformers` and the model hubs keep them, to ours and back, without a changed bit.

One thing differs beside the names: they keep queries, keys and values as three weights, and gate and up as two; ours
are one each. `load_llama` gives every device its own rows of each file, and no device ever holds a whole weight.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.parallel.gpt.files import without_wrappers, write_file
from lib.parallel.llama.config import LlamaConfig
from lib.parallel.llama.model import Llama
from lib.parallel.llama.rows import FILE, INDEX, HubFolder
from lib.parallel.llama.settings import llama_config, to_settings
from lib.parallel.sharding.dense import layout_of
from lib.parallel.sharding.placement import Replicate

LAYER_NAMES = {  # ours -> theirs: of a fused weight several, in this order
    "norm1.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": tuple(f"self_attn.{x}_proj.weight" for x in "qkv"),
    "attention.qkv.bias": tuple(f"self_attn.{x}_proj.bias" for x in "qkv"),
    "attention.q_norm.weight": ("self_attn.q_norm.weight",),
    "attention.k_norm.weight": ("self_attn.k_norm.weight",),
    "attention.out.weight": ("self_attn.o_proj.weight",),
    "norm2.weight": ("post_attention_layernorm.weight",),
    "mlp.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.down.weight": ("mlp.down_proj.weight",),
}
END_NAMES = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
END_NAMES["head.weight"] = "lm_head.weight"


def load_llama(model: Llama, folder: str | Path) -> int:
    """Reads this device's rows of every weight in a hub's folder into `model`. Returns the bytes that were read.

    Beside its pieces, every device reads the tables of contents and the weights that are whole everywhere (norms).
    Weights of another floating type are brought to the model's. Raises ValueError, and changes nothing, when a weight
    is missing, unknown, or of another shape than the model's config says.
    """
    group, config = model.group, model.config
    files = HubFolder(folder)
    names = _names(config)
    _check_names(set(files.stored), names, config, f"load_llama on rank {group.rank} of {group.size}")
    stored = {ours: [files.stored[name] for name in theirs] for ours, theirs in names.items()}
    for name, shape in config.shapes().items():
        for theirs, expected in zip(stored[name], _split(name, shape, config), strict=True):
            if theirs.shape != expected:
                raise ValueError(
                    f"load_llama on rank {group.rank} of {group.size}: {theirs.name} in {theirs.file.name} has shape "
                    f"{theirs.shape}; the config says {expected}"
                )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(files.read(stored[name], layout_of(model, name), group.size, group.rank))
    return files.bytes_read


def read_llama(source: nn.Module | str | Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """The config and the dense state of a Llama, to be cut by `load_dense`; for one that fits one device.

    `source` is a model of `transformers`, or a folder from a hub. Errors are those of `load_llama` and `llama_config`.
    """
    if isinstance(source, nn.Module):
        config = llama_config(source.config.to_dict())
        return config, from_llama(source.state_dict(), config)
    config, files = llama_config(source), HubFolder(source)
    return config, from_llama({n: files.read([x], Replicate(), 1, 0) for n, x in files.stored.items()}, config)


def write_llama(folder: str | Path, config: LlamaConfig, state: Mapping[str, Tensor], largest: int = 5 * 10**9) -> None:
    """Writes a dense state and its config.json into `folder`: `from_pretrained(folder)` reads them.

    In one file of at most `largest` bytes, or in several with their index.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, Tensor]] = [{}]
    for name, x in to_llama(state, config).items():
        if files[-1] and x.nbytes + sum(y.nbytes for y in files[-1].values()) > largest:
            files.append({})
        files[-1][name] = x.clone(memory_format=torch.contiguous_format)
    (folder / "config.json").write_text(json.dumps(to_settings(config), indent=2), "utf-8")
    if len(files) == 1:
        write_file(files[0], folder / FILE)
        return
    where = {}
    for i, weights in enumerate(files):
        file = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        write_file(weights, folder / file)
        where |= dict.fromkeys(weights, file)
    total = sum(x.nbytes for weights in files for x in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2), "utf-8")


def from_llama(weights: Mapping[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """Our dense state from theirs. ValueError when a weight is missing, unknown, or of another shape."""
    weights, names = without_wrappers(weights), _names(config)
    _check_names(set(weights), names, config, "from_llama")
    state = {}
    for name, shape in config.shapes().items():
        for theirs, expected in zip(names[name], _split(name, shape, config), strict=True):
            if weights[theirs].shape != expected:
                found = tuple(weights[theirs].shape)
                raise ValueError(f"from_llama: {theirs} has shape {found}; the config says {expected}")
        state[name] = torch.cat([weights[theirs].detach() for theirs in names[name]])
    return state


def to_llama(state: Mapping[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """Their state dict from our dense state (see `dense_state`). The head is left out where it is the embedding."""
    shapes, weights = config.shapes(), {}
    for ours, theirs in _names(config).items():
        lengths = [shape[0] for shape in _split(ours, shapes[ours], config)]
        weights |= zip(theirs, state[ours].split(lengths), strict=True)
    return weights


def _names(config: LlamaConfig) -> dict[str, tuple[str, ...]]:
    """Our names of all weights -> theirs."""
    names = {}
    for ours in config.shapes():
        if ours in END_NAMES:
            names[ours] = (END_NAMES[ours],)
        else:
            _, layer, rest = ours.split(".", 2)
            names[ours] = tuple(f"model.layers.{layer}.{theirs}" for theirs in LAYER_NAMES[rest])
    return names


def _split(name: str, shape: tuple[int, ...], config: LlamaConfig) -> list[tuple[int, ...]]:
    """The shapes of the weights that one of ours is made of."""
    if ".qkv." in name:
        lengths = [heads * config.head_size for heads in (config.heads, config.kv_heads, config.kv_heads)]
    elif ".gate_up." in name:
        lengths = [config.inner] * 2
    else:
        lengths = [shape[0]]
    return [(length, *shape[1:]) for length in lengths]


def _check_names(found: set[str], names: Mapping[str, tuple[str, ...]], config: LlamaConfig, who: str) -> None:
    expected = {name for several in names.values() for name in several}
    idle = {name for name in found if name.endswith("rotary_emb.inv_freq")}  # older files hold what is computed
    idle |= {"lm_head.weight"} if config.tied else set()  # as `transformers` does: the embedding is used
    missing, unknown = sorted(expected - found), sorted(found - expected - idle)
    if missing or unknown:
        told = (("missing", missing), ("unknown", unknown))
        raise ValueError(f"{who}: " + "; ".join(f"{what}: {', '.join(some)}" for what, some in told if some))
