"""The store of torchrun listens to the network: what somebody else plants in it is refused, and never run."""

import json
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lib.devices import Count
from lib.real.farewell import Report, part
from lib.real.lookout import Lookout
from lib.real.mailbox import Address


class Malicious:
    """Unpickled, it would leave a file behind."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


PLANTED = {
    "a malicious pickle": lambda file: pickle.dumps(Malicious(file)),
    "an honest pickle": lambda file: pickle.dumps(None),
    "no text": lambda file: b"\xff\xfe\x00",
    "no JSON": lambda file: b"hello",
    "a deep list": lambda file: b"[" * 100_000,
    "another form": lambda file: b'{"a": 1}',
    "too short": lambda file: b"[1, 2]",
    "other types": lambda file: b'[1, 2, "three", 4]',
}


@pytest.fixture(params=PLANTED)
def planted(request, tmp_path):
    """The bytes; the file must never be there."""
    file = tmp_path / "was run"
    yield PLANTED[request.param](file)
    assert not file.exists()


def test_the_malicious_pickle_is_one(tmp_path):
    pickle.loads(PLANTED["a malicious pickle"](tmp_path / "was run"))
    assert (tmp_path / "was run").exists()


def test_who_waits_refuses_what_was_planted(planted):
    store = dist.HashStore()
    store.set("state of 1", planted)
    with pytest.raises(ConnectionError, match="the store that all processes share holds under 'state of 1' what none"):
        Lookout(store, 0, 2).wait(lambda seconds: False, "recv", (0, 1), lambda: 0)


def report(**changes):
    address = Address(7, (0, 1), 0, 1, 3)
    fields = {
        "counts": [(0, "send", Count(1, 1, 8))],
        "sent": Counter({address: 1}),
        "received": Counter({address: 1}),
        "shapes": {address: [(2,)]},
        "unfinished": [],
        "stream": torch.get_rng_state(),
    }
    return Report(**fields | changes)


def test_who_parts_refuses_what_was_planted(planted):
    store = dist.HashStore()
    store.set("report of 1", planted)
    with pytest.raises(ConnectionError, match="holds under 'report of 1' what none of them writes"):
        part(report(), store, Lookout(store, 0, 2), 0, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("counts", [[0]]), ("counts", [["0", "send", 1, 1, 8, 0, 0]]), ("sent", [1]), ("stream", "xy"), ("shapes", None),
     ("counts", [[5, "send", 1, 1, 8, 0, 0]]), ("counts", [[0, "spend", 1, 1, 8, 0, 0]]), ("stream", "00"),
     ("sent", [[[7, [0, 1], 0, 1, 3], "many"]]), ("unfinished", 3)],
)  # fmt: skip
def test_a_report_that_is_almost_one_is_refused(name, value):
    store = dist.HashStore()
    store.set("report of 1", json.dumps(report().encode() | {name: value}))
    with pytest.raises(ConnectionError, match="what none of them writes"):
        part(report(), store, Lookout(store, 0, 2), 0, 2)


def test_reports_arrive_as_they_were_written():
    mine = report()
    found = Report.decode(json.loads(json.dumps(mine.encode())))
    assert found[:5] == mine[:5]
    assert torch.equal(found.stream, mine.stream)
