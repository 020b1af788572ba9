"""Small models of `transformers` with random weights, of every kind that is a Llama: the oracle of ours."""

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY, LENGTH = 50, 13  # no number of devices but 1 and 2 divides the one, none the other
SIZES = {
    "num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 24, "intermediate_size": 72,
    "vocab_size": VOCABULARY, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
EVERY, FEW = (1, 2, 3, 4, 6, 8), (1, 2, 4, 8)  # counts of devices
KINDS = {  # a name: (class of the config, class of the model, what it has of its own, counts of devices)
    "llama": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 24}, EVERY),
    "one kv head": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 1, "tie_word_embeddings": True}, EVERY),
    "llama 3": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 4, "rope_parameters": LLAMA_3}, FEW),
    "mistral": (MistralConfig, MistralForCausalLM, {"num_key_value_heads": 4, "sliding_window": 32}, (2, 8)),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"num_key_value_heads": 4}, (2, 8)),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"num_key_value_heads": 4, "head_dim": 6}, FEW),
    "qwen3, 3 kv heads": (Qwen3Config, Qwen3ForCausalLM, {"num_key_value_heads": 3, "head_dim": 4}, (1, 3, 6)),
}


def reference(kind, dtype=torch.float64):
    """Weights large enough that attention is not uniform and SiLU not linear, the same in every type.

    `transformers` computes its norms in float32 whatever the model's type. In float64 PyTorch's own take their place,
    or nothing could be compared beyond float32.
    """
    config_class, model_class, own, _ = KINDS[kind]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, **own)).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3 if p.ndim > 1 else 1.0)
        p.data = p.data.bfloat16().to(dtype)  # numbers that every type has. Not the buffers: angles need float32
    if dtype == torch.float64:
        for name, module in list(model.named_modules()):
            if type(module).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(module.weight.numel(), module.variance_epsilon)
                norm.weight = module.weight
                model.set_submodule(name, norm)
    return model.eval()


def texts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (2, LENGTH), generator=generator) for _ in range(2)]


def apart(ours, theirs):
    """The largest difference, relative to the largest number."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())
