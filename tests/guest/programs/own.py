"""What each process has for itself."""

import logging
import os
import random
import signal
import sys
import tempfile
import time

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank = dist.get_rank()
signal.signal(signal.SIGTERM, lambda *_: None)
assert signal.getsignal(signal.SIGTERM) is not None
folder = tempfile.mkdtemp()
os.chdir(folder)
sys.argv.append(str(rank))
logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format=f"log {rank}: %(message)s", force=True)
log = logging.getLogger("guest")
log.addHandler(logging.StreamHandler(sys.stdout))
os.environ["MINE"] = str(rank)
random.seed(rank)
dist.barrier()
assert os.path.realpath(os.getcwd()) == os.path.realpath(folder)
assert sys.argv[-1] == os.environ["MINE"] == str(rank)
assert random.random() == random.Random(rank).random()
log.info("hello")
numbers = [None] * dist.get_world_size()
dist.all_gather_object(numbers, os.getpid())
assert len(set(numbers)) == len(numbers)
start = time.perf_counter()
y = torch.ones(512, 512) @ torch.ones(512, 512)
dist.all_reduce(y)
seconds = time.perf_counter() - start
print(f"rank {rank} of", os.environ["WORLD_SIZE"], "virtual" if seconds < 1e-4 else "real")
print("no end of line", end="")
dist.barrier()
print(" here")
os.chdir("/")
os.rmdir(folder)
