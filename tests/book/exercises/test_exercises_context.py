"""The exercises on context parallelism: the stub waits, solutions pass, each typical mistake is told by its name."""

import math

import exercise_checks as checks
import torch

from book.exercises import context as tasks
from lib import CutTokens

EVERY = [tasks.merge_parts, tasks.ring_forward, tasks.ring_backward, tasks.balanced]
SENTENCES = dict.fromkeys(("ring_forward", "ring_backward"), "is right on 1, 2 and 3 devices")

# ---- merge ----


def merge_with_the_larger_taken_out(group, out_a, lse_a, out_b, lse_b):
    largest = torch.maximum(lse_a, lse_b)
    a, b = (lse_a - largest).exp(), (lse_b - largest).exp()
    return (a[:, None] * out_a + b[:, None] * out_b) / (a + b)[:, None], largest + (a + b).log()


def merge_by_sigmoid(group, out_a, lse_a, out_b, lse_b):
    share = torch.sigmoid(lse_b - lse_a)[:, None]
    return out_a + share * (out_b - out_a), torch.logaddexp(lse_a, lse_b)


def merge_without_the_maximum(group, out_a, lse_a, out_b, lse_b):
    a, b = lse_a.exp(), lse_b.exp()
    return (a[:, None] * out_a + b[:, None] * out_b) / (a + b)[:, None], (a + b).log()


def merge_average(group, out_a, lse_a, out_b, lse_b):
    return (out_a + out_b) / 2, torch.logaddexp(lse_a, lse_b)


def merge_sum(group, out_a, lse_a, out_b, lse_b):
    return out_a + out_b, torch.logaddexp(lse_a, lse_b)


def merge_lse_added(group, out_a, lse_a, out_b, lse_b):
    return merge_by_sigmoid(group, out_a, lse_a, out_b, lse_b)[0], lse_a + lse_b


def merge_lse_of_the_larger(group, out_a, lse_a, out_b, lse_b):
    return merge_by_sigmoid(group, out_a, lse_a, out_b, lse_b)[0], torch.maximum(lse_a, lse_b)


def merge_weights_that_do_not_add_up(group, out_a, lse_a, out_b, lse_b):
    largest = torch.maximum(lse_a, lse_b)
    a, b = (lse_a - largest).exp(), (lse_b - largest).exp()
    return a[:, None] * out_a + b[:, None] * out_b, torch.logaddexp(lse_a, lse_b)


def merge_exchanged(group, out_a, lse_a, out_b, lse_b):
    return merge_by_sigmoid(group, out_b, lse_a, out_a, lse_b)


def merge_weights_in_the_wrong_domain(group, out_a, lse_a, out_b, lse_b):
    total = lse_a + lse_b
    return (lse_a[:, None] * out_a + lse_b[:, None] * out_b) / total[:, None], torch.logaddexp(lse_a, lse_b)


# ---- the ring, forward ----


def pass_on(group, *tensors):
    for x in tensors:
        group.send(x, (group.rank + 1) % group.size)
    return [group.recv((group.rank - 1) % group.size) for _ in tensors]


def ring(group, q, k, v, at, mask=None, skip=None, hops=None, rescale=True):
    """A ring in another style: running maximum, numerator and denominator."""
    mine = at
    largest = torch.full((len(q),), -torch.inf, dtype=q.dtype)
    numerator, denominator = torch.zeros_like(q), torch.zeros(len(q), dtype=q.dtype)
    for hop in range(group.size if hops is None else hops(group.size)):
        source = (group.rank - hop) % group.size
        if skip is None or not skip(group.rank, source):
            seen = at[None, :] <= mine[:, None] if mask is None else mask(mine, at)
            scores = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(~seen, -torch.inf)
            new = torch.maximum(largest, scores.amax(1))
            old = (largest - new).exp() if rescale else torch.ones_like(new)
            weights = (scores - new[:, None]).exp()
            numerator = numerator * old[:, None] + weights @ v
            denominator = denominator * old + weights.sum(1)
            largest = new
        if hop < group.size - 1:
            k, v, at = pass_on(group, k, v, at)
    return numerator / denominator[:, None]


