"""The exercises on ZeRO: stubs wait, right answers of several styles pass, typical mistakes are rejected by name."""

import exercise_checks as checks
import pytest
import torch
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from book.exercises import zero as tasks
from book.exercises.check.runs import SEED
from book.exercises.check.trials import trials
from lib import all_gather, copy_to, gather_from, reduce_from, reduce_scatter, shard

JUDGED = [tasks.zero_one, tasks.gather_and_use, tasks.clip_pieces]
EVERY = [*JUDGED, tasks.elements_sent]


def all_reduced(group, w, g, m):
    g = shard(group.all_reduce(g), group, 0)
    m = 0.9 * m + g
    return group.all_gather(shard(w, group, 0) - 0.1 * m), m


def not_gathered(group, w, g, m):
    g = group.reduce_scatter(g)
    m = 0.9 * m + g
    return shard(w, group, 0) - 0.1 * m, m


def mean_of_terms(group, w, g, m):
    g = group.reduce_scatter(g) / group.size
    m = 0.9 * m + g
    return group.all_gather(shard(w, group, 0) - 0.1 * m), m


def own_gradient(group, w, g, m):
    m = 0.9 * m + shard(g, group, 0)
    return group.all_gather(shard(w, group, 0) - 0.1 * m), m


def whole_state(group, w, g, m):
    g = group.all_gather(group.reduce_scatter(g))
    m = 0.9 * group.all_gather(m) + g
    return w - 0.1 * m, m


def gathers_state(group, w, g, m):
    g = group.reduce_scatter(g)
    m = 0.9 * m + g
    whole = group.all_gather(m)
    return w - 0.1 * whole, m


def zero_add_(group, w, g, m):
    new = group.reduce_scatter(g, dim=0).add(m, alpha=0.9)
    old = torch.tensor_split(w, group.size)[group.rank]
    return group.all_gather(torch.sub(old, new, alpha=0.1), dim=0), new


def zero_list(group, w, g, m):
    m = m * 0.9 + group.reduce_scatter(g)
    return [group.all_gather(shard(w, group, 0) - m / 10), m]


def zero_by_gradient(group, w, g, m):
    g = group.reduce_scatter(g)
    return group.all_gather(shard(w, group, 0) - 0.1 * g), 0.9 * m + g


def zero_by_old(group, w, g, m):
    g = group.reduce_scatter(g)
    return group.all_gather(shard(w, group, 0) - 0.1 * m), 0.9 * m + g


def zero_by_torch(group, w, g, m):
    mine = shard(w, group, 0).clone().requires_grad_()
    optimizer = torch.optim.SGD([mine], lr=0.1, momentum=0.9)
    mine.grad = group.reduce_scatter(g)
    optimizer.state[mine]["momentum_buffer"] = m.clone()
    optimizer.step()
    return group.all_gather(mine.detach()), optimizer.state[mine]["momentum_buffer"]


def zero_on_a_view(group, w, g, m):
    m = m.clone().mul_(0.9).add_(group.reduce_scatter(g))
    mine = shard(w.clone(), group, 0)
    mine -= 0.1 * m
    return group.all_gather(mine), m


def zero_swapped(group, w, g, m):
    m = 0.9 * m + group.reduce_scatter(g)
    return m, group.all_gather(shard(w, group, 0) - 0.1 * m)


def zero_whole_w(group, w, g, m):
    m = 0.9 * m + group.reduce_scatter(g)
    return w - 0.1 * m, m


def zero_forgets(group, w, g, m):
    g = group.reduce_scatter(g)
    return group.all_gather(shard(w, group, 0) - 0.1 * g), g


def zero_returns_old(group, w, g, m):
    new = 0.9 * m + group.reduce_scatter(g)
    return group.all_gather(shard(w, group, 0) - 0.1 * new), m


def zero_at_the_other_end(group, w, g, m):
    m = 0.9 * m + group.reduce_scatter(g)
    return group.all_gather(torch.tensor_split(w, group.size)[-1 - group.rank] - 0.1 * m), m


def zero_chunked(group, w, g, m):
    m = 0.9 * m + group.reduce_scatter(g)
    return group.all_gather(w.chunk(group.size)[group.rank] - 0.1 * m), m


def zero_in_place(group, w, g, m):
    m = 0.9 * m + group.reduce_scatter(g)
    mine = shard(w, group, 0)
    mine -= 0.1 * m
    return group.all_gather(mine), m


# ---- gather_and_use ----


