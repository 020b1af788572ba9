"""The exercises on a Llama: stubs wait, solutions pass, typical mistakes are rejected by name."""

import exercise_checks as checks
import torch
from torch.nn import functional as F

from book.exercises import llama as tasks
from lib import copy_to, reduce_from, shard
from lib.parallel.llama.config import LLAMAS

EVERY = [tasks.rotate_own, tasks.gated_mlp, tasks.scores_of_shared_keys, tasks.cache_bytes, tasks.parameters]

# ---- rotate_own ----


def rotate_then_cut(group, x):
    """Turns everything, and keeps its own: nothing is wrong with it."""
    return shard(tasks.turned_in_order(x), group, 0)


def rotate_local(group, x):
    return tasks.turned_in_order(shard(x, group, 0))


def rotate_equal_pieces(group, x):
    mine = shard(x, group, 0)
    return tasks.turned(mine, group.rank * len(mine) + torch.arange(len(mine)))


def rotate_from_one(group, x):
    return shard(tasks.turned(x, 1 + torch.arange(len(x))), group, 0)


def rotate_backwards(group, x):
    return shard(tasks.turned(x, -torch.arange(len(x))), group, 0)


def rotate_neighbors(group, x):
    return shard(tasks.side_by_side(x), group, 0)


def rotate_all(group, x):
    return tasks.turned_in_order(x)


# ---- gated_mlp ----


def mlp_with(group, x, gate_up, down, act=lambda gate, up: F.silu(gate) * up, enter=copy_to):
    gate, up = (enter(x, group) @ tasks.own_of_both(gate_up, group).T).chunk(2, 1)
    return reduce_from(act(gate, up) @ shard(down, group, 1).T, group)


def mlp_in_two_products(group, x, gate_up, down):
    """Two weights and one entry: as good as the fused one."""
    entered = copy_to(x, group)
    gate, up = (entered @ shard(block, group, 0).T for block in gate_up.chunk(2))
    return reduce_from((F.silu(gate) * up) @ shard(down, group, 1).T, group)


def mlp_cut_as_one(group, x, gate_up, down):
    gate, up = (copy_to(x, group) @ shard(gate_up, group, 0).T).chunk(2, 1)
    return reduce_from((F.silu(gate) * up) @ shard(down, group, 1).T, group)


def mlp_of_two_layers(group, x, gate_up, down):
    """Each half enters for itself: twice the traffic backward."""
    gate, up = (copy_to(x, group) @ shard(block, group, 0).T for block in gate_up.chunk(2))
    return reduce_from((F.silu(gate) * up) @ shard(down, group, 1).T, group)


def mlp_without_f(group, *inputs):
    return mlp_with(group, *inputs, enter=lambda x, group: x)


def mlp_detached(group, x, *weights):
    return mlp_with(group, x.detach(), *weights)


def mlp_gates_up(group, *inputs):
    return mlp_with(group, *inputs, act=lambda gate, up: gate * F.silu(up))


def mlp_no_silu(group, *inputs):
    return mlp_with(group, *inputs, act=lambda gate, up: gate * up)


def mlp_silu_of_product(group, *inputs):
    return mlp_with(group, *inputs, act=lambda gate, up: F.silu(gate * up))


# ---- scores_of_shared_keys ----


def scores_one_head_at_a_time(group, q, k):
    keys = copy_to(k, group)
    return torch.stack([head @ keys.T for head in shard(q, group, 0)])


def scores_by_einsum(group, q, k):
    return torch.einsum("ntc,sc->nts", shard(q, group, 0), copy_to(k, group))


def scores_without_f(group, q, k):
    return shard(q, group, 0) @ k.T


def scores_summed_twice(group, q, k):
    once = copy_to(k, group)
    return (copy_to(once, group) @ shard(q, group, 0).mT).mT


def scores_of_all_heads(group, q, k):
    return q @ copy_to(k, group).T


def scores_divided(group, q, k):
    return shard(q, group, 0) @ copy_to(k, group).T / 2


def scores_of_detached_keys(group, q, k):
    return shard(q, group, 0) @ copy_to(k.detach(), group).T


# ---- formulas ----


def cache_of_queries(heads, kv_heads, devices, positions):
    return 32 * heads // devices * positions


def cache_of_cut_heads(heads, kv_heads, devices, positions):
    return int(32 * kv_heads / devices * positions)


def cache_of_all(heads, kv_heads, devices, positions):
    return 32 * kv_heads * positions


