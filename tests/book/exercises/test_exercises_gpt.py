"""The exercises on a GPT: stubs wait, solutions pass, typical mistakes are rejected by name."""

import exercise_checks as checks
import pytest
import torch

from book.exercises import gpt as tasks
from book.exercises.check.inputs import Ties
from book.exercises.check.trials import trials
from book.exercises.gpt import InReplica, OfEach, OfReplicas
from lib import FusedHeads, shard
from lib.devices import Cluster, Mesh
from lib.parallel.gpt.generate import largest

EVERY = [tasks.load_attention, tasks.greedy, tasks.synchronizations, tasks.grid_gradient]
SENTENCES = {
    "grid_gradient": "is right on 2, 4 and 6 devices",
    "synchronizations": "is right: the engine counted the same, in 4 models of other sizes",
}


# ---- load_attention ----


def load_by_columns(group, attn, attn_bias, proj, proj_bias):
    """Conv1D's own layout is cut along the last dim, and turned at the end."""
    qkv = shard(attn.unflatten(1, (3, -1, 4)), group, 2).permute(1, 2, 3, 0)
    out = shard(proj.unflatten(0, (-1, 4)), group, 0).permute(2, 0, 1)
    return qkv, shard(attn_bias.unflatten(0, (3, -1, 4)), group, 1), out, proj_bias.clone()


def load_with(group, weights, **others):
    right = dict(zip(tasks.load_attention.returns, tasks.load_attention.solution(group, *weights), strict=True))
    return tuple((right | others).values())


def load_reshaped(group, *weights):
    return load_with(group, weights, qkv=shard(weights[0].reshape(3, -1, 4, len(weights[0])), group, 1))


def load_not_turned(group, *weights):
    return load_with(group, weights, qkv=shard(weights[0].unflatten(1, (3, -1, 4)), group, 2))


def load_equal_pieces(group, *weights):
    return load_with(group, weights, qkv=shard(weights[0].T, group, 0).unflatten(0, (3, -1, 4)))


def load_head_by_head(group, *weights):
    return load_with(group, weights, qkv=shard(weights[0].T.unflatten(0, (-1, 3, 4)), group, 0).transpose(0, 1))


def load_whole(group, *weights):
    return load_with(group, weights, qkv=weights[0].T.unflatten(0, (3, -1, 4)))


def load_dealt(group, *weights):
    return load_with(group, weights, qkv=weights[0].T.unflatten(0, (3, -1, 4))[:, group.rank :: group.size])


def load_out_reshaped(group, *weights):
    return load_with(group, weights, out=shard(weights[2].reshape(weights[2].shape[1], -1, 4), group, 1))


def load_out_as_it_is(group, *weights):
    return load_with(group, weights, out=shard(weights[2].unflatten(0, (-1, 4)), group, 0))


def load_out_by_rows(group, *weights):
    return load_with(group, weights, out=shard(weights[2].T.unflatten(1, (-1, 4)), group, 0))


def load_out_bias_cut(group, *weights):
    return load_with(group, weights, out_bias=shard(weights[3], group, 0))


def load_out_bias_shared(group, *weights):
    return load_with(group, weights, out_bias=weights[3] / group.size)


def load_forgot_the_bias(group, *weights):
    return load_with(group, weights)[:3]


def load_sent_in_vain(group, *weights):
    pieces = load_with(group, weights)
    return *pieces[:3], group.all_reduce(pieces[3]) / group.size


def load_whatever(group, attn, attn_bias, *others):
    return tasks.load_attention.solution(group, attn[:, : len(attn_bias)], attn_bias, *others)


# ---- greedy ----


def greedy_by_dim(group, logits, own):
    """The offers of each device side by side, and the winner by the largest pair."""
    place = logits.argmax(1)
    offer = torch.stack([logits.gather(1, place[:, None])[:, 0], own[place].double()], 1).unsqueeze(2)
    offers = group.all_gather(offer, 2)  # (texts, 2, P)
    at_best = offers[:, 0] == offers[:, 0].amax(1, keepdim=True)
    return torch.where(at_best, offers[:, 1], torch.inf).amin(1).long()


def greedy_gathers_logits(group, logits, own):
    return group.all_gather(logits, 1).argmax(1)


def greedy_alone(group, logits, own):
    return own[logits.argmax(1)]


