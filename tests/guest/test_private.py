"""Each private interface that guests lean on, alone: after an update of PyTorch, a failure says which one moved."""

import ast
import multiprocessing
import os
import sys
import threading
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lib import Cluster, guest
from lib.guest import private, private_dtensors, private_python, private_tensors

SOURCES = [Path(module.__file__) for module in (private, private_dtensors, private_python, private_tensors)]


def taken():
    """Each (module, name) that private.py takes by `take`, read from its source."""
    names = {"CPP": private.CPP, "c10d.__name__": private.c10d.__name__, "DTENSOR": private_dtensors.DTENSOR}
    for node in chain.from_iterable(ast.walk(ast.parse(source.read_text())) for source in SOURCES):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "take":
            module, name = node.args
            if isinstance(name, ast.Constant):
                yield names.get(ast.unparse(module)) or ast.literal_eval(module), name.value


@pytest.mark.parametrize(("module", "name"), sorted(set(taken())))
def test_it_is_where_it_was(module, name):
    assert private.take(module, name) is not None


def test_another_version_gets_a_sentence():
    with pytest.raises(RuntimeError, match=r"needs torch\._C\._gone, a private interface that PyTorch .* written for"):
        private.take("torch._C", "_gone")
    with pytest.raises(RuntimeError, match="install that one"), private.patched(private.c10d, _gone=None):
        pass
    assert torch.__version__.startswith(private.WRITTEN_FOR)


def test_the_world_has_all_that_torch_has():
    theirs = {name for name, value in vars(private.take(private.c10d.__name__, "_World")).items() if name[0] != "_"}
    assert theirs == {name for name in dir(private.World()) if name[0] != "_"}
    before = private.world()
    private.set_world(private.World())
    try:
        assert not dist.is_initialized()
        assert private.world() is not before
    finally:
        private.set_world(before)


def test_groups_are_asked_for_by_name():
    asked = []

    def meet(method, rank, world_size, timeout=None, **options):
        asked.append(method)
        raise KeyboardInterrupt

    with private.groups_made_by(None, meet), pytest.raises(KeyboardInterrupt):
        dist.init_process_group("gloo", init_method="env://", rank=0, world_size=1)
    assert asked == ["env://"]


def test_names_of_groups_are_kept_by_thread():
    seen = []

    def program():
        dist.init_process_group("gloo")
        seen.append(private_tensors.resolve_process_group("0").rank())
        threads = [
            threading.Thread(target=lambda: seen.append(_fails(lambda: private_tensors.resolve_process_group("0"))))
        ]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        private.forget_names_of_this_thread()
        seen.append(_fails(lambda: private_tensors.resolve_process_group("0")))

    Cluster(2).run(guest(program))
    assert seen == [0, True, True, 1, True, True]


def _fails(call):
    try:
        call()
    except RuntimeError:
        return True
    return False


def test_within_a_backward_and_behind_it():
    said = []

    class Tells(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            private.after_backward(lambda: said.append("over"))
            said.append(private.in_backward())
            return gradient

    x = torch.ones(1, requires_grad=True)
    Tells.apply(x).backward()
    assert said == [True, "over"]
    assert not private.in_backward()


def test_import_locks_are_forgotten():
    locks = sys.modules["importlib._bootstrap"]._module_locks
    locks["of_a_guest"] = None
    private_python.forget_import_locks({"of_a_guest", "never_seen"})
    assert "of_a_guest" not in locks


def test_processes_before_their_start():
    process = multiprocessing.get_context("spawn").Process(target=print, args=(1,), kwargs={"end": ""})
    assert private_python.target_of(process) is print
    assert private_python.arguments_of(process) == ((1,), {"end": ""})
    assert private_python.method_of(process) == "spawn"
    assert private_python.parent_of(process) == os.getpid()
    assert private_python.method_of(multiprocessing.Process()) == multiprocessing.get_start_method()
    context = private_python.default_context()
    before = context._actual_context
    multiprocessing.set_start_method("spawn", force=True)
    assert context._actual_context is multiprocessing.get_context("spawn")
    context._actual_context = before


def test_modes_and_hooks_are_laid_aside_and_come_back():
    packed = []
    x = torch.ones(1, requires_grad=True)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append("packed") or t, lambda t: t)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, hooks:
        with private.unwatched():
            (torch.ones(2, 2) @ torch.ones(2, 2), x * x)
        assert (packed, counter.get_total_flops()) == ([], 0)
        (torch.ones(2, 2) @ torch.ones(2, 2), x * x)
        assert packed
        assert counter.get_total_flops() == 16


