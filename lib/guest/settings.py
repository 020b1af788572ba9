"""Settings of PyTorch that hold for a whole process, and that programs change: after the run they are as before."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SETTINGS = (
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (lambda: torch.backends.cuda.matmul.allow_tf32, lambda x: setattr(torch.backends.cuda.matmul, "allow_tf32", x)),
    (lambda: torch.backends.cudnn.allow_tf32, lambda x: setattr(torch.backends.cudnn, "allow_tf32", x)),
    (lambda: torch.backends.cudnn.benchmark, lambda x: setattr(torch.backends.cudnn, "benchmark", x)),
    (lambda: torch.backends.cudnn.deterministic, lambda x: setattr(torch.backends.cudnn, "deterministic", x)),
)


@contextmanager
def settings(size: int) -> Iterator[None]:
    """Around a run: all devices share them, and the caller finds its own again."""
    before = [get() for get, _ in SETTINGS]
    try:
        yield
    finally:
        for (get, put), value in zip(SETTINGS, before, strict=True):
            if get() != value:
                put(value)
