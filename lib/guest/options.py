"""The command line of `python -m lib.simulate`: torchrun's own, and what only a simulator can do.

The parser is that of torchrun itself, so every flag of the installed PyTorch is known. Those that mean something on
simulated devices are kept; each of the others is refused by its name, with the reason.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch.distributed.run import get_args_parser

from lib.devices.hardware import PRESETS, Hardware

KEPT = {"nnodes", "nproc_per_node", "rdzv_id", "standalone", "max_restarts", "role", "module", "run_path",
        "local_ranks_filter", "master_addr", "master_port", "training_script", "training_script_args"}  # fmt: skip
MINE = {"hardware", "rendezvous", "no_gpu", "gpus", "no_data", "own", "prefix", "report", "report_file", "trace"}
_NOTHING_TO_FIND = "all nodes are simulated in this one process, which has nobody to find"
_NO_PROCESSES = "simulated devices are no processes"
_ONE_OUTPUT = "all devices print here; --prefix says which one, --local-ranks-filter 0 shows rank 0 alone"
REASONS = {
    **dict.fromkeys(("rdzv_backend", "rdzv_endpoint", "rdzv_conf", "node_rank", "local_addr"), _NOTHING_TO_FIND),
    **dict.fromkeys(("monitor_interval", "start_method", "event_log_handler", "numa_binding", "signals_to_handle",
                     "shutdown_timeout", "virtual_local_rank"), _NO_PROCESSES),
    **dict.fromkeys(("log_dir", "redirects", "tee", "logs_specs", "duplicate_stdout_filters",
                     "duplicate_stderr_filters"), _ONE_OUTPUT),
    "no_python": "only Python runs on simulated devices",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What was asked for. `per_node` is None where the command did not say it: then the script may start its own."""

    script: str  # a path, or with `module` the name of a module
    arguments: tuple[str, ...] = ()
    module: bool = False
    nodes: int = 1
    per_node: int | None = None
    hardware: Hardware | None = None
    rendezvous: bool = False
    no_data: bool = False
    no_gpu: bool = False
    gpus: int | None = None
    own: tuple[str, ...] = ()
    prefix: bool = False
    shown: tuple[int, ...] = ()  # local ranks that may print; all when empty
    report: bool = False
    report_file: str | None = None
    trace: str | None = None
    environment: tuple[tuple[str, str], ...] = ()  # of torchrun's variables, those that the command sets

    @property
    def size(self) -> int:
        """All devices."""
        return self.nodes * (self.per_node or 1)


def parser() -> argparse.ArgumentParser:
    """torchrun's, and the flags of the simulator. The help leaves out what would be refused."""
    p = get_args_parser()
    for action in p._actions:
        if action.dest not in KEPT | {"help"}:
            action.help = argparse.SUPPRESS  # it would be refused
    p.prog = "python -m lib.simulate"
    p.description = (
        "Runs a torch.distributed program on simulated devices: the command line of torchrun, and no GPU, no cluster, "
        "no processes. Flags of torchrun that mean nothing here are refused by name."
    )
    mine = p.add_argument_group("what only a simulator can do")
    mine.add_argument("--hardware", choices=PRESETS, help="a virtual clock: time, memory, waiting of such devices")
    mine.add_argument("--rendezvous", action="store_true", help="a send waits for its receiver, as gloo's does")
    mine.add_argument("--no-gpu", action="store_true", help='a program that says "cuda" runs on the CPU')
    mine.add_argument("--gpus", type=int, metavar="N", help="the same, and the program sees N GPUs in each node")
    mine.add_argument("--no-data", action="store_true", help="shapes only: models that no laptop holds")
    mine.add_argument("--own", action="append", default=[], metavar="PACKAGE",
                      help="an installed package that each device imports for itself (for singletons)")  # fmt: skip
    mine.add_argument("--prefix", action="store_true", help="the rank before each line that is printed")
    mine.add_argument("--report", action="store_true", help="at the end, what was sent, by whom, and how long it took")
    mine.add_argument("--report-file", metavar="FILE", help="the same as JSON")
    mine.add_argument("--trace", metavar="FILE", help="the timeline, for ui.perfetto.dev (needs --hardware)")
    return p


def read(arguments: Sequence[str] | None = None) -> Options:
    """The options in `arguments`, or in the command line. What cannot be ends with exit code 2 and one sentence."""
    p = parser()
    if "PET_NPROC_PER_NODE" not in os.environ:  # torchrun takes its flags from there too
        p.set_defaults(nproc_per_node=None)  # not 1: the script may start its own
    given = p.parse_args(arguments)
    for name, value in vars(given).items():
        if name not in KEPT | MINE and value != p.get_default(name):
            p.error(f"--{name.replace('_', '-')} has no meaning here: {REASONS.get(name, _NO_PROCESSES)}. Leave it out")
    nodes = _nodes(p, given.nnodes)
    per_node = given.nproc_per_node and _number(p, "--nproc-per-node", given.nproc_per_node)
    if given.standalone and nodes > 1:
        p.error(f"--standalone means one node, but --nnodes says {nodes}")
    if given.max_restarts:
        p.error("--max-restarts: a simulated run fails in the same way each time, so it is not started again")
    if given.trace and not given.hardware:
        p.error("--trace is a timeline, and only a clock knows the time: add --hardware H100")
    for flag, file in (("--report-file", given.report_file), ("--trace", given.trace)):
        if file and not Path(file).parent.is_dir():
            p.error(f"{flag}={file}: there is no folder {Path(file).parent}")
    if given.gpus is not None:
        given.gpus, given.no_gpu = _number(p, "--gpus", str(given.gpus)), True
    hardware = PRESETS[given.hardware] if given.hardware else None
    shown = [_number(p, "--local-ranks-filter", rank, 0) for rank in given.local_ranks_filter.split(",") if rank]
    torchruns = (("MASTER_ADDR", given.master_addr), ("MASTER_PORT", given.master_port or 29500))
    torchruns += (("ROLE_NAME", given.role), ("TORCHELASTIC_RUN_ID", given.rdzv_id))
    return Options(
        script=given.training_script,
        arguments=tuple(given.training_script_args),
        module=given.module,
        nodes=nodes,
        per_node=per_node,
        hardware=replace(hardware, per_node=per_node) if hardware and per_node else hardware,
        shown=tuple(shown),
        own=tuple(given.own),
        environment=tuple((name, str(value)) for name, value in torchruns),
        **{name: getattr(given, name) for name in MINE - {"hardware", "own"}},
    )


def _nodes(p: argparse.ArgumentParser, text: str) -> int:
    least, _, most = text.partition(":")
    if most and most != least:
        p.error(f"--nnodes={text}: no node joins or leaves here; say how many there are, such as --nnodes {most}")
    return _number(p, "--nnodes", least)


def _number(p: argparse.ArgumentParser, flag: str, text: str, least: int = 1) -> int:
    if text.isdecimal() and int(text) >= least:
        return int(text)
    hint = ": what this machine has says nothing about simulated devices" if text in ("auto", "gpu", "cpu") else ""
    p.error(f"{flag}={text} is no number of at least {least}{hint}")