def ring_by_running_maximum(group, q, k, v, at):
    return ring(group, q, k, v, at)


def ring_local_mask(group, q, k, v, at):
    return ring(group, q, k, v, at, lambda mine, at: torch.ones(len(mine), len(at), dtype=torch.bool).tril())


def ring_no_mask(group, q, k, v, at):
    return ring(group, q, k, v, at, lambda mine, at: torch.ones(len(mine), len(at), dtype=torch.bool))


def ring_skips_what_it_needs(group, q, k, v, at):
    return ring(group, q, k, v, at, skip=lambda rank, source: source > rank)


def ring_one_hop_short(group, q, k, v, at):
    return ring(group, q, k, v, at, hops=lambda size: max(1, size - 1))


def ring_own_keys_only(group, q, k, v, at):
    return ring(group, q, k, v, at, hops=lambda size: 1)


def ring_stale_positions(group, q, k, v, at):
    return tasks.ring_with(travels=(True, True, False))(group, q, k, v, at)


def ring_stale_values(group, q, k, v, at):
    return tasks.ring_with(travels=(True, False, True))(group, q, k, v, at)


def ring_maximum_not_rescaled(group, q, k, v, at):
    mine, out, lse = at, torch.zeros_like(q), torch.full((len(q),), -torch.inf, dtype=q.dtype)
    for hop in range(group.size):
        scores = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(at[None, :] > mine[:, None], -torch.inf)
        lse = torch.logaddexp(lse, scores.logsumexp(1))
        out = out + (scores - lse[:, None]).exp() @ v
        if hop < group.size - 1:
            k, v, at = pass_on(group, k, v, at)
    return out


def ring_softmax_for_each_block(group, q, k, v, at):
    mine, out = at, torch.zeros_like(q)
    for hop in range(group.size):
        scores = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(at[None, :] > mine[:, None], -torch.inf)
        out = out + scores.softmax(1).nan_to_num(0) @ v
        if hop < group.size - 1:
            k, v, at = pass_on(group, k, v, at)
    return out


def ring_no_scale(group, q, k, v, at):
    return ring(group, q * math.sqrt(q.shape[1]), k, v, at)


def ring_mask_turned(group, q, k, v, at):
    return ring(group, q, k, v, at, lambda mine, at: at[None, :] >= mine[:, None])


def ring_by_gathering(group, q, k, v, at):
    k, v, keys = group.all_gather(k), group.all_gather(v), group.all_gather(at)
    scores = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(keys[None, :] > at[:, None], -torch.inf)
    return scores.softmax(1) @ v


# ---- the ring, backward ----


def block(q, k, v, out, lse, dy):
    weights = (q @ k.T / math.sqrt(q.shape[1]) - lse[:, None]).exp()
    dscores = weights * (dy @ v.T - (dy * out).sum(1)[:, None]) / math.sqrt(q.shape[1])
    return dscores @ k, dscores.T @ q, weights.T @ dy


def back_all_travel(group, q, k, v, out, lse, dy):
    """P hops for the gradients: right, and one message more than needed."""
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for _ in range(group.size):
        more = block(q, k, v, out, lse, dy)
        dq, dk, dv = dq + more[0], dk + more[1], dv + more[2]
        k, v, dk, dv = pass_on(group, k, v, dk, dv)
    return dq, dk, dv


def back_one_hop_short(group, q, k, v, out, lse, dy):
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for hop in range(group.size):
        more = block(q, k, v, out, lse, dy)
        dq, dk, dv = dq + more[0], dk + more[1], dv + more[2]
        if hop < group.size - 1:
            k, v, dk, dv = pass_on(group, k, v, dk, dv)
    return dq, dk, dv


def back_left_where_computed(group, q, k, v, out, lse, dy):
    dq, dk, dv = block(q, k, v, out, lse, dy)
    for _ in range(group.size - 1):
        k, v = pass_on(group, k, v)
        dq = dq + block(q, k, v, out, lse, dy)[0]
    return dq, dk, dv


