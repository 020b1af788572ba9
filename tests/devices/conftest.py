import gc
import threading

import pytest
from devices.inputs import use_repeatable_profile

use_repeatable_profile()


def device_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("device ")]


@pytest.fixture(autouse=True)
def leaves_no_thread_behind():
    yield
    assert device_threads() == []


@pytest.fixture
def no_garbage_collector():
    """Whatever is freed inside was freed because nothing referred to it, not because a cycle was collected."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
