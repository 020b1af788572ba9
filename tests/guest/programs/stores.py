"""Stores used directly, and the other ways to meet: `stores.py tcp|queue|met|file|store|url`."""

import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
case = sys.argv[1]
if case == "tcp":
    store = dist.TCPStore("127.0.0.1", 29400, size, rank == 0, timedelta(seconds=30))
    if rank == 1:
        store.set("key", "value")
    assert store.get("key") == b"value"
    assert dist.PrefixStore("a", store).add("n", 1) in range(1, size + 1)
    while store.add("a/n", 0) < size:
        time.sleep(0.001)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
elif case == "queue":  # rank 0 hands out work, and the others wait for it
    store = dist.TCPStore("127.0.0.1", 29400, size, rank == 0, timedelta(seconds=30))
    assert store.has_extended_api()
    if rank == 0:
        for task in range(size - 1):
            store.queue_push("tasks", str(task))
        while not store.check(["done"]) or store.queue_len("done") < size - 1:
            time.sleep(0.001)
        assert {store.queue_pop("done") for _ in range(size - 1)} == {b"%d" % task for task in range(size - 1)}
        store.set("over", "yes")
    else:
        store.queue_push("done", store.queue_pop("tasks"))
        store.wait(["over"])
    try:
        store.queue_pop("tasks", block=False)
    except dist.QueueEmptyError:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
elif case == "met":  # by hand, at the store that torchrun keeps
    store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
elif case == "url":
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:23456", rank=rank, world_size=size)
elif case == "file":
    dist.init_process_group("gloo", init_method=f"file://{tempfile.gettempdir()}/meet", rank=rank, world_size=size)
elif case == "wait":
    store = dist.FileStore("somewhere", size)
    store.wait(["never"])
elif case == "polling":  # one makes a file, the others look again and again
    dist.init_process_group("gloo")
    made = Path(sys.argv[2])
    while rank < size - 1 and not made.exists():
        time.sleep(0.001)
    made.touch()
x = torch.ones(1)
dist.all_reduce(x)
print(case, rank, x.item())
