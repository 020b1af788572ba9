"""The exercises on collectives: stubs wait or stop, solutions pass, each typical mistake is rejected by name."""

import exercise_checks as checks
import torch

from book.exercises import collectives as tasks
from lib import shard
from lib.devices import algorithms

EVERY = [tasks.all_reduce_in_two, tasks.ring_all_gather, tasks.tree_broadcast, tasks.normalize]
SENTENCES = {"tree_broadcast": "is right on 1, 2, 3, 4, 5 and 8 devices"}


def direct(group, x):
    return group.all_reduce(x)


def mean(group, x):
    return group.all_gather(group.reduce_scatter(x) / group.size)


def none(group, x):
    return x


def twice(group, x):
    return group.all_gather(group.reduce_scatter(group.all_gather(group.reduce_scatter(x))))


def only_scatter(group, x):
    return group.reduce_scatter(x)


def gathered_all(group, x):
    return sum(group.all_gather(x.unsqueeze(0)))


def wrong_dim(group, x):
    return group.all_gather(group.reduce_scatter(x, 0), 1)


def scatter_first(group, x):
    return group.reduce_scatter(group.all_gather(x))


def whole_round(group, x):
    a, b = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    ps = {group.rank: x}
    for _ in range(group.size - 1):
        known = torch.cat([ps[r] for r in sorted(ps)])
        group.send(known, a)
        group.recv(b)
    return known if group.size > 1 else x


def whole_round2(group, x):
    P, r = group.size, group.rank
    a, b = (r + 1) % P, (r - 1) % P
    have = [None] * P
    have[r] = x
    for _ in range(P - 1):
        for i in range(P):
            group.send(have[i] if have[i] is not None else x[:0], a)
        for i in range(P):
            got = group.recv(b)
            if len(got):
                have[i] = got
    return torch.cat(have)


def arrival(group, x):
    P, r = group.size, group.rank
    a, b = (r + 1) % P, (r - 1) % P
    out = [x]
    for _ in range(P - 1):
        group.send(out[-1], a)
        out.append(group.recv(b))
    return torch.cat(out)


def off_by_one(group, x):
    P, r = group.size, group.rank
    a, b = (r + 1) % P, (r - 1) % P
    out = [x] * P
    for s in range(P - 1):
        group.send(out[(r - s) % P], a)
        out[(r - s) % P] = group.recv(b)
    return torch.cat(out)


def verb(group, x):
    return group.all_gather(x)


def first_recv(group, x):
    P, r = group.size, group.rank
    a, b = (r + 1) % P, (r - 1) % P
    out = [x] * P
    for s in range(P - 1):
        out[(r - s - 1) % P] = group.recv(b)
        group.send(out[(r - s) % P], a)
    return torch.cat(out)


def one_too_many(group, x):
    P, r = group.size, group.rank
    a, b = (r + 1) % P, (r - 1) % P
    out = [x] * P
    for s in range(P):
        group.send(out[(r - s) % P], a)
        if s < P - 1:
            out[(r - s - 1) % P] = group.recv(b)
    return torch.cat(out)


def alone(group, x):
    return torch.cat([x] * group.size)


def loop(group, x):
    if group.rank == 0:
        for d in range(1, group.size):
            group.send(x, d)
        return x
    return group.recv(0)


def chain(group, x):
    if group.rank:
        x = group.recv(group.rank - 1)
    if group.rank + 1 < group.size:
        group.send(x, group.rank + 1)
    return x


def pow2(group, x):
    d = 1
    while d < group.size:
        if group.rank < d:
            group.send(x, group.rank + d)
        elif group.rank < 2 * d:
            x = group.recv(group.rank - d)
        d *= 2
    return x


def none2(group, x):
    return x


def verb2(group, x):
    return group.broadcast(x)


def rank0(group, x):
    return x if group.rank == 0 else None


def hyper(group, x):
    d = 1
    while d < group.size:
        p = group.rank ^ d
        if p < group.size:
            group.send(x, p)
            y = group.recv(p)
            x = torch.where(torch.tensor(group.rank < p), x, y)
        d *= 2
    return x


