"""The scripts of the chapter on guests do what it says: what they send, where one hangs, and one device's losses."""

import pytest

from lib.devices import Cluster, DeadlockError
from lib.examples.guests import ddp, sharded
from lib.guest.no_gpu import no_gpu
from lib.guest.program import script
from lib.guest.report import reported


def test_ddp_sends_its_gradients_twice():
    report = reported(Cluster(3), script(ddp.__file__, "--samples", 48, "--width", 8, "--epochs", 4))
    backward = [line for line in report.lines if line.source == "loss.backward()"]
    parameters = 64 * 8 + 8 + 8 * 8 + 8 + 8 + 1
    assert sum(line.sent for line in backward) == 4 * 2 * (3 - 1) * 4 * parameters  # steps, 2 (P-1) N in all


def test_a_batch_short_is_found_on_four_and_not_on_two():
    Cluster(2).run(script(ddp.__file__, "--samples", 34, "--width", 8))
    with pytest.raises(DeadlockError, match=r"0  all_reduce.*main, line \d+: loss.backward\(\)(.|\n)*3  \(has ended"):
        Cluster(4).run(script(ddp.__file__, "--samples", 66, "--width", 8))


def test_a_mesh_has_the_losses_of_one_device(capsys):
    losses = []
    for devices in 1, 2:
        program = script(sharded.__file__, "--tensor", devices, "--width", 16, "--tokens", 8)
        Cluster(devices).run(no_gpu(program, say=lambda text: None))
        losses.append(capsys.readouterr().out)
    assert losses[0] == losses[1]
    assert losses[0].count("loss") == 2
