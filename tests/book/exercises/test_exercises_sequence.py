"""The exercises on sequence parallelism: stubs wait or are wrong, solutions pass, mistakes are rejected by name."""

import exercise_checks as checks
import torch
from torch.nn import functional as F

from book.exercises import sequence as tasks
from lib import (
    all_gather,
    copy_to,
    gather_from,
    gather_linear,
    reduce_from,
    reduce_scatter,
    scatter_to,
    shard,
)

EVERY = [tasks.sequence_mlp, tasks.sequence_norm, tasks.gather_again]


# ---- sequence_mlp ----


def mlp_gathers_again(group, x, a, b):
    return reduce_scatter(F.gelu(gather_linear(x, a.T, None, group, 0)) @ b, group, 0)


def mlp_negative_dims(group, x, a, b):
    return reduce_scatter(F.gelu(all_gather(x, group, -2) @ a) @ b, group, -2)


def mlp_gather_from(group, x, a, b):
    return reduce_scatter(F.gelu(gather_from(x, group, 0) @ a) @ b, group, 0)


def mlp_gathered_features(group, x, a, b):
    return reduce_scatter(F.gelu(all_gather(x, group, 1) @ a) @ b, group, 0)


def mlp_scattered_features(group, x, a, b):
    return reduce_scatter(F.gelu(all_gather(x, group, 0) @ a) @ b, group, 1)


def mlp_left_whole(group, x, a, b):
    return reduce_from(F.gelu(all_gather(x, group, 0) @ a) @ b, group)


def mlp_not_summed(group, x, a, b):
    return F.gelu(all_gather(x, group, 0) @ a) @ b


def mlp_all_reduced_then_cut(group, x, a, b):
    return scatter_to(reduce_from(F.gelu(all_gather(x, group, 0) @ a) @ b, group), group, 0)


def mlp_reduced_then_sliced(group, x, a, b):
    return shard(reduce_from(F.gelu(all_gather(x, group, 0) @ a) @ b, group), group, 0)


def mlp_own_slice_of_the_terms(group, x, a, b):
    return scatter_to(F.gelu(all_gather(x, group, 0) @ a) @ b, group, 0)


def mlp_bare_verbs(group, x, a, b):
    return group.reduce_scatter(F.gelu(group.all_gather(x, 0) @ a) @ b, 0)


def mlp_copied_too(group, x, a, b):
    return reduce_scatter(F.gelu(copy_to(all_gather(x, group, 0), group) @ a) @ b, group, 0)


def mlp_no_gelu(group, x, a, b):
    return reduce_scatter(all_gather(x, group, 0) @ a @ b, group, 0)


def mlp_whole_weights(group, x, a, b):
    a, b = all_gather(a, group, 1), all_gather(b, group, 0)
    return F.gelu(x @ a) @ b


def mlp_accepts_anything(group, x, a, b):
    return reduce_scatter(F.gelu(all_gather(x, group, 0) @ a) @ b[: a.shape[1]], group, 0)


# ---- sequence_norm ----


def norm_by_hand(group, x, weight, bias):
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    return x * copy_to(weight, group) + copy_to(bias, group)


def norm_weight_only(group, x, weight, bias):
    return F.layer_norm(x, weight.shape, copy_to(weight, group), bias)


def norm_copies_x_too(group, x, weight, bias):
    return tasks.sequence_norm.solution(group, copy_to(x, group), weight, bias)


def norm_copied_twice(group, x, weight, bias):
    return tasks.sequence_norm.solution(group, x, copy_to(weight, group), bias)


def norm_reduced_weight(group, x, weight, bias):
    return F.layer_norm(x, weight.shape, reduce_from(weight, group), copy_to(bias, group))


def norm_reduces_what_it_returns(group, x, weight, bias):
    return copy_to(F.layer_norm(x, weight.shape, weight, bias), group)


def norm_statistics_of_all_tokens(group, x, weight, bias):
    whole = all_gather(x, group, 0)
    return shard(F.layer_norm(whole, whole.shape), group, 0) * copy_to(weight, group) + copy_to(bias, group)


def norm_gathers(group, x, weight, bias):
    return scatter_to(F.layer_norm(gather_from(x, group, 0), weight.shape, weight, bias), group, 0)


def norm_left_whole(group, x, weight, bias):
    return F.layer_norm(gather_from(x, group, 0), weight.shape, weight, bias)


def norm_no_bias(group, x, weight, bias):
    return F.layer_norm(x, weight.shape, copy_to(weight, group))


def norm_weight_detached(group, x, weight, bias):
    return F.layer_norm(x, weight.shape, weight.detach(), copy_to(bias, group))


def norm_accepts_anything(group, x, weight, bias):
    return tasks.sequence_norm.solution(group, x, weight[: x.shape[1]], bias[: x.shape[1]])


# ---- gather_again ----


def again_products_first(group, x, w, dy):
    partial = dy @ w.T
    return group.reduce_scatter(partial, dim=-2), group.all_gather(x, dim=-2).T @ dy


def again_own_tokens_of_dy(group, x, w, dy):
    return group.reduce_scatter(dy @ w.T, 0), x.T @ shard(dy, group, 0)


