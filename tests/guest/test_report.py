"""What the watch notes equals what the meters count, and the report says where."""

import json

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lib.devices.cluster import Cluster
from lib.guest.program import guest
from lib.guest.report import report_of
from lib.guest.watch import Log, watched


def program(group):
    x = torch.ones(256, 256, requires_grad=True)
    y = x
    for _ in range(1 if group.rank == 0 else 99):  # rank 0 comes first, and waits
        y = y @ x / 256
    group.all_reduce(y.detach())
    pair = group.split(2)
    pair.all_gather(x.detach())
    if pair.rank == 0:
        pair.send(torch.zeros(100), dst=1)
    else:
        pair.recv(src=0)
    handle = group.all_reduce(x.detach(), async_op=True)
    return handle.wait()


@pytest.fixture(scope="module")
def run():
    cluster, log = Cluster(4, "H100"), Log()
    cluster.run(watched(program, log))
    return cluster, report_of(cluster, log)


def test_bytes_and_calls_are_those_of_the_meters(run):
    cluster, report = run
    for verb in cluster.meters.verbs():
        if verb != "recv":
            count = cluster.meters.count(verb=verb)
            mine = [call for call in report.calls if call.verb == verb]
            assert (sum(c.calls for c in mine), sum(c.sent for c in mine)) == (count.calls, count.bytes_sent)
    assert report.sent == cluster.meters.count().bytes_sent == sum(line.sent for line in report.lines)
    assert {(c.verb, c.group) for c in report.calls} == {
        ("all_reduce", (0, 1, 2, 3)), ("all_gather", (0, 1)), ("all_gather", (2, 3)), ("send", (0, 1)), ("send", (2, 3))
    }  # fmt: skip


def test_lines_are_the_programs(run):
    _, report = run
    sources = [line.source for line in report.lines]
    assert len(sources) == 4
    assert sources[2:] == ["pair.all_gather(x.detach())", "pair.send(torch.zeros(100), dst=1)"]
    assert all(line.file == __file__ and line.function == "program" for line in report.lines)
    assert [line.calls for line in report.lines] == [4, 4, 4, 2]


def test_waiting_is_that_of_the_trace(run):
    cluster, report = run
    assert report.waiting[0].source == "group.all_reduce(y.detach())"
    assert sum(line.waited for line in report.waiting) == pytest.approx(cluster.trace.total(kind="waiting"))
    assert [d.peak for d in report.devices] == [cluster.trace.peak(rank) for rank in range(4)]


def test_text_and_json_say_the_same(run):
    _, report = run
    text = str(report)
    assert max(map(len, text.splitlines())) <= 85
    assert "all_gather  (0, 1) and 1 more" in text
    assert f"{report.sent:,} bytes" in text
    assert " program: group.all_reduce(y.detach())" in text
    back = json.loads(json.dumps(report.to_json()))
    assert back["sent"] == report.sent
    assert back["devices"][1]["held"].keys() >= {"activations"}


def test_without_a_clock_nobody_knows_the_time_and_a_failed_run_has_a_report():
    cluster, log = Cluster(2), Log()

    def fails(group):
        group.all_reduce(torch.ones(4))
        if group.rank:
            group.barrier()
        else:
            group.all_reduce(torch.ones(4))

    with pytest.raises(RuntimeError):
        cluster.run(watched(fails, log))
    report = report_of(cluster, log)
    assert report.sent == 2 * 16
    assert report.devices == []
    assert "add --hardware" in str(report)
    assert "Nothing was sent" in str(report_of(cluster, Log()))


def train():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(512, 512))
    for _ in range(2):
        loss = model(torch.ones(2 if dist.get_rank() else 4096, 512)).sum()  # rank 0 has more to do
        loss.backward()


def test_what_ddp_sends_in_its_backward_stands_in_the_line_of_the_backward():
    cluster, log = Cluster(4, "H100"), Log()
    cluster.run(watched(guest(train), log))
    report = report_of(cluster, log)
    assert report.lines[0].source == "loss.backward()"
    assert report.lines[0].sent == 2 * 4 * 2 * 3 // 4 * (512 * 513 * 4)  # steps, devices, ring, bytes
    assert report.sent == cluster.meters.count().bytes_sent
    assert report.waiting[0].source == "loss.backward()"
    assert sum(line.waited for line in report.waiting) == pytest.approx(cluster.trace.total(kind="waiting"))