def back_own_log_sum_exp(group, q, k, v, out, lse, dy):
    return tasks.backward_with(own_lse=True)(group, q, k, v, out, lse, dy)


def back_no_second_term(group, q, k, v, out, lse, dy):
    return back_all_travel(group, q, k, v, torch.zeros_like(out), lse, dy)


def back_no_scale(group, q, k, v, out, lse, dy):
    return tasks.backward_with(scale=False)(group, q, k, v, out, lse, dy)


def back_summed_at_the_queries(group, q, k, v, out, lse, dy):
    return tasks.backward_with("mine")(group, q, k, v, out, lse, dy)


def back_by_reduce_scatter(group, q, k, v, out, lse, dy):
    dq, dk, dv = block(q, group.all_gather(k), group.all_gather(v), out, lse, dy)
    return dq, group.reduce_scatter(dk), group.reduce_scatter(dv)


# ---- balanced ----


def balanced_by_rows(group, x):
    rows = torch.arange(len(x)).tensor_split(2 * group.size)
    return x[torch.cat([rows[group.rank], rows[-1 - group.rank]])]


def balanced_r_plus_p(group, x):
    pieces = x.tensor_split(2 * group.size)
    return torch.cat([pieces[group.rank], pieces[group.size + group.rank]])


def balanced_not_at_all(group, x):
    return x.tensor_split(group.size)[group.rank]


def balanced_striped(group, x):
    return x[group.rank :: group.size]


def balanced_turned(group, x):
    pieces = x.tensor_split(2 * group.size)
    return torch.cat([pieces[group.rank], pieces[2 * group.size - 1 - group.rank].flip(0)])


def balanced_late_first(group, x):
    pieces = x.tensor_split(2 * group.size)
    return torch.cat([pieces[2 * group.size - 1 - group.rank], pieces[group.rank]])


def merge_by_einsum(group, out_a, lse_a, out_b, lse_b):
    lse = torch.stack([lse_a, lse_b])
    return torch.einsum("kt,ktd->td", lse.softmax(0), torch.stack([out_a, out_b])), lse.logsumexp(0)


def merge_by_diagonals(group, out_a, lse_a, out_b, lse_b):
    lse = torch.logaddexp(lse_a, lse_b)
    return torch.diag((lse_a - lse).exp()) @ out_a + torch.diag((lse_b - lse).exp()) @ out_b, lse


def merge_of_the_mean(group, out_a, lse_a, out_b, lse_b):
    out, lse = merge_by_sigmoid(group, out_a, lse_a, out_b, lse_b)
    return out, lse - math.log(2)


def merge_lse_averaged(group, out_a, lse_a, out_b, lse_b):
    return merge_by_sigmoid(group, out_a, lse_a, out_b, lse_b)[0], (lse_a + lse_b) / 2


def ring_one_hop_more(group, q, k, v, at):
    """Right: what comes back in the end is thrown away."""
    out = ring(group, q, k, v, at)
    pass_on(group, k, v, at)
    return out


def ring_the_other_way(group, q, k, v, at):
    mine, out, lse = at, torch.zeros_like(q), torch.full((len(q),), -torch.inf, dtype=q.dtype)
    for hop in range(group.size):
        scores = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(at > mine[:, None], -torch.inf)
        part, weights = scores.logsumexp(1), scores.softmax(1).nan_to_num(0)
        share = torch.sigmoid(part - lse).nan_to_num(0)[:, None]
        out, lse = out + share * (weights @ v - out), torch.logaddexp(lse, part)
        if hop < group.size - 1:
            packed = torch.cat([k, v, at[:, None].to(k)], 1)
            group.send(packed, (group.rank - 1) % group.size)
            k, v, at = group.recv((group.rank + 1) % group.size).split([k.shape[1], v.shape[1], 1], 1)
            at = at[:, 0].long()
    return out


