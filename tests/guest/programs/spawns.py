"""A program that starts its own processes: `spawns.py spawn|process|queue|subclass`."""

import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

GROUP = None  # each process has its own


def work(rank, size, shared, queue=None):
    global GROUP
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "localhost", "12355"
    assert GROUP is None
    dist.init_process_group("gloo", rank=rank, world_size=size)
    GROUP = dist.new_group(list(range(size)))
    x = torch.tensor([rank + 1.0])
    dist.all_reduce(x, group=GROUP)
    shared[rank] = x.item() * 10 + rank  # the memory of a tensor is everyone's
    if queue is not None:
        queue.put(x.item())
    if sys.argv[1] == "fails" and rank == 1:
        raise ValueError("not today")
    dist.destroy_process_group()


class Worker(mp.get_context("spawn").Process):
    def __init__(self, *args):
        super().__init__()
        self.args = args

    def run(self):
        work(*self.args)


def main(case, size=3):
    mp.set_start_method("spawn")
    shared = torch.zeros(size)
    if case in ("spawn", "fails"):
        mp.spawn(work, args=(size, shared), nprocs=size)
    elif case == "later":
        context = mp.spawn(work, args=(size, shared), nprocs=size, join=False)
        while not context.join():
            pass
    elif case == "queue":
        queue = mp.Queue()
        workers = [mp.Process(target=work, args=(rank, size, shared, queue)) for rank in range(size)]
        for worker in workers:
            worker.start()
        assert [queue.get() for _ in workers] == [6.0] * size
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0] * size
    elif case == "subclass":
        workers = [Worker(rank, size, shared) for rank in range(size)]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            pass
    assert GROUP is None
    print(case, shared.tolist())


if __name__ == "__main__":
    main(sys.argv[1])