def greedy_with(group, logits, token, last=False):
    offers = group.all_gather(torch.stack([logits.amax(1), token.double()]), 0)
    best = offers[::2].flip(0) if last else offers[::2]
    winner = best.argmax(0, keepdim=True)
    winner = group.size - 1 - winner if last else winner
    return offers[1::2].gather(0, winner)[0].long()


def greedy_local_place(group, logits, own):
    return greedy_with(group, logits, logits.argmax(1))


def greedy_returns_the_rank(group, logits, own):
    offers = group.all_gather(torch.stack([logits.amax(1), own[logits.argmax(1)].double()]), 0)
    return offers[::2].argmax(0)


def greedy_rank_times_length(group, logits, own):
    return greedy_with(group, logits, logits.argmax(1) + group.rank * len(own))


def greedy_last_of_equals(group, logits, own):
    return greedy_with(group, logits, own[logits.shape[1] - 1 - logits.flip(1).argmax(1)], last=True)


def greedy_as_floats(group, logits, own):
    return greedy_with(group, logits, own[logits.argmax(1)]).double()


def greedy_in_two_calls(group, logits, own):
    best, place = logits.max(1)
    best, token = group.all_gather(best[None], 0), group.all_gather(own[place][None], 0)
    return token.gather(0, best.argmax(0, keepdim=True))[0]


def greedy_by_all_reduces(group, logits, own):
    best = logits.amax(1)
    most = group.all_reduce(best, "max")
    mine = torch.where(best == most, own[logits.argmax(1)], 10**9)
    return group.all_reduce(mine, "min")


def greedy_by_value(group, logits, own):
    """The largest offered token, whoever has the larger logit."""
    offers = group.all_gather(torch.stack([logits.amax(1), own[logits.argmax(1)].double()]), 0)
    return offers[1::2].amax(0).long()


# ---- grid_gradient ----