class KeepsWhole(Function):
    """By hand, and the gathered weight is kept for the backward."""

    @staticmethod
    def forward(ctx, x, piece, group):
        w, ctx.group = group.all_gather(piece), group
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return dy @ w.T, ctx.group.reduce_scatter(x.T @ dy), None


class GathersAgain(KeepsWhole):
    """As the chapter has it: once more than needed here, which is told."""

    @staticmethod
    def forward(ctx, x, piece, group):
        ctx.group = group
        ctx.save_for_backward(x, piece)
        return x @ group.all_gather(piece)

    @staticmethod
    def backward(ctx, dy):
        x, piece = ctx.saved_tensors
        return dy @ ctx.group.all_gather(piece).T, ctx.group.reduce_scatter(x.T @ dy), None


def use_by_hand(group, x, w):
    return KeepsWhole.apply(x, w, group)


def use_again(group, x, w):
    return GathersAgain.apply(x, w, group)


def use_checkpoint(group, x, w):
    return checkpoint(lambda x, w: x @ all_gather(w, group, 0), x, w, use_reentrant=False)


def use_by_hook(group, x, w):
    whole = group.all_gather(w.detach()).requires_grad_()
    y = x.detach() @ whole

    class Joined(Function):
        """Two pieces of one graph, joined by hand."""

        @staticmethod
        def forward(ctx, x, w):
            return y.detach().clone()

        @staticmethod
        def backward(ctx, dy):
            return dy @ whole.detach().T, group.reduce_scatter(torch.autograd.grad(y, whole, dy)[0])

    return Joined.apply(x, w)


def use_nothing_gathered(group, x, w):
    return x @ w


def use_others_samples(group, x, w):
    return reduce_from(shard(x, group, 1) @ w, group)


class SlicesBackward(KeepsWhole):
    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return dy @ w.T, shard(x.T @ dy, ctx.group, 0), None


def use_sliced_by_hand(group, x, w):
    return SlicesBackward.apply(x, w, group)


def use_einsum(group, x, w):
    return torch.einsum("bi,io->bo", x, all_gather(w, group, dim=0))


def use_transposed(group, x, w):
    return (all_gather(w.T, group, dim=1) @ x.T).T


def use_slice(group, x, w):
    return x @ gather_from(w, group, 0)


def use_all_reduced(group, x, w):
    return x @ copy_to(gather_from(w, group, 0), group)


def use_verb(group, x, w):
    return x @ group.all_gather(w)


def use_detached(group, x, w):
    return x @ group.all_gather(w.detach())


def use_wrong_dim(group, x, w):
    return x @ all_gather(w, group, 1)


def use_own_rows(group, x, w):
    return shard(x, group, 1) @ w


def use_as_tensor_parallel(group, x, w):
    return reduce_scatter(shard(all_gather(x, group, 0), group, 1) @ w, group, 0)


def use_all_samples(group, x, w):
    return all_gather(x, group, 0) @ all_gather(w, group, 0)


def use_mean(group, x, w):
    whole = all_gather(w, group, 0)
    return x @ (whole / group.size + whole.detach() * (1 - 1 / group.size))


# ---- clip_pieces ----


def clip_by_vector_norm(group, g):
    squares = group.all_reduce(torch.linalg.vector_norm(g) ** 2)
    return g * min(1.0, 4.0 / float(squares.sqrt()))


def clip_with_if(group, g):
    norm = float(group.all_reduce((g * g).sum())) ** 0.5
    if norm > 4:
        return g * 4 / norm
    return g.clone()


def clip_all_norms(group, g):
    norms = group.all_gather(g.norm().reshape(1))
    return g / (norms.norm() / 4).clamp(min=1)


def clip_gathered(group, g):
    return g * (4 / group.all_gather(g).norm()).clamp(max=1)


def clip_own(group, g):
    return g * (4 / g.norm()).clamp(max=1)


def clip_by_torch(group, g):
    p = torch.nn.Parameter(torch.zeros_like(g))
    p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_([p], 4)
    return p.grad


def clip_sum_of_norms(group, g):
    return g * (4 / group.all_reduce(g.norm())).clamp(max=1)


def clip_mean_of_squares(group, g):
    return g * (4 / (group.all_reduce(g.square().sum()) / group.size).sqrt()).clamp(max=1)


def clip_mean_of_norms(group, g):
    return g * (4 / (group.all_reduce(g.norm()) / group.size)).clamp(max=1)


