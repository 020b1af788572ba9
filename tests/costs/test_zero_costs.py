"""What ZeRO costs, as metered and as counted in live tensors, against the formulas, and those against the paper."""

import pytest
import torch
from covering import covering
from torch import nn

from lib import (
    FullySharded,
    MasterWeights,
    ModelState,
    ShardedOptimizer,
    average_gradients,
    model_state,
    zero_bytes,
    zero_volume,
)
from lib.devices import Cluster, Hardware, Link

GB = 1e9  # the paper's are decimal
STAGES = [0, 1, 2, 3]
WIDTH, LAYERS = 16, 6
HARDWARE = Hardware("some", 1e9, 1e9, 1e9, Link(1e-6, 1e9))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- the formulas ----

# Rajbhandari et al. 2020, figure 1 (7.5B parameters, 64 devices) and table 1; (parameters, devices, stage) -> GB.
FIGURE_1 = {(7.5, 64, 0): 120, (7.5, 64, 1): 31.4, (7.5, 64, 2): 16.6, (7.5, 64, 3): 1.9, (1.5, 1, 0): 24}
TABLE_1 = {
    (7.5, 1): (120, 120, 120), (7.5, 16): (35.6, 21.6, 7.5), (7.5, 256): (30.4, 15.4, 0.47),
    (128, 1): (2048, 2048, 2048), (128, 16): (608, 368, 128), (128, 256): (518, 263, 8),
    (1000, 1): (16000, 16000, 16000), (1000, 16): (4750, 2875, 1000), (1000, 256): (4046, 2054, 62.5),
}  # fmt: skip
PUBLISHED = FIGURE_1 | {(*key, stage): row[stage - 1] for key, row in TABLE_1.items() for stage in (1, 2, 3)}


@pytest.mark.parametrize(("case", "published"), PUBLISHED.items(), ids=str)
def test_the_figures_of_the_paper(case, published):
    billions, devices, stage = case
    last_digit = 10.0 ** -len(str(published).partition(".")[2])  # the paper rounds some and cuts off others
    assert zero_bytes(billions * 1e9, devices, stage).total / GB == pytest.approx(published, abs=last_digit)


@pytest.mark.parametrize("devices", [1, 2, 64])
def test_the_formulas_of_the_paper(devices):
    p, n, k = 1000.0, devices, 12
    assert [zero_bytes(p, n, stage).total for stage in STAGES] == pytest.approx(
        [(2 + 2 + k) * p, 4 * p + k * p / n, 2 * p + (2 + k) * p / n, (4 + k) * p / n]
    )
    assert zero_bytes(p, n, 1) == ModelState(2 * p, 2 * p, 12 * p / n)
    assert zero_bytes(p, n, 2) == ModelState(2 * p, 2 * p / n, 12 * p / n)
    assert zero_bytes(p, n, 0, working=4, optimizer=8).total == 16 * p
    ring = (n - 1) / n
    assert [zero_volume(p, n, stage) for stage in STAGES] == pytest.approx([2 * p * ring] * 3 + [3 * p * ring])
    assert [zero_volume(p, n, stage, 5) for stage in STAGES] == pytest.approx([x * p * ring for x in (2, 2, 6, 15)])


def test_other_stages_and_no_devices_are_refused():
    for formula in (zero_bytes, zero_volume):
        with pytest.raises(ValueError, match=r"stage=4 of ZeRO must be one of \(0, 1, 2, 3\)"):
            formula(1.0, 2, 4)
        with pytest.raises(ValueError, match="devices=0 must be at least 1"):
            formula(1.0, 0, 1)


# ---- the truth ----


def stack(width=WIDTH, layers=LAYERS, dtype=torch.bfloat16):
    return nn.Sequential(*[nn.Linear(width, width, bias=False, dtype=dtype) for _ in range(layers)])


def adam_with_masters(parameters):
    return MasterWeights(parameters, lambda masters: torch.optim.AdamW(masters, lr=1e-3))


def distribute(model, group, stage, make_optimizer, bucket_bytes=0):
    if stage in (1, 2):
        return ShardedOptimizer(model, group, make_optimizer, bucket_bytes)
    if stage == 3:
        FullySharded(model, group, layers=model)
    return make_optimizer(model.parameters())