def ring_from_zero(group, q, k, v, at):
    mine, out, lse = at, torch.zeros_like(q), torch.zeros(len(q), dtype=q.dtype)
    for hop in range(group.size):
        scores = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(at[None, :] > mine[:, None], -torch.inf)
        new = torch.logaddexp(lse, scores.logsumexp(1))
        out, lse = out * (lse - new).exp()[:, None] + (scores - new[:, None]).exp() @ v, new
        if hop < group.size - 1:
            k, v, at = pass_on(group, k, v, at)
    return out


def ring_average_of_blocks(group, q, k, v, at):
    return ring_softmax_for_each_block(group, q, k, v, at) / group.size


def ring_last_block(group, q, k, v, at):
    mine = at
    for _ in range(group.size - 1):
        k, v, at = pass_on(group, k, v, at)
    scores = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(at[None, :] > mine[:, None], -torch.inf)
    return scores.softmax(1).nan_to_num(0) @ v


def back_without_the_own_share(group, q, k, v, out, lse, dy):
    dq, *_ = block(q, k, v, out, lse, dy)
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for _ in range(group.size - 1):
        k, v, dk, dv = pass_on(group, k, v, dk, dv)
        more = block(q, k, v, out, lse, dy)
        dq, dk, dv = dq + more[0], dk + more[1], dv + more[2]
    return dq, *pass_on(group, dk, dv)


def back_exchanged(group, q, k, v, out, lse, dy):
    dq, dk, dv = back_all_travel(group, q, k, v, out, lse, dy)
    return dq, dv, dk


def back_last_dq(group, q, k, v, out, lse, dy):
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for _ in range(group.size):
        dq, *more = block(q, k, v, out, lse, dy)
        k, v, dk, dv = pass_on(group, k, v, dk + more[0], dv + more[1])
    return dq, dk, dv


def back_stacked(group, q, k, v, out, lse, dy):
    """Keys, values and the sums of their gradients in one message."""
    kv, sums, dq = torch.stack([k, v]), torch.zeros(2, *k.shape, dtype=k.dtype), torch.zeros_like(q)
    for _ in range(group.size):
        more = block(q, *kv, out, lse, dy)
        dq, sums = dq + more[0], sums + torch.stack(more[1:])
        kv, sums = pass_on(group, torch.stack([*kv, *sums]))[0].split(2)
    return dq, *sums


def balanced_by_slices(group, x):
    sizes = [len(piece) for piece in x.tensor_split(2 * group.size)]
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    two = group.rank, 2 * group.size - 1 - group.rank
    return torch.cat([x[starts[i] : starts[i + 1]] for i in two])


def balanced_by_lib(group, x):
    return CutTokens("zigzag", 0).piece(x, group.size, group.rank)


def balanced_p_stretches(group, x):
    pieces = x.tensor_split(group.size)
    return torch.cat([pieces[group.rank], pieces[group.size - 1 - group.rank]])


def balanced_neighbors(group, x):
    pieces = x.tensor_split(2 * group.size)
    return torch.cat([pieces[2 * group.rank], pieces[2 * group.rank + 1]])


