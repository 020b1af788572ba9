"""Guests: programs written for torch.distributed, on simulated devices, and nothing left of them afterwards."""

import os
import random
import sys
import tempfile
import threading

import numpy
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from lib.devices import Cluster, DeadlockError, MismatchError
from lib.guest.program import Exit, guest, script

_group = None


def keeps_its_group():
    global _group
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for members in [0, 1], [2, 3]:
        made = dist.new_group(members)
        if rank in members:
            _group = made
    x = torch.tensor([float(rank)])
    dist.all_reduce(x, group=_group)
    return x.item(), dist.get_world_size(_group), os.environ["LOCAL_RANK"]


def test_each_device_has_a_process_of_its_own():
    before = dict(os.environ), sys.argv, list(sys.path), random.getstate(), _group
    assert Cluster(4).run(guest(keeps_its_group)) == [(1.0, 2, "0"), (1.0, 2, "1"), (5.0, 2, "2"), (5.0, 2, "3")]
    assert (dict(os.environ), sys.argv, list(sys.path), random.getstate(), _group) == before
    assert not dist.is_initialized()


def ddp(steps):
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    model = DDP(nn.Linear(3, 2).double())
    for _ in range(steps):
        model(torch.randn(4, 3, dtype=torch.float64)).square().mean().backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
                p.grad = None
    return model.module.weight.detach()


def test_ddp_is_one_device_with_all_samples():
    weights = Cluster(3).run(guest(ddp, 2))
    streams = [torch.Generator().manual_seed(rank) for rank in range(3)]
    torch.manual_seed(0)
    one = nn.Linear(3, 2).double()
    streams[0].set_state(torch.get_rng_state())
    for rank in 1, 2:  # they draw weights too, which DDP replaces
        torch.manual_seed(rank)
        nn.Linear(3, 2)
        streams[rank].set_state(torch.get_rng_state())
    for _ in range(2):
        x = torch.cat([torch.randn(4, 3, dtype=torch.float64, generator=stream) for stream in streams])
        grads = torch.autograd.grad(one(x).square().mean(), list(one.parameters()))
        with torch.no_grad():
            for p, g in zip(one.parameters(), grads, strict=True):
                p -= 0.1 * g
    assert all((w - one.weight).abs().max() < 1e-12 for w in weights)


def test_a_batch_short_names_the_backward():
    with pytest.raises(DeadlockError, match=r"0  .*ddp, line \d+: model\(.*backward\(\)\n +1  \(has ended\)"):
        Cluster(2).run(guest(lambda: ddp(2 if os.environ["RANK"] == "0" else 1)))
    assert not dist.is_initialized()


SCRIPT = """
import sys
import helper
import torch, torch.distributed as dist

dist.init_process_group("gloo")
helper.seen.append(dist.get_rank())
print(__name__, dist.get_rank(), sys.argv[1:], helper.seen, dist.get_backend())
if len(sys.argv) > 2 and dist.get_rank() == 1:
    sys.exit(int(sys.argv[2]))
"""


def test_a_script_has_its_own_modules_and_arguments(tmp_path, capsys):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("seen = []\n")
    path = list(sys.path)
    Cluster(2).run(script(tmp_path / "train.py", "--fast"))
    assert capsys.readouterr().out.splitlines() == [f"__main__ {r} ['--fast'] [{r}] gloo" for r in range(2)]
    assert "helper" not in sys.modules
    assert sys.path == path
    Cluster(2).run(script(tmp_path / "train.py", "--fast", "0"))
    with pytest.raises(Exit, match=r"rank 1 left the program by sys.exit\(3\)") as failed:
        Cluster(2).run(script(tmp_path / "train.py", "--fast", "3"))
    assert (failed.value.rank, failed.value.code) == (1, 3)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        script(tmp_path / "no_such.py")


def test_modules_of_the_whole_project_are_the_guests(tmp_path, capsys):
    (tmp_path / "setup.py").touch()
    (tmp_path / "helper.py").write_text("seen = []\n")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.py").write_text(SCRIPT)
    sys.path.append(str(tmp_path))
    try:
        Cluster(2).run(script(tmp_path / "scripts" / "train.py"))
    finally:
        sys.path.remove(str(tmp_path))
    assert capsys.readouterr().out.splitlines() == [f"__main__ {r} [] [{r}] gloo" for r in range(2)]


def other_shape():
    dist.init_process_group("gloo")
    dist.all_reduce(torch.ones(2 + dist.get_rank()))


def in_a_thread():
    dist.init_process_group("gloo")
    thread = threading.Thread(target=lambda: dist.all_reduce(torch.ones(2)))
    thread.start()
    thread.join()


