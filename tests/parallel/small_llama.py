"""A small Llama with weights large enough that every part of it matters."""

import torch
from parallel.small_model import one_thread

from lib import load_dense
from lib.parallel.llama.config import LlamaConfig
from lib.parallel.llama.model import Llama
from lib.parallel.llama.sequence import SequenceLlama

__all__ = ["CONFIG", "SHARED", "build", "dense_weights", "one_thread", "tokens_of"]

SIZES = {"layers": 2, "hidden": 24, "heads": 12, "inner": 36, "vocabulary": 50, "positions": 16}
CONFIG = LlamaConfig(**SIZES, kv_heads=4)
SHARED = LlamaConfig(**SIZES, kv_heads=2, head_size=6, qkv_bias=True, qk_norm=True, tied=True)


def dense_weights(config=CONFIG, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=dtype) * (1.0 if len(shape) == 1 else 0.3)
        for name, shape in config.shapes().items()
    }


def build(group, state, config=CONFIG, sequence_parallel=False, **options):
    """One device's part of the model with these weights."""
    model = (SequenceLlama if sequence_parallel else Llama)(config, group, **options).to(
        next(iter(state.values())).dtype
    )
    load_dense(model, state, group)
    return model


def tokens_of(batch, length, config=CONFIG, seed=1):
    return torch.randint(config.vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
