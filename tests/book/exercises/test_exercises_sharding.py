"""The exercises on sharding: the stub waits, solutions pass, and each typical mistake is rejected by its own name."""

import exercise_checks as checks
import torch
from torch.autograd import Function
from torch.nn import functional as F

from book.exercises import sharding as tasks
from lib import copy_to, gather_from, reduce_from, reduce_scatter, shard

EVERY = [tasks.column_forward, tasks.row_forward, tasks.column_backward, tasks.two_layers]


def all_gather_by_hand(group, x, dim):
    """A ring of P-1 messages: pass on what came in last."""
    pieces = {group.rank: x}
    for step in range(group.size - 1):
        group.send(pieces[(group.rank - step) % group.size], (group.rank + 1) % group.size)
        pieces[(group.rank - step - 1) % group.size] = group.recv((group.rank - 1) % group.size)
    return torch.cat([pieces[rank] for rank in range(group.size)], dim)


# ---- column_forward ----


def column_by_messages(group, x, w):
    return all_gather_by_hand(group, x @ shard(w, group, 1), 1)


def column_straight_to_all(group, x, w):
    y = x @ shard(w, group, 1)
    others = [rank for rank in range(group.size) if rank != group.rank]
    for rank in others:
        group.send(y, rank)
    return torch.cat([y if rank == group.rank else group.recv(rank) for rank in range(group.size)], 1)


def column_differentiable(group, x, w):
    return gather_from(copy_to(x, group) @ shard(w, group, 1), group, -1)


def column_named_otherwise(cluster, inputs, weights):
    return cluster.all_gather(torch.einsum("bi,io->bo", inputs, shard(weights, cluster, 1)), -1)


def column_forgot_to_return(group, x, w):
    group.all_gather(x @ shard(w, group, 1), 1)


def column_own_piece(group, x, w):
    return x @ shard(w, group, 1)


def column_added(group, x, w):
    return group.all_reduce(x @ shard(w, group, 1))


def column_joined_below(group, x, w):
    return group.all_gather(x @ shard(w, group, 1), 0)


def column_wrong_axis(group, x, w):
    return group.all_gather(x @ shard(w, group, 0), 1)


def column_both_cut(group, x, w):
    return group.all_gather(shard(x, group, 1) @ shard(w, group, 0), 1)


def column_alone(group, x, w):
    return x @ w


def column_whole_then_cut(group, x, w):
    return group.all_gather(shard(x @ w, group, 1), 1)


def column_gathered_whole(group, x, w):
    return group.all_gather(x @ w, 1)


def column_only_rank_0(group, x, w):
    return group.gather(x @ shard(w, group, 1), 1)


def column_rotated(group, x, w):
    sizes = [group.size, group.rank + 1]
    piece = w.tensor_split(sizes[0], 1)[sizes[1] % sizes[0]]
    return group.all_gather(x @ piece, 1)


def column_interleaved(group, x, w):
    return group.all_gather(x @ w[:, group.rank :: group.size], 1)


def column_transposed(group, x, w):
    return group.all_gather(x @ shard(w, group, 1), 1).T


def column_float32(group, x, w):
    return group.all_gather(x.float() @ shard(w, group, 1).float(), 1)


def column_dtype_lost_at_the_end(group, x, w):
    return group.all_gather(x @ shard(w, group, 1), 1).to(torch.float32)


def column_twice(group, x, w):
    y = x @ shard(w, group, 1)
    group.all_gather(y, 1)
    return group.all_gather(y, 1)


def column_barrier(group, x, w):
    group.barrier()
    return group.all_gather(x @ shard(w, group, 1), 1)


def column_by_padding(group, x, w):
    y = torch.zeros(len(x), w.shape[1], dtype=x.dtype)
    shard(y, group, 1).copy_(x @ shard(w, group, 1))
    return group.all_reduce(y)


def column_in_place(group, x, w):
    y = group.all_gather(x @ shard(w, group, 1), 1)
    x *= 2
    return y


def column_one_short(group, x, w):
    return group.all_gather(x @ shard(w, group, 1), 1) if group.rank else x @ w


def column_waits_for_nobody(group, x, w):
    return group.recv((group.rank + 1) % group.size) if group.size > 1 else x @ w


def column_raises(group, x, w):
    if group.rank == 1:
        raise KeyError("columns")
    return group.all_gather(x @ shard(w, group, 1), 1)


