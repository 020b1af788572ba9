"""What cannot work is found before anything runs, and says why."""

import pytest
import torch
from devices.messages import says
from parallel.pipeline.pipelines import MAKERS

from lib import Cluster, DeadlockError, Schedule, check_schedule, run_pipeline, with_messages

BROKEN = {
    "a backward before its forward": (
        ["0F0 0B0", "1B0 1F0"],
        ["device 1 has 1B0 before 1F0", "what its forward has kept"],
    ),
    "weights before the input": (["0F0 0W0 0I0"], ["device 0 has 0W0 before 0I0"]),
    "a micro-batch lost": (["0F0 0F1 0B0 0B1", "1F0 1B0"], ["stage 1 on device 1, micro-batch 1: 0 forwards", "lost"]),
    "a micro-batch twice": (["0F0 0F0 0B0"], ["stage 0 on device 0, micro-batch 0: 2 forwards", "twice"]),
    "a gradient missing": (["0F0"], ["0 backwards (B)", "missing or counts twice"]),
    "half a backward": (["0F0 0I0"], ["1 for the input (I), 0 for the weights (W)"]),
    "both kinds of backward": (["0F0 0B0 0I0 0W0"], ["1 backwards (B), 1 for the input"]),
    "a stage in two places": (["0F0 0B0", "0F1 0B1"], ["device 1 has 0F1, but stage 0 lies on device 0"]),
    "a stage without forwards": (["0F0 0B0 1B0"], ["device 0 has 1B0, but stage 1 has no forward"]),
    "a stage left out": (["0F0 0B0", "2F0 2B0"], ["of the stages [0, 2]", "without a gap"]),
    "nothing": ([""], ["the stages must be 0, 1, 2"]),
    "orders that wait for each other": (
        ["0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"],
        [
            "no device can go on",
            "device 0, step 1: 0B0 needs the gradient of micro-batch 0 from stage 1",
            "device 1, step 1: 1F1 needs the activation of micro-batch 1 from stage 0",
            "A circle: device 0 waits for device 1 waits for device 0",
        ],
    ),
    "a message nobody sends": (
        ["0F0 0RECV_B0 0B0", "1RECV_F0 1F0 1B0 1SEND_B0"],
        ["the activation of micro-batch 0 from stage 0 to stage 1 is sent by nobody", "device 0 needs 0SEND_F0"],
    ),
    "a message nobody asks for": (
        ["0F0 0SEND_F0 0B0", "1RECV_F0 1F0 1B0 1SEND_B0"],
        ["the gradient of micro-batch 0 from stage 1 to stage 0 is asked for by nobody", "device 0 needs 0RECV_B0"],
    ),
    "a message twice": (
        ["0F0 0SEND_F0 0SEND_F0 0RECV_B0 0B0", "1RECV_F0 1F0 1B0 1SEND_B0"],
        ["is sent 2 times and asked for 1 times; needed: 1"],
    ),
    "a message within a device": (
        ["0F0 0SEND_F0 1F0 1B0 0B0"],
        ["from stage 0 to stage 1 is sent 1 times", "needed: 0"],
    ),
    "sent before it is made": (
        ["0SEND_F0 0F0 0RECV_B0 0B0", "1RECV_F0 1F0 1B0 1SEND_B0"],
        ["device 0, step 0: 0SEND_F0 needs what stage 0 makes of micro-batch 0"],
    ),
    "asked for after it is used": (
        ["0F0 0SEND_F0 0B0 0RECV_B0", "1RECV_F0 1F0 1B0 1SEND_B0"],
        ["device 0, step 2: 0B0 needs the gradient", "Device 1 has done all its steps"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_work(name):
    lines, fragments = BROKEN[name]
    with says(ValueError, "mine", *fragments):
        check_schedule(Schedule.read("mine", *lines))


def test_two_that_send_first_need_someone_who_listens():
    lines = ["0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1"]
    lines += ["1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1"]
    schedule = Schedule.read("mine", *lines)
    check_schedule(schedule)
    with says(
        ValueError,
        "device 0, step 3: 0SEND_F1 waits until stage 1 asks for it",
        "device 1, step 3: 1SEND_B0 waits until stage 0 asks for it",
        "A circle: device 0 waits for device 1 waits for device 0",
    ):
        check_schedule(schedule, rendezvous=True)


def test_without_tags_the_order_of_the_messages_counts():
    with says(ValueError, "from device 0 to device 1 is sent as F", "but received as B", "with_messages"):
        check_schedule(with_messages(MAKERS["zb-v"](4, 8), "beside"), tags=False)


def run_empty(group, schedule):
    """All steps of this device with stages that do almost nothing."""
    stages = dict.fromkeys(schedule.stages_of(group.rank), lambda x: x * 1.0)
    inputs = [torch.ones(1, requires_grad=True) for _ in range(schedule.micros)]
    run_pipeline(group, schedule, stages, inputs, lambda y, k: y.sum())


@pytest.mark.parametrize("how", ["beside", "batched", "paired"])
@pytest.mark.parametrize("name", MAKERS)
def test_the_simulator_deadlocks_where_the_checker_says_so_and_nowhere_else(name, how):
    schedule = with_messages(MAKERS[name](3, 6), how)
    Cluster(3).run(run_empty, schedule)
    try:
        check_schedule(schedule, rendezvous=True)
    except ValueError:
        with pytest.raises(DeadlockError, match="a send waits until its receiver takes the message"):
            Cluster(3, rendezvous=True).run(run_empty, schedule)
    else:
        Cluster(3, rendezvous=True).run(run_empty, schedule)


def test_which_orders_survive_where_sends_wait():
    """One circle in 1F1B is mended by a batch of neighbors; in the others only by one order for all devices."""

    def survives(name, how):
        try:
            check_schedule(with_messages(MAKERS[name](4, 8), how), rendezvous=True)
        except ValueError:
            return False
        return True

    assert [name for name in MAKERS if survives(name, "beside")] == ["naive", "gpipe", "gpipe, split"]
    assert {"1f1b", "zb-h1"} <= {name for name in MAKERS if survives(name, "batched")}
    assert not survives("zb-v", "batched")
    assert all(survives(name, "paired") for name in MAKERS)
