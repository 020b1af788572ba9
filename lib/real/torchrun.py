"""The same program, for real: under `torchrun` each process is one device of the group, else all are simulated.

    if __name__ == "__main__":
        losses = launch(train, text, size=4)[0]    # train(group, text) is the program of one device

So `python train.py` simulates 4 devices, and `torchrun --nproc-per-node 4 train.py` makes 4 processes. Under torchrun
every process runs the whole script: what shall be printed once, the program prints where `group.rank == 0`. What goes
wrong is said by one process; the others end without a word.

Whom it trusts: the processes that torchrun started, and the network between them. Nothing that comes over it is run
(no pickle), but it is neither encrypted nor signed: who reaches torchrun's port can disturb a run and change its
numbers. Keep both inside a network of your own.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from lib.devices.cluster import Cluster, check_program
from lib.devices.counts import counted
from lib.devices.meters import Meters
from lib.real.one_voice import is_silent, let_one_speak
from lib.real.parcel import pack
from lib.real.process import Place, joined, run_here
from lib.real.unpacking import unpack


def launch(
    program: Callable[..., Any], *args: Any, size: int | None = None, device: str | None = None, **kwargs: Any
) -> list[Any]:
    """Runs `program(group, *args, **kwargs)` on all devices; returns the results in rank order, in every process.

    Under torchrun the devices are its processes: they talk through gloo about what lies in the memory of the CPU, and
    through NCCL about what lies on their GPUs, one for each process. Else `size` devices are simulated, or 4.
    `device` ("cpu", "cuda", "meta") is where tensors are made by default.

    ValueError when torchrun started another number of processes than `size`, RuntimeError when there is no such device.
    """
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"launch(device={device!r}): this PyTorch sees no GPU. Install PyTorch for CUDA on a machine that has one, "
            "or take device='cpu'"
        )
    with nullcontext() if device is None else torch.device(device):
        return devices(size).run(program, *args, **kwargs)


def devices(size: int | None = None) -> "Cluster | Torchrun":
    """What `launch` runs on. After a run, its `meters` hold what each device sent and received."""
    if dist.is_torchelastic_launched():
        return Torchrun(size)
    return Cluster(4 if size is None else size)


class Torchrun:
    """The processes that torchrun started, in the place of a `Cluster`. This process is one of them.

    After a run, `meters` holds what each of them sent and received.
    """

    def __init__(self, size: int | None = None):
        started = int(os.environ["WORLD_SIZE"])
        if size is not None and size != started:
            raise ValueError(
                f"the program asks for {counted(size, 'device')}, but torchrun started {counted(started, 'process')}: "
                f"start it with --nproc-per-node {size}, or ask for {started}"
            )
        self.size, self.meters = started, Meters(started)

    def __repr__(self) -> str:
        return f"Torchrun({self.size})"

    def run(self, program: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """As `Cluster.run`. The results of the other processes are copies in the memory of the CPU (see `parcel.py`).

        Random streams start where that of rank 0 stands, and go on where rank 0's stopped.
        """
        check_program(program, args, kwargs)
        store, rank, size = next(dist.rendezvous("env://"))
        number = store.add(f"runs of {rank}", 1)  # a script may launch one program after another
        store = dist.PrefixStore(f"run {number}", store)
        try:
            return self._run_connected(store, rank, size, program, args, kwargs)
        except BaseException as error:
            with suppress(Exception):  # the store may be gone: then each speaks for itself
                let_one_speak(error, store, rank, size)
            if not is_silent(error):
                record(_raise)(error)  # with it, torchrun's summary shows what this process raised
            raise

    def _run_connected(
        self, store: dist.Store, rank: int, size: int, program: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ) -> list[Any]:
        self.meters = Meters(size)
        place = Place(rank, size, *(int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE")))
        with joined(store, place) as here:
            of_rank_0 = here.share(torch.get_rng_state().numpy().tobytes())[0]
            torch.set_rng_state(torch.frombuffer(bytearray(of_rank_0), dtype=torch.uint8))
            output = run_here(here, program, args, kwargs)
            packed, kinds = pack(output, rank)
            self.meters, stream = here.finish()
            torch.set_rng_state(stream)
            parcels = enumerate(here.share(packed))
            return [output if r == rank else unpack(other, r, kinds) for r, other in parcels]


def _raise(error: BaseException) -> None:
    raise error
