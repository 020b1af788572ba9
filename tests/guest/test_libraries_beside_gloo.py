"""What PyTorch brings for many devices: real processes and simulated devices learn the same.

On two, to the bit; on four, but for the order of sums.
"""

import pytest
import torch
import torch.distributed as dist
from guest import library_rows
from guest.beside_gloo import CLOSE, by_devices, compare, same
from oracles.test_pipelining import OURS as SCHEDULES
from oracles.test_pipelining import with_torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel

pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's own: what it will rename

ON_FOUR = [  # of each library something, and whatever cuts pieces of pieces or has groups within the group
    library_rows.ddp_unused, library_rows.ddp_hooks, library_rows.dtensors, *library_rows.OF_GROUPS,
]  # fmt: skip


@pytest.mark.parametrize("row", library_rows.ROWS, ids=lambda row: row.__name__)
def test_row(worlds, row):
    compare(worlds, 2, row)


@pytest.mark.parametrize("row", ON_FOUR, ids=lambda row: row.__name__)
def test_row_on_four(worlds, row):
    compare(worlds, 4, row, close=CLOSE)


@pytest.mark.parametrize("name", SCHEDULES)
def test_pipelining(worlds, name):
    compare(worlds, 2, with_torch, name, close=CLOSE)


def test_checkpoints_go_from_one_to_the_other(worlds, tmp_path):
    """Two real processes save, four devices go on; and the other way, saved in the background."""
    real = worlds[2].run(library_rows.save, str(tmp_path / "real"))
    with pytest.warns(UserWarning, match="async_save is a save that is waited for"):
        simulated = by_devices(2, library_rows.save, str(tmp_path / "simulated"), True)
    same(simulated, real, "saved", 0)
    by_four = by_devices(4, library_rows.load, str(tmp_path / "real"))
    step, loaded, learned = by_four[3]
    assert step == 2
    same(loaded, real[0], "loaded", 0)
    assert any(not torch.equal(learned[name], loaded[name]) for name in loaded)
    same(by_four, worlds[4].run(library_rows.load, str(tmp_path / "simulated")), "went on", CLOSE)


def fails_within_a_parallel_loss():
    with loss_parallel():
        dist.barrier()
        raise KeyError


def test_dtensor_is_left_as_it_was():
    dispatcher = DTensor._op_dispatcher
    before = dispatcher._custom_op_handlers
    content = dict(before)
    with pytest.raises(KeyError):
        by_devices(2, fails_within_a_parallel_loss)
    assert dispatcher._custom_op_handlers is before
    assert before == content
