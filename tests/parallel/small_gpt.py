"""A small GPT with weights large enough that every part of it matters, and what one device makes of it."""

import torch
from parallel.small_model import one_thread
from parallel.variants import variant

from lib import load_dense
from lib.devices import Cluster
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT

__all__ = ["CONFIG", "COUNTS", "alone", "build", "dense_weights", "one_thread", "tokens_of"]

CONFIG = GPTConfig(layers=2, hidden=24, heads=12, vocabulary=50, positions=16)  # 50: padded on 3, 4, 6 and 12 devices
COUNTS = [1, 2, 3, 4, 6, 12]


def dense_weights(config=CONFIG, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=dtype) * (1.0 if len(shape) == 1 else 0.3)
        for name, shape in config.shapes().items()
    }


def build(group, state, config=CONFIG, sequence_parallel=False, **options):
    """One device's part of the model with these weights."""
    model = variant(GPT, sequence_parallel)(config, group, **options).to(next(iter(state.values())).dtype)
    load_dense(model, state, group)
    return model


def tokens_of(batch, length, config=CONFIG, seed=1):
    return torch.randint(config.vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def alone(program, *args, **kwargs):
    """What one device makes of it."""
    return Cluster(1).run(program, *args, **kwargs)[0]