def never_waits():
    dist.init_process_group("gloo")
    dist.all_reduce(torch.ones(2), async_op=True)


def of_another_size():
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=8, init_method="tcp://x:1")


def twice():
    dist.init_process_group("gloo")
    dist.init_process_group("gloo")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("program", "error", "words"),
    [
        (other_shape, MismatchError, "other_shape, line .* dist.all_reduce"),
        (in_a_thread, RuntimeError, "called all_reduce in a thread of its own"),
        (of_another_size, ValueError, "was told world_size=8, but 2 devices are simulated"),
        (twice, ValueError, "twice"),
    ],
)
def test_what_goes_wrong_is_said(program, error, words):
    with pytest.raises(error, match=words):
        Cluster(2).run(guest(program))
    assert not dist.is_initialized()
    assert Cluster(2).run(lambda group: group.all_reduce(torch.ones(1)).item()) == [2.0, 2.0]


def test_a_call_that_nobody_waits_for_is_a_warning():
    with pytest.warns(UserWarning, match="rank 1 started .*all_reduce.* in never_waits, line .* never waited for it"):
        Cluster(2).run(guest(never_waits))


def draws():
    return random.random(), numpy.random.rand(), torch.rand(1).item()


def test_streams_are_those_of_the_caller():
    state = torch.get_rng_state()
    drawn = Cluster(3).run(guest(draws))
    torch.set_rng_state(state)
    assert [n[2] for n in Cluster(3).run(guest(draws))] == [n[2] for n in drawn]  # the caller's seed decides
    assert len({numbers[2] for numbers in drawn}) == 3  # real processes without a seed differ
    torch.set_rng_state(state)
    assert drawn[0][2] == torch.rand(1).item()
    torch.set_rng_state(state)
    with pytest.raises(TypeError, match="guest needs a function, not str; script"):
        guest("train.py")


def test_a_reduce_scatter_of_pieces_of_several_lengths():
    """Each device gets the sum of the pieces that are meant for it. gloo does not offer it; NCCL does."""

    def program():
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        pieces = [torch.full((n + 1,), 10.0 * n + rank) for n in range(3)]
        mine = torch.empty(rank + 1)
        dist.reduce_scatter(mine, pieces)
        return mine.tolist()

    assert Cluster(3).run(guest(program)) == [[3.0], [33.0, 33.0], [63.0, 63.0, 63.0]]


def stands_in_what_is_gone(rounds):
    dist.init_process_group("gloo")
    start, box = os.getcwd(), [None]
    if dist.get_rank() == 0:
        for _ in range(rounds):
            box = [tempfile.mkdtemp()]
            os.chdir(box[0])
            os.rmdir(box[0])
    dist.broadcast_object_list(box)
    assert dist.get_rank() == 0 or os.getcwd() == start
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "gone"


def goes_to(by):
    """Of two devices, the first goes elsewhere."""
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        by()
    dist.barrier()
    return os.getcwd()


def by_number():
    root = os.open("/", os.O_RDONLY)
    os.fchdir(root)
    os.close(root)


def test_registries_of_some_libraries_are_each_devices_own(tmp_path, monkeypatch):
    """What the first device enters there would else be found by all: `if not OmegaConf.has_resolver(...)`."""
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "omegaconf.py").write_text("resolvers = {}\n")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    (tmp_path / "train.py").write_text(
        "import omegaconf\nimport torch.distributed as dist\ndist.init_process_group('gloo')\n"
        "omegaconf.resolvers.setdefault('rank', dist.get_rank())\ndist.barrier()\n"
        "assert omegaconf.resolvers['rank'] == dist.get_rank()\n"
    )
    Cluster(2).run(script(tmp_path / "train.py"))


@pytest.mark.skipif(not hasattr(os, "fchdir"), reason="this system goes to a folder by its name only")
def test_each_device_goes_to_folders_by_itself():
    before = os.getcwd()
    for by in by_number, lambda: os.chdir(path="/"):
        assert Cluster(2).run(guest(goes_to, by)) == ["/", before]
        assert os.getcwd() == before
    elsewhere = guest(goes_to, by_number)
    assert Cluster(2).run(guest(goes_to, lambda: Cluster(2).run(elsewhere))) == [before] * 2


@pytest.mark.skipif(sys.platform == "win32", reason="there, a folder in which somebody stands cannot be removed")
def test_a_device_stands_in_its_folder_even_when_it_is_removed():
    before = os.getcwd()
    opened = len(os.listdir("/dev/fd"))
    assert Cluster(2).run(guest(stands_in_what_is_gone, 5)) == ["gone", before]
    assert os.getcwd() == before
    assert len(os.listdir("/dev/fd")) == opened, "a folder is closed when nobody stands in it any more"
