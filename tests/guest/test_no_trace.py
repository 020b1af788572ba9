"""After a run, failed or not, the process is as before; guests and the book's own programs alternate in it."""

import ctypes
import gc
import importlib
import logging
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path

import numpy
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel as DDP

from lib.devices import Cluster, DeadlockError
from lib.guest import private, private_tensors
from lib.guest.program import Exit, guest, script

HARMFUL = """
import gc, logging, os, random, signal, sys, warnings
import helper
import numpy, torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel as DDP

dist.init_process_group("gloo")
rank = dist.get_rank()
model = DDP(nn.Linear(3, 3))
model(torch.ones(2, 3)).sum().backward()
subgroup = dist.new_group([0, 1])
os.environ["TRACE"] = os.environ["HOME"] = str(rank)
os.environ.pop("PATH")
os.chdir("/")
sys.argv.append("more"); sys.path.append("/nowhere"); sys.excepthook = None
random.seed(rank); numpy.random.seed(rank); torch.manual_seed(rank)
torch.set_default_dtype(torch.float64); torch.set_num_threads(1)
torch.use_deterministic_algorithms(True); torch.backends.cudnn.benchmark = True
torch.set_float32_matmul_precision("medium"); torch.backends.fp32_precision = "tf32"
torch.backends.cuda.enable_flash_sdp(False); torch.backends.mkldnn.set_flags(False)
torch.autograd.set_detect_anomaly(True)
gc.collect(); gc.freeze(); gc.disable(); gc.set_threshold(7, 7, 7); sys.setrecursionlimit(5000)
torch.set_printoptions(precision=2, linewidth=50); torch.serialization.add_safe_globals([nn.Linear])
torch.multiprocessing.set_sharing_strategy("file_system"); dist.set_debug_level(dist.DebugLevel.INFO)
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False, False
warnings.simplefilter("error"); logging.basicConfig(level=logging.DEBUG, force=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
dist.all_reduce(torch.ones(1), async_op=True).wait()
how = sys.argv[1]
if how == "raises" and rank == 1:
    raise KeyError("a mistake")
if how == "exits" and rank == 1:
    sys.exit(3)
if how == "hangs" and rank == 1:
    dist.barrier()
if how == "destroys":
    dist.destroy_process_group()
"""
SETTINGS = [
    torch.get_default_dtype,
    torch.get_num_threads,
    torch.are_deterministic_algorithms_enabled,
    torch.get_float32_matmul_precision,
    torch.is_anomaly_enabled,
    lambda: torch.backends.cudnn.benchmark,
    *(get for get, _ in private_tensors.PRECISIONS),
    torch.backends.cuda.flash_sdp_enabled,
    lambda: torch.backends.mkldnn.enabled,
    gc.isenabled,
    gc.get_threshold,
    gc.get_freeze_count,
    sys.getrecursionlimit,
    lambda: f"{torch.ones(40) / 3}",
    lambda: set(torch.serialization.get_safe_globals()),
    torch.multiprocessing.get_sharing_strategy,
    dist.get_debug_level,
    lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
    lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction_split_k,
    lambda: torch.cuda.is_available,  # the functions themselves: guests see others in their place
    lambda: torch.multiprocessing.spawn,
    lambda: dist.TCPStore,
]


def streams():
    return random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()


def state_of_the_process():
    get = ctypes.CDLL(None).getenv
    get.restype = ctypes.c_char_p
    c10d = importlib.import_module("torch.distributed.distributed_c10d")
    return {
        "groups": (dist.is_initialized(), private.world(), dict(c10d._pg_map), dict(c10d._pg_names)),
        "functions": [vars(c10d)[name] for name in ("_new_process_group_helper", "rendezvous", "_world")],
        "functions of dist": {name: thing for name, thing in vars(dist).items() if callable(thing)},
        "errors": importlib.import_module("torch.distributed.c10d_logger")._get_msg_dict,
        "guest's modules": [name for name in sys.modules if name.startswith(("helper", "__mp_"))],
        "main": sys.modules["__main__"],
        "environment": (dict(os.environ), [get(name) for name in (b"TRACE", b"RANK", b"HOME", b"PATH")]),
        "sys": (list(sys.argv), list(sys.path), sys.excepthook, list(sys.meta_path), sys.stdout),
        "streams": streams(),
        "settings": [get() for get in SETTINGS],
        "warnings": list(warnings.filters),
        "loggers": (logging.root.level, list(logging.root.handlers)),
        "folder": Path.cwd(),
        "signals": signal.getsignal(signal.SIGTERM),
    }


