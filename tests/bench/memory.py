"""Peak memory of one forward + backward, simulated against dense; and what shards of a dense weight add."""

import resource
import sys
from pathlib import Path

import torch

from bench.layers import dense_work, device_work
from bench.plan import Plan
from bench.rounds import Work, step
from lib import Cluster, Group


def resident(peak: bool) -> int:
    """Bytes of memory in use, or the most there ever were. Where there is no /proc, the most serves as both."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux a new process inherits the peak of the one that started it.
        wanted = "VmHWM:" if peak else "VmRSS:"
        line = next(line for line in status.read_text("ascii").splitlines() if line.startswith(wanted))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def program(group: Group, dense: Work) -> None:
    step(*device_work("MLP", group, *dense), backward=True)


def shared(group: Group, dense: Work) -> torch.nn.Module:
    return device_work("MLP", group, *dense)[0]  # kept, so that the layers of all devices exist at once


def measure(plan: Plan, size: int) -> dict:
    """Bytes that one step adds, `size` devices (0: the dense model). Needs a fresh process: a peak never falls."""
    torch.set_num_threads(1)
    tiny = dense_work("MLP", Plan(1, 16, 16, 16))  # whatever is loaded at first use shall not count
    step(*tiny, backward=True)
    if size:
        Cluster(size).run(program, tiny)
    dense = dense_work("MLP", plan)
    weights = sum(p.numel() * p.element_size() for p in dense[0].parameters())
    row = {"devices": size, "weights": weights}
    if size:
        before = resident(peak=False)
        with torch.no_grad():
            layers = Cluster(size).run(shared, dense)
        row["shared shards"] = resident(peak=False) - before
        pointers = {p.untyped_storage().data_ptr() for p in dense[0].parameters()}
        row["all shared"] = all(p.untyped_storage().data_ptr() in pointers for one in layers for p in one.parameters())
        del layers
    before = max(resident(peak=True), resident(peak=False))
    if size:
        Cluster(size).run(program, dense)
    else:
        step(*dense, backward=True)
    row["peak"] = resident(peak=True) - before
    return row
