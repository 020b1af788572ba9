"""Runs any `torch.distributed` program on simulated devices, with the command line of torchrun.

    python -m lib.simulate --nproc-per-node 4 --hardware H100 --report train.py --steps 3

`lib/guest` does the work; `--help` lists what else can be asked for.
"""

from lib.command import run_command
from lib.guest.command import main

if __name__ == "__main__":
    run_command(main)
