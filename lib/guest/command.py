"""`python -m lib.simulate`: reads the command line, runs the program, reports.

The exit code is the program's. What goes wrong is said once, on standard error, with the rank and the lines of the
program; what the simulator has to say is said there too, so that standard output is the program's own. The report, if
one was asked for, comes last on standard output.
"""

import json
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from lib.command import nobody_reads
from lib.devices.cluster import Cluster
from lib.guest.failure import exit_code, message
from lib.guest.hints import NO_GPU
from lib.guest.options import Options, read
from lib.guest.own_time import OwnTime
from lib.guest.printing import printing
from lib.guest.program import Guest, script
from lib.guest.refusals import Asked
from lib.guest.report import Report, report_of
from lib.guest.watch import Log, watched


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: that of the program; 2 when the command line cannot be, or there is no such program."""
    run = Run(read(arguments))
    code = run.run()
    run.tell(code)
    return code


class Run:
    """One command. The program runs on a cluster, and whatever it starts itself on clusters of their own."""

    def __init__(self, options: Options):
        self.options = options
        self.clusters: list[tuple[Cluster, Log]] = []
        self.time, self.asked = OwnTime(), Asked()
        self.told = ""  # what went wrong

    def run(self) -> int:
        """Runs the program; returns its exit code, and says what went wrong."""
        try:
            program = self.program()
        except (FileNotFoundError, ImportError) as error:
            _say(str(error))
            return 2
        try:
            self.start(self.options.size, program)
        except BaseException as error:
            if nobody_reads(error):
                raise
            self.told = message(error, self.options.no_gpu)
            _say(self.told)
            return exit_code(error)
        return 0

    def start(self, size: int, program: Guest) -> None:
        """Runs a program on `size` devices, watched."""
        cluster, log = Cluster(size, self.options.hardware, self.options.rendezvous), Log()
        self.clusters.append((cluster, log))
        cluster.run(watched(program, log))

    def program(self) -> Guest:
        """What the command asks for. FileNotFoundError, ImportError: there is no such program."""
        o = self.options
        program = _module(o.script, o.arguments) if o.module else script(o.script, *o.arguments)
        program = replace(
            program,
            nodes=o.nodes,
            own=(*program.own, *o.own),
            environment=(*program.environment, *o.environment),
            start=self.start,
            outside=(*program.outside, self.time, *self._outside()),
        )
        if o.no_gpu:
            from lib.guest.no_gpu import no_gpu  # only who asks for it waits for its imports

            program = no_gpu(program, o.gpus, cache(_say))  # once, also when it starts others
        if o.no_data:
            from lib.guest.no_data import no_data

            program = no_data(program, cache(_say))
        return program

    def _outside(self) -> list[Callable[[int], Any]]:
        o = self.options
        contexts: list[Callable[[int], Any]] = [] if o.no_gpu else [self.asked]
        if o.prefix or o.shown:
            contexts.append(lambda size: printing(o.prefix, o.shown, o.per_node or size))
        return contexts

    def reports(self) -> list[Report]:
        """One for each cluster; a script that only starts others has none of its own."""
        reports = [report_of(cluster, log) for cluster, log in self.clusters]
        return [r for r in reports if r.calls] or reports[:1]

    def tell(self, code: int) -> None:
        """What the run did, and what to know about it."""
        o, reports = self.options, self.reports()
        if self.time.asked:
            _say(
                "The program looks at its own clock, which shows the time of this simulation; --hardware H100 gives it "
                "a virtual one."
            )
        if self.asked.gpus and NO_GPU not in self.told and not any(r.calls for r in reports):
            _say(f"{NO_GPU}.")
        for report in reports:
            if o.report:
                print(f"\n{report}", flush=True)
            else:
                _say(report.summary())
        if o.report_file:
            facts = {"exit_code": code, "runs": [report.to_json() for report in reports]}
            Path(o.report_file).write_text(json.dumps(facts, indent=1))
        if o.trace:
            self._write_traces(Path(o.trace))

    def _write_traces(self, path: Path) -> None:
        traces = [cluster.trace for cluster, log in self.clusters if log.by_call]
        for number, trace in enumerate(traces or [cluster.trace for cluster, _ in self.clusters[:1]], 1):
            trace.to_chrome(path if number == 1 else path.with_stem(f"{path.stem}-{number}"))


def _module(name: str, arguments: tuple[str, ...]) -> Guest:
    """What `python -m name` runs, from the folder where the command was given."""
    folder, top = str(Path.cwd()), name.partition(".")[0]
    if PathFinder.find_spec(top, [folder, *sys.path]) is None:
        raise ModuleNotFoundError(f"there is no module {top!r} in this folder or among the installed packages")
    run = partial(runpy.run_module, name, run_name="__main__", alter_sys=True)
    return Guest(run, (name, *arguments), folder)


def _say(text: str) -> None:
    print(f"simulate: {text}", file=sys.stderr, flush=True)
