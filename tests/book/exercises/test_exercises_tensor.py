"""The exercises on tensor parallelism: the stub waits, solutions pass, each typical mistake is rejected by its name."""

import exercise_checks as checks
import torch
from torch.nn import functional as F

from book.exercises import tensor as tasks
from book.exercises.check.inputs import Input, Logits, Tokens, Vocabulary
from book.exercises.check.trials import trials
from lib import copy_to, gather_from, reduce_from

EVERY = [tasks.mlp, tasks.mlp_backward, tasks.embed, tasks.cross_entropy]


# ---- mlp ----


def mlp_bias_on_rank_0(group, x, a, a_bias, b, b_bias):
    y = F.gelu(copy_to(x, group) @ a + a_bias) @ b
    return reduce_from(y + copy_to(b_bias, group) * (group.rank == 0), group)


def mlp_bias_before_the_sum(group, x, a, a_bias, b, b_bias):
    return reduce_from(F.gelu(copy_to(x, group) @ a + a_bias) @ b + b_bias, group)


def mlp_bias_shared_out(group, x, a, a_bias, b, b_bias):
    return reduce_from(F.gelu(copy_to(x, group) @ a + a_bias) @ b + b_bias / group.size, group)


def mlp_bias_copied(group, x, a, a_bias, b, b_bias):
    return reduce_from(F.gelu(copy_to(x, group) @ a + a_bias) @ b, group) + copy_to(b_bias, group)


def mlp_no_entrance(group, x, a, a_bias, b, b_bias):
    return reduce_from(F.gelu(x @ a + a_bias) @ b, group) + b_bias


def mlp_no_exit(group, x, a, a_bias, b, b_bias):
    return F.gelu(copy_to(x, group) @ a + a_bias) @ b + b_bias / group.size


def mlp_bare_verb(group, x, a, a_bias, b, b_bias):
    return group.all_reduce(F.gelu(copy_to(x, group) @ a + a_bias) @ b) + b_bias


def mlp_no_a_bias(group, x, a, a_bias, b, b_bias):
    return reduce_from(F.gelu(copy_to(x, group) @ a) @ b, group) + b_bias


def mlp_no_b_bias(group, x, a, a_bias, b, b_bias):
    return reduce_from(F.gelu(copy_to(x, group) @ a + a_bias) @ b, group)


def mlp_no_gelu(group, x, a, a_bias, b, b_bias):
    return reduce_from((copy_to(x, group) @ a + a_bias) @ b, group) + b_bias


def mlp_gathered_weights(group, x, a, a_bias, b, b_bias):
    a, a_bias, b = gather_from(a, group, 1), gather_from(a_bias, group, 0), gather_from(b, group, 0)
    return F.gelu(x @ a + a_bias) @ b + b_bias


def mlp_accepts_anything(group, x, a, a_bias, b, b_bias):
    b = b[: a.shape[1]]
    return reduce_from(F.gelu(copy_to(x, group) @ a + a_bias) @ b, group) + b_bias


# ---- mlp_backward ----


def backward_by_autograd(group, x, a, b, dz):
    with torch.enable_grad():
        x, a, b = (t.clone().requires_grad_() for t in (x, a, b))
        reduce_from_without_talk = torch.relu(copy_to(x, group) @ a) @ b
        reduce_from_without_talk.backward(dz)
    return x.grad, a.grad, b.grad


def backward_not_summed(group, x, a, b, dz):
    h = x @ a
    dh = (dz @ b.T) * (h > 0)
    return dh @ a.T, x.T @ dh, torch.relu(h).T @ dz


def backward_dz_summed(group, x, a, b, dz):
    h, dz = x @ a, group.all_reduce(dz)
    dh = (dz @ b.T) * (h > 0)
    return group.all_reduce(dh @ a.T), x.T @ dh, torch.relu(h).T @ dz


def backward_no_relu(group, x, a, b, dz):
    dh = dz @ b.T
    return group.all_reduce(dh @ a.T), x.T @ dh, torch.relu(x @ a).T @ dz


def backward_no_relu_in_da(group, x, a, b, dz):
    h = x @ a
    dy = dz @ b.T
    return group.all_reduce((dy * (h > 0)) @ a.T), x.T @ dy, torch.relu(h).T @ dz


