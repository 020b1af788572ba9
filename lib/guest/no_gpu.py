"""Programs that say "cuda" on a machine without a GPU: `Cluster(4).run(no_gpu(guest(train)))`.

Whatever is told a CUDA device takes the CPU: tensors, modules, checkpoints, autocast, DDP and FSDP, device meshes. What
asks for GPUs (`torch.cuda`, `torch.accelerator`) gets an answer: one GPU for each device of the node, with the time of
the virtual clock and the memory that it watches, where one runs.

What differs from a real GPU: a tensor says that it lies on the CPU. Numbers are those of the CPU (autocast keeps to the
CPU's list of operations; no tf32). That tensors of the CPU and of a GPU were mixed, or that two processes took the same
GPU, is not found. GPU and CPU draw random numbers from one stream. `torch.jit.script` leaves functions as they are.
CUDA and Triton kernels, CUDA graphs and the like are refused where they are called.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from lib.guest.gpus.hints import hints
from lib.guest.gpus.pretend import pretended
from lib.guest.program import Guest


def no_gpu(program: Guest, per_node: int | None = None, say: Callable[[str], None] = print) -> Guest:
    """The guest `program`, with pretended GPUs: `per_node` of them in each node, or one for each device. `say` is told
    once per run, in one line, that they are."""

    @contextmanager
    def around(size: int) -> Iterator[None]:
        count = per_node or size // program.nodes
        number = f"{count} are" if count > 1 else "1 is"
        say(f"No GPU: {number} pretended in each node. All runs on the CPU; tensors say device='cpu'.")
        with pretended(count):
            yield

    return replace(program, outside=(*program.outside, around), inside=(lambda group: hints(), *program.inside))
