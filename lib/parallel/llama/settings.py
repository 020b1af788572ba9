"""The config.json of a Llama, as `transformers` and the model hubs keep it, to our config and back.

Four kinds are known, which differ in little: llama, mistral, qwen2, qwen3. What would change the model and is not known
here is refused by its name. Nothing is guessed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.parallel.gpt.files import read_json
from lib.parallel.llama.config import LlamaConfig
from lib.parallel.llama.rotary import LinearScaling, Llama3Scaling, Scaling

KINDS = ("llama", "mistral", "qwen2", "qwen3")
NAMES = {  # theirs -> ours
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "intermediate_size": "inner",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "positions",
}
BUILT_IN = {  # settings of theirs that change the model, and the values that ours has built in
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


def llama_config(settings: Mapping[str, Any] | str | Path) -> LlamaConfig:
    """Our config from theirs: what config.json holds, or a path: its own, its folder's, or that of the weights.

    A model that looks back at a window of positions only (Mistral, some Qwen) is ours as long as a text is not longer
    than the window, so `positions` ends there, and a longer text is refused. Raises ValueError that names a missing or
    unsupported setting.
    """
    if not isinstance(settings, Mapping):
        path = Path(settings)
        path = path / "config.json" if path.is_dir() else path.with_name("config.json")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: download it from where the weights are")
        settings = read_json(path)
    kind = settings.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"llama_config: model_type={kind!r} is not one of {', '.join(KINDS)}")
    for name, value in BUILT_IN.items():
        if settings.get(name) not in (None, value):
            raise ValueError(f"llama_config: {name}={settings[name]!r} is not supported; our Llama has {value!r}")
    missing = [name for name in NAMES if name not in settings]
    if missing:
        raise ValueError(f"llama_config: the settings of a {kind} must say {', '.join(missing)}, and these do not")
    theta, scaling = _rotary(settings)
    sizes = {ours: settings[theirs] for theirs, ours in NAMES.items()}
    window = _window(settings)
    if window and window <= sizes["positions"]:
        sizes |= {"positions": window, "window": window}
    return LlamaConfig(
        **sizes,
        kv_heads=settings.get("num_key_value_heads") or sizes["heads"],
        head_size=settings.get("head_dim") or 0,
        eps=settings.get("rms_norm_eps", 1e-6),
        theta=theta,
        scaling=scaling,
        tied=settings.get("tie_word_embeddings", False),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        deviation=settings.get("initializer_range", 0.02),
    )


def _rotary(settings: Mapping[str, Any]) -> tuple[float, Scaling | None]:
    """Base and scaling, as version 5 of `transformers` says them or as the versions before."""
    new, old = settings.get("rope_parameters") or {}, settings.get("rope_scaling") or {}
    theta = new.get("rope_theta") or settings.get("rope_theta") or old.get("rope_theta") or 10_000.0
    rules = new or old
    kind = rules.get("rope_type") or rules.get("type") or "default"
    if rules.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError(f"llama_config: partial_rotary_factor={rules['partial_rotary_factor']} is not supported")
    try:
        if kind == "default":
            return theta, None
        if kind == "linear":
            return theta, LinearScaling(rules["factor"])
        if kind == "llama3":
            names = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
            return theta, Llama3Scaling(*(rules[name] for name in names))
    except KeyError as missing:
        raise ValueError(f"llama_config: rotary positions of type {kind!r} must say {missing.args[0]}") from None
    raise ValueError(f"llama_config: rope_type={kind!r} is not one of default, linear, llama3")


def _window(settings: Mapping[str, Any]) -> int | None:
    if settings["model_type"] == "mistral":
        return settings.get("sliding_window")
    layers = settings.get("layer_types") or []
    slides = "sliding_attention" in layers if layers else settings.get("use_sliding_window")
    return settings.get("sliding_window") if slides else None


def to_settings(config: LlamaConfig) -> dict[str, Any]:
    """What config.json says of our config, so that `transformers` builds the same model."""
    if config.qkv_bias and config.qk_norm:
        raise ValueError("to_settings: no published kind has both qkv_bias and qk_norm")
    kind = "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "mistral" if config.window else "llama"
    scaling: dict[str, Any] | None = None
    if isinstance(config.scaling, LinearScaling):
        scaling = {"rope_type": "linear", "factor": config.scaling.factor}
    elif isinstance(config.scaling, Llama3Scaling):
        scaling = {
            "rope_type": "llama3",
            "factor": config.scaling.factor,
            "low_freq_factor": config.scaling.low,
            "high_freq_factor": config.scaling.high,
            "original_max_position_embeddings": config.scaling.positions,
        }
    elif config.scaling is not None:
        raise ValueError(f"to_settings: {type(config.scaling).__name__} has no name in a config.json")
    return {
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        **{theirs: getattr(config, ours) for theirs, ours in NAMES.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.eps,
        "rope_theta": config.theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.deviation,
        **({"sliding_window": config.window, "use_sliding_window": True} if config.window else {}),
    }
