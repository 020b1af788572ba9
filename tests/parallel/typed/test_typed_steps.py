"""What a training step does with gradients passes typed: averages, norms, ZeRO in its three stages. So do experts, and
the stages of a pipeline one by one. The mistakes that each of them can make are refused, in words."""

import pytest
import torch

from lib import (
    GPT,
    Cluster,
    ExpertGPT,
    ExpertGPTConfig,
    ExpertGrid,
    FullySharded,
    GPTConfig,
    GroupedExperts,
    HybridSharded,
    MasterWeights,
    Mesh,
    MixtureOfExperts,
    NodeFirstExperts,
    OverlappedExperts,
    Partial,
    PlacementError,
    Replicate,
    RoutingRule,
    SequenceGPT,
    Shard,
    ShardedOptimizer,
    Typed,
    average_gradients,
    averaging,
    broadcast_parameters,
    clip_gradients,
    cut_gpt,
    gpipe,
    gradient_norm,
    run_pipeline,
    shard_batch,
    sum_gradients,
)
from lib.parallel.experts.mlp import each_expert

SMALL = GPTConfig(1, 16, 4, 50, 8)
TEXTS = torch.arange(32).view(4, 8)


def typed(mesh, make, *cut, **later):
    """The types, the model and its texts, which are cut over `later`."""
    model = make()
    axes = {name: getattr(mesh, name) for name in (*cut, *later)}
    texts = TEXTS
    for group in (axes[name] for name in later):
        texts = shard_batch(texts, group)
    types, texts = Typed(**axes), texts.clone()
    types.parameters(model, *cut, summed_later=tuple(later))
    types.give(texts, **dict.fromkeys(later, Shard(0)))
    return types, model, texts


def refused(program, *args, devices=4):
    with pytest.raises(PlacementError) as error:
        Cluster(devices).run(program, *args)
    return str(error.value)


def fully_sharded(group, loss_of=lambda loss, group: loss, told=True):
    mesh = Mesh(group, dp=2, tp=2)
    model = SequenceGPT(SMALL, mesh.tp)
    if not told:
        types, _, texts = typed(mesh, lambda: model, "tp", dp=True)
    FullySharded(model, mesh.dp, layers=model.blocks)
    if told:
        types, _, texts = typed(mesh, lambda: model, "tp", dp=True)
    optimizer = torch.optim.AdamW(model.parameters())
    with types:
        loss = loss_of(model(texts, texts), mesh.dp)
        loss.backward()
        types.check_gradients(model)
        optimizer.step()
        optimizer.step()  # a second time with moments that are there
    up = model.blocks[0].mlp.up.weight
    return types.short(up), types.short(up.grad), types.short(model.norm.weight.grad)


def test_fully_sharded():
    assert set(Cluster(4).run(fully_sharded)) == {("flat|flat flat|flat", "flat|- flat|-", "R|- flat|-")}


def test_fully_sharded_takes_the_mean_itself():
    said = refused(fully_sharded, lambda loss, group: loss / group.size)
    assert "backward() from a Partial: FullySharded takes the mean" in said


def test_pieces_are_known_only_after_the_cut():
    assert "has no type" in refused(fully_sharded, lambda loss, group: loss, False)


@pytest.mark.parametrize("stage", [1, 2])
def test_sharded_optimizer(stage):
    def program(group):
        mesh = Mesh(group, dp=2, tp=2)
        types, model, texts = typed(mesh, lambda: GPT(SMALL, mesh.tp), "tp", dp=True)
        zero = ShardedOptimizer(model, mesh.dp, torch.optim.AdamW)
        with types:
            loss = model(texts, texts)
            if stage == 1:
                loss.backward()
                zero.reduce_gradients()
            else:
                with zero.reducing():
                    loss.backward()
            kinds = {types.short(piece.grad) for piece in zero.pieces}
            zero.step()
        return kinds

    assert Cluster(4).run(program) == [{"flat|- flat|-", "R|- flat|-"}] * 4


def test_zero_after_an_average():
    def program(group):
        mesh = Mesh(group, dp=4)
        types, model, texts = typed(mesh, lambda: GPT(SMALL, group.split(4)), dp=True)
        zero = ShardedOptimizer(model, mesh.dp, torch.optim.SGD)
        with types:
            model(texts, texts).backward()
            average_gradients(model, mesh.dp)
            zero.reduce_gradients()

    assert "reduce_gradients over dp: the gradient of embedding.weight is whole already" in refused(program)


def test_a_step_with_a_gradient_that_nobody_summed():
    def program(group):
        mesh = Mesh(group, cp=2, dp=2)
        types, model, texts = typed(mesh, lambda: GPT(SMALL, group.split(4)), cp=True, dp=True)
        zero = ShardedOptimizer(model, mesh.dp, torch.optim.SGD)
        with types:
            model(texts, texts).backward()
            zero.reduce_gradients()
            zero.step()

    assert "the gradient of embedding.weight is Partial(mean) over cp: a step with it" in refused(program)