def clip_largest(group, g):
    return g * (4 / group.all_reduce(g.norm(), op="max")).clamp(max=1)


def clip_squared(group, g):
    return g * (4 / group.all_reduce(g.square().sum())).clamp(max=1)


def clip_always(group, g):
    return g * 4 / group.all_reduce(g.square().sum()).sqrt()


def clip_elements(group, g):
    return g.clamp(-4, 4)


def clip_if_own_is_large(group, g):
    if g.norm() > 4:
        g = g * 4 / group.all_reduce(g.square().sum()).sqrt()
    return g


def clip_in_place(group, g):
    norm = group.all_reduce(g.square().sum()).sqrt()
    return g.mul_((4 / norm).clamp(max=1))


def clip_nothing(group, g):
    return g.clone()


def clip_by_mean_square(group, g):
    return g * (4 / group.all_reduce(g.square().mean()).sqrt()).clamp(max=1)


def clip_own_decides(group, g):
    norm = group.all_reduce(g.square().sum()).sqrt()
    return g * 4 / norm if g.norm() > 4 else g


def clip_by_largest_element(group, g):
    return g * (4 / group.all_reduce(g.abs().max(), op="max")).clamp(max=1)


def clip_rows(group, g):
    return g * (4 / g.norm(dim=1, keepdim=True)).clamp(max=1)


def clip_to_one(group, g):
    norm = group.all_reduce(g.square().sum()).sqrt()
    return g / norm if norm > 4 else g


def clip_square_factor(group, g):
    return g * (16 / group.all_reduce(g.square().sum())).clamp(max=1)


# ---- elements_sent ----


def sent_in_floats(parameters, devices, stage, micro_batches):
    once, each = {1: (2, 0), 2: (1, 1), 3: (0, 3)}[stage]
    return (once + each * micro_batches) * parameters * (1 - 1 / devices)


def sent_by_stages(parameters, devices, stage, micro_batches):
    trip = parameters // devices * (devices - 1)
    if stage == 1:
        return trip + trip
    if stage == 2:
        return trip * micro_batches + trip
    return sum(trip for _ in range(micro_batches) for _ in ("gather", "gather again", "reduce"))