def backward_no_relu_in_db(group, x, a, b, dz):
    h = x @ a
    dh = (dz @ b.T) * (h > 0)
    return group.all_reduce(dh @ a.T), x.T @ dh, h.T @ dz


def backward_everything_summed(group, x, a, b, dz):
    h = x @ a
    dh = (dz @ b.T) * (h > 0)
    return group.all_reduce(dh @ a.T), x.T @ dh, group.all_reduce(torch.relu(h).T @ dz)


def backward_whole_weights(group, x, a, b, dz):
    dx, da, db = tasks.relu_mlp_backward(x, group.all_gather(a, 1), group.all_gather(b, 0), dz)
    return dx, da.tensor_split(group.size, 1)[group.rank], db.tensor_split(group.size, 0)[group.rank]


def backward_accepts_anything(group, x, a, b, dz):
    return tasks.mlp_backward.solution(group, x, a, b, dz[: len(x)])


# ---- embed ----


def check(tokens, own, group):
    if group.rank == group.size - 1:
        assert tokens.max() <= own[-1]


def embed_one_device_at_a_time(group, tokens, table, own):
    check(tokens, own, group)
    rows = table.new_zeros(len(tokens), table.shape[1])
    here = torch.isin(tokens, own)
    return reduce_from(rows.index_put((here.nonzero().squeeze(1),), table[tokens[here] - own[0]]), group)


def embed_with_functional(group, tokens, table, own):
    check(tokens, own, group)
    here = (tokens >= own[0]) & (tokens <= own[-1])
    rows = F.embedding(torch.where(here, tokens - own[0], 0), table)
    return reduce_from(rows.masked_fill(~here.unsqueeze(1), 0), group)


def embed_clamped(group, tokens, table, own):
    return reduce_from(table[(tokens - own[0]).clamp(0, len(table) - 1)], group)


def embed_row_0_for_others(group, tokens, table, own):
    return reduce_from(table[torch.isin(tokens, own) * (tokens - own[0])], group)


def embed_not_summed(group, tokens, table, own):
    here = torch.isin(tokens, own)
    return table[here * (tokens - own[0])] * here.unsqueeze(1)


def embed_bare_verb(group, tokens, table, own):
    return group.all_reduce(embed_not_summed(group, tokens, table, own))


def embed_summed_twice(group, tokens, table, own):
    return reduce_from(reduce_from(embed_not_summed(group, tokens, table, own), group), group)


def embed_even_pieces_only(group, tokens, table, own):
    local = tokens - group.rank * len(table)
    here = (local >= 0) & (local < len(table))
    return reduce_from(table[local * here] * here.unsqueeze(1), group)


def embed_not_from_its_first(group, tokens, table, own):
    return reduce_from(table[tokens], group)


def embed_gathered(group, tokens, table, own):
    check(tokens, own, group)
    return gather_from(table, group, 0)[tokens]


def embed_one_hot_product(group, tokens, table, own):
    check(tokens, own, group)
    return reduce_from((tokens.unsqueeze(1) == own).to(table.dtype) @ table, group)


def embed_gradient_summed(group, tokens, table, own):
    check(tokens, own, group)
    return copy_to(reduce_from(embed_not_summed(group, tokens, table, own), group), group)


def embed_detached(group, tokens, table, own):
    return tasks.embed.solution(group, tokens, table.detach(), own)


def embed_zeros_for_the_unknown(group, tokens, table, own):
    return reduce_from(embed_not_summed(group, tokens, table, own), group)


# ---- cross_entropy ----


def loss_with_two_calls(group, logits, targets, own):
    largest = group.all_reduce(logits.amax(1), op="max")
    exps = (logits - largest.unsqueeze(1)).exp()
    hit = (targets.unsqueeze(1) == own).to(logits.dtype)
    total, wanted = group.all_reduce(torch.stack([exps.sum(1), (logits * hit).sum(1)]))
    return largest + total.log() - wanted, exps / total.unsqueeze(1) - hit


def loss_of(group, logits, targets, own, largest):
    exps = (logits - largest.unsqueeze(1)).exp()
    hit = (targets.unsqueeze(1) == own).to(logits.dtype)
    total, wanted = group.all_reduce(exps.sum(1)), group.all_reduce((logits * hit).sum(1))
    return total, wanted, exps / total.unsqueeze(1) - hit