def book_program(group):
    return group.all_reduce(torch.tensor([float(group.rank)])).item()


@pytest.mark.parametrize(
    ("how", "error"),
    [("ends", None), ("destroys", None), ("raises", KeyError), ("exits", Exit), ("hangs", DeadlockError)],
)
def test_the_process_is_as_before(how, error, tmp_path):
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "train.py").write_text(HARMFUL)
    importlib.import_module("torch.nn.parallel")
    before, threads = state_of_the_process(), set(threading.enumerate())
    if error is None:
        Cluster(2).run(script(tmp_path / "train.py", how))
        after = state_of_the_process()
        for seed in (random.seed, numpy.random.seed, torch.manual_seed):
            seed(0)  # as after every run, the streams go on where rank 0's stopped
        before["streams"] = streams()
    else:
        with pytest.raises(error):
            Cluster(2).run(script(tmp_path / "train.py", how))
        after = state_of_the_process()
    for name, value in before.items():
        assert after[name] == value, name
    assert set(threading.enumerate()) <= threads  # those of other tests may have ended meanwhile
    assert Cluster(4).run(book_program) == [6.0] * 4


def attends_its_own_way():
    """Rank 0 leaves the context while the others are within; afterwards all may take any kernel again."""
    dist.init_process_group("gloo")
    with sdpa_kernel(SDPBackend.MATH):
        dist.barrier()
        within = torch.backends.cuda.flash_sdp_enabled()
    dist.barrier()
    return within, torch.backends.cuda.flash_sdp_enabled()


def test_what_is_set_for_a_while_is_each_devices_own():
    assert Cluster(3).run(guest(attends_its_own_way)) == [(False, True)] * 3


def sums(steps=1):
    dist.init_process_group("gloo")
    x = torch.tensor([float(dist.get_rank())])
    for _ in range(steps):
        dist.all_reduce(x)
    return x.item()


def starts_others():
    """A device that starts runs of its own, in the middle of its own run."""
    before = sums()
    inner = Cluster(3).run(guest(sums)), Cluster(2).run(book_program)
    x = torch.ones(1)
    dist.all_reduce(x)  # its own group is still there
    return before, inner, x.item(), os.environ["RANK"], dist.get_world_size()


def test_guests_and_the_books_programs_alternate_and_nest():
    for _ in range(2):
        assert Cluster(2).run(guest(sums)) == [1.0, 1.0]
        assert Cluster(4).run(book_program) == [6.0] * 4
    expected = [(1.0, ([3.0] * 3, [1.0] * 2), 2.0, str(rank), 2) for rank in range(2)]
    assert Cluster(2).run(guest(starts_others)) == expected
    assert not dist.is_initialized()


def test_a_module_may_talk_while_it_is_imported(tmp_path):
    """The next device imports the same module while the first one waits in the middle of it."""
    (tmp_path / "talks.py").write_text(
        "import torch, torch.distributed as dist\ndist.init_process_group('gloo')\n"
        "total = torch.ones(1)\ndist.all_reduce(total)\ndist.barrier()\n"
    )
    (tmp_path / "main.py").write_text("import talks\nassert talks.total.item() == 3.0\n")
    Cluster(3).run(script(tmp_path / "main.py"))
    assert "talks" not in sys.modules


def test_a_step_leaves_no_tensors_behind():
    """Nothing keeps the models of a run alive: neither a process group nor a work nor C++'s lists."""

    def alive():
        return [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter) and x.shape == (11, 7)]

    def train():
        dist.init_process_group("gloo")
        model = DDP(nn.Linear(7, 11))
        model(torch.ones(2, 7)).sum().backward()

    others = alive()  # of other tests, kept so that none of a run's can have the place of one
    Cluster(2).run(guest(train))
    gc.collect()
    assert {id(x) for x in alive()} <= {id(x) for x in others}
