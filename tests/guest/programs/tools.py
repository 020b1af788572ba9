"""What programs use to look at themselves: a profiler, a compiler, a progress bar."""

import sys

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function, schedule

dist.init_process_group("gloo")
model = torch.compile(torch.nn.Linear(2, 2, bias=False))
model.compile()
square = torch.compile(dynamic=True)(lambda x: x * x)
with profile(
    activities=[ProfilerActivity.CPU], schedule=schedule(wait=1, warmup=1, active=1), record_shapes=True
) as profiler:
    for step in range(3):
        with record_function("step"):
            y = square(model(torch.ones(1, 2)))
            dist.all_reduce(y)
        sys.stderr.write(f"\rstep {step}")
        profiler.step()
profiler.key_averages().table(sort_by="cpu_time_total", row_limit=3)
print("done")
