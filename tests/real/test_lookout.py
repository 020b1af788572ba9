"""When real processes call it a deadlock, and when they must go on hoping: step by step, without processes or time."""

from contextlib import suppress
from threading import Thread

import pytest
import torch.distributed as dist

from lib.devices import DeadlockError
from lib.real.lookout import LOOKS, Lookout, PatientStore

MANY = 4 * LOOKS  # looks: if a deadlock is not found by then, it never is


class LeaveIt(Exception):
    """Ends a wait from outside: what was said last stays to be read, as that of a process that waits for ever."""


@pytest.fixture
def pair():
    store = dist.HashStore()
    return [Lookout(store, rank, 2) for rank in range(2)]


def after(looks, meanwhile=lambda: None):
    """What is waited for is there after so many looks; before each, something else happens."""
    left = iter(range(looks))

    def arrived(seconds):
        meanwhile()
        return next(left, None) is None

    return arrived


def left_after_a_look():
    left = iter([False, False])
    return lambda seconds: next(left, None) is None and leave()


def leave():
    raise LeaveIt


def waits(one, arrived, call="recv", step=lambda: 0):
    one.wait(arrived, call, (0, 1), step)


def waits_for_ever(one, call="recv"):
    with suppress(LeaveIt):
        waits(one, left_after_a_look(), call)


def ends(one):
    with suppress(LeaveIt):
        one.end(left_after_a_look())


def test_all_wait(pair):
    waits_for_ever(pair[1], "recv of 1")
    for _ in range(2):  # who finds it says nothing new, so that others find it too
        with pytest.raises(DeadlockError) as error:
            waits(pair[0], after(MANY), "recv of 0")
        pair[0].fail(error.value)
    assert "2 of 2 wait" in str(error.value)
    assert "0  recv of 0 in group (0, 1)" in str(error.value)
    assert "1  recv of 1 in group (0, 1)" in str(error.value)
    with pytest.raises(DeadlockError):
        waits(pair[1], after(MANY), "recv of 1")


def test_a_deadlock_is_not_called_at_the_first_look(pair):
    waits_for_ever(pair[1])
    waits(pair[0], after(LOOKS - 1))


def test_one_has_ended(pair):
    ends(pair[1])
    with pytest.raises(DeadlockError, match=r"1 of 2 wait[\s\S]*1  \(has ended\)"):
        waits(pair[0], after(MANY))


def test_one_waits_after_this_has_ended(pair):
    waits_for_ever(pair[1])
    with pytest.raises(DeadlockError, match=r"1 of 2 wait[\s\S]*0  \(has ended\)"):
        pair[0].end(after(MANY))


def test_all_have_ended(pair):
    ends(pair[1])
    pair[0].end(after(MANY))


def test_one_computes(pair):
    waits(pair[0], after(MANY))


def test_one_has_waited_and_now_computes(pair):
    waits(pair[1], after(2))
    waits(pair[0], after(MANY))


def test_a_call_that_goes_on(pair):
    waits_for_ever(pair[1])
    steps = iter(range(MANY))
    waits(pair[0], after(MANY), step=lambda: next(steps))


def test_data_on_its_way(pair):
    waits_for_ever(pair[1])
    waits(pair[0], after(MANY), step=lambda: None)


def test_one_wait_after_another(pair):
    waits(pair[0], after(MANY, meanwhile=lambda: waits_for_ever(pair[1])))


def test_one_has_failed(pair):
    pair[1].fail(ValueError("on purpose"))
    with pytest.raises(
        ConnectionError, match=r"rank 0 waits for recv in .*, but rank 1 has raised ValueError: on purpose"
    ):
        waits(pair[0], after(MANY))
    with pytest.raises(ConnectionError, match="waits for the end of the run, but rank 1 has raised ValueError"):
        pair[0].end(after(MANY))


class NeverWaits:
    """A store that knows what it was told, and no more."""

    def __init__(self):
        self._told = {}

    def set(self, key, value):
        self._told[key] = value

    def get(self, key):
        return self._told[key]

    def check(self, keys):
        return self._told.keys() >= set(keys)


def test_a_patient_store_waits_for_its_keys():
    store = PatientStore(NeverWaits())
    found = []
    threads = [Thread(target=lambda: found.append(store.get("key"))), Thread(target=store.wait, args=(["key"],))]
    for thread in threads:
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
    store.set("key", b"value")
    for thread in threads:
        thread.join(30)
    assert found == [b"value"]


def test_a_cause_is_named_before_its_consequences():
    store = dist.HashStore()
    three = [Lookout(store, rank, 3) for rank in range(3)]
    three[0].fail(ConnectionError("lost"))
    three[1].fail(ValueError("on purpose"))
    with pytest.raises(ConnectionError, match="rank 1 has raised ValueError"):
        waits(three[2], after(MANY))
