"""A process that is one device: it joins the others, and runs the program."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from lib.devices.cluster import run_program
from lib.devices.counts import counted
from lib.devices.group import Group
from lib.real.channel import Hookup
from lib.real.lookout import PatientStore
from lib.real.meeting_place import RealMeetingPlace


class Place(NamedTuple):
    """Which process of how many; `local_rank` of `local_size` counts those on this machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int


@contextmanager
def joined(store: dist.Store, place: Place) -> Iterator[RealMeetingPlace]:
    """The meeting place of a run, for the process in this `place`. The processes find each other by what they write
    into `store`. On a machine with a GPU for each, this process takes its own. RuntimeError without gloo."""
    if not dist.is_gloo_available():
        raise RuntimeError(
            "real processes talk through gloo, which this PyTorch was built without. Install PyTorch from pytorch.org, "
            "or run simulated devices: Cluster(size).run(program)"
        )
    gpu = own_gpu(place.local_rank, place.local_size)
    if gpu is not None:
        torch.cuda.set_device(gpu)
    gloo = dist.ProcessGroupGloo
    alone = place.local_size == place.size  # on one machine: nothing has to be looked up, not even its name
    network = gloo.create_device(hostname="127.0.0.1") if alone else gloo.create_default_device()
    meeting_place = RealMeetingPlace(PatientStore(store), place.rank, place.size, Hookup(network, gpu))
    try:
        yield meeting_place
    except BaseException as error:
        meeting_place.close(error)
        raise
    meeting_place.close(None)


def own_gpu(local_rank: int, local_size: int) -> torch.device | None:
    """The GPU of process `local_rank` of `local_size` on this machine; None when there is not one for each.

    RuntimeError when the default device (`with torch.device("cuda")`) asks for one.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_size <= count and dist.is_nccl_available():
        return torch.device("cuda", local_rank)
    try:
        wanted = torch.get_default_device().type == "cuda"
    except (AssertionError, RuntimeError):  # PyTorch asks the default device for its number, and there is none
        wanted = True
    if wanted:
        why = "was built without NCCL" if local_size <= count else f"sees {counted(count, 'GPU')}"
        raise RuntimeError(
            f"device 'cuda' was asked for by {counted(local_size, 'process')}, but this PyTorch {why}; each needs a "
            "GPU of its own. Start fewer processes, install PyTorch for CUDA, or take device='cpu'"
        )
    return None


def run_here(meeting_place: RealMeetingPlace, program: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """`program(group, ...)` of this device."""
    group = Group(meeting_place, meeting_place.rank, range(meeting_place.size))
    return run_program(program, group, args, kwargs)
