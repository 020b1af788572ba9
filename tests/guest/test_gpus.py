"""Pretended GPUs, without any run: what programs say to `cuda`, and that nothing of it is left behind."""

import io
import sys
import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lib.guest.gpus.hints import hints
from lib.guest.gpus.pretend import pretended


@pytest.fixture
def cuda():
    with pretended(4) as cuda:
        yield cuda


def everything() -> dict:
    """All attributes of all of PyTorch's modules and of the classes in them, by identity."""
    found = {}
    for module in [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "torch"]:
        for name, value in list(vars(module).items()):
            found[id(module), name] = id(value)
            if issubclass(type(value), type) and value.__module__.startswith("torch"):
                found |= {(id(value), of): id(what) for of, what in list(vars(value).items())}
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="here GPUs need not be pretended")
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    with pretended(2):
        torch.zeros(1, device="cuda")  # what PyTorch sets up once is there
    before, restorers = everything(), list(torch.serialization._package_registry)
    try:
        with pretended(2):
            assert torch.cuda.is_available()
            assert everything() != before
            torch.ones(2, device="cuda:1").sum()
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert everything() == before
    assert torch.serialization._package_registry == restorers
    with pytest.raises((AssertionError, RuntimeError), match="not compiled with CUDA|no NVIDIA driver|No CUDA GPUs"):
        torch.zeros(1, device="cuda")
    assert not torch.cuda.is_available()
    assert torch.accelerator.device_count() == 0


PLACES = ["cuda", "cuda:1", 1, torch.device("cuda"), torch.device("cuda", 3)]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_whatever_is_told_a_gpu_takes_the_cpu(cuda, place):
    x = torch.randn(2, 3)
    made = [
        torch.zeros(2, 3, device=place), torch.randint(3, (2, 3), device=place), torch.tensor([1.0], device=place),
        torch.as_tensor([1.0], device=place), torch.empty_like(x, device=place), x.new_zeros(2, device=place),
        torch.fft.fftfreq(3, device=place), torch.randperm(3, device=place), x.to(place), x.cuda(place),
        x.to(device=place, dtype=torch.float16), x.to(place, torch.float64), nn.Linear(3, 2, device=place).weight,
        nn.Linear(3, 2).to(place).weight, nn.Linear(3, 2).cuda(place).weight, nn.Linear(3, 2).to(device=place).weight,
        nn.Linear(3, 2, device="meta").to_empty(device=place).weight,
        torch.randn(2, generator=torch.Generator(place).manual_seed(1), device=place),
    ]  # fmt: skip
    assert {y.device.type for y in made} == {"cpu"}
    assert made[10].dtype == torch.float16
    assert made[11].dtype == torch.float64
    if not isinstance(place, int):
        with torch.device(place):
            assert nn.Linear(3, 2).weight.device.type == "cpu"


