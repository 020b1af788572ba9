"""What a reader types: the programs of lib.examples, simulated in this process, or for real under torchrun."""

import re
from contextlib import contextmanager, redirect_stdout
from io import StringIO

import torch
from oracles.forked import Forked

SECONDS = 240  # a safety net: each takes a few, on a crowded machine many
SMALL = ["--steps", 20, "--layers", 1, "--hidden", 32, "--batch", 8, "--length", 32, "--seed", 3]  # for train_gpt


def simulated(main, *options):
    """What `python -m` prints."""
    said = StringIO()
    with redirect_stdout(said), one_thread():
        main([str(option) for option in options])
    return said.getvalue()


@contextmanager
def one_thread():
    """As torchrun gives each process: with another number, matrix products add up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def torchrun(**commands):
    """Each command is a number of processes, and what they run; all at the same time, for most of it is waiting.
    Returns what each prints, by name. AssertionError when one fails."""
    started = {name: Forked(size, *map(str, words)) for name, (size, *words) in commands.items()}
    try:
        said = {name: process.communicate(timeout=SECONDS) for name, process in started.items()}
    finally:
        for process in started.values():
            process.terminate()  # torchrun ends its processes, if there still are any
    for name, process in started.items():
        assert process.returncode == 0, (name, *said[name])
    return {name: printed for name, (printed, _) in said.items()}


def exact(said):
    """What repeats, without the measured half of the progress lines."""
    return re.sub(r"  \|  .*$", "", said, flags=re.M)


def losses(said):
    """What train_gpt printed, by step."""
    return {int(step): float(loss) for step, loss in re.findall(r"^step +(\d+)  loss (\d\.\d{8})  ", said, re.M)}