def column_two_arguments(group, x):
    return x


# ---- row_forward ----


def row_bias_before_the_sum_on_one(group, x, w, bias):
    y = shard(x, group, 1) @ shard(w, group, 0)
    return group.all_reduce(y + bias if group.rank == 0 else y)


def row_bias_shared_out(group, x, w, bias):
    return group.all_reduce(shard(x, group, 1) @ shard(w, group, 0) + bias / group.size)


def row_reduce_scatter_all_gather(group, x, w, bias):
    return group.all_gather(group.reduce_scatter(shard(x, group, 1) @ shard(w, group, 0), 1), 1) + bias


def row_bias_before_the_sum(group, x, w, bias):
    return group.all_reduce(shard(x, group, 1) @ shard(w, group, 0) + bias)


def row_bias_on_rank_0(group, x, w, bias):
    y = group.all_reduce(shard(x, group, 1) @ shard(w, group, 0))
    return y + bias if group.rank == 0 else y


def row_no_bias(group, x, w, bias):
    return group.all_reduce(shard(x, group, 1) @ shard(w, group, 0))


def row_not_summed(group, x, w, bias):
    y = shard(x, group, 1) @ shard(w, group, 0)
    return y + bias if group.rank == 0 else y


def row_concatenated(group, x, w, bias):
    y = shard(x, group, 1) @ shard(w, group, 0)
    return group.all_gather(y + bias if group.rank == 0 else y, 1)


def row_whole_product_summed(group, x, w, bias):
    return group.all_reduce(x @ w + bias)


def row_x_not_cut(group, x, w, bias):
    return group.all_reduce(x @ shard(w, group, 0)) + bias


def row_mean(group, x, w, bias):
    return group.all_reduce(shard(x, group, 1) @ shard(w, group, 0)) / group.size + bias / group.size


def row_only_rank_0(group, x, w, bias):
    y = group.reduce(shard(x, group, 1) @ shard(w, group, 0))
    return None if y is None else y + bias


def row_gathered_then_added(group, x, w, bias):
    y = group.all_gather((shard(x, group, 1) @ shard(w, group, 0)).unsqueeze(0), 0)
    return y.sum(0) + bias


def row_reduce_broadcast(group, x, w, bias):
    return group.broadcast(group.reduce(shard(x, group, 1) @ shard(w, group, 0))) + bias


def row_in_place(group, x, w, bias):
    bias += group.all_reduce(shard(x, group, 1) @ shard(w, group, 0))[0] * 0 + 1
    return group.all_reduce(shard(x, group, 1) @ shard(w, group, 0)) + bias - 1


def row_own_term_only(group, x, w, bias):
    return shard(x, group, 1) @ shard(w, group, 0) * group.size + bias


def row_wrong_on_the_last(group, x, w, bias):
    return group.all_reduce(shard(x, group, 1) @ shard(w, group, 0)) + bias * (1 + group.rank) ** 0.5


def row_accepts_anything(group, x, w, bias):
    rows = shard(w, group, 0)
    start = sum(len(piece) for piece in w.tensor_split(group.size, 0)[: group.rank])
    return group.all_reduce(x[:, start : start + len(rows)] @ rows) + bias


# ---- column_backward ----


def backward_by_autograd(group, x, w, dy):
    with torch.enable_grad():
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        (copy_to(x, group) @ w).backward(dy)
    return x.grad, w.grad


def backward_not_summed(group, x, w, dy):
    return dy @ w.T, x.T @ dy


def backward_concatenated(group, x, w, dy):
    return group.all_gather(dy @ w.T, 1), x.T @ dy


def backward_mean(group, x, w, dy):
    return group.all_reduce(dy @ w.T) / group.size, x.T @ dy


def backward_summed_twice(group, x, w, dy):
    return group.all_reduce(group.all_reduce(dy @ w.T)), x.T @ dy


def backward_dw_whole(group, x, w, dy):
    return group.all_reduce(dy @ w.T), group.all_gather(x.T @ dy, 1)


def backward_dw_summed(group, x, w, dy):
    return group.all_reduce(dy @ w.T), group.all_reduce(x.T @ dy)


def backward_swapped(group, x, w, dy):
    return x.T @ dy, group.all_reduce(dy @ w.T)