def test_hooks_of_all_are_where_they_were():
    kept = {name: getattr(module, name) for module, names in private_tensors.hooks_of_all() for name in names}
    register_all = {
        "_global_forward_hooks": torch.nn.modules.module.register_module_forward_hook,
        "_global_forward_pre_hooks": torch.nn.modules.module.register_module_forward_pre_hook,
        "_global_backward_hooks": torch.nn.modules.module.register_module_full_backward_hook,
        "_global_parameter_registration_hooks": torch.nn.modules.module.register_module_parameter_registration_hook,
        "_global_optimizer_pre_hooks": register_optimizer_step_pre_hook,
        "_global_optimizer_post_hooks": register_optimizer_step_post_hook,
    }
    for name, register in register_all.items():
        before = len(kept[name])
        handle = register(print)
        assert len(kept[name]) == before + 1
        handle.remove()


def test_what_python_knows_of_operators_is_read_and_written():
    before = private_tensors.read_operators()
    private_tensors.write_operators([type(known)(known) for known in before])
    operator = torch.library.custom_op(
        "tests_private::noted", lambda x: x.clone(), mutates_args=(), schema="(Tensor x) -> Tensor"
    )
    mine = private_tensors.read_operators()
    private_tensors.write_operators(before)
    grown = [len(now) > len(then) for now, then in zip(mine, before, strict=True)]
    assert grown == [True] * len(before)
    assert operator(torch.ones(1)).item() == 1.0
    namespace = torch.ops.tests_private
    assert "noted" in vars(namespace)
    private_tensors.forget_operators(["tests_private::noted"])
    assert "noted" not in vars(namespace)


@pytest.mark.parametrize(("get", "put"), [*private_tensors.FOR_A_WHILE, *private_tensors.FOR_ALL])
def test_a_setting_is_read_as_it_was_written(get, put):
    before = get()
    other = not before if isinstance(before, bool) else before + 1
    put(other)
    assert get() == other
    put(before)
    assert get() == before


def test_the_older_precisions_change_the_newer_ones():
    def newer():
        return [get() for get, _ in private_tensors.PRECISIONS]

    before = newer()
    for get, put in private_tensors.OLDER_PRECISIONS:
        old = get()
        put({"highest": "medium", True: False}[old])
        assert newer() != before
        put(old)
    for (_, put), value in zip(private_tensors.PRECISIONS, before, strict=True):
        put(value)
    assert newer() == before


def test_how_tensors_are_printed_is_read_and_written():
    read, write = private_tensors.PRINTING
    before = read()
    torch.set_printoptions(precision=2)
    assert f"{torch.ones(1) / 3}" == "tensor([0.33])"
    write(before)
    assert f"{torch.ones(1) / 3}" == "tensor([0.3333])"


def test_rules_of_sharding_come_and_go():
    operation = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    propagator = private_dtensors.take("torch.distributed.tensor", "DTensor")._op_dispatcher.sharding_propagator
    kept = propagator.op_strategy_funcs, propagator.op_to_schema_info
    before = [dict(content) for content in kept]
    with private_dtensors.shardings_of(_scaled_dot_product_flash_attention_for_cpu=lambda *args: []):
        assert all(operation in content for content in kept)
    assert list(kept) == before
