"""Names that a program gives to its time, and what happened during them."""

import json

import pytest
import torch

from lib.devices import Cluster, Hardware, Link
from lib.devices.memory import Held
from lib.devices.trace import Event, Span, Trace

# An operation takes 1 second per byte: ones(n) 4 n.
TOY = Hardware("toy", flops=1e30, memory_bandwidth=1.0, memory=1e9, inside=Link(1.0, 1.0))


def program(group):
    torch.ones(10 * (group.rank + 1))  # initialization: 40 seconds on rank 0, 80 on rank 1
    group.barrier()  # one second
    with group.span("step"):
        with group.span("forward"):
            kept = torch.ones(1)
        group.all_reduce(torch.ones(1))  # 2 messages of 2 bytes... each: see the tests
    return group.now(), kept


def run():
    cluster = Cluster(2, hardware=TOY)
    return [now for now, _ in cluster.run(program)], cluster.trace


def test_spans_have_the_times_of_their_device():
    now, trace = run()
    assert Span(0, "forward", 81, 85) in trace.spans
    assert Span(1, "step", 81, now[1]) in trace.spans
    assert now == [81 + 4 + 4 + 2 + 4] * 2  # two messages, and 2 * 1/2 of 4 bytes


def test_a_step_without_its_initialization():
    now, trace = run()
    step = trace.during("step")
    assert step.seconds == now[0] - 81
    assert step.total(1, "compute") == 8
    assert [span.name for span in step.spans if span.rank == 0] == ["forward", "step"]
    assert step.peak(0) == 4 + 4  # the result of the all-reduce comes with the end
    assert trace.peak(1) == 80
    assert trace.during("forward").seconds == 4


def test_each_device_has_its_own_spans_and_what_was_held_is_cut_to_their_time():
    trace = Trace(2)
    trace.spans = [Span(0, "step", 10.0, 20.0), Span(1, "step", 30.0, 40.0)]
    trace.events = [Event(rank, "compute", "mm", time, time + 1) for rank in (0, 1) for time in (12.0, 20.0, 30.0)]
    trace.memory = [
        Held(0, "parameters", "w", 8, 2.0, 15.0),
        Held(0, "buffers", "gone", 8, 0.0, 10.0),
        Held(1, "gradients", "dw", 4, 35.0, 50.0),
        Held(1, "buffers", "late", 4, 40.0, 41.0),
    ]
    step = trace.during("step")
    assert step.events == [Event(0, "compute", "mm", 2.0, 3.0), Event(1, "compute", "mm", 20.0, 21.0)]
    assert step.memory == [Held(0, "parameters", "w", 8, 0.0, 5.0), Held(1, "gradients", "dw", 4, 25.0, 30.0)]


def test_an_unknown_span_is_refused_with_the_known_ones():
    _, trace = run()
    with pytest.raises(ValueError, match="no span is called 'stp'; there are: 'forward', 'step'"):
        trace.during("stp")


def test_spans_have_a_track_of_their_own_in_chrome(tmp_path):
    run()[1].to_chrome(tmp_path / "trace.json")
    rows = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [(row["pid"], row["tid"], row["name"], row["ts"], row["dur"]) for row in rows if row.get("cat") == "span"]
    assert (0, 2, "forward", 81e6, 4e6) in spans
    assert {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "program"}} in rows


def test_without_hardware_now_is_the_wall_clock_and_spans_cost_nothing():
    def timed(group):
        before = group.now()
        with group.span("step"):
            return group.now() - before

    assert 0 <= Cluster(1).run(timed)[0] < 60