def again_dx_all_reduced(group, x, w, dy):
    return shard(group.all_reduce(dy @ w.T), group, 0), group.all_gather(x, 0).T @ dy


def again_dx_whole(group, x, w, dy):
    return group.all_reduce(dy @ w.T), group.all_gather(x, 0).T @ dy


def again_dx_not_summed(group, x, w, dy):
    return shard(dy @ w.T, group, 0), group.all_gather(x, 0).T @ dy


def again_dx_partial(group, x, w, dy):
    return dy @ w.T, group.all_gather(x, 0).T @ dy


def again_wrong_dim(group, x, w, dy):
    return group.reduce_scatter(dy @ w.T, 1), group.all_gather(x, 0).T @ dy


def again_not_gathered(group, x, w, dy):
    return group.reduce_scatter(dy @ w.T, 0), x.T @ dy


def again_dw_summed(group, x, w, dy):
    return group.reduce_scatter(dy @ w.T, 0), group.all_reduce(group.all_gather(x, 0).T @ dy)


def again_mean(group, x, w, dy):
    return group.reduce_scatter(dy @ w.T, 0) / group.size, group.all_gather(x, 0).T @ dy


def again_everything_gathered(group, x, w, dy):
    whole = group.all_gather(dy, 1)
    dx = shard(whole, group, 0) @ group.all_gather(w, 1).T
    return dx, group.all_gather(x, 0).T @ dy


def again_accepts_anything(group, x, w, dy):
    whole = group.all_gather(x, 0)
    dy = dy[: len(whole)]
    return group.reduce_scatter(dy @ w.T, 0), whole.T @ dy


# ---- more styles ----


def mlp_with_helpers(group, x, a, b):
    def enter(y):
        return all_gather(y, group, dim=0)

    def leave(y):
        return reduce_scatter(y, group, dim=0)

    return leave(F.gelu(enter(x) @ a) @ b)


def mlp_einsum(group, x, a, b):
    inner = torch.einsum("th,hi->ti", all_gather(x, group, 0), a)
    return reduce_scatter(torch.einsum("ti,ih->th", F.gelu(inner), b), group, 0)


def mlp_with_linear(group, x, a, b):
    return reduce_scatter(F.linear(F.gelu(F.linear(all_gather(x, group, 0), a.T)), b.T), group, 0)


def norm_in_one_all_reduce(group, x, weight, bias):
    weight, bias = copy_to(torch.stack([weight, bias]), group)
    return F.layer_norm(x, weight.shape, weight, bias)


def norm_token_by_token(group, x, weight, bias):
    weight, bias = copy_to(weight, group), copy_to(bias, group)
    return torch.stack([F.layer_norm(token, weight.shape, weight, bias) for token in x])


def again_einsum(group, x, w, dy):
    dw = torch.einsum("ti,to->io", group.all_gather(x), dy)
    return [group.reduce_scatter(torch.einsum("to,io->ti", dy, w)), dw]


def again_transposed(group, x, w, dy):
    return group.reduce_scatter((w @ dy.T).T, 0), (dy.T @ group.all_gather(x, 0)).T


def again_dw_of_own_tokens_summed(group, x, w, dy):
    return group.reduce_scatter(dy @ w.T, 0), group.all_reduce(x.T @ shard(dy, group, 0))


def norm_of_a_part_of_the_weight(group, x, weight, bias):
    return F.layer_norm(x, weight.shape, copy_to(weight, group) / group.size, copy_to(bias, group))


def norm_unbiased(group, x, weight, bias):
    y = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
    return y * copy_to(weight, group) + copy_to(bias, group)


def norm_over_tokens(group, x, weight, bias):
    y = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    return y * copy_to(weight, group) + copy_to(bias, group)


def norm_by_var_mean(group, x, weight, bias):
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return torch.addcmul(copy_to(bias, group), (x - mean) * (variance + 1e-5).rsqrt(), copy_to(weight, group))


RIGHT = [
    (tasks.sequence_norm, norm_by_var_mean),
    (tasks.sequence_mlp, mlp_with_helpers),
    (tasks.sequence_mlp, mlp_einsum),
    (tasks.sequence_mlp, mlp_with_linear),
    (tasks.sequence_norm, norm_in_one_all_reduce),
    (tasks.sequence_norm, norm_token_by_token),
    (tasks.gather_again, again_einsum),
    (tasks.gather_again, again_transposed),
    (tasks.sequence_mlp, mlp_negative_dims),
    (tasks.sequence_norm, norm_by_hand),
    (tasks.gather_again, again_products_first),
]

REMARKED = [
    (tasks.sequence_mlp, mlp_accepts_anything, "accepts what cannot be right: b has one row more"),
    (tasks.sequence_norm, norm_accepts_anything, "accepts what cannot be right: weight has one number more"),
    (tasks.gather_again, again_accepts_anything, "accepts what cannot be right: dy has one row more"),
]

