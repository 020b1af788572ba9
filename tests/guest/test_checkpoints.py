"""Only what PyTorch's checkpoints hand to a thread is done at once: the threads of a program stay threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

from lib.devices import Cluster
from lib.guest.program import guest


def test_the_threads_of_a_program_stay_threads():
    def program():
        with ThreadPoolExecutor(1, "mine") as pool:
            name = pool.submit(lambda: threading.current_thread().name)
            return name.result(), pool.submit("abc".upper).result()  # a method of C belongs to no module

    assert Cluster(2).run(guest(program)) == [("mine_0", "ABC")] * 2