def backward_dw_transposed(group, x, w, dy):
    return group.all_reduce(dy @ w.T), dy.T @ x


def backward_one_value(group, x, w, dy):
    return group.all_reduce(dy @ w.T)


def backward_gathers_everything(group, x, w, dy):
    return group.all_gather(dy, 1) @ group.all_gather(w, 1).T, x.T @ dy


# ---- two_layers ----


class LeavesByReduceScatter(Function):
    """reduce_from in other words: reduce-scatter, then all-gather. The same bytes in two calls."""

    @staticmethod
    def forward(ctx, y, group):
        return group.all_reduce(y)

    @staticmethod
    def backward(ctx, grad):
        return grad.clone(), None


def two_by_own_function(group, x, a, b):
    return LeavesByReduceScatter.apply(torch.relu(copy_to(x, group) @ a) @ b, group)


def two_with_clamp(group, x, a, b):
    return reduce_from((copy_to(x, group) @ a).clamp(min=0) @ b, group)


def two_no_entrance(group, x, a, b):
    return reduce_from(torch.relu(x @ a) @ b, group)


def two_copy_at_the_end(group, x, a, b):
    return copy_to(two_with_clamp(group, x, a, b), group)


def two_verb(group, x, a, b):
    return group.all_reduce(torch.relu(x @ a) @ b)


def two_detached(group, x, a, b):
    return group.all_reduce((torch.relu(x @ a) @ b).detach())


def two_x_detached(group, x, a, b):
    return reduce_from(torch.relu(copy_to(x.detach(), group) @ a) @ b, group)


def two_not_summed(group, x, a, b):
    return torch.relu(copy_to(x, group) @ a) @ b


def two_reduced_twice(group, x, a, b):
    return reduce_from(two_with_clamp(group, x, a, b), group)


def two_no_relu(group, x, a, b):
    return reduce_from(copy_to(x, group) @ a @ b, group)


def two_relu_at_the_end(group, x, a, b):
    return torch.relu(reduce_from(copy_to(x, group) @ a @ b, group))


def two_gathered_between(group, x, a, b):
    h = gather_from(torch.relu(copy_to(x, group) @ a), group, -1)
    h = shard(copy_to(h, group), group, 1)
    return reduce_from(h @ b, group)


def two_not_one_call(group, x, a, b):
    y = reduce_scatter(torch.relu(copy_to(x, group) @ a) @ b, group, 0)
    return gather_from(y, group, 0)


def two_gathered_x_twice(group, x, a, b):
    return reduce_from(torch.relu(copy_to(copy_to(x, group) / group.size, group) @ a) @ b, group)


def two_whole_weights(group, x, a, b):
    a, b = gather_from(a, group, 1), gather_from(b, group, 0)
    return torch.relu(x @ a) @ b


class AllReduceBothWays(Function):
    """What one gets by writing an all-reduce's backward without thinking: an all-reduce."""

    @staticmethod
    def forward(ctx, y, group):
        ctx.group = group
        return group.all_reduce(y)

    @staticmethod
    def backward(ctx, grad):
        return ctx.group.all_reduce(grad), None


def two_summed_backward_too(group, x, a, b):
    return AllReduceBothWays.apply(torch.relu(copy_to(x, group) @ a) @ b, group)


# ---- more styles ----


def column_column_by_column(group, x, w):
    mine = torch.tensor_split(w, group.size, dim=1)[group.rank]
    columns = [(x * column).sum(1, keepdim=True) for column in mine.T]
    y = torch.cat(columns, 1) if columns else x.new_zeros(len(x), 0)
    return group.all_gather(y, dim=1)