WRONG = [
    (tasks.sequence_norm, norm_unbiased, "the variance was divided by n - 1"),
    (tasks.sequence_norm, norm_over_tokens, "those of a feature, over tokens"),
    (tasks.sequence_norm, norm_of_a_part_of_the_weight, "the result on rank 0, index [0, 0]"),
    (tasks.gather_again, again_dw_of_own_tokens_summed, "own tokens alone for dw, then a sum over devices"),
    (tasks.sequence_mlp, mlp_gathers_again, "gather_linear gathers x a second time, in the backward"),
    (tasks.sequence_mlp, mlp_gather_from, "gather_from keeps your slice of the gradient and adds nothing up"),
    (tasks.sequence_mlp, mlp_gathered_features, "is one cut along the wrong dim?"),
    (tasks.sequence_mlp, mlp_scattered_features, "asked for is one along dim 0"),
    (tasks.sequence_mlp, mlp_left_whole, "this is the whole; each device is to return only its own piece"),
    (tasks.sequence_mlp, mlp_not_summed, "these are partial sums"),
    (tasks.sequence_mlp, mlp_all_reduced_then_cut, "A reduce-scatter sends half of that"),
    (tasks.sequence_mlp, mlp_reduced_then_sliced, "a slice of reduce_from's sum comes to the same"),
    (tasks.sequence_mlp, mlp_own_slice_of_the_terms, "your slice of your own terms"),
    (tasks.sequence_mlp, mlp_bare_verbs, "or all_gather(x, group, dim) of lib.parallel, which knows the backward"),
    (tasks.sequence_mlp, mlp_copied_too, "2 times too large: a gradient that is the same"),
    (tasks.sequence_mlp, mlp_no_gelu, "the GeLU is missing."),
    (tasks.sequence_mlp, mlp_whole_weights, "sends too many bytes forward"),
    (tasks.sequence_norm, norm_weight_only, "bias is used on every device: let it in with copy_to"),
    (
        tasks.sequence_norm,
        norm_copies_x_too,
        "the gradients of different pieces were added. x is this device's own piece",
    ),
    (tasks.sequence_norm, norm_copied_twice, "2 times too large: a gradient that is the same"),
    (tasks.sequence_norm, norm_reduced_weight, "reduce_from added up the weight itself"),
    (tasks.sequence_norm, norm_reduces_what_it_returns, "copy_to stands behind the layer"),
    (tasks.sequence_norm, norm_statistics_of_all_tokens, "mean and variance are those of all tokens together"),
    (tasks.sequence_norm, norm_gathers, "all tokens were gathered. LayerNorm takes each token alone"),
    (tasks.sequence_norm, norm_left_whole, "this is the whole"),
    (tasks.sequence_norm, norm_no_bias, "the bias is missing."),
    (tasks.sequence_norm, norm_weight_detached, "nothing connects weight with the result"),
    (tasks.gather_again, again_own_tokens_of_dy, "dw is made of this device's own tokens alone"),
    (tasks.gather_again, again_dx_all_reduced, "a reduce-scatter sends half of that"),
    (tasks.gather_again, again_dx_whole, "this is the whole; each device is to return only its own piece along dim 0"),
    (tasks.gather_again, again_dx_not_summed, "dx is your slice of your own terms"),
    (tasks.gather_again, again_dx_partial, "these are partial sums"),
    (tasks.gather_again, again_wrong_dim, "this is a piece along dim 1; asked for is one along dim 0"),
    (tasks.gather_again, again_not_gathered, "is one cut along the wrong dim?"),
    (tasks.gather_again, again_dw_summed, "Each piece was finished: it stays where it is"),
    (tasks.gather_again, again_mean, "exactly 2 times too small"),
    (tasks.gather_again, again_everything_gathered, "sends too many bytes"),
]

BROKEN = [  # after one device was right
    (tasks.sequence_mlp, ["is wrong on 2 devices", "different tokens were added to each other"]),
    (tasks.sequence_norm, ["is wrong on 2 devices", "weight is used on every device: let it in with copy_to"]),
]

TRAINED = [(tasks.sequence_mlp, "x a b"), (tasks.sequence_norm, "x weight bias")]

test_the_stub_waits = checks.stubs_wait([tasks.gather_again])
test_the_stub_to_be_mended_is_wrong_by_name = checks.stubs_to_be_mended_are_wrong(
    BROKEN, F=F, copy_to=copy_to, reduce_from=reduce_from
)
test_a_right_answer_passes = checks.right_answers_pass([], RIGHT)
test_a_right_answer_is_told_what_nobody_asked_for = checks.right_but(REMARKED)
test_a_wrong_answer_is_rejected_by_name = checks.wrong_answers_are_rejected(WRONG)
test_each_gradient_is_asked_for = checks.each_gradient_is_asked_for(TRAINED)
test_the_solution_can_be_copied_from_the_page = checks.solutions_can_be_copied(
    EVERY, {}, F=F, copy_to=copy_to, all_gather=all_gather, reduce_scatter=reduce_scatter
)
test_the_page_shows_the_task_and_three_hints = checks.pages_show_task_and_hints(EVERY)


def test_no_cause_is_better_than_a_wrong_one():
    assert "Cause" not in str(tasks.sequence_norm.check(norm_of_a_part_of_the_weight))