def test_a_gpu_that_the_node_has_not_is_refused(cuda):
    for wrong in (
        lambda: torch.zeros(1, device="cuda:4"), lambda: torch.zeros(1).to(4), lambda: torch.zeros(1).cuda(5),
        lambda: torch.cuda.set_device(4), lambda: nn.Linear(1, 1).to(torch.device("cuda", 7)),
        lambda: torch.cuda.get_device_properties("cuda:4"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"invalid device ordinal: cuda:[457]. The node has 4 .* LOCAL_RANK"):
            wrong()


def test_what_is_moved_is_a_copy_and_what_lies_there_stays(cuda):
    host = torch.zeros(3)
    there = host.to("cuda")
    there += 1
    back = there.cpu()
    there += 1
    assert (host.tolist(), back.tolist(), there.tolist()) == ([0] * 3, [1] * 3, [2] * 3)
    weight = torch.zeros(3, device="cuda", requires_grad=True)
    assert weight.to("cuda") is weight
    assert weight.cuda() is weight
    assert there.to(0) is there
    assert weight.cpu() is not weight
    assert not host.requires_grad_().cuda().is_leaf
    layer = nn.Linear(2, 2)
    parameter = layer.weight
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    saved = {name: x.cpu() for name, x in layer.cuda().state_dict().items()}
    layer(torch.ones(1, 2).cuda()).sum().backward()
    optimizer.step()
    assert layer.weight is parameter
    assert not torch.equal(saved["weight"], layer.weight)


def test_sparse_tensors_move(cuda):
    x = torch.eye(2).to_sparse()
    there, made = x.cuda(), torch.sparse_coo_tensor([[0]], [1.0], (2,), device="cuda", check_invariants=True)
    there.mul_(2)
    assert x.to_dense().equal(torch.eye(2))
    assert there.to("cuda").cpu().to_dense().equal(2 * torch.eye(2))
    assert made.to_dense().tolist() == [1, 0]


def test_the_backward_finds_the_gpus_too(cuda):
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.full((1,), 2.0, device="cuda") * torch.ones(1).cuda()

    x = torch.ones(2, device="cuda", requires_grad=True)
    x.register_hook(lambda gradient: gradient + torch.ones(1, device=0))
    Scale.apply(x).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_a_generator_is_one_and_a_number_may_be_the_default(cuda):
    assert isinstance(torch.Generator("cuda"), torch.Generator)
    assert not isinstance(3, torch.Generator)
    torch.set_default_device(1)
    try:
        assert torch.ones(1).device.type == "cpu"
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("training", [True, False])
def test_without_others_to_ask_a_synchronized_batch_norm_is_a_batch_norm(cuda, training):
    x = torch.randn(4, 3, 2)
    mine, plain = (kind(3).train(training) for kind in (nn.SyncBatchNorm, nn.BatchNorm1d))
    assert torch.equal(mine(x), plain(x))
    assert torch.equal(mine.running_var, plain.running_var)


def test_devices_are_counted_per_thread(cuda):
    found = []

    def elsewhere():
        found.append(torch.cuda.current_device())

    torch.cuda.set_device("cuda:2")
    with torch.cuda.device(3):
        assert torch.cuda.current_device() == 3
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [0]
    assert torch.cuda.current_device() == torch.accelerator.current_device_index() == 2
    for index, then in ((1, 1), (-1, 1), (0, 0)):  # a negative one changes nothing
        torch.accelerator.set_device_index(index)
        assert torch.cuda.current_device() == then
    assert torch.cuda.device_count() == torch.accelerator.device_count() == 4
    assert torch.accelerator.current_accelerator() == torch.device("cuda")
    assert torch.accelerator.is_available()
    assert torch.cuda.is_bf16_supported()
    assert torch.cuda.nccl.version() >= (2, 10)
    assert torch.version.cuda >= "11"
    assert torch.distributed.is_nccl_available()
    assert torch.cuda.get_device_capability() == (8, 0)
    assert "pretended" in torch.cuda.get_device_name(1)
    free, total = torch.cuda.mem_get_info()
    assert free == total > 0 == torch.cuda.max_memory_allocated() == torch.accelerator.memory_allocated()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def test_streams_and_events(cuda):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with pytest.raises(ValueError, match="must be recorded"):
        start.elapsed_time(end)
    start.record()
    stream, first = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(first)
    with torch.cuda.stream(stream):
        assert torch.cuda.current_stream() is stream
        x = torch.ones(2, device="cuda") * 2
        x.record_stream(stream)
    with stream:
        assert torch.accelerator.current_stream() is stream
    assert torch.cuda.current_stream() is first
    assert stream.query()
    assert isinstance(stream, torch.cuda.Stream)
    end.record(stream)
    end.synchronize()
    assert start.elapsed_time(end) > 0
    with pytest.raises(ValueError, match="enable_timing"):
        torch.cuda.Event().elapsed_time(end)


def test_autocast_and_the_scaler(cuda):
    layer, x = nn.Linear(4, 4).cuda(), torch.ones(2, 4, device="cuda")
    for context, dtype in (
        (torch.autocast("cuda"), torch.float16), (torch.autocast("cuda", torch.bfloat16), torch.bfloat16),
        (torch.autocast(device_type="cuda", enabled=False), torch.float32),
        (torch.amp.autocast("cuda", dtype=torch.bfloat16), torch.bfloat16),
    ):  # fmt: skip
        with context:
            assert layer(x).dtype == dtype
            assert torch.is_autocast_enabled("cuda") == (dtype != torch.float32)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=8.0)
    assert scaler.is_enabled()
    before = layer.weight.detach().clone()
    scaler.scale(layer(x).sum()).backward()
    scaler.unscale_(optimizer)
    assert layer.weight.grad.max() == 2  # of two rows of ones, unscaled
    scaler.step(optimizer)
    layer.weight.grad.fill_(float("inf"))
    scaler.update()
    assert not torch.equal(before, layer.weight)
    assert scaler.get_scale() == 8.0