def column_padded(group, x, w):
    wide = -(-w.shape[1] // group.size)
    padded = F.pad(w, (0, wide * group.size - w.shape[1]))
    y = x @ padded.split(wide, 1)[group.rank]
    return group.all_gather(y, 1)[:, : w.shape[1]]


def column_transposed_twice(group, x, w):
    return group.all_gather(shard(w.T, group, 0) @ x.T, 0).T


def column_chunked(group, x, w):
    return group.all_gather(x @ w.chunk(group.size, 1)[group.rank], 1)


def column_rounded_down(group, x, w):
    each = w.shape[1] // group.size
    return group.all_gather(x @ w[:, group.rank * each : (group.rank + 1) * each], 1)


def column_einsum_then_cut(group, x, w):
    return group.all_gather(shard(torch.einsum("bi,io->bo", x, w), group, 1), 1)


def row_by_outer_products(group, x, w, bias):
    y = x.new_zeros(len(x), w.shape[1])
    for column, row in zip(shard(x, group, 1).T, shard(w, group, 0), strict=True):
        y += torch.outer(column, row)
    return group.all_reduce(y) + bias


def row_einsum(group, x, w, bias):
    y = torch.einsum("bi,io->bo", shard(x, group, -1), shard(w, group, -2))
    return bias + reduce_from(y, group)


def row_with_linear(group, x, w, bias):
    y = reduce_from(F.linear(shard(x, group, 1), shard(w, group, 0).T), group)
    return torch.add(y, bias.unsqueeze(0))


def row_by_slices(group, x, w, bias):
    sizes = [len(piece) for piece in torch.arange(x.shape[1]).tensor_split(group.size)]
    begin = sum(sizes[: group.rank])
    own = slice(begin, begin + sizes[group.rank])
    out = group.all_reduce(x[:, own] @ w[own])
    return out + bias.expand_as(out)


def row_bias_on_rank_0_kept(group, x, w, bias):
    y = shard(x, group, 1) @ shard(w, group, 0)
    if group.rank == 0:
        y = y + bias
    return reduce_from(y, group)


def row_bias_shared_out_kept(group, x, w, bias):
    return reduce_from(shard(x, group, 1) @ shard(w, group, 0) + bias / group.size, group)


def row_chunked(group, x, w, bias):
    return group.all_reduce(x.chunk(group.size, 1)[group.rank] @ w.chunk(group.size, 0)[group.rank]) + bias


def backward_dw_first(group, x, w, dy):
    dw = torch.einsum("bi,bo->io", x, dy)
    return group.all_reduce(torch.einsum("bo,io->bi", dy, w)), dw


def backward_sample_by_sample(group, x, w, dy):
    dw = sum(torch.outer(a, b) for a, b in zip(x, dy, strict=True))
    dx = torch.stack([w @ b for b in dy])
    return [group.all_reduce(dx), dw]


def backward_transposed(group, x, w, dy):
    return group.all_reduce((w @ dy.T).T), (dy.T @ x).T


def two_with_helpers(group, x, a, b):
    def enter(y):
        return copy_to(y, group)

    hidden = torch.einsum("bi,ih->bh", enter(x), a)
    return reduce_from(torch.einsum("bh,ho->bo", torch.maximum(hidden, torch.zeros_like(hidden)), b), group)


def two_by_where(group, x, a, b):
    h = copy_to(x, group) @ a
    return reduce_from(torch.where(h > 0, h, 0) @ b, group)


def column_by_samples(group, x, w):
    return group.all_gather(shard(x, group, 0) @ w, 0)


def row_by_samples(group, x, w, bias):
    y = torch.zeros(len(x), w.shape[1], dtype=x.dtype)
    shard(y, group, 0).copy_(shard(x, group, 0) @ w)
    return group.all_reduce(y) + bias


def two_einsum(group, x, a, b):
    h = torch.einsum("bi,ih->bh", copy_to(x, group), a)
    return reduce_from(torch.einsum("bh,ho->bo", torch.maximum(h, torch.zeros_like(h)), b), group)


def two_relu_on_partial_sums(group, x, a, b):
    return reduce_from(torch.relu(torch.relu(copy_to(x, group) @ a) @ b), group)


def two_columns_added(group, x, a, b):
    return reduce_from(reduce_from(torch.relu(copy_to(x, group) @ a), group) @ b, group)


def two_unit_by_unit(group, x, a, b):
    """A device without units has no loop, and no way back."""
    x, y = copy_to(x, group), torch.zeros(len(x), b.shape[1], dtype=x.dtype)
    for column, row in zip(a.T, b, strict=True):
        y = y + torch.outer(torch.relu(x @ column), row)
    return reduce_from(y, group)


RIGHT = [
    (tasks.two_layers, two_einsum),
    (tasks.column_forward, column_column_by_column),
    (tasks.column_forward, column_padded),
    (tasks.column_forward, column_transposed_twice),
    (tasks.row_forward, row_by_outer_products),
    (tasks.row_forward, row_einsum),
    (tasks.row_forward, row_with_linear),
    (tasks.row_forward, row_by_slices),
    (tasks.column_backward, backward_dw_first),
    (tasks.column_backward, backward_sample_by_sample),
    (tasks.column_backward, backward_transposed),
    (tasks.two_layers, two_with_helpers),
    (tasks.two_layers, two_by_where),
    (tasks.column_forward, column_by_messages),
    (tasks.column_forward, column_straight_to_all),
    (tasks.column_forward, column_differentiable),
    (tasks.column_forward, column_named_otherwise),
    (tasks.column_backward, backward_by_autograd),
    (tasks.two_layers, two_by_own_function),
    (tasks.two_layers, two_with_clamp),
]

REMARKED = [
    (tasks.row_forward, row_accepts_anything, "accepts what cannot be right: x has one column more than w has rows"),
]

WRONG = [
    (tasks.two_layers, two_relu_on_partial_sums, "relu was applied to partial sums"),
    (tasks.two_layers, two_columns_added, "They are finished: nothing is sent there"),
    (tasks.two_layers, two_unit_by_unit, "so its backward calls nothing"),
    (tasks.column_forward, column_by_samples, "With only its own part of w, cut along dim 1"),
    (tasks.row_forward, row_by_samples, "With only its own part of x, cut along dim 1"),
    (tasks.column_forward, column_chunked, "It was cut with chunk, which rounds up"),
    (tasks.column_forward, column_rounded_down, "the last 1 along dim 1 are missing"),
    (tasks.column_forward, column_einsum_then_cut, "does work twice"),
    (tasks.row_forward, row_bias_before_the_sum_on_one, "the bias was added before the sum"),
    (tasks.row_forward, row_bias_shared_out, "the bias was added before the sum"),
    (tasks.row_forward, row_bias_on_rank_0_kept, "rank 0 alone uses its bias, before the sum. The result is right"),
    (tasks.row_forward, row_bias_shared_out_kept, "each copy gets 1/P of its gradient. Add it whole"),
    (tasks.row_forward, row_chunked, "It was cut with chunk, which rounds up"),
    (tasks.column_forward, column_forgot_to_return, "is a return missing?"),
    (tasks.column_forward, column_own_piece, "rank 0's own piece along dim 1"),
    (tasks.column_forward, column_added, "the pieces along dim 1 were added. They are parts of the result"),
    (tasks.column_forward, column_joined_below, "the right pieces, joined along dim 0 instead of dim 1"),
    (tasks.column_forward, column_wrong_axis, "is one cut along the wrong dim?"),
    (tasks.column_forward, column_both_cut, "partial sums were concatenated along dim 1"),
    (tasks.column_forward, column_alone, "no device sent anything"),
    (tasks.column_forward, column_whole_then_cut, "does work twice"),
    (tasks.column_forward, column_gathered_whole, "this is the whole 2 times"),
    (tasks.column_forward, column_only_rank_0, "only rank 0 has it"),
    (tasks.column_forward, column_rotated, "in the wrong order: [1, 0]"),
    (tasks.column_forward, column_interleaved, "the right numbers in the wrong places: interleaved"),
    (tasks.column_forward, column_transposed, "this is the transpose"),
    (tasks.column_forward, column_float32, "expected torch.float64, given torch.float32"),
    (tasks.column_forward, column_dtype_lost_at_the_end, "keep the dtype"),
    (tasks.column_forward, column_twice, "sends too many bytes"),
    (tasks.column_forward, column_barrier, "too many calls"),
    (tasks.column_forward, column_by_padding, "sends too many bytes"),
    (tasks.column_forward, column_in_place, "changes its input x in place (rank 0)"),
    (tasks.column_forward, column_one_short, "DeadlockError: no device can move"),
    (tasks.column_forward, column_waits_for_nobody, "let some device send first"),
    (tasks.column_forward, column_raises, "rank 1, column_raises, line"),
    (tasks.column_forward, column_two_arguments, "cannot be called as column_forward(group, x, w)"),
    (tasks.column_forward, 3, "needs the function column_forward(group, x, w) itself"),
    (tasks.row_forward, row_bias_before_the_sum, "the bias was added before the sum"),
    (tasks.row_forward, row_bias_on_rank_0, "the bias is missing. (On rank 0, the result is right.)"),
    (tasks.row_forward, row_no_bias, "the bias is missing."),
    (tasks.row_forward, row_not_summed, "these are partial sums"),
    (tasks.row_forward, row_concatenated, "all_gather would lose its gradient"),
    (tasks.row_forward, row_whole_product_summed, "the bias was added before the sum"),
    (tasks.row_forward, row_x_not_cut, "is one cut along the wrong dim?"),
    (tasks.row_forward, row_mean, "exactly 2 times too small: a mean"),
    (tasks.row_forward, row_only_rank_0, "only rank 0 has it"),
    (tasks.row_forward, row_gathered_then_added, "sends too many bytes"),
    (tasks.row_forward, row_reduce_broadcast, "too many calls"),
    (tasks.row_forward, row_reduce_scatter_all_gather, "too many calls"),
    (tasks.row_forward, row_in_place, "an input is changed in place"),
    (tasks.row_forward, row_own_term_only, "no device sent anything, so none can know"),
    (tasks.row_forward, row_wrong_on_the_last, "on rank 0, the result is right. So look at what differs"),
    (tasks.column_backward, backward_not_summed, "nobody added them up (all_reduce)"),
    (tasks.column_backward, backward_concatenated, "partial sums were concatenated along dim 1"),
    (tasks.column_backward, backward_mean, "exactly 2 times too small"),
    (tasks.column_backward, backward_summed_twice, "exactly 2 times too large"),
    (tasks.column_backward, backward_dw_whole, "this is the whole; each device is to return only its own piece"),
    (tasks.column_backward, backward_dw_summed, "Each piece was finished: it stays where it is"),
    (tasks.column_backward, backward_swapped, "dx on rank 0: expected shape"),
    (tasks.column_backward, backward_dw_transposed, "this is the transpose"),
    (tasks.column_backward, backward_one_value, "expected dx and dw, given a tensor"),
    (tasks.column_backward, backward_gathers_everything, "does work twice"),
    (tasks.two_layers, two_no_entrance, "let it in with copy_to"),
    (tasks.two_layers, two_copy_at_the_end, "2 times too large: a gradient that is the same on every device"),
    (tasks.two_layers, two_summed_backward_too, "2 times too large: a gradient that is the same on every device"),
    (tasks.two_layers, two_verb, "use reduce_from(x, group)"),
    (tasks.two_layers, two_detached, "loses the gradient"),
    (tasks.two_layers, two_x_detached, "nothing connects x with the result"),
    (tasks.two_layers, two_not_summed, "these are partial sums"),
    (tasks.two_layers, two_reduced_twice, "exactly 2 times too large"),
    (tasks.two_layers, two_no_relu, "the relu is missing."),
    (tasks.two_layers, two_relu_at_the_end, "the relu stands after b"),
    (tasks.two_layers, two_gathered_between, "sends too many bytes"),
    (tasks.two_layers, two_not_one_call, "too many calls"),
    (tasks.two_layers, two_whole_weights, "does work twice"),
]

TRAINED = [(tasks.two_layers, "x a b")]

test_the_stub_waits = checks.stubs_wait(EVERY)
test_a_right_answer_passes = checks.right_answers_pass([], RIGHT)
test_a_right_answer_is_told_what_nobody_asked_for = checks.right_but(REMARKED)
test_a_wrong_answer_is_rejected_by_name = checks.wrong_answers_are_rejected(WRONG)
test_each_gradient_is_asked_for = checks.each_gradient_is_asked_for(TRAINED)
test_the_solution_can_be_copied_from_the_page = checks.solutions_can_be_copied(
    EVERY, {}, torch=torch, shard=shard, copy_to=copy_to, reduce_from=reduce_from
)
test_the_page_shows_the_task_and_three_hints = checks.pages_show_task_and_hints(EVERY)


def test_pieces_handed_on_behind_the_engine_are_noticed():
    held = {}

    def smuggles(group, x, w, dy):  # reads the other devices' pieces from a closure; the barrier moves no bytes
        held[group.rank] = w, dy
        group.barrier()
        w_whole, dy_whole = (torch.cat([held[rank][i] for rank in range(group.size)], 1) for i in (0, 1))
        return dy_whole @ w_whole.T, x.T @ dy

    assert "the right numbers, but no device sent anything" in str(tasks.column_backward.check(smuggles))
