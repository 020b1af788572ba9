"""Results travel between processes without pickle: what a parcel carries, and what it refuses to rebuild."""

import json
import os
import pickle
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from lib import GPT, Cluster, GPTConfig, dense_state
from lib.devices import Count, Group
from lib.real.parcel import pack
from lib.real.unpacking import unpack


class Pair(NamedTuple):
    loss: float
    x: torch.Tensor


@dataclass(frozen=True)
class Frozen:
    name: str
    more: dict


class Plain:
    def __init__(self):
        self.a = [1]


def there_and_back(x, own=None):
    parcel, _ = pack(x, 3)
    return unpack(parcel, 3, pack(own, 0)[1])


@pytest.mark.parametrize(
    "x",
    [
        None, True, 3, -1.5, float("inf"), "é\n", 2 + 1j, b"\x00\xff", [], (), {}, [1, (2, [3])],
        {1: "a", (2, "b"): None}, {3, 4}, frozenset([5]), torch.Size([2, 3]), torch.float16, torch.device("cpu"),
        OrderedDict(b=1, a=2),
        Count(1, 2, 3, 4, 5), Frozen("a", {"b": [1]}), int,
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_equal_arrives_equal(x):
    found = there_and_back(x, own=x)
    assert found == x
    assert type(found) is type(x)


DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)], ids=str)
def test_tensors_keep_bits_and_strides(dtype, shape):
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    for y in (x, x.permute(list(reversed(range(x.ndim))))):
        z = there_and_back(["before", torch.ones(1, dtype=torch.uint8), y])[2]  # and so it begins at an odd byte
        assert (z.dtype, z.shape, z.stride()) == (dtype, y.shape, y.stride())
        assert torch.equal(z.cpu().float() if dtype.itemsize == 1 else z, y.float() if dtype.itemsize == 1 else y)


def test_a_view_sends_its_elements_alone():
    x = torch.arange(10_000.0)
    for view in (x[::2][:5], x[:5].expand(3, 5), x[:1].conj(), torch.view_as_complex(x[:4].view(2, 2)).conj()):
        assert len(pack(view, 0)[0]) < 300
        assert torch.equal(there_and_back(view), view)


def test_gradients_are_still_wanted_and_meta_stays_meta():
    assert there_and_back(torch.ones(2, requires_grad=True)).requires_grad
    found = there_and_back([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)])
    assert [(type(p), p.requires_grad) for p in found] == [(nn.Parameter, True), (nn.Parameter, False)]
    assert there_and_back(torch.ones(2, 3, device="meta")).is_meta


def test_what_is_met_twice_stays_one_thing():
    x = torch.ones(3)
    a, b, c = there_and_back([x, x, [x]])
    assert a is b is c[0]
    itself = []
    itself.append(itself)
    found = there_and_back(itself)
    assert found[0] is found


def test_named_tuples_arrays_and_modules():
    loss, x = there_and_back(Pair(1.5, torch.ones(2)))
    assert (loss, x.tolist()) == (1.5, [1, 1])
    assert type(there_and_back(Pair(1.5, torch.ones(2)))) is Pair
    assert there_and_back(np.arange(6).reshape(2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert isinstance(there_and_back(np.float32(1.5)), np.float32)
    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    found = there_and_back(module)
    torch.testing.assert_close(found(torch.ones(2)), module(torch.ones(2)), rtol=0, atol=0)


def test_models_of_the_library_travel_and_their_weights_can_be_joined():
    def model(group):
        torch.manual_seed(0)
        return GPT(GPTConfig(1, 8, 2, vocabulary=11, positions=6), group)

    [one], two = Cluster(1).run(model), Cluster(2).run(model)
    # As in real processes: a group is bound to where it was made, and says what stands for it elsewhere.
    for part in two:
        for module in part.modules():
            for name, x in vars(module).items():
                if isinstance(x, Group):
                    module.__dict__[name] = None
    whole = dense_state([two[0], there_and_back(two[1])])
    for name, x in one.named_parameters():
        assert torch.equal(whole[name], x)


def test_an_object_is_rebuilt_only_where_its_kind_is_known():
    with pytest.raises(TypeError, match=r"the result of rank 3 holds .*test_parcel:Plain, which is not rebuilt here"):
        there_and_back(Plain())
    assert there_and_back(Plain(), own=[Plain()]).a == [1]


@pytest.mark.parametrize(
    "x", [threading.Lock(), (i for i in []), lambda: 1, open(os.devnull), torch.ones(2).to_sparse()]
)  # noqa: SIM115
def test_what_cannot_travel_is_named_with_its_rank(x):
    with pytest.raises(
        TypeError, match="rank 3 returned a list that cannot be sent to another process: .*Return tensors"
    ):
        pack([x], 3)


def parcel_of(*nodes):
    head = json.dumps([[0], nodes]).encode()
    return len(head).to_bytes(8) + head


@pytest.mark.parametrize(
    "planted",
    [
        b"", b"garbage", pickle.dumps([1]), (99).to_bytes(8) + b"{}", parcel_of(["list", [[5]]]),
        parcel_of(["what", 1]), parcel_of(["tensor", ["float32", [-1], [1], False, 0]]),
        parcel_of(["tensor", ["float32", [1000], [1], False, 0]]), parcel_of(["tensor", ["load", [1], [1], False, 0]]),
    ],
)  # fmt: skip
def test_what_is_no_parcel_is_refused(planted):
    with pytest.raises(ValueError, match="what came from rank 1 is no result of a program"):
        unpack(planted, 1, set())


@pytest.mark.parametrize("name", ["os:system", "shutil:rmtree", "subprocess:Popen", "tempfile:_TemporaryFileCloser"])
def test_nothing_that_runs_is_found_by_its_name(name):
    for node in (["global", name], ["object", name, None], ["named tuple", name, []], ["member", name, "x"]):
        with pytest.raises(TypeError, match="which is not rebuilt here"):
            unpack(parcel_of(node), 1, set())