def cache_of_keys(heads, kv_heads, devices, positions):
    return 16 * max(1, kv_heads // devices) * positions


def count_two_matrices(layers, hidden, heads, kv_heads, inner, vocabulary):
    return tasks.parameters.solution(layers, hidden, heads, kv_heads, inner, vocabulary) - layers * hidden * inner


def count_all_heads(layers, hidden, heads, kv_heads, inner, vocabulary):
    return tasks.parameters.solution(layers, hidden, heads, heads, inner, vocabulary)


def count_tied(layers, hidden, heads, kv_heads, inner, vocabulary):
    return tasks.parameters.solution(layers, hidden, heads, kv_heads, inner, vocabulary) - vocabulary * hidden


def count_no_last_norm(layers, hidden, heads, kv_heads, inner, vocabulary):
    return tasks.parameters.solution(layers, hidden, heads, kv_heads, inner, vocabulary) - hidden


def count_no_norm(layers, hidden, heads, kv_heads, inner, vocabulary):
    whole = tasks.parameters.solution(layers, hidden, heads, kv_heads, inner, vocabulary)
    return whole - (2 * layers + 1) * hidden


def count_biases(layers, hidden, heads, kv_heads, inner, vocabulary):
    whole = tasks.parameters.solution(layers, hidden, heads, kv_heads, inner, vocabulary)
    return whole + (2 * layers + 1) * hidden


test_the_stub_waits = checks.stubs_wait(EVERY)
test_right_answers_pass = checks.right_answers_pass(
    [],
    [
        (tasks.rotate_own, rotate_then_cut),
        (tasks.gated_mlp, mlp_in_two_products),
        (tasks.scores_of_shared_keys, scores_one_head_at_a_time),
        (tasks.scores_of_shared_keys, scores_by_einsum),
    ],
)
test_wrong_answers_are_rejected = checks.wrong_answers_are_rejected(
    [
        (tasks.rotate_own, rotate_local, "every device counted its own tokens from 0"),
        (tasks.rotate_own, rotate_equal_pieces, "pieces may differ in length"),
        (tasks.rotate_own, rotate_from_one, "counted from 1"),
        (tasks.rotate_own, rotate_backwards, "turned the other way round"),
        (tasks.rotate_own, rotate_neighbors, "taken as neighbors"),
        (tasks.rotate_own, rotate_all, "the whole"),
        (tasks.gated_mlp, mlp_cut_as_one, "gate_up was cut as one"),
        (tasks.gated_mlp, mlp_without_f, "without copy_to"),
        (tasks.gated_mlp, mlp_detached, "loses the gradient"),
        (tasks.gated_mlp, mlp_of_two_layers, "too many bytes"),
        (tasks.gated_mlp, mlp_gates_up, "it was applied to the second"),
        (tasks.gated_mlp, mlp_no_silu, "there is no SiLU"),
        (tasks.gated_mlp, mlp_silu_of_product, "for the gate alone"),
        (tasks.scores_of_shared_keys, scores_without_f, "from its own heads only"),
        (tasks.scores_of_shared_keys, scores_summed_twice, "added up twice"),
        (tasks.scores_of_shared_keys, scores_of_all_heads, "the whole"),
        (tasks.scores_of_shared_keys, scores_divided, "the scores are divided"),
        (tasks.scores_of_shared_keys, scores_of_detached_keys, "loses the gradient"),
        (tasks.cache_bytes, cache_of_queries, "all heads were counted"),
        (tasks.cache_bytes, cache_of_cut_heads, "A head is not cut"),
        (tasks.cache_bytes, cache_of_all, "every device has all heads"),
        (tasks.cache_bytes, cache_of_keys, "a 2 is missing"),
        (tasks.parameters, count_two_matrices, "three matrices"),
        (tasks.parameters, count_all_heads, "kv_heads, not heads"),
        (tasks.parameters, count_tied, "a matrix of its own"),
        (tasks.parameters, count_no_last_norm, "the last norm is missing"),
        (tasks.parameters, count_no_norm, "the norms are missing"),
        (tasks.parameters, count_biases, "a weight and no bias"),
    ]
)
test_solutions_can_be_copied = checks.solutions_can_be_copied(
    EVERY,
    {"cache_bytes": "is right: the engine counted the same", "parameters": "is right: the model has the same"},
    torch=torch,
    F=F,
    copy_to=copy_to,
    reduce_from=reduce_from,
    shard=shard,
)
test_pages_show_task_and_hints = checks.pages_show_task_and_hints(EVERY)


def test_the_count_is_that_of_published_models():
    for name in "llama-2-7b", "llama-3-8b", "llama-3-405b":
        config = LLAMAS[name]
        sizes = (config.layers, config.hidden, config.heads, config.kv_heads, config.inner, config.vocabulary)
        assert tasks.parameters.solution(*sizes) == config.parameters
