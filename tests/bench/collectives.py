"""What one collective costs per device, beside the hand-over of a lock between threads, which no engine can avoid."""

import threading
import time
from collections.abc import Callable
from statistics import mean

import torch

from bench.plan import Plan, progress, summary
from lib import Cluster, Group


def all_reduces(group: Group, calls: int) -> float:
    x = torch.ones(4)
    return timed(group, lambda: group.all_reduce(x), calls)


def barriers(group: Group, calls: int) -> float:
    return timed(group, group.barrier, calls)


def timed(group: Group, call: Callable[[], object], calls: int) -> float:
    """Seconds on the clock of this device; meanwhile every device had its turn exactly `calls` times."""
    call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    seconds = time.perf_counter() - start
    group.barrier()  # no thread shall end while others are still on the clock
    return seconds


def hand_overs(size: int, times: int) -> float:
    """Seconds for `times` trips of the turn round a ring of `size` threads, as bare as Python can."""
    gates = [threading.Lock() for _ in range(size)]
    for gate in gates:
        gate.acquire()

    def pass_on(rank: int) -> None:
        for _ in range(times):
            gates[rank].acquire()
            gates[(rank + 1) % size].release()

    threads = [threading.Thread(target=pass_on, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    gates[0].release()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def measure(plan: Plan) -> list[dict]:
    """One dict per verb and size: microseconds per device and call."""
    found = {}
    for round_ in range(-plan.warm_up, plan.rounds):
        progress(f"  collectives, round {round_ + 1} of {plan.rounds} ...")
        samples = {("bare hand-over", 2): hand_overs(2, plan.calls // 2) / (plan.calls // 2 * 2)}
        for size in plan.clusters:
            calls = max(2, plan.calls // size)
            samples["bare hand-over", size] = hand_overs(size, calls) / (calls * size)
            for verb, program in (("all_reduce", all_reduces), ("barrier", barriers)):
                samples[verb, size] = mean(Cluster(size).run(program, calls)) / (calls * size)
            start = time.perf_counter()
            Cluster(size).run(lambda group: None)
            samples["start of a run", size] = (time.perf_counter() - start) / size
        for name, seconds in samples.items() if round_ >= 0 else ():
            found.setdefault(name, []).append(seconds)
    return [
        {"what": what, "devices": size, "microseconds": summary([1e6 * s for s in samples])}
        for (what, size), samples in found.items()
    ]
