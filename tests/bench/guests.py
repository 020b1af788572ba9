"""Programs written for torch.distributed: one step of DDP as a guest, beside PyTorch's own group of threads."""

import threading
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed import multi_threaded_pg as threaded

from bench.plan import Plan, progress, summary
from lib import Cluster, guest

DEVICES, WIDTH, LAYERS = 4, 128, 4
STEP, THREADS = "a step of DDP on 4 devices, ms of CPU time", "the same in PyTorch's group of threads, ms"
RATIO, CALLS = "a step of DDP, times that of the group of threads", "1,000 all-reduces of 16 bytes on 4 devices, ms"
TARGETS = {RATIO: 1.5, CALLS: 150}


def steps_of_ddp(steps: int) -> None:
    """What runs on each device, in both: the group is there already."""
    blocks = [nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)) for _ in range(LAYERS)]
    model = DistributedDataParallel(nn.Sequential(*blocks))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, WIDTH)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def as_guests(steps: int) -> None:
    def program() -> None:
        dist.init_process_group("gloo")
        steps_of_ddp(steps)

    Cluster(DEVICES).run(guest(program))


def all_reduces(calls: int) -> None:
    def program() -> None:
        dist.init_process_group("gloo")
        x = torch.ones(4)
        for _ in range(calls):
            dist.all_reduce(x)

    Cluster(DEVICES).run(guest(program))


def as_threads(steps: int) -> None:
    """The same in PyTorch's group of threads. RuntimeError when one of them failed."""
    store, errors = dist.HashStore(), []

    def device(rank: int) -> None:
        try:
            dist.init_process_group("threaded", rank=rank, world_size=DEVICES, store=store)
            with torch.autograd.set_multithreading_enabled(False):
                steps_of_ddp(steps)
            dist.barrier()
        except BaseException as error:
            errors.append(error)
            threaded.ProcessLocalGroup.exception_handle(error)

    threaded._install_threaded_pg()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    try:
        threads = [threading.Thread(target=device, args=(rank,)) for rank in range(DEVICES)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    finally:
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
        threaded._uninstall_threaded_pg()
        threaded.ProcessLocalGroup.reset()
    if errors:
        raise RuntimeError("the group of threads failed") from errors[0]


def seconds(run, times: int) -> float:
    """CPU seconds of one more step, of all devices together: what a longer run takes more than a short one."""
    run(2)  # what is loaded once, and by the first, would count as the short run's
    taken = []
    for count in (2, 2 + times):
        start = time.process_time()
        run(count)
        taken.append(time.process_time() - start)
    return (taken[1] - taken[0]) / times


def measure(plan: Plan) -> list[dict]:
    """Milliseconds of CPU: a step of DDP in both, their ratio round by round, and 1,000 all-reduces of 16 bytes."""
    torch.set_num_threads(1)
    times = max(8, plan.calls // 500)  # fewer could take less than what disturbs them
    samples: dict[str, list[float]] = {name: [] for name in (STEP, THREADS, RATIO, CALLS)}
    for round_ in range(-plan.warm_up, plan.rounds):
        progress(f"  guests, round {round_ + 1} of {plan.rounds} ...")
        mine, theirs = seconds(as_guests, times), seconds(as_threads, times)
        calls = seconds(all_reduces, max(100, plan.calls // 10))
        if round_ >= 0:
            for name, value in zip(samples, (1e3 * mine, 1e3 * theirs, mine / theirs, 1e6 * calls), strict=True):
                samples[name].append(value)
    return [{"what": name, "target": TARGETS.get(name), "values": summary(found)} for name, found in samples.items()]