def loss_own_maximum(group, logits, targets, own):
    largest = logits.amax(1)
    total, wanted, gradient = loss_of(group, logits, targets, own, largest)
    return largest + total.log() - wanted, gradient


def loss_no_maximum(group, logits, targets, own):
    total, wanted, gradient = loss_of(group, logits, targets, own, torch.zeros(len(targets), dtype=logits.dtype))
    return total.log() - wanted, gradient


def loss_maximum_not_added_again(group, logits, targets, own):
    total, wanted, gradient = loss_of(group, logits, targets, own, group.all_reduce(logits.amax(1), op="max"))
    return total.log() - wanted, gradient


def loss_maximum_summed(group, logits, targets, own):
    largest = group.all_reduce(logits.amax(1))
    total, wanted, gradient = loss_of(group, logits, targets, own, largest)
    return largest + total.log() - wanted, gradient


def loss_no_target(group, logits, targets, own):
    largest = group.all_reduce(logits.amax(1), op="max")
    total, _, gradient = loss_of(group, logits, targets, own, largest)
    return largest + total.log(), gradient


def loss_target_not_summed(group, logits, targets, own):
    largest = group.all_reduce(logits.amax(1), op="max")
    total, _, gradient = loss_of(group, logits, targets, own, largest)
    return largest + total.log() - (logits * (targets.unsqueeze(1) == own)).sum(1), gradient


def gradient_without_the_target(group, logits, targets, own):
    loss, gradient = loss_with_two_calls(group, logits, targets, own)
    return loss, gradient + (targets.unsqueeze(1) == own)


def gradient_gathered(group, logits, targets, own):
    loss, gradient = loss_with_two_calls(group, logits, targets, own)
    return loss, group.all_gather(gradient, 1)


def logits_gathered(group, logits, targets, own):
    loss, gradient = tasks.loss_and_gradient(group.all_gather(logits, 1), targets, own)
    return loss, gradient[:, own]


def loss_accepts_anything(group, logits, targets, own):
    return loss_with_two_calls(group, logits, targets[: len(logits)], own)


def sums_gathered(group, logits, targets, own):
    largest = group.all_gather(logits.amax(1, keepdim=True), 1).amax(1)
    exps = (logits - largest.unsqueeze(1)).exp()
    hit = (targets.unsqueeze(1) == own).to(logits.dtype)
    both = torch.stack([exps.sum(1), (logits * hit).sum(1)], 1).unsqueeze(0)
    total, wanted = group.all_gather(both, 0).sum(0).unbind(1)
    return largest + total.log() - wanted, exps / total.unsqueeze(1) - hit


# ---- more styles ----


def mlp_with_linear(group, x, a, a_bias, b, b_bias):
    inner = F.gelu(F.linear(copy_to(x, group), a.T, a_bias))
    return reduce_from(F.linear(inner, b.T), group).add(b_bias)


def mlp_einsum(group, x, a, a_bias, b, b_bias):
    inner = torch.einsum("th,hi->ti", copy_to(x, group), a) + a_bias
    return b_bias + reduce_from(torch.einsum("ti,ih->th", F.gelu(inner), b), group)


def mlp_with_helpers(group, x, a, a_bias, b, b_bias):
    def columns(y):
        return torch.addmm(a_bias, copy_to(y, group), a)

    def rows(y):
        return reduce_from(y.matmul(b), group)

    return rows(F.gelu(columns(x))) + b_bias[None]


def mlp_bias_if_rank_0(group, x, a, a_bias, b, b_bias):
    y = F.gelu(copy_to(x, group) @ a + a_bias) @ b
    if group.rank == 0:
        y = y + b_bias
    return reduce_from(y, group)


def backward_by_where(group, x, a, b, dz):
    h = x @ a
    dh = torch.where(h > 0, dz @ b.T, 0.0)
    return group.all_reduce(dh @ a.T), x.T @ dh, h.clamp(min=0).T @ dz