def own(group, x):
    largest = x.abs().max()
    return x / largest if largest > 2.5 else x


def always(group, x):
    return x / group.all_reduce(x.abs().max(), op="max")


def never(group, x):
    group.all_reduce(x.abs().max(), op="max")
    return x


def summed(group, x):
    largest = group.all_reduce(x.abs().max())
    return x / largest if largest > 2.5 else x


def gathers(group, x):
    largest = group.all_gather(x).abs().max()
    return x / largest if largest > 2.5 else x


def inplace(group, x):
    largest = group.all_reduce(x.abs().max(), op="max")
    if largest > 2.5:
        x /= largest
    return x


def straight_to_all(group, x):
    others = [rank for rank in range(group.size) if rank != group.rank]
    for rank in others:
        group.send(x, rank)
    return torch.cat([x if rank == group.rank else group.recv(rank) for rank in range(group.size)])


def along_columns(group, x):
    return group.all_gather(group.reduce_scatter(x, 1), 1)


def agreed_by_all_gather(group, x):
    largest = group.all_gather(x.abs().max().reshape(1)).max()
    return x / largest if largest > 2.5 else x


def only_one_calls(group, x):
    return group.all_gather(group.reduce_scatter(x)) if group.rank else x


def only_even(group, x):
    piece = group.reduce_scatter(x)
    whole = group.all_gather(piece)
    return whole.reshape(group.size, len(x) // group.size, -1).flatten(0, 1)


def backwards_round_the_ring(group, x):
    ahead, behind = (group.rank - 1) % group.size, (group.rank + 1) % group.size
    pieces = {group.rank: x}
    for hop in range(1, group.size):
        group.send(x, ahead)
        x = group.recv(behind)
        pieces[(group.rank + hop) % group.size] = x
    return torch.cat([pieces[rank] for rank in sorted(pieces)])


def ring_with_a_buffer(group, x):
    arrived = [x]
    for _ in range(group.size - 1):
        group.send(arrived[-1], (group.rank + 1) % group.size)
        arrived.append(group.recv((group.rank - 1) % group.size))
    return torch.cat([arrived[(group.rank - rank) % group.size] for rank in range(group.size)])


def in_two_transposed(group, x):
    return group.all_gather(group.reduce_scatter(x.T), 0).T


def in_two_flat(group, x):
    return group.all_gather(group.reduce_scatter(x.flatten())).view_as(x)


def tree_with_farthest_first(group, x):
    distance = 1 << (group.size - 1).bit_length()
    while distance > 1:
        distance //= 2
        if group.rank % (2 * distance) == 0 and group.rank + distance < group.size:
            group.send(x, group.rank + distance)
        elif group.rank % (2 * distance) == distance:
            x = group.recv(group.rank - distance)
    return x


def tree_by_rounds(group, x):
    for step in range((group.size - 1).bit_length()):
        known = 2**step
        if group.rank < known and group.rank + known < group.size:
            group.send(x.clone(), dst=group.rank + known)
        if known <= group.rank < 2 * known:
            x = group.recv(src=group.rank - known)
    return x


def normalize_by_where(group, x):
    largest = group.all_reduce(torch.maximum(x.max(), -x.min()), op="max")
    return torch.where(largest > 2.5, x / largest, x)


def normalize_by_clamp(group, x):
    largest = float(group.all_reduce(torch.linalg.vector_norm(x, ord=float("inf")), op="max"))
    return x / (largest if largest > 2.5 else 1)


def forgets_abs(group, x):
    largest = group.all_reduce(x.max(), op="max")
    return x / largest if largest > 2.5 else x


def each_asks_itself(group, x):
    mine = x.abs().max()
    largest = group.all_reduce(mine, op="max")
    return x / largest if mine > 2.5 else x


def normalize_by_vector_norm(group, x):
    largest = float(group.all_reduce(torch.linalg.vector_norm(x, ord=torch.inf), op="max"))
    return x / (largest if largest > 2.5 else 1)


def ring_by_recursion(group, x):
    def with_those_behind(piece, hops):
        if hops == 0:
            return [piece]
        group.send(piece, (group.rank + 1) % group.size)
        return [piece, *with_those_behind(group.recv((group.rank - 1) % group.size), hops - 1)]

    pieces = with_those_behind(x, group.size - 1)
    return torch.vstack([pieces[(group.rank - rank) % group.size] for rank in range(group.size)])


def tree_from_the_parent(group, x):
    ahead = 1
    if group.rank:
        parent = 1 << (group.rank.bit_length() - 1)
        x, ahead = group.recv(group.rank - parent), 2 * parent
    while group.rank + ahead < group.size:
        group.send(x, group.rank + ahead)
        ahead *= 2
    return x


def turned_round(group, x):
    largest = group.all_reduce(x.abs().max(), op="max")
    return x if largest > 2.5 else x / largest


def cut_off(group, x):
    return x.clamp(-2.5, 2.5)


def scaled_to_the_limit(group, x):
    largest = group.all_reduce(x.abs().max(), op="max")
    return 2.5 * x / largest if largest > 2.5 else x


def tree_received_for_nothing(group, x):
    distance = 1
    while distance < group.size:
        if group.rank < distance and group.rank + distance < group.size:
            group.send(x, group.rank + distance)
        elif distance <= group.rank < 2 * distance:
            group.recv(group.rank - distance)
        distance *= 2
    return x


def gathers_the_terms(group, x):
    return group.all_gather(x).reshape(group.size, *x.shape).sum(0)


def gathers_its_own_term(group, x):
    group.reduce_scatter(x)
    return group.all_gather(shard(x, group, 0))


def agrees_on_the_smallest(group, x):
    largest = group.all_reduce(x.abs().max(), op="min")
    return x / largest if largest > 2.5 else x


RIGHT = [
    (tasks.normalize, agreed_by_all_gather),
    (tasks.normalize, normalize_by_vector_norm),
    (tasks.ring_all_gather, ring_by_recursion),
    (tasks.tree_broadcast, tree_from_the_parent),
    (tasks.ring_all_gather, backwards_round_the_ring),
    (tasks.ring_all_gather, ring_with_a_buffer),
    (tasks.all_reduce_in_two, in_two_transposed),
    (tasks.all_reduce_in_two, in_two_flat),
    (tasks.tree_broadcast, tree_with_farthest_first),
    (tasks.tree_broadcast, tree_by_rounds),
    (tasks.normalize, normalize_by_where),
    (tasks.normalize, normalize_by_clamp),
    (tasks.all_reduce_in_two, along_columns),
    (tasks.ring_all_gather, algorithms.ring_all_gather),
    (tasks.tree_broadcast, algorithms.tree_broadcast),
]
REMARKED = [
    (tasks.normalize, gathers, "it sends more than it needs"),
    (tasks.tree_broadcast, hyper, "768 bytes sent, 384 are enough"),
]

WRONG = [
    (tasks.normalize, agrees_on_the_smallest, "the smallest of the devices' largest |elements| was taken"),
    (tasks.normalize, turned_round, "it is the other way round"),
    (tasks.normalize, scaled_to_the_limit, "all numbers are 2.5 times what they should be"),
    (tasks.normalize, cut_off, "too large elements were cut off at 2.5"),
    (tasks.tree_broadcast, tree_received_for_nothing, "what arrived was not used"),
    (tasks.all_reduce_in_two, gathers_the_terms, "the terms were gathered whole"),
    (tasks.all_reduce_in_two, gathers_its_own_term, "not the finished ones"),
    (tasks.ring_all_gather, straight_to_all, "but not round the ring"),
    (tasks.ring_all_gather, straight_to_all, "Rank 0 sent to rank 2. On a ring it has two neighbors, 3 and 1"),
    (tasks.normalize, forgets_abs, "the largest element is not the largest |element|"),
    (tasks.normalize, each_asks_itself, "each device asks whether its own largest is above 2.5"),
    (tasks.all_reduce_in_two, direct, "with all_reduce."),
    (tasks.all_reduce_in_two, mean, "exactly 2 times too small: a mean where the sum is needed?"),
    (tasks.all_reduce_in_two, none, "these are partial sums, and together they are right"),
    (tasks.all_reduce_in_two, twice, "reduced twice?"),
    (tasks.all_reduce_in_two, only_scatter, "rank 0's own piece along dim 0. The whole is needed"),
    (tasks.all_reduce_in_two, gathered_all, "sends too many bytes"),
    (tasks.all_reduce_in_two, wrong_dim, "the right pieces, joined along dim 1 instead of dim 0"),
    (tasks.all_reduce_in_two, scatter_first, "is wrong on 2 devices"),
    (tasks.all_reduce_in_two, only_one_calls, "1 of 2 wait for something that will never happen"),
    (tasks.all_reduce_in_two, only_even, "with x (9, 5)"),
    (tasks.ring_all_gather, whole_round, "rank 0's own piece"),
    (tasks.ring_all_gather, whole_round2, "rank 0: 432 bytes sent, 288 are enough"),
    (tasks.ring_all_gather, arrival, "in the wrong order: [1, 0] instead of rank order"),
    (tasks.ring_all_gather, off_by_one, "is wrong on 2 devices"),
    (tasks.ring_all_gather, verb, "with all_gather."),
    (tasks.ring_all_gather, first_recv, "all wait to receive before anyone has sent"),
    (tasks.ring_all_gather, one_too_many, "what nobody received"),
    (tasks.ring_all_gather, alone, "no device sent anything"),
    (tasks.tree_broadcast, loop, "3 messages go one after the other; 2 are enough"),
    (tasks.tree_broadcast, chain, "3 messages go one after the other; 2 are enough"),
    (tasks.tree_broadcast, pow2, "dst=3 is not in the group"),
    (tasks.tree_broadcast, none2, "nothing was sent to them"),
    (tasks.tree_broadcast, verb2, "with broadcast."),
    (tasks.tree_broadcast, rank0, "only rank 0 has it"),
    (tasks.normalize, own, "every device divides by the largest |element| of its own piece"),
    (tasks.normalize, always, "it is divided always"),
    (tasks.normalize, never, "it is never divided"),
    (tasks.normalize, summed, "the largest |elements| of all devices were added up"),
    (tasks.normalize, inplace, "changes its input x in place"),
]

BROKEN = [
    (tasks.normalize, ["stops on 3 devices", "1 of 3 wait", "all_reduce(op='max') in group", "(has ended)"]),
]

test_the_stub_waits = checks.stubs_wait(EVERY[:3])
test_the_stub_to_be_mended_is_wrong_by_name = checks.stubs_to_be_mended_are_wrong(BROKEN)
test_a_right_answer_passes = checks.right_answers_pass([], RIGHT, SENTENCES)
test_a_right_answer_is_told_what_nobody_asked_for = checks.right_but(REMARKED)
test_a_wrong_answer_is_rejected_by_name = checks.wrong_answers_are_rejected(WRONG)
test_the_solution_can_be_copied_from_the_page = checks.solutions_can_be_copied(EVERY, SENTENCES, torch=torch)
test_the_page_shows_the_task_and_three_hints = checks.pages_show_task_and_hints(EVERY)


def test_steps_are_named_when_they_are_few_enough():
    assert "Steps: no more than needed." in str(tasks.tree_broadcast.check(tasks.tree_broadcast.solution))


def test_terms_add_up_and_differ():
    from book.exercises.check.trials import hand_over
    from lib import Partial

    whole = torch.randn(4, 3, dtype=torch.float64)
    for parts in 1, 2, 3:
        terms = hand_over(whole, Partial(), parts)
        assert len(terms) == parts
        torch.testing.assert_close(sum(terms), whole, rtol=0, atol=1e-14)
        assert parts == 1 or not torch.equal(terms[0], terms[1])


def test_no_cause_is_better_than_a_wrong_one():
    assert "Cause" not in str(tasks.normalize.check(lambda group, x: x.cos()))
