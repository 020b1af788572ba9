"""One worker, all schedules: the losses and gradients of one device; and what is refused before anything runs."""

from dataclasses import replace

import pytest
import torch
from devices.messages import says
from parallel.pipeline.pipelines import CONFIG, FREE, MAKERS, batch, build, check_equal, gradients, loss_of, one_device
from parallel.small_gpt import one_thread  # noqa: F401

from lib import (
    Backward,
    Cluster,
    Forward,
    Mesh,
    Schedule,
    average_gradients,
    averaging,
    check_shapes,
    cut_gpt,
    gpipe,
    one_f_one_b,
    pipeline_bytes,
    reduce_tied,
    run_pipeline,
    shard_batch,
    with_messages,
    zb_h1,
    zb_v,
)

TOKENS, TARGETS = batch()
RIGHT = Cluster(1).run(one_device, TOKENS, TARGETS)[0]


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_those_of_one_device(name):
    check_equal(Cluster(3).run(gradients, MAKERS[name](3, 6), TOKENS, TARGETS), RIGHT)


# One device; fewer micro-batches than stages; not a multiple, with texts in uneven parts. Each schedule has one of
# them: that it is right for all of them is up to the checker, and the worker does whatever stands in a list.
NUMBERS = [(1, 1), (3, 2), (2, 5)]


@pytest.mark.parametrize(("name", "numbers"), [(name, NUMBERS[i % 3]) for i, name in enumerate(FREE)])
def test_any_number_of_devices_and_micro_batches(name, numbers):
    check_equal(Cluster(numbers[0]).run(gradients, MAKERS[name](*numbers), TOKENS, TARGETS), RIGHT)


@pytest.mark.parametrize("how", ["paired", "beside", "batched"])
def test_wherever_the_messages_stand(how):
    check_equal(Cluster(3).run(gradients, with_messages(zb_v(3, 4), how), TOKENS, TARGETS), RIGHT)


def test_stages_of_given_sizes():
    check_equal(Cluster(4).run(gradients, one_f_one_b(4, 3), TOKENS, TARGETS, sizes=[1, 3, 2, 1]), RIGHT)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_layers_that_are_recomputed_in_both_halves(recompute):
    outputs = Cluster(2).run(gradients, zb_h1(2, 3), TOKENS, TARGETS, recompute=recompute)
    check_equal(outputs, RIGHT)


def test_a_clock_changes_no_number():
    outputs = Cluster(2, hardware="H100").run(gradients, zb_h1(2, 3), TOKENS, TARGETS)
    check_equal(outputs, RIGHT)