def grid(group, x, w, y):
    mesh = Mesh(group, dp=2, tp=group.size // 2)
    mine, columns = shard(x, mesh.dp, 0), shard(w, mesh.tp, 1)
    return mesh, mine, mine.T @ (mine @ columns - shard(shard(y, mesh.dp, 0), mesh.tp, 1))


def grid_turned(group, x, w, y):
    """The replicas' devices are neighbors; the numbers and the bytes are the same."""
    mesh = Mesh(group, tp=group.size // 2, dp=2)
    mine, columns = shard(x, mesh.dp, 0), shard(w, mesh.tp, 1)
    g = mine.T @ (mine @ columns - shard(shard(y, mesh.tp, 1), mesh.dp, 0))
    return mesh.tp.all_gather(mesh.dp.all_reduce(g / len(x)), 1)


def grid_everyone(group, x, w, y):
    mesh, _, g = grid(group, x, w, y)
    return mesh.tp.all_gather(group.all_reduce(g) / len(x), 1)


def grid_never_met(group, x, w, y):
    mesh, mine, g = grid(group, x, w, y)
    return mesh.tp.all_gather(g / len(mine), 1)


def grid_means(group, x, w, y):
    mesh, mine, g = grid(group, x, w, y)
    return mesh.tp.all_gather(mesh.dp.all_reduce(g / len(mine)) / 2, 1)


def grid_sum_of_means(group, x, w, y):
    mesh, mine, g = grid(group, x, w, y)
    return mesh.tp.all_gather(mesh.dp.all_reduce(g / len(mine)), 1)


def grid_never_divided(group, x, w, y):
    mesh, _, g = grid(group, x, w, y)
    return mesh.tp.all_gather(mesh.dp.all_reduce(g), 1)


def grid_gathers_first(group, x, w, y):
    mesh, _, g = grid(group, x, w, y)
    return mesh.dp.all_reduce(mesh.tp.all_gather(g, 1)) / len(x)


def grid_rows(group, x, w, y):
    mesh, _, g = grid(group, x, w, y)
    return mesh.tp.all_gather(mesh.dp.all_reduce(g) / len(x), 0)


def grid_own_columns(group, x, w, y):
    mesh, _, g = grid(group, x, w, y)
    return mesh.dp.all_reduce(g) / len(x)


def grid_data_parallel(group, x, w, y):
    mine = shard(x, group, 0)
    return group.all_reduce(mine.T @ (mine @ w - shard(y, group, 0))) / len(x)


def grid_axes_mixed_up(group, x, w, y):
    mesh, _, g = grid(group, x, w, y)
    return mesh.dp.all_gather(mesh.tp.all_reduce(g) / len(x), 1)


def grid_alone(group, x, w, y):
    return x.T @ (x @ w - y) / len(x)


def grid_by_the_cube(group, x, w, y):
    mesh = Mesh(group, dp=2, tp=2)
    return mesh.tp.all_gather(w, 1)


def grid_whatever(group, x, w, y):
    return tasks.grid_gradient.solution(group, x, w, y[:, : w.shape[1]])


# ---- synchronizations ----


def formula(step, text):
    """The reader's function with these two counts."""

    def synchronizations(layers, prompt, count):
        return step(layers), text(layers, prompt, count)

    return synchronizations


def right_step(layers):
    return 4 * layers + 5


def right_text(layers, prompt, count):
    return count * (2 * layers + 2)


# ---- more styles ----


def load_head_by_head_right(group, attn, attn_bias, proj, proj_bias):
    heads = len(attn_bias) // 12
    own = torch.arange(heads).tensor_split(group.size)[group.rank].tolist()
    third = 4 * heads

    def rows(of):
        return torch.stack(
            [torch.stack([of[..., b * third + 4 * h : b * third + 4 * h + 4].T for h in own]) for b in range(3)]
        )

    qkv = rows(attn)
    bias = torch.stack(
        [torch.stack([attn_bias[b * third + 4 * h : b * third + 4 * h + 4] for h in own]) for b in range(3)]
    )
    return qkv, bias, torch.stack([proj[4 * h : 4 * h + 4].T for h in own], 1), proj_bias


def load_einsum(group, attn, attn_bias, proj, proj_bias):
    qkv = torch.einsum("ibhs->bhsi", attn.unflatten(1, (3, -1, 4)))
    out = torch.einsum("hso->ohs", proj.unflatten(0, (-1, 4)))
    pieces = [torch.tensor_split(y, group.size, 1)[group.rank] for y in (qkv, attn_bias.unflatten(0, (3, -1, 4)), out)]
    return [*pieces, proj_bias]


def load_cut_through_heads(group, attn, attn_bias, proj, proj_bias):
    rows = torch.cat([block.tensor_split(group.size)[group.rank] for block in attn.T.split(attn.shape[1] // 3)])
    return load_with(group, (attn, attn_bias, proj, proj_bias), qkv=rows.unflatten(0, (3, -1, 4)))


def greedy_in_a_loop(group, logits, own):
    best, place = logits.max(1)
    offers = group.all_gather(torch.stack([best, own[place].to(best.dtype)], 1)[None], 0)  # (P, texts, 2)
    tokens = []
    for text in range(logits.shape[0]):
        value, token = max(((float(v), -float(t)) for v, t in offers[:, text]))
        tokens.append(int(-token))
    return torch.tensor(tokens)


def greedy_flat(group, logits, own):
    mine = torch.cat([logits.amax(1), own[logits.argmax(1)].double()])
    best, token = group.all_gather(mine).view(group.size, 2, -1).unbind(1)
    return token[best.argmax(0), torch.arange(len(logits))].long()


def grid_einsum(group, x, w, y):
    mesh = Mesh(group, dp=2, tp=group.size // 2)
    rows = torch.arange(len(x)).tensor_split(2)[mesh.dp.rank]
    columns = torch.arange(w.shape[1]).tensor_split(mesh.tp.size)[mesh.tp.rank]
    errors = torch.einsum("bi,io->bo", x[rows], w[:, columns]) - y[rows][:, columns]
    g = mesh.dp.all_reduce(torch.einsum("bi,bo->io", x[rows], errors))
    return mesh.tp.all_gather(g.T).T / len(x)


def grid_divides_first(group, x, w, y):
    mesh = Mesh(group, dp=2, tp=group.size // 2)
    part = [shard(z, mesh.dp, 0) for z in (x, y)]
    error = part[0] @ shard(w, mesh.tp, 1) - shard(part[1], mesh.tp, 1)
    return mesh.tp.all_gather(mesh.dp.all_reduce((part[0] / len(x)).T @ error), dim=-1)


def count_step_by_step(layers, prompt, count):
    step = 1 + 3 + 1
    for _ in range(layers):
        step += 2 + 2
    text = 0
    for _ in range(count):
        text += 1 + 2 * layers + 1
    return step, text


def count_as_tensors(layers, prompt, count):
    return torch.tensor(4 * layers + 5), torch.tensor(2 * count * (layers + 1))


def load_not_turned_inside(group, *weights):
    qkv, *others = tasks.load_attention.solution(group, *weights)
    return qkv.transpose(2, 3), *others


def greedy_by_where(group, logits, own):
    best, place = logits.max(1)
    offers = group.all_gather(torch.stack([best, own[place].double()])[None], 0)  # (P, 2, texts)
    return torch.where(offers[:, 0] == offers[:, 0].amax(0), offers[:, 1], torch.inf).amin(0).long()


def greedy_least(group, logits, own):
    worst, place = logits.min(1)
    offers = group.all_gather(torch.stack([worst, own[place].double()]), 0)
    return offers[1::2].gather(0, offers[::2].argmin(0, keepdim=True))[0].long()


def grid_not_gathered(group, x, w, y):
    mesh = Mesh(group, dp=2, tp=group.size // 2)
    mine, wanted = shard(x, mesh.dp, 0), shard(shard(y, mesh.dp, 0), mesh.tp, 1)
    return mesh.dp.all_reduce(mine.T @ (mine @ shard(w, mesh.tp, 1) - wanted)) / len(x)


RIGHT = [
    (tasks.greedy, greedy_by_where),
    (tasks.load_attention, load_head_by_head_right),
    (tasks.load_attention, load_einsum),
    (tasks.greedy, greedy_in_a_loop),
    (tasks.greedy, greedy_flat),
    (tasks.grid_gradient, grid_einsum),
    (tasks.grid_gradient, grid_divides_first),
    (tasks.synchronizations, count_step_by_step),
    (tasks.synchronizations, count_as_tensors),
    (tasks.load_attention, load_by_columns),
    (tasks.greedy, greedy_by_dim),
    (tasks.grid_gradient, grid_turned),
    (tasks.synchronizations, lambda layers, prompt, count: [4 * layers + 5, 2 * count * (layers + 1)]),
]
REMARKED = [
    (tasks.load_attention, load_whatever, "accepts what cannot be right: attn has a column too many"),
    (tasks.grid_gradient, grid_whatever, "accepts what cannot be right: y has one column more than w"),
]

WRONG = [
    (tasks.load_attention, load_not_turned_inside, "two dims or more are exchanged"),
    (tasks.greedy, greedy_least, "the least likely token won"),
    (tasks.grid_gradient, grid_not_gathered, "The others are on the other devices of mesh.tp"),
    (tasks.load_attention, load_cut_through_heads, "a head was cut through: its 4 rows belong together"),
    (tasks.synchronizations, formula(right_step, lambda n, p, c: (2 * n + 1) * (p + c - 1) + c), "not token by token"),
    (tasks.synchronizations, formula(right_step, lambda n, p, c: (2 * n + 2) * (p + c - 1)), "not token by token"),
    (tasks.synchronizations, formula(right_step, lambda n, p, c: (2 * n + 2) * (c + 1)), "there are count passes"),
    (tasks.load_attention, load_reshaped, "qkv on rank 0, index [0, 0, 0, 1]"),
    (tasks.load_attention, load_reshaped, "attn was reshaped. A Conv1D holds (in, out)"),
    (tasks.load_attention, load_not_turned, "qkv on rank 0: expected shape"),
    (tasks.load_attention, load_equal_pieces, "attn was cut in P equal pieces"),
    (tasks.load_attention, load_head_by_head, "attn is read as [query, key, value of head 0"),
    (tasks.load_attention, load_whole, "this is the whole; each device is to return only its own piece along dim 1"),
    (tasks.load_attention, load_dealt, "the heads were dealt out one by one"),
    (tasks.load_attention, load_out_reshaped, "proj was reshaped. A Conv1D holds (in, out)"),
    (tasks.load_attention, load_out_as_it_is, "out on rank 0: expected shape"),
    (tasks.load_attention, load_out_by_rows, "this is a piece along dim 0; asked for is one along dim 1"),
    (tasks.load_attention, load_out_bias_cut, "out_bias was cut. It is added after the sum"),
    (tasks.load_attention, load_out_bias_shared, "out_bias on rank 0"),
    (tasks.load_attention, load_out_bias_shared, "out_bias was shared out. It is added once"),
    (tasks.load_attention, load_forgot_the_bias, "expected qkv and qkv_bias and out and out_bias, given 3 values"),
    (tasks.load_attention, load_sent_in_vain, "sends too many bytes"),
    (tasks.greedy, greedy_gathers_logits, "sends too many bytes"),
    (tasks.greedy, greedy_alone, "no device sent anything"),
    (tasks.greedy, greedy_local_place, "the token: that is own[place]"),
    (tasks.greedy, greedy_returns_the_rank, "the rank of the winner was returned"),
    (tasks.greedy, greedy_rank_times_length, "rank * len(own) only where all have equally many"),
    (tasks.greedy, greedy_last_of_equals, "the first counts; this is the last"),
    (tasks.greedy, greedy_as_floats, "expected torch.int64, given torch.float64"),
    (tasks.greedy, greedy_in_two_calls, "with too many calls"),
    (tasks.greedy, greedy_by_all_reduces, "with all_reduce."),
    (tasks.greedy, greedy_by_value, "the largest token won"),
    (tasks.grid_gradient, grid_everyone, "only devices with the same columns share a mean, mesh.dp"),
    (tasks.grid_gradient, grid_never_met, "the replicas did not talk"),
    (tasks.grid_gradient, grid_means, "a mean of means"),
    (tasks.grid_gradient, grid_sum_of_means, "exactly 2 times too large"),
    (tasks.grid_gradient, grid_never_divided, "the gradient of the sum, not of the mean"),
    (tasks.grid_gradient, grid_gathers_first, "sends too many bytes"),
    (tasks.grid_gradient, grid_rows, "the right numbers in the wrong places"),
    (tasks.grid_gradient, grid_own_columns, "rank 0: expected shape"),
    (tasks.grid_gradient, grid_data_parallel, "sends too many bytes"),
    (tasks.grid_gradient, grid_axes_mixed_up, "is wrong on 2 devices"),
    (tasks.grid_gradient, grid_alone, "no device sent anything"),
    (tasks.grid_gradient, grid_by_the_cube, "Mesh on rank 0: dp=2 x tp=2 needs 4 devices, but the group has 2"),
    (tasks.synchronizations, formula(lambda n: 2 * n, right_text), "a forward pass without embedding and loss"),
    (tasks.synchronizations, formula(lambda n: 2 * n + 4, right_text), "this is the forward pass; the backward has"),
    (tasks.synchronizations, formula(lambda n: 4 * n, right_text), "embedding, loss and head have some, too"),
    (tasks.synchronizations, formula(lambda n: 4 * n + 2, right_text), "three small all-reduces of the loss"),
    (tasks.synchronizations, formula(lambda n: 4 * n + 4, right_text), "the embedding's forward, or the head's"),
    (tasks.synchronizations, formula(lambda n: 4 * n + 8, right_text), "and none in the backward"),
    (tasks.synchronizations, formula(lambda n: 17, right_text), "is wrong for layers=1, prompt=3, count=2"),
    (tasks.synchronizations, formula(right_step, lambda n, p, c: 2 * n + 1), "one for each new token"),
    (tasks.synchronizations, formula(right_step, lambda n, p, c: 2 * n + 2), "the others need as many each"),
    (tasks.synchronizations, formula(right_step, lambda n, p, c: n * c), "hand-overs from layer to layer"),
    (tasks.synchronizations, formula(right_step, lambda n, p, c: 2 * n * c), "choosing the token another"),
    (tasks.synchronizations, formula(right_step, lambda n, p, c: (2 * n + 1) * c), "choosing the token takes one more"),
    (tasks.synchronizations, formula(right_step, lambda n, p, c: (2 * n + 5) * c), "nobody computes a loss"),
    (tasks.synchronizations, formula(right_step, lambda n, p, c: (2 * n + 2) * (p + c)), "in the pass that gives"),
    (tasks.synchronizations, formula(right_step, lambda n, p, c: 24), "a text: the engine counted 32, given 24"),
    (tasks.synchronizations, lambda layers, prompt, count: 24, "expected a training step and a text, given a value"),
    (tasks.synchronizations, lambda layers, prompt, count: (1, 2, 3), "a training step and a text, given 3 values"),
    (tasks.synchronizations, lambda layers, prompt, count: 1 / 0, "ZeroDivisionError: division by zero"),
    (tasks.synchronizations, lambda layers: (1, 2), "TypeError"),
    (tasks.synchronizations, 24, "check needs the function synchronizations(layers, prompt, count) itself"),
]

test_the_stub_waits = checks.stubs_wait(EVERY)
test_a_right_answer_passes = checks.right_answers_pass([], RIGHT, SENTENCES)
test_a_right_answer_is_told_what_nobody_asked_for = checks.right_but(REMARKED)
test_a_wrong_answer_is_rejected_by_name = checks.wrong_answers_are_rejected(WRONG)
test_the_solution_can_be_copied_from_the_page = checks.solutions_can_be_copied(
    EVERY,
    SENTENCES,
    torch=torch,
    shard=shard,
    Mesh=Mesh,
)
test_the_page_shows_the_task_and_three_hints = checks.pages_show_task_and_hints(EVERY)


@pytest.mark.parametrize(
    "unfinished",
    [
        lambda layers, prompt, count: (4 * layers + 5, ...),
        lambda layers, prompt, count: ...,
        lambda layers, prompt, count: (4 * layers + ..., 1),
        lambda *numbers: (_ for _ in ()).throw(NotImplementedError),
    ],
)
def test_a_formula_that_is_not_finished_waits(unfinished):
    verdict = tasks.synchronizations.check(unfinished)
    assert verdict.state == "waiting"
    with pytest.raises(AssertionError, match="waiting for your code"):
        tasks.synchronizations.check(unfinished, required=True)


def test_a_formula_that_is_required_and_wrong_raises():
    with pytest.raises(AssertionError, match="synchronizations is wrong for layers=3, prompt=5, count=4"):
        tasks.synchronizations.check(lambda layers, prompt, count: (0, 0), required=True)


def test_the_pieces_loaded_are_those_of_the_library():
    """Flattened, what the exercise asks for is what `FusedHeads` cuts, of the transposed weight."""
    weights = [torch.randn(shape, dtype=torch.float64) for shape in ((5, 3 * 6 * 4), (72,), (24, 5), (5,))]
    for rank, (qkv, bias, out, _) in enumerate(Cluster(3).run(tasks.load_attention.solution, *weights)):
        heads = FusedHeads(6, 6)
        assert torch.equal(qkv.flatten(0, 2), heads.piece(weights[0].T, 3, rank))
        assert torch.equal(bias.flatten(), heads.piece(weights[1], 3, rank))
        assert torch.equal(out.flatten(1), weights[2].T[:, 8 * rank : 8 * rank + 8])


def test_the_greedy_token_is_that_of_the_library():
    logits = torch.randn(4, 12, dtype=torch.float64)
    logits[:, 7] = logits[:, 2] = 9

    def program(group):
        mine, own = logits.chunk(3, 1)[group.rank], torch.arange(12).chunk(3)[group.rank]
        return tasks.greedy.solution(group, mine, own), largest(mine, group)

    assert all(a.tolist() == b.tolist() == [2] * 4 for a, b in Cluster(3).run(program))


def test_in_most_rows_the_largest_stands_twice_and_anywhere():
    twice, first = 0, []
    for trial in trials({"logits": Ties("texts 7*vocabulary")}, (1, 2, 3, 4), seed=2):
        logits = trial.inputs["logits"]
        hits = logits == logits.amax(1, keepdim=True)
        twice += int((hits.sum(1) == 2).sum())
        first += (hits.int().argmax(1) / logits.shape[1]).tolist()
        assert hits.sum(1).max() <= 2
    assert twice > 0.8 * len(first)
    assert min(first) < 0.2
    assert max(first) > 0.5


@pytest.mark.parametrize("parts", [2, 4, 6])
def test_what_a_call_in_a_grid_is_charged_is_what_the_engine_charges(parts):
    out = 7

    def program(group):
        mesh = Mesh(group, dp=2, tp=group.size // 2)
        mesh.tp.all_gather(mesh.dp.all_reduce(shard(torch.ones(5, out, dtype=torch.float64), mesh.tp, 1)), 1)

    cluster, lengths = Cluster(parts), {"in": 5, "out": out}
    cluster.run(program)
    talks = tasks.grid_gradient.forward
    assert [type(talk) for talk in talks] == [OfReplicas, InReplica]
    for talk in talks:
        sent = [cluster.meters.count(rank, talk.verb.name).bytes_sent for rank in range(parts)]
        assert [traffic.bytes_sent for traffic in talk.traffic(lengths, parts)] == sent


def test_a_tensor_may_be_longer_the_more_devices_there_are():
    (talk,) = tasks.greedy.forward
    assert isinstance(talk, OfEach)
    assert [traffic.bytes_sent for traffic in talk.traffic({"texts": 3}, 4)] == [3 * 2 * 3 * 8] * 4
