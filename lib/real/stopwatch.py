"""What every device really did and when: the timeline of a run by the wall clock, to stand beside the virtual one.

    outputs, trace = time_run(Processes(4), program, x, w)      # for outputs = Processes(4).run(program, x, w)
    draw_timeline(trace)

The program is not changed. Between its groups and their meeting place stands a `Stopwatch`, which notes when the
program calls a verb and when it goes on; all else is its own work. Afterwards the notes of all devices are compared:
before the last of a group had come, the others were waiting, from then on they communicated.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib.devices.collectives import Collective
from lib.devices.engine.meeting_place import MeetingPlace
from lib.devices.group import Group
from lib.devices.handle import Handle
from lib.devices.trace import Event, Span, Trace


class Note(NamedTuple):
    """A device called the verb `name` at `came`, stood still from `stopped` on, and went on at `left`.

    `meeting` is the same for all that took part; only those with `waits` needed the others to come.
    """

    meeting: tuple
    name: str
    came: float
    stopped: float
    left: float
    waits: bool = True


class Timed(NamedTuple):
    """What a device brings home: the `output` of its program, which ran from `begin` to `end`; notes and spans."""

    output: Any
    begin: float
    end: float
    notes: list[Note]
    spans: list[tuple[str, float, float]]


def time_run(devices: Any, program: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[list[Any], Trace]:
    """`devices.run(program, *args, **kwargs)`, and its trace in seconds of the wall clock, without FLOPs and bytes.

    `devices` are `Processes`, a `Cluster`, or the `Torchrun` of one machine, whose processes all read one clock; the
    tensors lie in the memory of the CPU. The program runs twice, and the second time counts: the first one connects the
    groups and wakes the threads. The meters count both, and the barrier between them.

    An asynchronous verb seems to last until the program has waited for it: when it was done, nobody has seen.
    Raises ValueError when the notes contradict each other, since the devices read different clocks.
    """
    runs = devices.run(partial(_timed, program), *args, **kwargs)
    trace = Trace(len(runs))
    trace.events += _events(runs)
    zero = min(run.begin for run in runs)
    trace.spans += [Span(r, name, a - zero, b - zero) for r, run in enumerate(runs) for name, a, b in run.spans]
    return [run.output for run in runs], trace


def _timed(program: Callable[..., Any], group: Group, *args: Any, **kwargs: Any) -> Timed:
    """The program of one device, timed."""
    stopwatch = Stopwatch(group.place)
    with torch.random.fork_rng(devices=[]):  # so that both times draw the same numbers
        program(group.at(stopwatch), *args, **kwargs)
    group.barrier()
    stopwatch.notes.clear()
    stopwatch.spans.clear()
    begin = perf_counter()
    output = program(group.at(stopwatch), *args, **kwargs)
    return Timed(output, begin, perf_counter(), stopwatch.notes, stopwatch.spans)


class Stopwatch:
    """Stands before the meeting place of one device, whichever it is, and notes who passes when."""

    def __init__(self, place: MeetingPlace):
        self._place = place
        self.notes: list[Note] = []
        self.spans: list[tuple[str, float, float]] = []
        self._calls: dict[tuple, int] = defaultdict(int)
        self.key_for = place.key_for

    def join(self, key: int, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None) -> tuple:
        """As the meeting place does it; the rest needs to know when this was."""
        came, meeting = perf_counter(), self._next((key, ranks))
        return came, meeting, self._place.join(key, ranks, rank, verb, x)

    def collect(self, joined: tuple, ranks: tuple[int, ...], rank: int, verb: Collective) -> Tensor | None:
        """As the meeting place does it."""
        came, meeting, call = joined
        result = self._place.collect(call, ranks, rank, verb)
        if len(ranks) > 1:
            self._note(meeting, verb.name, came, came)
        return result

    def hand_out(self, joined: tuple, ranks: tuple[int, ...], rank: int, verb: Collective) -> Handle:
        """As the meeting place does it."""
        came, meeting, call = joined
        handle = self._place.hand_out(call, ranks, rank, verb)
        return self._timed(handle, meeting, verb.name, came) if len(ranks) > 1 else handle

    def send(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Tensor) -> None:
        """As the meeting place does it."""
        came = perf_counter()
        self._place.send(key, ranks, rank, dst, tag, x)
        meeting = self._next((key, ranks, rank, dst, tag, "sent"))
        self._note(meeting, f"send to {ranks[dst]}", came, came, waits=False)

    def recv(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Tensor:
        """As the meeting place does it."""
        came = perf_counter()
        x = self._place.recv(key, ranks, rank, src, tag)
        self._note(self._next((key, ranks, src, rank, tag, "sent")), f"recv from {ranks[src]}", came, came)
        return x

    def expect(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Handle:
        """As the meeting place does it."""
        came, meeting = perf_counter(), self._next((key, ranks, src, rank, tag, "sent"))
        handle = self._place.expect(key, ranks, rank, src, tag)
        return self._timed(handle, meeting, f"recv from {ranks[src]}", came)

    def now(self, me: int) -> float:
        """The wall clock."""
        return perf_counter()

    def note(self, me: int, name: str, start: float) -> None:
        """Remembers what the program calls this time."""
        self.spans.append((name, start, perf_counter()))

    def _timed(self, handle: Handle, meeting: tuple, name: str, came: float) -> Handle:
        wait = handle.wait

        def timed_wait() -> Tensor | None:
            stopped = perf_counter()
            result = wait()
            self._note(meeting, name, came, stopped)
            return result

        handle.wait = timed_wait
        return handle

    def _next(self, place: tuple) -> tuple:
        self._calls[place] += 1
        return *place, self._calls[place]

    def _note(self, meeting: tuple, name: str, came: float, stopped: float, waits: bool = True) -> None:
        self.notes.append(Note(meeting, name, came, stopped, perf_counter(), waits))


def _events(runs: list[Timed]) -> Iterator[Event]:
    zero = min(run.begin for run in runs)
    complete: dict[tuple, float] = defaultdict(float)  # when the last of each meeting had come
    for note in (note for run in runs for note in run.notes):
        complete[note.meeting] = max(complete[note.meeting], note.came)
    for rank, run in enumerate(runs):
        working = run.begin
        for note in run.notes:
            began = complete[note.meeting] if note.waits else note.came
            if began > note.left:
                raise ValueError(
                    f"time_run: rank {rank} left {note.name} {began - note.left:.3g} seconds before another device had "
                    "come to it, so they read different clocks. Time devices of one machine"
                )
            spans = (
                ("compute", "compute", working, note.stopped),
                ("waiting", note.name, note.stopped, began),
                ("communication", note.name, began, note.left),
            )
            yield from (Event(rank, kind, name, a - zero, b - zero) for kind, name, a, b in spans if b > a)
            working = note.left
        yield Event(rank, "compute", "compute", working - zero, run.end - zero)