def test_master_weights_take_no_partial_gradient():
    def program(group, average):
        types, model, texts = typed(Mesh(group, dp=2), lambda: GPT(SMALL, group.split(2)), dp=True)
        master = MasterWeights(model.parameters(), torch.optim.SGD, torch.float64)
        with types:
            model(texts, texts).backward()
            if average:
                average_gradients(model, group)
            master.step()

    Cluster(2).run(program, True)
    assert "a step with it would move the copies apart" in refused(program, False, devices=2)


def test_averages():
    """In buckets under way, between nodes, and the norm of what they leave."""

    def program(group):
        mesh = Mesh(group, nodes=2, shards=2)
        types, model, texts = typed(Mesh(group, dp=4), lambda: GPT(SMALL, group.split(4)), dp=True)
        with types:
            broadcast_parameters(model, group)
            loss = model(texts, texts)
            with averaging(model, group, bucket_bytes=1000):
                loss.backward()
            types.check_gradients(model)
            clip_gradients(model.parameters(), group, 1.0)
        hybrid = HybridSharded(model, mesh.shards, mesh.nodes, layers=model.blocks)
        types, _, texts = typed(mesh, lambda: model, nodes=True, shards=True)
        with types:
            model(texts, texts).backward()
            before = types.short(model.norm.weight.grad)
            hybrid.average_gradients()
            types.check_gradients(model)
        return before, types.short(model.norm.weight.grad)

    assert Cluster(4).run(program) == [("Pmean|- flat|-", "R|- flat|-")] * 4


def test_norms():
    """Of a model that is cut, and of one that says that all of it is cut, where norms are whole."""

    def program(group, all_cut):
        mesh = Mesh(group, tp=2)
        types, model, texts = typed(mesh, lambda: GPT(SMALL, mesh.tp), "tp")
        with types:
            model(texts, texts).backward()
            everything = list(model.parameters())
            return types.short(gradient_norm(*((everything, mesh.tp, everything) if all_cut else (model, mesh.tp))))

    assert Cluster(2).run(program, False) == ["R|-"] * 2
    assert "would count once on each device" in refused(program, True, devices=2)


def test_gradients_are_scaled_by_one_factor():
    def program(group):
        with Typed(tp=group) as types:
            x = types.give(torch.ones(2, 2, requires_grad=True), tp=Shard(0))
            loss = x.square().sum()
            loss.backward()
            torch.nn.utils.clip_grads_with_norm_([x], 1.0, types.give(torch.ones(()), tp=Partial("max")))

    assert "before the sum over the devices" in refused(program, devices=2)

    def foreach(group, kind):
        with Typed(tp=group) as types:
            x, factor = types.give(torch.ones(2, 2), tp=Shard(0)), types.give(torch.ones(()), tp=kind)
            torch._foreach_mul_([x], factor)

    Cluster(2).run(foreach, Replicate())
    assert "by a factor that is Partial" in refused(foreach, Partial(), devices=2)


def test_broadcast_of_what_is_cut():
    def program(group):
        types, model, _ = typed(Mesh(group, tp=2), lambda: GPT(SMALL, group), "tp")
        with types:
            broadcast_parameters(model, group)

    assert "all devices would get the piece of one" in refused(program, devices=2)


STAGES = {0: ("R|R", None), 1: ("S2|S2", "R|-")}  # what a stage makes, and the gradient of what it was given


def test_stages_one_by_one():
    """A stage of a pipeline hands over what is whole over tp, and gets a whole gradient for it."""

    def program(group):
        mesh = Mesh(group, pp=2, tp=2)
        number, model = mesh.pp.rank, GPT(SMALL, mesh.tp)
        model.blocks.append(model.blocks[0])
        stages = cut_gpt(model, gpipe(2, 1), number)
        x = TEXTS.clone() if number == 0 else torch.randn(4, 8, 16).requires_grad_()
        with Typed(tp=mesh.tp) as types:
            types.parameters(model, "tp")
            y = stages[number](types.give(x))
            y.backward(types.give(torch.ones_like(y)))
            types.check_gradients(model)
            return number, (types.short(y), types.short(x.grad) if number else None)

    for number, found in Cluster(4).run(program):
        assert found == STAGES[number]


def pipeline(group):
    model = GPT(GPTConfig(2, 16, 4, 50, 8), group.split(2))
    schedule = gpipe(2, 1)
    stages = cut_gpt(model, schedule, group.rank)
    with Typed(pp=group):
        run_pipeline(group, schedule, stages, [TEXTS], lambda y, k: y.mean())