RIGHT = [
    (tasks.merge_parts, merge_by_einsum),
    (tasks.merge_parts, merge_by_diagonals),
    (tasks.merge_parts, merge_with_the_larger_taken_out),
    (tasks.merge_parts, merge_by_sigmoid),
    (tasks.ring_forward, ring_by_running_maximum),
    (tasks.ring_forward, ring_the_other_way),
    (tasks.ring_backward, back_all_travel),
    (tasks.ring_backward, back_stacked),
    (tasks.balanced, balanced_by_rows),
    (tasks.balanced, balanced_by_slices),
    (tasks.balanced, balanced_by_lib),
]
MORE = [
    (tasks.ring_forward, ring_one_hop_more, "Right, but it sends more than it needs."),
    (tasks.ring_backward, back_all_travel, "Right, but it sends more than it needs."),
]
WRONG = [
    (tasks.merge_parts, merge_without_the_maximum, "is inf, as of all above 709"),
    (tasks.merge_parts, merge_average, "the outputs were averaged, as if both parts weighed the same"),
    (tasks.merge_parts, merge_sum, "the outputs were added: each is an average already"),
    (tasks.merge_parts, merge_lse_added, "Sums are added, not their logarithms"),
    (tasks.merge_parts, merge_lse_of_the_larger, "this is the larger of the two log-sum-exps"),
    (tasks.merge_parts, merge_weights_that_do_not_add_up, "weights relative to the larger one do not add up to 1"),
    (tasks.merge_parts, merge_exchanged, "each output got the weight of the other"),
    (tasks.merge_parts, merge_weights_in_the_wrong_domain, "the weights are the log-sum-exps themselves"),
    (tasks.merge_parts, merge_of_the_mean, "the mean of the two denominators"),
    (tasks.merge_parts, merge_lse_averaged, "the two log-sum-exps were averaged"),
    (tasks.ring_forward, ring_from_zero, "lse began at 0"),
    (tasks.ring_forward, ring_average_of_blocks, "the results of the blocks were averaged"),
    (tasks.ring_forward, ring_last_block, "the result of the last block alone"),
    (tasks.ring_forward, ring_local_mask, "the mask is that of your own block"),
    (tasks.ring_forward, ring_no_mask, "there is no causal mask"),
    (tasks.ring_forward, ring_skips_what_it_needs, "blocks of later devices were skipped"),
    (tasks.ring_forward, ring_one_hop_short, "a hop is missing"),
    (tasks.ring_forward, ring_own_keys_only, "your queries saw your own keys only"),
    (tasks.ring_forward, ring_stale_positions, "positions must travel with the keys"),
    (tasks.ring_forward, ring_stale_values, "the values stayed at home"),
    (tasks.ring_forward, ring_maximum_not_rescaled, "what was merged before was not rescaled"),
    (tasks.ring_forward, ring_softmax_for_each_block, "one denominator must hold for all keys"),
    (tasks.ring_forward, ring_no_scale, "not divided by the root of the size"),
    (tasks.ring_forward, ring_mask_turned, "the mask is the wrong way round"),
    (tasks.ring_forward, ring_by_gathering, "gives the right numbers, but with all_gather"),
    (tasks.ring_backward, back_one_hop_short, "dk and dv stopped one hop short"),
    (tasks.ring_backward, back_left_where_computed, "dk and dv hold what your own queries say of your keys"),
    (tasks.ring_backward, back_own_log_sum_exp, "each block had a log-sum-exp of its own"),
    (tasks.ring_backward, back_no_second_term, "the gradient of the softmax lacks its second term"),
    (tasks.ring_backward, back_no_scale, "not divided by the root of the size, as the scores were"),
    (tasks.ring_backward, back_summed_at_the_queries, "Each sum must travel with its own keys"),
    (tasks.ring_backward, back_by_reduce_scatter, "but with all_gather and reduce_scatter"),
    (tasks.ring_backward, back_without_the_own_share, "your own share of your dk and dv is missing"),
    (tasks.ring_backward, back_exchanged, "dk and dv are exchanged"),
    (tasks.ring_backward, back_last_dq, "dq is that of the last block alone"),
    (tasks.balanced, balanced_p_stretches, "every token is on two devices"),
    (tasks.balanced, balanced_neighbors, "this is one stretch"),
    (tasks.balanced, balanced_r_plus_p, "Count it from the end: 2P - 1 - r"),
    (tasks.balanced, balanced_not_at_all, "this is one stretch"),
    (tasks.balanced, balanced_striped, "every P-th token"),
    (tasks.balanced, balanced_turned, "in reverse order"),
    (tasks.balanced, balanced_late_first, "keep the order of the sequence"),
]

test_the_stub_waits = checks.stubs_wait(EVERY)
test_right_answers_pass = checks.right_answers_pass([], RIGHT, SENTENCES)
test_what_is_told_beside_correct = checks.right_but(MORE)
test_wrong_answers_are_rejected = checks.wrong_answers_are_rejected(WRONG)
test_solutions_can_be_copied = checks.solutions_can_be_copied(EVERY, SENTENCES, torch=torch, math=math)
test_the_page_shows_task_and_hints = checks.pages_show_task_and_hints(EVERY)