def backward_einsum(group, x, a, b, dz):
    h = torch.einsum("th,hi->ti", x, a)
    db = torch.einsum("ti,th->ih", h.relu(), dz)
    dh = torch.einsum("th,ih->ti", dz, b)
    dh[h <= 0] = 0
    return [group.all_reduce(torch.einsum("ti,hi->th", dh, a)), torch.einsum("th,ti->hi", x, dh), db]


def embed_token_by_token(group, tokens, table, own):
    """A device that owns none of the tokens has nothing to train: its rows are zeros that need no gradient."""
    check(tokens, own, group)
    zeros = torch.zeros(table.shape[1], dtype=table.dtype)
    rows = [table[t - own[0]] if own[0] <= t <= own[-1] else zeros for t in tokens]
    return reduce_from(torch.stack(rows), group)


def embed_in_place(group, tokens, table, own):
    check(tokens, own, group)
    y = table.new_zeros(len(tokens), table.shape[1])
    here = (tokens >= own[0]) & (tokens <= own[-1])
    y[here] = table[tokens[here] - own[0]]
    return reduce_from(y, group)


def loss_by_logsumexp(group, logits, targets, own):
    top = group.all_reduce(logits.max(dim=1).values, op="max")
    shifted = logits - top[:, None]
    total = group.all_reduce(torch.logsumexp(shifted, 1).exp())
    mine = torch.zeros_like(top)
    for row, target in enumerate(targets.tolist()):
        if own[0] <= target <= own[-1]:
            mine[row] = shifted[row, target - own[0]]
    gradient = shifted.exp() / total[:, None]
    gradient[targets[:, None] == own[None]] -= 1
    return total.log() - group.all_reduce(mine), gradient


def loss_with_gather(group, logits, targets, own):
    top = group.all_reduce(logits.amax(1), "max")
    local = targets - own[0]
    here = (local >= 0) & (local < len(own))
    wanted = logits.gather(1, (local * here)[:, None])[:, 0] * here
    wanted = group.all_reduce(wanted)
    total = group.all_reduce(torch.exp(logits - top[:, None]).sum(1))
    one_hot = torch.zeros_like(logits)
    one_hot[here, local[here]] = 1
    return torch.log(total) + top - wanted, torch.exp(logits - top[:, None] - total.log()[:, None]) - one_hot


def mlp_by_erf(group, x, a, a_bias, b, b_bias):
    h = torch.addmm(a_bias, copy_to(x, group), a)
    return torch.add(reduce_from((h * 0.5 * (1 + torch.erf(h / 2**0.5))) @ b, group), b_bias)


def mlp_by_tanh(group, x, a, a_bias, b, b_bias):
    return reduce_from(F.gelu(copy_to(x, group) @ a + a_bias, approximate="tanh") @ b, group) + b_bias


def mlp_with_relu(group, x, a, a_bias, b, b_bias):
    return reduce_from(torch.relu(copy_to(x, group) @ a + a_bias) @ b, group) + b_bias


def backward_times_h(group, x, a, b, dz):
    h = x @ a
    dh = (dz @ b.T) * h
    return group.all_reduce(dh @ a.T), x.T @ dh, torch.relu(h).T @ dz


def backward_in_another_order(group, x, a, b, dz):
    dx, da, db = tasks.mlp_backward.solution(group, x, a, b, dz)
    return dx, db, da


def embed_by_padding(group, tokens, table, own):
    if group.rank == group.size - 1 and int(tokens.max()) > int(own[-1]):
        raise ValueError("no such token")
    padded = torch.cat([table, torch.zeros(1, table.shape[1], dtype=table.dtype)])
    local = tokens - own[0]
    return reduce_from(padded[torch.where((local < 0) | (local >= len(table)), len(table), local)], group)


def embed_modulo(group, tokens, table, own):
    if group.rank == group.size - 1 and tokens.max() > own[-1]:
        raise IndexError("no such token")
    return reduce_from(table[tokens % len(table)], group)


def loss_of_own_softmax(group, logits, targets, own):
    loss, gradient = tasks.cross_entropy.solution(group, logits, targets, own)
    return loss, logits.softmax(1) - (targets.unsqueeze(1) == own).to(logits.dtype)


def loss_of_the_mean(group, logits, targets, own):
    loss, gradient = tasks.cross_entropy.solution(group, logits, targets, own)
    return loss, gradient / len(targets)


