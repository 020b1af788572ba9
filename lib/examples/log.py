"""The measured half of a training's progress lines: time, speed, share of the peak, memory."""

import resource
import sys
from time import perf_counter

import torch

from lib.costs.gpt import gpt_flops
from lib.costs.money import share_of_peak
from lib.devices import Group
from lib.devices.hardware import PRESETS
from lib.examples.recipe import Recipe
from lib.parallel.gpt.config import GPTConfig

SIDE, ROUNDS, SECONDS = 512, 4, 0.5  # of the matrix products that measure a CPU; it has no speed in some formats


def peak_flops(group: Group, simulated: bool, dtype: torch.dtype) -> float | None:
    """A program of its own. FLOP/s of all devices together, the same on all of them; None when nobody knows.

    A GPU's is what its maker publishes, for bfloat16. A CPU's is measured now, with square matrix products: by real
    processes all at the same time, since they share cores; of simulated ones, which take turns, by one for all.
    """
    if torch.get_default_device().type == "cuda":
        name = torch.cuda.get_device_name()
        found = [hardware for key, hardware in PRESETS.items() if key in name]
        return found[0].flops * group.size if found else None
    if torch.get_default_device().type == "meta":
        return None
    x = torch.ones(SIDE, SIDE, dtype=dtype)

    def rounds(number: int) -> torch.Tensor:  # (number,)  FLOP/s of all together
        speeds = torch.zeros(number, dtype=torch.float64)
        for i in range(number):
            group.barrier()
            if simulated and group.rank > 0:
                continue
            start = perf_counter()
            x @ x
            speeds[i] = 2 * SIDE**3 / (perf_counter() - start)
        return group.all_reduce(speeds)  # (number,)  Partial -> Replicate: all do as many rounds

    speed = rounds(2).max().item()
    more = min(ROUNDS, int(SECONDS * speed / (2 * SIDE**3 * (1 if simulated else group.size))))
    return max([speed, *rounds(more).tolist()])  # the best round: in the others somebody else had the cores


class Log:
    """The measured half of each line. Times are means since the last line; `peak` is that of `peak_flops`."""

    def __init__(self, config: GPTConfig, recipe: Recipe, peak: float | None):
        self._recipe, self._peak = recipe, peak
        self._flops = gpt_flops(config, recipe.batch, recipe.length)  # of the model: recomputing is no progress
        self._last, self._since = perf_counter(), 0

    def line(self, step: int) -> str:
        """Time of a step, tokens per second, MFU, and the most memory so far."""
        now = perf_counter()
        seconds = (now - self._last) / max(1, step - self._since)
        self._last, self._since = now, step
        mfu = "unknown" if self._peak is None else f"{share_of_peak(self._flops, seconds, 1, self._peak):.2%}"
        return (
            f"{seconds * 1e3:.1f} ms  {self._recipe.tokens / seconds:,.0f} tokens/s  MFU {mfu}  "
            f"peak memory {peak_memory() / 1e6:,.0f} MB"
        )

    def pause(self) -> None:
        """What comes next is no step, such as a validation: its time does not count."""
        self._paused = perf_counter()

    def go_on(self) -> None:
        """Steps again."""
        self._last += perf_counter() - self._paused


def peak_memory() -> int:
    """Bytes: on a GPU what PyTorch took there; else of the whole process, which simulated devices share."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