def backward(model, group, stage, optimizer, x, micro_batches=1):
    for _ in range(micro_batches):
        loss = model(x).float().mean()
        if stage == 2:
            with optimizer.reducing():
                loss.backward()
        else:
            loss.backward()


def finish(model, group, stage, optimizer):
    if stage == 0:
        average_gradients(model, group)
    elif stage == 1:
        optimizer.reduce_gradients()
    optimizer.step()
    optimizer.zero_grad()


def measured(group, stage, model, x):
    """The model state when the second backward is over, and what the trace says that the device then holds."""
    optimizer = distribute(model, group, stage, adam_with_masters)
    backward(model, group, stage, optimizer, x)
    finish(model, group, stage, optimizer)
    backward(model, group, stage, optimizer, x)
    found = model_state(model, optimizer)
    if stage == 0:
        average_gradients(model, group)
    return found, optimizer


STEPS = 4 * LAYERS  # bytes: Adam counts its steps, for each tensor


@pytest.mark.parametrize(("size", "stage", "device"), covering([1, 2, 4], STAGES, ["cpu", "meta"]))
def test_mixed_precision_adam_holds_what_the_formula_says(size, stage, device):
    def program(group):
        with torch.device(device):
            model, x = stack(), torch.ones(2, WIDTH, dtype=torch.bfloat16)
        return measured(group, stage, model, x)[0]

    formula = zero_bytes(LAYERS * WIDTH**2, size, stage)
    wanted = ModelState(formula.parameters, formula.gradients, formula.optimizer + STEPS)
    assert Cluster(size).run(program) == [wanted] * size


@pytest.mark.parametrize("stage", STAGES)
def test_no_tensor_is_held_that_the_count_leaves_out(stage):
    """The trace sees every storage that is alive. At the end of the run these must be the model state and the input."""

    def program(group):
        model, x = stack(), torch.ones(2, WIDTH, dtype=torch.bfloat16)
        found, optimizer = measured(group, stage, model, x)
        x.add_(1)  # takes time, so that what is held now shows
        return found, optimizer, model, x

    cluster = Cluster(4, hardware=HARDWARE)
    for rank, (found, _, _, x) in enumerate(cluster.run(program)):
        assert cluster.trace.held(rank)[-2][1] == found.total + x.numel() * 2


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_pieces_are_as_even_as_can_be_and_add_up_to_the_whole(size, stage):
    def program(group):
        model = stack(width=5, layers=3)
        return measured(group, stage, model, torch.ones(2, 5, dtype=torch.bfloat16))[0]

    states = Cluster(size).run(program)
    p, steps = 3 * 25, 4 * 3
    sharded = {0: (), 1: ("optimizer",), 2: ("optimizer", "gradients"), 3: ("optimizer", "gradients", "parameters")}
    for kind, each in [("parameters", 2), ("gradients", 2), ("optimizer", 12)]:
        found = [getattr(state, kind) - (steps if kind == "optimizer" else 0) for state in states]
        if kind in sharded[stage]:
            assert sum(found) == each * p
            assert max(found) - min(found) <= each * 3  # one element for each of three buckets or layers
        else:
            assert found == [each * p] * size


@pytest.mark.parametrize("stage", [2, 3])
def test_figure_1_of_the_paper_without_a_laptop_that_holds_it(stage):
    """7.5 billion parameters on 64 devices: the program is run, on tensors without data. Stage 2 cuts what 1 does."""

    def program(group):
        with torch.device("meta"):
            wide, narrow = 120_000, 31_250
            pair = [(narrow, wide), (wide, narrow)]
            layers = [nn.Linear(*shape, bias=False, dtype=torch.bfloat16) for shape in pair]
            model, x = nn.Sequential(*layers), torch.ones(1, narrow, dtype=torch.bfloat16)
        return measured(group, stage, model, x)[0]

    for state in Cluster(64).run(program):
        assert state.total - 4 * 2 == zero_bytes(7.5e9, 64, stage).total
        assert state.total / GB == pytest.approx(FIGURE_1[7.5, 64, stage], abs=0.1)