def message(group):
    with Typed(pp=group) as types:
        x = types.give(torch.ones(2))
        group.send(x, 1 - group.rank)
        group.recv(1 - group.rank)


@pytest.mark.parametrize("program", [pipeline, message])
def test_messages_are_refused(program):
    assert "types follow one program that all devices of a group run" in refused(program, devices=2)


def experts(group, expert_parallel, tensor_parallel, scaled=True, summed=True, **options):
    kind, layer = options.pop("kind", MixtureOfExperts), options.pop("layer", MixtureOfExperts.Experts)
    grid = ExpertGrid.over(group, expert_parallel, tensor_parallel)
    between = Mesh(grid.experts, between=2, within=grid.experts.size // 2) if kind is NodeFirstExperts else None
    torch.manual_seed(0)
    Experts = type("ThisKind", (kind,), {"Experts": layer})
    rule = RoutingRule(4, 2, nodes=2 if between else 1, node_limit=options.pop("node_limit", None))
    model = Experts(16, 8, rule, grid, **options)
    axes = {"replicas": grid.replicas, "tensor": grid.tensor}
    axes |= {"between": between.between, "within": between.within} if between else {"experts": grid.experts}
    cut = [name for name in axes if name != "tensor"]
    x = shard_batch(torch.randn(16, 16), grid.batch).clone().requires_grad_()
    with Typed(**axes) as types:
        types.parameters(model, "tensor", summed_later=tuple(cut))
        types.give(x, **dict.fromkeys(cut, Shard(0)))
        y = model(x)
        loss = y.square().mean()
        loss = loss / grid.batch.size if scaled else loss
        loss.backward()
        if summed:
            sum_gradients(model, grid)
        types.check_gradients(model)
        up = model.experts.up
        return types.short(y), types.short(up), types.short(up.grad), types.short(model.router.weight.grad)


FOUR = ("S0|S0", "S0|S0", "S0|-", "R|-")
KINDS = {
    "over all": ((4, 1), {}, FOUR),
    "over two, twice": ((2, 1), {}, ("S0|S0 S0|S0", "R|P S0|S0", "R|- S0|-", "R|- R|-")),
    "each cut, and shared": ((2, 2), {"shared": 1}, ("R|R S0|S0", "S1|S1 S0|S0", "S1|- S0|-", "R|- R|-")),
    "gated, dropped": ((4, 1), {"gated": True, "capacity_factor": 1.0, "renormalize": True}, FOUR),
    "overlapped": ((4, 1), {"kind": OverlappedExperts, "shared": 1}, FOUR),
    "grouped": ((4, 1), {"layer": GroupedExperts}, FOUR),
    "nodes first": (
        (4, 1),
        {"kind": NodeFirstExperts, "node_limit": 1},
        ("S0|S0 S0|S0", "S0|S0 S0|S0", "S0|- S0|-", "R|- R|-"),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_experts(name):
    sizes, options, expected = KINDS[name]
    assert set(Cluster(4).run(lambda group: experts(group, *sizes, **options))) == {expected}


def test_experts_in_a_model():
    def program(group, times=1):
        config = ExpertGPTConfig(1, 16, 4, 50, 8, experts=4, k=2, balance=0.1, z=0.1, expert_choice=group.size == 2)
        grid = ExpertGrid.over(group, 2)
        types, model, texts = typed(grid, lambda: ExpertGPT(config, grid), "tensor", replicas=True, experts=True)
        with types:
            ((model(texts, texts) + model.extra_loss()) / group.size).backward()
            for _ in range(times):
                sum_gradients(model, grid)
            types.check_gradients(model)
            return types.short(model.norm.weight.grad)

    assert "is whole already, and its sum over the devices would be" in refused(program, 2)
    assert set(Cluster(4).run(program)) == {"R|- R|-"}
    assert set(Cluster(2).run(program)) == {"R|-"}


def test_gradients_of_experts_are_sums():
    assert "so many times too large" in refused(experts, 2, 1, False)
    assert "Partial over replicas: a step with it" in refused(experts, 2, 1, True, False)


def wrong_experts(group, what):
    grid = ExpertGrid.over(group)
    layer = MixtureOfExperts(16, 8, RoutingRule(4, 2), grid)
    with Typed(ep=group) as types:
        types.parameters(layer, summed_later=("ep",))
        x = types.give(torch.randn(8, 16), **({} if what == "whole tokens" else {"ep": Shard(0)}))
        if what == "not sent":
            torch.nn.functional.linear(x, each_expert(layer.experts.up)[0])
        layer(x)


@pytest.mark.parametrize(
    ("what", "words"), [("whole tokens", "the tokens are the same on all"), ("not sent", "by dispatch")]
)
def test_rows_are_those_that_were_sent(what, words):
    assert words in refused(wrong_experts, what)