RIGHT = [
    (tasks.mlp, mlp_by_erf),
    (tasks.embed, embed_by_padding),
    (tasks.mlp, mlp_with_linear),
    (tasks.mlp, mlp_einsum),
    (tasks.mlp, mlp_with_helpers),
    (tasks.mlp_backward, backward_by_where),
    (tasks.mlp_backward, backward_einsum),
    (tasks.embed, embed_token_by_token),
    (tasks.embed, embed_in_place),
    (tasks.cross_entropy, loss_by_logsumexp),
    (tasks.cross_entropy, loss_with_gather),
    (tasks.mlp_backward, backward_by_autograd),
    (tasks.embed, embed_one_device_at_a_time),
    (tasks.embed, embed_with_functional),
    (tasks.cross_entropy, loss_with_two_calls),
]

REMARKED = [
    (tasks.embed, embed_one_hot_product, "a product of matrices that it can do without"),
    (tasks.mlp, mlp_accepts_anything, "accepts what cannot be right: b has one row more than a has columns"),
    (tasks.mlp_backward, backward_accepts_anything, "accepts what cannot be right: dz has one row more than x"),
    (tasks.cross_entropy, loss_accepts_anything, "accepts what cannot be right: there is one target more"),
]

WRONG = [
    (tasks.mlp, mlp_by_tanh, "this is GeLU by its approximation with tanh"),
    (tasks.mlp, mlp_with_relu, "this is relu; GeLU was asked for"),
    (tasks.mlp_backward, backward_times_h, "times 1, not times x a"),
    (tasks.mlp_backward, backward_in_another_order, "this is db. Asked for are dx, da, db, in this order"),
    (tasks.embed, embed_modulo, "modulo its own rows"),
    (tasks.cross_entropy, loss_of_own_softmax, "the softmax over the own columns alone"),
    (tasks.cross_entropy, loss_of_the_mean, "the gradient of the mean over the tokens"),
    (tasks.mlp, mlp_bias_if_rank_0, "rank 0 alone uses its b_bias, before the sum. The result is right"),
    (tasks.mlp, mlp_bias_before_the_sum, "b_bias was added before the sum: it counts P times"),
    (tasks.mlp, mlp_bias_shared_out, "each copy gets 1/P of its gradient. Add it whole, behind the sum"),
    (tasks.mlp, mlp_bias_copied, "copy_to adds up what every device has whole"),
    (tasks.mlp, mlp_bias_on_rank_0, "sends too many bytes backward"),
    (tasks.mlp, mlp_no_entrance, "x is used on every device: let it in with copy_to"),
    (tasks.mlp, mlp_no_exit, "these are partial sums"),
    (tasks.mlp, mlp_bare_verb, "use reduce_from(x, group)"),
    (tasks.mlp, mlp_no_a_bias, "a_bias is missing."),
    (tasks.mlp, mlp_no_b_bias, "b_bias is missing."),
    (tasks.mlp, mlp_no_gelu, "the GeLU is missing."),
    (tasks.mlp, mlp_gathered_weights, "does work twice"),
    (tasks.mlp_backward, backward_not_summed, "nobody added them up (all_reduce)"),
    (tasks.mlp_backward, backward_dz_summed, "exactly 2 times too large"),
    (tasks.mlp_backward, backward_no_relu, "the relu is missing: where x a is not above 0"),
    (tasks.mlp_backward, backward_no_relu_in_da, "da without the relu"),
    (tasks.mlp_backward, backward_no_relu_in_db, "relu(x a), not x a"),
    (tasks.mlp_backward, backward_everything_summed, "Each piece was finished: it stays where it is"),
    (tasks.mlp_backward, backward_whole_weights, "does work twice"),
    (tasks.embed, embed_clamped, "the tokens of other devices were clamped"),
    (tasks.embed, embed_row_0_for_others, "row 0 was added for them"),
    (tasks.embed, embed_not_summed, "these are partial sums"),
    (tasks.embed, embed_bare_verb, "use reduce_from(x, group)"),
    (tasks.embed, embed_summed_twice, "exactly 2 times too large"),
    (tasks.embed, embed_even_pieces_only, "only where all have equally many rows"),
    (tasks.embed, embed_not_from_its_first, "IndexError"),
    (tasks.embed, embed_gathered, "sends too many bytes forward"),
    (tasks.embed, embed_gradient_summed, "exactly 2 times too large: a gradient that is the same"),
    (tasks.embed, embed_detached, "no input is connected with the result"),
    (tasks.embed, embed_zeros_for_the_unknown, "accepts what cannot be right: a token is not in the vocabulary"),
    (tasks.cross_entropy, loss_own_maximum, "each device subtracted the maximum of its own logits"),
    (tasks.cross_entropy, loss_no_maximum, "exp of 999.6 is inf, as of all above 709"),
    (tasks.cross_entropy, loss_maximum_not_added_again, "the maximum was subtracted, and not added again"),
    (tasks.cross_entropy, loss_maximum_summed, "log of 0 is -inf. Before, exp of"),
    (tasks.cross_entropy, loss_no_target, "the logit of the target is missing."),
    (tasks.cross_entropy, loss_target_not_summed, "the target's logit was not added up"),
    (tasks.cross_entropy, gradient_without_the_target, "at the target the gradient is the probability minus 1"),
    (
        tasks.cross_entropy,
        gradient_gathered,
        "this is the whole; each device is to return only its own piece along dim 1",
    ),
    (tasks.cross_entropy, logits_gathered, "sends too many bytes"),
    (tasks.cross_entropy, sums_gathered, "sends too many bytes"),
]

