"""`torch.compile` is left out with a warning; beside DDP and FSDP it is refused, in whatever form the two meet."""

import copy
import os
import re
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

from lib.devices import Cluster
from lib.guest.program import guest

FSDP = partial(FullyShardedDataParallel, device_id=torch.device("cpu"))
DDP_NAME, FSDP_NAME, FSDP2_NAME = "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"
X = torch.ones(2, 3)


def run(program, *args, size=2):
    def main():
        dist.init_process_group("gloo")
        return program(*args)

    return Cluster(size).run(guest(main))


def layer():
    return nn.Linear(3, 3)


class Holds(nn.Module):
    """A model with a parallel one inside."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class Trainer:
    def __init__(self):
        self.model = fully_shard(layer())

    def step(self, x):
        return self.model(x)


def in_place(model):
    model.compile()
    return model


def of_a_decorated_step():
    model = DDP(layer())

    @torch.compile(fullgraph=True)
    def step(x):
        return model(x).sum()

    step(X)


MODEL = None


def of_a_global():
    global MODEL
    MODEL = fully_shard(layer())
    torch.compile(lambda x: MODEL(x))(X)


def of_a_closure():
    model = fully_shard(layer())
    torch.compile(lambda x: model(x))(X)


def of_an_argument():
    torch.compile(lambda model, x: model(x))(FSDP(layer()), x=X)


def of_what_is_hidden():
    """Nobody sees it before it is called."""
    hidden = SimpleNamespace(models={"mine": DDP(layer())})
    torch.compile(lambda x: hidden.models["mine"](x))(X)


REFUSED = {  # (kind, program)
    "compile(DDP)": (DDP_NAME, lambda: torch.compile(DDP(layer()))),
    "DDP(compile)": (DDP_NAME, lambda: DDP(torch.compile(layer()))),
    "DDP.compile()": (DDP_NAME, lambda: in_place(DDP(layer()))),
    "DDP(.compile())": (DDP_NAME, lambda: DDP(in_place(layer()))),
    "compile(with DDP inside)": (DDP_NAME, lambda: torch.compile(Holds(DDP(layer())))),
    "DDP(with compile inside)": (DDP_NAME, lambda: DDP(Holds(torch.compile(layer())))),
    "compile()(DDP)": (DDP_NAME, lambda: torch.compile(mode="max-autotune")(DDP(layer()))),
    "compile(DDP.forward)": (DDP_NAME, lambda: torch.compile(DDP(layer()).forward)),
    "a decorated step": (DDP_NAME, of_a_decorated_step),
    "hidden": (DDP_NAME, of_what_is_hidden),
    "compile(FSDP)": (FSDP_NAME, lambda: torch.compile(FSDP(layer()))),
    "FSDP(compile)": (FSDP_NAME, lambda: FSDP(torch.compile(layer()))(X)),
    "FSDP(.compile())": (FSDP_NAME, lambda: FSDP(in_place(layer()))(X)),
    "an argument": (FSDP_NAME, of_an_argument),
    "compile(fully_shard)": (FSDP2_NAME, lambda: torch.compile(fully_shard(layer()))),
    "fully_shard(compile)": (FSDP2_NAME, lambda: fully_shard(torch.compile(layer()))(X)),
    "fully_shard around compile": (FSDP2_NAME, lambda: fully_shard(Holds(torch.compile(layer())))(X)),
    "a global": (FSDP2_NAME, of_a_global),
    "a closure": (FSDP2_NAME, of_a_closure),
    "a method": (FSDP2_NAME, lambda: torch.compile(Trainer().step)(X)),
    "a method of a class": (FSDP2_NAME, lambda: torch.compile(Trainer.step)(Trainer(), X)),
}


@pytest.mark.filterwarnings("ignore:torch.compile is left out")
@pytest.mark.parametrize("form", REFUSED)
def test_it_is_refused_beside_ddp_and_fsdp(form):
    kind, program = REFUSED[form]
    words = rf"rank \d: torch.compile and {kind} together.* would not be what the program sends. Leave torch.compile"
    with pytest.raises(RuntimeError, match=words):
        run(program)


@pytest.mark.filterwarnings("ignore:torch.compile is left out")
def test_the_same_model_may_be_compiled_beside_ddp():
    """What is compiled is not what DDP has: each is called by itself."""

    def program():
        model = layer()
        compiled, parallel = torch.compile(model), DDP(model)
        square = torch.compile(lambda x: x * x)
        return torch.equal(compiled(X), parallel(X)) and torch.equal(square(parallel(X)), parallel(X) ** 2)

    assert run(program) == [True, True]


def test_a_warning_at_the_line_of_the_program():
    def program():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            in_place(layer())
            torch.compile(layer())
        return {os.path.basename(w.filename) for w in said}, [str(w.message).split(":")[0] for w in said]

    told = ({"test_compiled.py"}, ["torch.compile is left out on simulated devices"] * 2)
    assert run(program) == [told, told]


@pytest.mark.parametrize("how", ["TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE", "disable"])
def test_where_pytorch_leaves_it_out_itself_nothing_is_refused(how, monkeypatch):
    options = {"disable": True} if how == "disable" else {}
    if not options:
        monkeypatch.setenv(how, "1")

    def program():
        model = torch.compile(DDP(torch.compile(layer(), **options)), **options)
        model(X).sum().backward()
        return type(model).__name__

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(program) == ["DistributedDataParallel"] * 2


def what_it_is(model):
    """What a program sees of a compiled model."""
    model.eval()
    model.extra = 5
    twin = copy.deepcopy(model)
    return {
        "keys": list(model.state_dict()),
        "inner": (type(model._orig_mod).__name__, model._orig_mod.training, model._orig_mod.extra),
        "own": (model.training, model.extra, model.in_features, model.train().training, len(list(model.parameters()))),
        "copy": (twin.in_features, twin.weight is model.weight, twin.extra),
        "missing": re.sub(r"'.*' object", "", _error(lambda: model.nothing)),
    }


def _error(call):
    try:
        call()
    except AttributeError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore:torch.compile is left out")
def test_a_compiled_model_is_what_pytorchs_is():
    """Its keys in a checkpoint begin with `_orig_mod.`, and it is the model in all else."""
    theirs = torch.compile(layer(), backend="eager")  # the other backends take a second to import
    assert run(lambda: what_it_is(torch.compile(layer())), size=1) == [what_it_is(theirs)]