# ---- traffic ----

VERBS = {0: ["all_reduce"], 1: ["all_gather", "reduce_scatter"], 2: ["all_gather", "reduce_scatter"]}
VERBS[3] = VERBS[2]


@pytest.mark.parametrize(("size", "stage", "micro_batches"), covering([1, 2, 4], STAGES, [1, 2, 3]))
def test_a_step_moves_what_the_formula_says(size, stage, micro_batches):
    cluster = Cluster(size)

    def program(group):
        # The input needs a gradient, as that of a layer inside a model: else the first one is not gathered again.
        model, x = stack(dtype=torch.float64), torch.ones(2, WIDTH, dtype=torch.float64, requires_grad=True)
        optimizer = distribute(model, group, stage, lambda p: torch.optim.SGD(p, lr=0.1))
        before = cluster.meters.count(group.rank).bytes_sent
        for _ in range(2):
            backward(model, group, stage, optimizer, x, micro_batches)
            finish(model, group, stage, optimizer)
        return cluster.meters.count(group.rank).bytes_sent - before

    wanted = 2 * 8 * zero_volume(LAYERS * WIDTH**2, size, stage, micro_batches)
    assert cluster.run(program) == [wanted] * size
    assert cluster.meters.verbs() == sorted({*VERBS[stage], *(["all_gather"] if stage else [])})


def test_messages_of_a_step_by_stage():
    def calls(stage, bucket_bytes):
        cluster = Cluster(2)

        def program(group):
            model, x = stack(), torch.ones(2, WIDTH, dtype=torch.bfloat16)
            optimizer = distribute(model, group, stage, adam_with_masters, bucket_bytes)
            backward(model, group, stage, optimizer, x)
            finish(model, group, stage, optimizer)

        cluster.run(program)
        return [cluster.meters.count(0, verb).calls for verb in ("reduce_scatter", "all_gather")]

    check = 1  # the comparison at the start
    assert calls(1, 0) == calls(2, 0) == [LAYERS, LAYERS + check]
    assert calls(1, 2 * 2 * WIDTH**2) == calls(2, 2 * 2 * WIDTH**2) == [LAYERS // 2, LAYERS // 2 + check]
    assert calls(3, 0) == [LAYERS, 2 * LAYERS - 1 + check]  # the input of the first needs no gradient


# ---- memory over time ----


def peaks(stage, kind, layers=LAYERS, steps=1):
    """The peak during a backward, of device 0, in bytes per parameter of the whole model."""
    cluster = Cluster(4, hardware=HARDWARE)

    def program(group):
        model, x = stack(dtype=torch.float64, layers=layers), torch.ones(2, WIDTH, dtype=torch.float64)
        optimizer = distribute(model, group, stage, lambda p: torch.optim.SGD(p, lr=0.1))
        begin = max((event.end for event in cluster.trace.events if event.rank == 0), default=0.0)
        for _ in range(steps):
            backward(model, group, stage, optimizer, x)
        return begin, optimizer, model

    begin = cluster.run(program)[0][0]
    held = cluster.trace.held(0, kind)
    at_begin = [size for time, size in held if time <= begin][-1]
    return max([at_begin, *(size for time, size in held if time >= begin)]) / (8 * WIDTH**2)


def test_stage_1_holds_all_gradients_at_once_and_stage_2_never_more_than_a_few_layers_of_them():
    assert peaks(1, "gradients") == LAYERS
    assert peaks(2, "gradients") == 1
    # All that exists: parameters, pieces of the gradients, and on the way two buckets, a gradient and its parts.
    growth = peaks(2, None, layers=12) - peaks(2, None, layers=6)
    assert growth == pytest.approx(6 * (1 + 1 / 4), rel=0.01)
    growth = peaks(1, None, layers=12) - peaks(1, None, layers=6)
    assert growth == pytest.approx(6 * 2, rel=0.01)


def test_stage_3_never_holds_more_than_a_few_layers_of_anything():
    growth = peaks(3, None, layers=12) - peaks(3, None, layers=6)
    assert growth == pytest.approx(6 * (1 / 4 + 1 / 4), rel=0.02)