def test_a_schedule_that_a_reader_writes_in_ten_lines():
    def mine(p, m):
        lists = []
        for r in range(p):
            first = [Forward(r, k) for k in range(m // 2)]
            rest = [step for k in range(m // 2) for step in (Backward(r, k), Forward(r, k + m // 2))]
            lists.append(first + rest + [Backward(r, k) for k in range(m // 2, m)])
        return Schedule("mine", lists)

    check_equal(Cluster(4).run(gradients, mine(4, 6), TOKENS, TARGETS), RIGHT)


def training(group, schedule, dp, tp, sequence_parallel, steps, seen):
    """Some steps of SGD on data x pipeline x tensor parallel devices; the losses."""
    mesh = Mesh(group, dp=dp, pp=group.size // dp // tp, tp=tp)
    gpt = build(mesh.tp, sequence_parallel, replace(CONFIG, layers=4))
    stages = cut_gpt(gpt, schedule, mesh.pp.rank)
    optimizer = torch.optim.SGD(gpt.parameters(), lr=0.1)
    for step in range(steps):
        tokens, targets = (shard_batch(x, mesh.dp) for x in batch(texts=4, seed=step))
        some, follow = (x.tensor_split(schedule.micros) for x in (tokens, targets))
        optimizer.zero_grad()
        losses = run_pipeline(mesh.pp, schedule, stages, some, loss_of(gpt, follow, len(tokens)))
        reduce_tied(mesh.pp, schedule, gpt)
        average_gradients(gpt, mesh.dp)
        optimizer.step()
        if losses:
            loss = mesh.dp.all_reduce(sum(losses.values())) / dp
            if mesh.dp.rank == 0 and mesh.tp.rank == 0:
                seen.append(float(loss))


@pytest.mark.parametrize(("make", "dp", "sequence_parallel"), [(one_f_one_b, 2, False), (zb_v, 1, True)])
def test_three_steps_with_data_and_tensor_parallelism_around_it(make, dp, sequence_parallel):
    many, one = [], []
    Cluster(4 * dp).run(training, make(2, 2), dp, 2, sequence_parallel, 3, many)
    Cluster(1).run(training, gpipe(1, 1), 1, 1, False, 3, one)
    assert len(one) == 3
    assert abs(one[-1] - one[0]) > 0.1, "it must have learned something"
    assert many == pytest.approx(one, rel=1e-12)


def test_bytes_are_those_of_the_formula():
    for make in (MAKERS["1f1b"], MAKERS["interleaved"], MAKERS["zb-v"]):
        schedule = make(2, 2)
        cluster = Cluster(2)
        cluster.run(gradients, schedule, TOKENS[:2], TARGETS[:2])
        sent = [cluster.meters.count(rank, "send").bytes_sent for rank in range(2)]
        assert sent == pipeline_bytes(schedule, batch=1, sequence=8, hidden=CONFIG.hidden, itemsize=8)


@pytest.mark.parametrize("make", [one_f_one_b, zb_v])
def test_each_device_of_a_tensor_group_sends_its_part(make):
    """Scatter/gather: the same gradients, 1/t of the bytes between stages, and an all-gather for every message."""
    config, schedule, steps = replace(CONFIG, layers=4), make(2, 2), {}

    def run(group, scatter):
        mesh = Mesh(group, pp=2, tp=2)
        gpt = build(mesh.tp, config=config)
        stages = cut_gpt(gpt, schedule, mesh.pp.rank)
        some, loss = TOKENS[:2].tensor_split(2), loss_of(gpt, TARGETS[:2].tensor_split(2), 2)
        run_pipeline(mesh.pp, schedule, stages, some, loss, scatter=mesh.tp if scatter else None)
        return [p.grad for p in gpt.parameters()]

    for scatter in False, True:
        cluster = Cluster(4)
        outputs = cluster.run(run, scatter)
        sent = [cluster.meters.count(rank, "send").bytes_sent for rank in (0, 2)]
        assert sent == pipeline_bytes(schedule, 1, 8, CONFIG.hidden, 8, scatter=2 if scatter else 1)
        steps[scatter] = outputs, cluster.meters.count(0, "all_gather").calls
    for plain, cut in zip(steps[False][0], steps[True][0], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, cut, strict=True))
    received = sum(step.letter.startswith("RECV") for step in with_messages(schedule).steps[0])
    assert steps[True][1] - steps[False][1] == received > 0


def test_the_trace_names_the_steps():
    cluster = Cluster(2, hardware="H100")
    cluster.run(gradients, gpipe(2, 2), TOKENS[:2], TARGETS[:2])
    names = [span.name for span in cluster.trace.spans if span.rank == 1]
    assert [name for name in names if "_" not in name] == ["1F0", "1F1", "1B0", "1B1"]


def test_activations_in_flight_are_seen_in_the_memory_of_the_trace():
    """Embedding and head aside, on a stage in the middle: m in GPipe, p - r in 1F1B."""

    def peak(schedule):
        cluster = Cluster(3, hardware="H100")
        cluster.run(gradients, schedule, TOKENS, TARGETS, sizes=[1, 2, 1], config=replace(CONFIG, layers=4))
        return cluster.trace.peak(1, "activations") * schedule.micros  # as if micro-batches were all equally large

    one = peak(gpipe(3, 1))
    assert peak(gpipe(3, 6)) / one == pytest.approx(6, rel=0.05)
    assert peak(one_f_one_b(3, 6)) / one == pytest.approx(2, rel=0.15)  # the step under way holds a little more


# ---- what is refused ----


def refused(message, *fragments, p=2, **changes):
    def program(group):
        given = {"schedule": gpipe(2, 2), "stages": {group.rank: lambda x: x}, "inputs": [torch.ones(1)] * 2}
        given |= {"loss": lambda y, k: y.sum()} | {k: v(group) if callable(v) else v for k, v in changes.items()}
        run_pipeline(group, **given)

    cluster = Cluster(p)
    with says(message, *fragments):
        cluster.run(program)
    assert cluster.meters.count(0).calls == 0, "before anything runs"


def test_what_does_not_fit():
    refused(ValueError, "rank 0 of 3", "GPipe is for 2 devices, not 3", p=3)
    refused(ValueError, "3 micro-batches for a schedule of 2", "cut the batch into 2", inputs=[torch.ones(1)] * 3)
    one_text = torch.ones(1, 8).tensor_split(2)
    refused(ValueError, "rank 0 of 2: nothing is in micro-batch 1; make fewer than 2", inputs=one_text)
    refused(ValueError, "was given the stages [5]", "puts [0] here", stages=lambda group: {5: torch.relu})
    refused(ValueError, "0 backwards", schedule=Schedule.read("lost", "0F0", "1F0 1B0"))
    refused(TypeError, "needs a Schedule, not list", schedule=[])


def test_a_stage_that_cuts_the_graph_is_named():
    layer = torch.nn.Linear(2, 2)

    def run(cut):
        stages = [lambda x: layer(x), lambda x: layer(x.detach()) if cut == "input" else layer(x).detach()]
        Cluster(2).run(
            lambda group: run_pipeline(
                group, gpipe(2, 1), {group.rank: stages[group.rank]}, [torch.ones(1, 2)], lambda y, k: y.sum()
            )
        )

    with says(ValueError, "rank 1", "stage 1 gives its input no gradient", "detach()"):
        run("input")
    with says(ValueError, "rank 1", "what stage 1 makes of micro-batch 0 has no gradient", "nothing before it"):
        run("output")
    layer.requires_grad_(False)
    with says(ValueError, "rank 0", "stage 0", "the first stage would not learn", "frozen", "compute its outputs"):
        run("neither")


def test_shapes_between_stages_are_known_before_anything_runs():
    def rehearse(group, wrong=None):
        torch.manual_seed(0)
        gpt = build(group.split(group.size), config=replace(CONFIG, dropout=0.1))
        stages = cut_gpt(gpt, zb_v(2, 2), group.rank)
        if wrong and 1 in stages:
            run = stages[1]
            stages[1] = lambda x: wrong(run(x))
        random = torch.get_rng_state()
        made = check_shapes(group, zb_v(2, 2), stages, TOKENS.tensor_split(2))
        assert torch.equal(random, torch.get_rng_state()), "the step finds the stream as it was"
        assert all(p.grad is None for p in gpt.parameters())
        return made

    between = (3, 8, CONFIG.hidden)
    assert Cluster(2).run(rehearse) == [{0: between, 3: (3, 8, CONFIG.vocabulary)}, {1: between, 2: between}]
    with says(ValueError, "rank 1 of 2: stage 2 cannot take", "(3, 8, 5)", "Let stage 1 return"):
        Cluster(2).run(rehearse, lambda y: y[..., :5])
    with says(ValueError, "rank 1 of 2: stage 1 makes tuple", "must return one tensor"):
        Cluster(2).run(rehearse, lambda y: (y, y))


def test_layers_that_cannot_be_cut_so():
    with says(ValueError, "7 layers cannot be cut into 12 stages", "more layers"):
        Cluster(12).run(gradients, gpipe(12, 2), TOKENS, TARGETS)
    with says(ValueError, "must add up"):
        Cluster(2).run(gradients, gpipe(2, 2), TOKENS, TARGETS, sizes=[3, 3])


def test_forgetting_the_tie_gives_other_gradients():
    def untied(group):
        gpt = build(group.split(group.size))
        stages = cut_gpt(gpt, gpipe(2, 1), group.rank)
        run_pipeline(group, gpipe(2, 1), stages, [TOKENS], loss_of(gpt, [TARGETS], len(TOKENS)))
        return gpt.embedding.weight.grad

    right = RIGHT[1]["embedding.weight"]
    assert min(float((grad - right).norm() / right.norm()) for grad in Cluster(2).run(untied)) > 0.01


def linear_stages(group, schedule, inputs, hook=None, **options):
    """The gradient of this device's layer, one of two."""
    torch.manual_seed(0)
    layer = [torch.nn.Linear(4, 4) for _ in range(2)][group.rank].double()
    if hook:
        hook(layer.weight)
    run_pipeline(
        group, schedule, {group.rank: lambda x: layer(x).tanh()}, inputs, lambda y, k: y.square().sum(), **options
    )
    return layer.weight.grad


SAMPLES = torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4).sin()


def halve(parameter):
    parameter.grad.mul_(0.5)


HOOKS = {
    "changed": lambda weight: weight.register_hook(lambda grad: 0.5 * grad),
    "looked at": lambda weight: weight.register_post_accumulate_grad_hook(halve),
}


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_a_hook_of_a_weight_sees_its_gradient_in_a_split_backward_too(hook):
    one = [SAMPLES]
    right = Cluster(2).run(linear_stages, one_f_one_b(2, 1), one, hook)
    for found, wanted in zip(Cluster(2).run(linear_stages, zb_h1(2, 1), one, hook), right, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


def test_the_clock_does_not_keep_a_backward_from_being_split():
    cluster = Cluster(2, hardware="H100")
    cluster.run(linear_stages, zb_h1(2, 2), [SAMPLES, SAMPLES])
    done = [event.name for event in cluster.trace.events if event.rank == 1]
    last_sent = max(i for i, name in enumerate(done) if name == "send to 0")
    assert done[last_sent:].count("mm") == 2, "the weights' products wait until nobody waits for them"


def test_micro_batches_of_one_sample_without_a_dim_for_it():
    right = Cluster(2).run(linear_stages, one_f_one_b(2, 4), list(SAMPLES))
    for found, wanted in zip(Cluster(2).run(linear_stages, zb_h1(2, 4), list(SAMPLES)), right, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


def test_gradients_averaged_around_a_split_backward():
    """A bucket leaves when its last gradient has come, and those of a split backward come later."""

    def program(group, schedule):
        mesh = Mesh(group, data=2, pipeline=2)
        torch.manual_seed(0)
        layer = [torch.nn.Linear(4, 4) for _ in range(2)][mesh.pipeline.rank].double()
        stages, mine = {mesh.pipeline.rank: lambda x: layer(x).tanh()}, [shard_batch(SAMPLES, mesh.data)]
        with averaging(layer, mesh.data):
            run_pipeline(mesh.pipeline, schedule, stages, mine, lambda y, k: y.square().sum())
        return layer.weight.grad

    right = Cluster(4).run(program, one_f_one_b(2, 1))
    for found, wanted in zip(Cluster(4).run(program, zb_h1(2, 1)), right, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


def test_a_frozen_embedding_has_no_gradient_at_either_end():
    def program(group):
        gpt = build(group.split(group.size))
        gpt.embedding.weight.requires_grad_(False)
        schedule = one_f_one_b(2, 2)
        stages = cut_gpt(gpt, schedule, group.rank)
        run_pipeline(group, schedule, stages, TOKENS.chunk(2), loss_of(gpt, TARGETS.chunk(2), len(TOKENS)))
        reduce_tied(group, schedule, gpt)
        return gpt.embedding.weight.grad

    assert Cluster(2).run(program) == [None, None]


def test_a_stage_that_makes_two_tensors():
    with pytest.raises(TypeError, match="on rank 0: stage 0 made tuple of micro-batch 0, and one tensor goes"):
        Cluster(2).run(lambda group: run_pipeline(group, gpipe(2, 1), {group.rank: lambda x: (x, x)}, [SAMPLES], None))
