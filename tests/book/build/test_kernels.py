"""Kernels that are forked: apart from each other, without a name that no cell has imported, and gone when they end."""

import os
import sys

import pytest
from jupyter_client import KernelManager
from jupyter_client.provisioning import local_provisioner

from book.build import kernels


def said_by(kernel: KernelManager, source: str) -> str:
    client, said = kernel.client(), []
    client.start_channels()
    client.wait_for_ready(timeout=60)
    heard = lambda message: said.append(message["content"].get("text", ""))  # noqa: E731
    client.execute_interactive(source, timeout=60, output_hook=heard)
    client.stop_channels()
    return "".join(said)


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")
def test_kernels_stay_apart_and_end(monkeypatch, tmp_path):
    monkeypatch.setattr(local_provisioner, "launch_kernel", kernels.launch)
    one, other = KernelManager(kernel_name="python3"), KernelManager(kernel_name="python3")
    try:
        for kernel in (one, other):
            kernel.start_kernel(cwd=tmp_path)
        ask = "import os, sys; print(os.getcwd(), 'torch' in sys.modules, 'torch' in globals(), hasattr(sys, 'mine'))"
        for kernel in (one, other):
            assert said_by(kernel, ask + "; sys.mine = 1").split() == [str(tmp_path), "True", "False", "False"]
        assert said_by(one, ask).split()[-1] == "True"
        pids = [int(said_by(kernel, "print(os.getpid())")) for kernel in (one, other)]
    finally:
        for kernel in (one, other):
            kernel.shutdown_kernel(now=True)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert kernels.server().poll() is None, "a kernel's end ended them all"
