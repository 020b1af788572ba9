"""Kernels that are forked: apart from each other, without a name that no cell has imported, and gone when they end.
And what they start with a warm Python: as with any other, but PyTorch is there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
        ask = "from multiprocessing import spawn; print(os.fsdecode(spawn.get_executable()), os.environ['PYTHON_EXEC'])"
        assert said_by(one, ask).split() == [str(Path(kernels.folder().name) / "python")] * 2
        pids = [int(said_by(kernel, "print(os.getpid())")) for kernel in (one, other)]
    finally:
        for kernel in (one, other):
            kernel.shutdown_kernel(now=True)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert kernels.server().poll() is None, "a kernel's end ended them all"


@pytest.fixture(scope="module")
def python():
    """The warm one."""
    program = Path(kernels.folder().name) / "python"
    kernels.server()
    while not os.access(program, os.X_OK):
        assert kernels.server().poll() is None
        time.sleep(0.05)
    return str(program)


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@on_linux
def test_a_warm_python_does_what_python_does(python, tmp_path):
    (tmp_path / "beside.py").write_text("told = 'beside'")
    (tmp_path / "script.py").write_text(
        "import sys, os, beside, torch\n"
        "had = [name for name in ('lib', 'book') if name in sys.modules]\n"
        "print(__name__, sys.argv, beside.told, os.getcwd(), os.environ.get('WORD'), had, torch.get_num_threads())\n"
        "print(sys.stdin.read(), file=sys.stderr)\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    env = {"WORD": "w", "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    script = str(tmp_path / "script.py")
    command = "import runpy; runpy.run_module('script', run_name='__main__')"
    for words in (["-u", script, "3"], ["-m", "script", "3"], ["-c", command, "3"]):
        given = {"cwd": tmp_path, "env": env, "input": "asked", "capture_output": True, "text": True}
        real, warm = (subprocess.run([program, *words], **given) for program in (sys.executable, python))
        assert (warm.returncode, warm.stdout, warm.stderr) == (real.returncode, real.stdout, real.stderr), words
        assert real.returncode == 3
        assert "[] 1" in real.stdout


@on_linux
def test_a_warm_python_has_pytorch(python):
    asked = "import sys; print('torch._dynamo' in sys.modules)"
    assert subprocess.run([python, "-c", asked], capture_output=True, text=True).stdout == "True\n"


@on_linux
def test_a_warm_python_ends_as_what_it_runs(python):
    fails = subprocess.run([python, "-c", "raise ValueError('why')"], capture_output=True, text=True)
    assert fails.returncode == 1
    assert fails.stderr.endswith("ValueError: why\n")
    says = subprocess.run([python, "-c", "import sys; sys.exit('words')"], capture_output=True, text=True)
    assert (says.returncode, says.stderr) == (1, "words\n")
    dies = subprocess.run([python, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert dies.returncode == -signal.SIGKILL


@on_linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_what_it_runs(python, number):
    waits = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with subprocess.Popen([python, "-c", waits], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(30) == -number
        assert process.stdout.read() == "", "ends when the fork is gone, which had the other end"
    for _ in range(200):  # until its end is noticed, it still has its number
        time.sleep(0.05)
        if not Path(f"/proc/{pid}").exists():
            return
    pytest.fail(f"process {pid} is still there")


@on_linux
def test_what_a_script_made_is_not_freed_at_its_end(python, tmp_path):
    """A DistributedDataParallel whose process group was destroyed may hang when it is freed."""
    script = tmp_path / "script.py"
    script.write_text("class Hangs:\n    def __del__(self):\n        print('freed', flush=True)\n\nmade = Hangs()\n")
    for words in ([script], ["-m", "script"], ["-c", script.read_text()]):
        said = subprocess.run([python, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert said == "", words
