"""Freed memory is kept: a step that was done before fetches next to nothing from the system."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from lib import Cluster

def step(group):
    x = torch.ones(1024, 768)                                       # 3 MiB each, and so are all temporaries
    for _ in range(6):
        x = group.all_reduce(x * 0.5)
    return x.sum()

faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    Cluster(4).run(step)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[2:]))  # page faults of a run; a busy machine may take pages back now and then
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another malloc, which lib leaves alone")
def test_a_repeated_run_has_few_page_faults():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    # One temporary alone is 768 pages; the threads' own stacks are a few dozen.
    assert int(run.stdout) < 768
