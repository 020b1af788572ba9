"""What `torch.cuda` says and does where no GPU is.

Each public method of `Cuda` stands for the function of `torch.cuda` of the same name.
"""

from typing import Any

import torch

from lib.guest.gpus.figures import Figures
from lib.guest.streams import Streams


class Cuda(Figures, Streams):
    """The GPUs of a node, `per_node` of them, as its processes see them."""

    def __init__(self, per_node: int):
        Figures.__init__(self, per_node)
        Streams.__init__(self)

    # ---- random numbers: those of the CPU, which this device has for itself ----

    def manual_seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(int(seed))

    manual_seed_all = manual_seed

    def seed(self) -> None:
        torch.default_generator.seed()

    seed_all = seed

    def initial_seed(self) -> int:
        return torch.default_generator.initial_seed()

    def get_rng_state(self, device: Any = "cuda") -> torch.Tensor:
        return torch.get_rng_state()

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [self.get_rng_state() for _ in range(self._per_node)]

    def set_rng_state(self, new_state: torch.Tensor, device: Any = "cuda") -> None:
        torch.set_rng_state(new_state)

    def set_rng_state_all(self, new_states: list[torch.Tensor]) -> None:
        self.set_rng_state(new_states[self.current_device()])

    # ---- what has no effect here ----

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Nothing has to be set up, emptied or recorded."""

    _lazy_init = empty_cache = ipc_collect = set_per_process_memory_fraction = set_sync_debug_mode = init
    reset_accumulated_memory_stats = init

    def get_sync_debug_mode(self) -> int:
        return 0

    def is_current_stream_capturing(self) -> bool:
        return False