def test_checkpoints_of_gpus_are_loaded(cuda):
    file = io.BytesIO()
    torch.save({"x": torch.arange(3)}, file)
    for place in ("cuda:0", torch.device("cuda", 1), {"cpu": "cuda:2"}, lambda storage, where: storage.cuda(1)):
        file.seek(0)
        assert torch.load(file, map_location=place)["x"].tolist() == [0, 1, 2]
    written_on_a_gpu = io.BytesIO()
    torch.serialization.register_package(-1, lambda storage: "cuda:0", lambda storage, place: None)
    try:
        torch.save({"x": torch.arange(3)}, written_on_a_gpu)
    finally:
        del torch.serialization._package_registry[[row[0] for row in torch.serialization._package_registry].index(-1)]
    assert b"cuda:0" in written_on_a_gpu.getvalue()
    written_on_a_gpu.seek(0)
    assert torch.load(written_on_a_gpu)["x"].tolist() == [0, 1, 2]


def test_seeds_of_the_gpu_are_those_of_the_cpu(cuda):
    torch.cuda.manual_seed_all(5)
    first, state = torch.randn(2, device="cuda"), torch.cuda.get_rng_state()
    second = torch.randn(2, device="cuda")
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.randn(2, device="cuda"), second)
    torch.cuda.manual_seed(5)
    assert torch.equal(torch.randn(2, device="cuda"), first)


@pytest.mark.parametrize("workers", [0, 1])
def test_pinned_batches_of_workers(cuda, workers):
    loader = DataLoader(TensorDataset(torch.arange(6)), batch_size=3, pin_memory=True, num_workers=workers)
    assert [x.to("cuda", non_blocking=True).tolist() for (x,) in loader] == [[0, 1, 2], [3, 4, 5]]
    assert torch.zeros(2, pin_memory=True).pin_memory().tolist() == [0, 0]


def test_the_generator_of_a_gpu_is_set_by_hand(cuda):
    """As Megatron does, for random numbers that all devices of a group share."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.get_state()
    x = torch.rand(3, device="cuda")
    generator.set_state(before)
    assert torch.equal(torch.rand(3, device="cuda"), x)
    assert len(torch.cuda.default_generators) == 4


def test_what_is_scripted_runs_as_it_is(cuda):
    @torch.jit.script
    def padded(x, n: int):
        return torch.cat([x, torch.zeros(n, device=x.device)])

    assert padded(torch.ones(1, device="cuda"), 2).tolist() == [1, 0, 0]


def test_older_ways_to_say_it(cuda):
    assert torch.cuda.FloatTensor([1.0]).tolist() == [1.0]
    assert torch.ones(1).type("torch.cuda.HalfTensor").half()
    layer = nn.DataParallel(nn.Linear(2, 3)).cuda()
    assert layer(torch.ones(4, 2).cuda()).shape == (4, 3)


def test_what_needs_a_gpu_may_be_named_in_annotations(cuda):
    def pooled(pool: torch.cuda.MemPool | None = None, graph: "torch.accelerator.Graph | None" = None):
        return isinstance(pool, torch.cuda.MemPool)

    assert not pooled()
    with pytest.raises(NotImplementedError, match="torch.cuda.MemPool needs a GPU"):
        torch.cuda.MemPool()


def test_what_needs_a_gpu_is_refused_with_the_reason(cuda):
    with pytest.raises(NotImplementedError, match=r"torch.cuda.CUDAGraph needs a GPU: GPUs are only pretended"):
        torch.cuda.CUDAGraph()


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda: __import__("flash_attn"), "made of kernels for GPUs"),
        pytest.param(
            lambda: torch.device(0),
            'torch.device("cuda", 0)',
            marks=pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this build of PyTorch knows the device"),
        ),
        (lambda: torch.ops.aten.empty.memory_format([2], device=torch.device("cuda")), "kernel for GPUs"),
    ],
)
def test_errors_that_come_of_it_say_so(cuda, wrong, hint):
    with pytest.raises(Exception) as caught, hints():
        wrong()
    assert len(caught.value.__notes__) == 1
    assert hint in caught.value.__notes__[0]


def test_a_program_that_insists_on_cuda_is_told_where_its_tensors_lie(cuda):
    x = torch.ones(1, device="cuda")
    with pytest.raises(AssertionError) as caught, hints():
        assert x.device.type == "cuda"
    assert "lies on the CPU" in caught.value.__notes__[0]
    with pytest.raises(AssertionError) as caught, hints():
        assert x == 2
    assert not hasattr(caught.value, "__notes__")