def sent_as_a_list(parameters, devices, stage, micro_batches):
    gathers = [0, 1, 1, 2 * micro_batches][stage]
    reductions = [0, 1, micro_batches, micro_batches][stage]
    return [(gathers + reductions) * (parameters - parameters // devices)]


RIGHT = [
    (tasks.zero_one, zero_add_),
    (tasks.zero_one, zero_list),
    (tasks.zero_one, gathers_state),
    (tasks.zero_one, zero_by_torch),
    (tasks.zero_one, zero_on_a_view),
    (tasks.gather_and_use, use_by_hand),
    (tasks.gather_and_use, use_by_hook),
    (tasks.gather_and_use, use_einsum),
    (tasks.gather_and_use, use_transposed),
    (tasks.clip_pieces, clip_by_vector_norm),
    (tasks.clip_pieces, clip_with_if),
    (tasks.clip_pieces, clip_all_norms),
]

WRONG = [
    (tasks.zero_one, zero_by_gradient, "w steps by the gradient; it is to step by the new momentum"),
    (tasks.zero_one, zero_by_old, "w steps by the old momentum"),
    (tasks.zero_one, all_reduced, "with all_reduce."),
    (tasks.zero_one, not_gathered, "The whole is needed"),
    (tasks.zero_one, mean_of_terms, "the terms are added. Nothing is to be divided"),
    (tasks.zero_one, own_gradient, "own term alone is in the step"),
    (tasks.zero_one, whole_state, "this is the whole; each device is to return only its own piece"),
    (tasks.gather_and_use, use_all_reduced, "A reduce-scatter sends half of that"),
    (tasks.gather_and_use, use_again, "as stage 3 proper does. Here the bytes are limited"),
    (tasks.gather_and_use, use_checkpoint, "as stage 3 proper does. Here the bytes are limited"),
    (tasks.zero_one, zero_swapped, "this is the new m. Asked for are the new w, the new m, in this order"),
    (tasks.zero_one, zero_whole_w, "Step your piece of w"),
    (tasks.zero_one, zero_forgets, "the old momentum is forgotten"),
    (tasks.zero_one, zero_returns_old, "this is the momentum as it was"),
    (tasks.zero_one, zero_at_the_other_end, "moved the piece of w at the other end"),
    (tasks.zero_one, zero_chunked, "These were cut with chunk"),
    (tasks.zero_one, zero_in_place, "changes its input w in place"),
    (tasks.gather_and_use, use_slice, "each device kept its rows of its own gradient of w"),
    (tasks.gather_and_use, use_sliced_by_hand, "each device kept its rows of its own gradient of w"),
    (tasks.gather_and_use, use_nothing_gathered, "w was not gathered: your rows"),
    (tasks.gather_and_use, use_others_samples, "terms of different samples were added"),
    (tasks.gather_and_use, use_verb, "all_gather"),
    (tasks.gather_and_use, use_detached, "nothing connects w with the result"),
    (tasks.gather_and_use, use_wrong_dim, "gathered along its columns"),
    (tasks.gather_and_use, use_own_rows, "w was not gathered. Your rows alone"),
    (tasks.gather_and_use, use_as_tensor_parallel, "That is tensor parallelism: gather w, and keep the samples"),
    (tasks.gather_and_use, use_all_samples, "this is the whole; each device is to return only its own piece"),
    (tasks.gather_and_use, use_mean, "A mean over samples belongs to the loss"),
    (tasks.clip_pieces, clip_own, "by the norm of its own piece"),
    (tasks.clip_pieces, clip_by_torch, "by the norm of its own piece"),
    (tasks.clip_pieces, clip_sum_of_norms, "Squares add up, norms do not"),
    (tasks.clip_pieces, clip_mean_of_squares, "depends on the number of devices"),
    (tasks.clip_pieces, clip_mean_of_norms, "the mean of the devices' norms is not the norm"),
    (tasks.clip_pieces, clip_largest, "the largest norm of a piece is not the norm of all pieces"),
    (tasks.clip_pieces, clip_squared, "this is the norm squared"),
    (tasks.clip_pieces, clip_always, "a norm below 4 stays as it is"),
    (tasks.clip_pieces, clip_elements, "The whole gradient is scaled by one factor"),
    (tasks.clip_pieces, clip_if_own_is_large, "no device can move"),
    (tasks.clip_pieces, clip_nothing, "nothing was clipped."),
    (tasks.clip_pieces, clip_by_mean_square, "A mean of squares is far below 4"),
    (tasks.clip_pieces, clip_own_decides, "each device asks whether the norm of its own piece"),
    (tasks.clip_pieces, clip_by_largest_element, "the largest |element| is not the norm"),
    (tasks.clip_pieces, clip_rows, "this is a norm for each row"),
    (tasks.clip_pieces, clip_to_one, "scaled to the norm 1"),
    (tasks.clip_pieces, clip_square_factor, "16 / squares is the factor's square"),
    (tasks.clip_pieces, clip_in_place, "changes its input g in place"),
]

REMARKED = [
    (tasks.clip_pieces, clip_gathered, "Right, but it sends more than it needs"),
]

test_the_stub_waits = checks.stubs_wait(EVERY)
test_a_right_answer_passes = checks.right_answers_pass([], RIGHT)
test_a_right_answer_is_told_what_nobody_asked_for = checks.right_but(REMARKED)
test_a_wrong_answer_is_rejected_by_name = checks.wrong_answers_are_rejected(WRONG)
test_each_gradient_is_asked_for = checks.each_gradient_is_asked_for([(tasks.gather_and_use, "x w")])
test_the_solution_can_be_copied_from_the_page = checks.solutions_can_be_copied(
    EVERY, {tasks.elements_sent.name: ""}, shard=shard, all_gather=all_gather
)
test_the_page_shows_the_task_and_three_hints = checks.pages_show_task_and_hints(EVERY)


@pytest.mark.parametrize("program", [sent_in_floats, sent_by_stages, sent_as_a_list])
def test_a_right_formula_passes(program):
    verdict = tasks.elements_sent.verdict(program)
    assert verdict.passed, verdict


@pytest.mark.parametrize(("sentence", "slip"), list(tasks.elements_sent.slips["elements sent"].items()))
def test_a_wrong_formula_is_rejected_by_name(sentence, slip):
    verdict = tasks.elements_sent.verdict(slip)
    assert not verdict.passed
    assert sentence in str(verdict), verdict


def test_clipping_is_tried_above_and_below_the_limit():
    norms = [float(t.inputs["g"].norm()) for t in trials(tasks.clip_pieces.inputs, tasks.clip_pieces.devices, SEED)]
    assert min(norms) < tasks.MOST < max(norms), norms
