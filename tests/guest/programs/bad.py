"""What goes wrong in other people's programs: `bad.py CASE`."""

import os
import sys

import torch
import torch.distributed as dist


def raises():
    if dist.get_rank() == 2:
        raise ValueError("a batch is missing")
    dist.barrier()


def exits():
    dist.barrier()
    sys.exit(3 if dist.get_rank() == 1 else 0)


def exits_with_a_text():
    sys.exit("no checkpoint")


def ends_early():
    sys.exit(0)


def forks():
    os.fork()


def ends_hard():
    os._exit(4)


def twice():
    dist.init_process_group("gloo")


def leaves_a_barrier():
    if dist.get_rank() != 1:
        dist.barrier()


def other_shapes():
    dist.all_reduce(torch.ones(2 + dist.get_rank() // 3))


def monitored():
    dist.monitored_barrier()


def kills():
    os.kill(os.getpid(), 15)


def wants_a_package():
    import yaml_of_nobody  # noqa: F401


def wants_a_kernel():
    import flash_attn  # noqa: F401


def wants_data():
    raise OSError("Couldn't reach 'wikitext' on the Hub (LocalEntryNotFoundError)")


def wants_gpus():
    torch.ones(1).cuda()


case = sys.argv[1]
if case == "raises_at_import":
    raise RuntimeError("not on this machine")
if case == "never":
    dist.barrier()
if case == "own_world":
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=8)
dist.init_process_group("gloo")
globals()[case]()
dist.destroy_process_group()