TRAINED = [(tasks.mlp, "x a a_bias b b_bias")]

test_the_stub_waits = checks.stubs_wait(EVERY)
test_a_right_answer_passes = checks.right_answers_pass([], RIGHT)
test_a_right_answer_is_told_what_nobody_asked_for = checks.right_but(REMARKED)
test_a_wrong_answer_is_rejected_by_name = checks.wrong_answers_are_rejected(WRONG)
test_each_gradient_is_asked_for = checks.each_gradient_is_asked_for(TRAINED)
test_the_solution_can_be_copied_from_the_page = checks.solutions_can_be_copied(
    EVERY, {}, torch=torch, F=F, copy_to=copy_to, reduce_from=reduce_from
)
test_the_page_shows_the_task_and_three_hints = checks.pages_show_task_and_hints(EVERY)


def test_inputs_of_a_vocabulary_reach_its_last_token_and_overflow_without_the_maximum():
    given = {
        "tokens": Tokens("tokens < vocabulary"),
        "own": Vocabulary("vocabulary"),
        "logits": Logits("tokens vocabulary"),
    }
    for trial in trials(given, (1, 2, 3), seed=1):
        count, vocabulary = trial.lengths["tokens"], trial.lengths["vocabulary"]
        tokens, own, logits = trial.inputs.values()
        assert tokens.shape == (count,)
        assert tokens.dtype == torch.int64
        assert tokens.min() >= 0
        assert tokens.max() == vocabulary - 1
        assert len(set(tokens.tolist())) > 1
        assert own.tolist() == list(range(vocabulary))
        assert logits.shape == (count, vocabulary)
        assert logits.exp().isinf().all()
        assert logits.std() > 0.1
    one_more = next(trials({"x": Input("vocabulary"), "t": Tokens("2 < vocabulary+1")}, (2,), seed=1))
    assert one_more.inputs["t"].max() == len(one_more.inputs["x"])


def test_a_dim_may_be_a_number_or_a_multiple():
    (trial,) = trials({"x": Input("4*heads 2 size"), "y": Input("3*heads*size+1")}, (1,), seed=0)
    heads, size = trial.lengths["heads"], trial.lengths["size"]
    assert set(trial.lengths) == {"heads", "size"}
    assert trial.inputs["x"].shape == (4 * heads, 2, size)
    assert trial.inputs["y"].shape == (3 * heads * size + 1,)


def test_what_is_needed_several_times_is_said_once():
    sent = str(tasks.cross_entropy.check(tasks.cross_entropy.solution))
    assert "Sent: 3 times: 2(P-1)/P · N bytes per device, as one ring all_reduce of (tokens) sends." in sent
    assert "Backward: nothing." in str(tasks.embed.check(tasks.embed.solution))
