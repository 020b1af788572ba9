"""What is known of mistakes: each known program is told its own sentence; causes that need no exercise."""

import importlib
import math
import pkgutil

import exercise_checks as checks
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from book import exercises
from book.exercises import attention, collectives, context, experts, llama, sharding, tensor
from book.exercises.check.counting import Counting
from book.exercises.check.exercise import Exercise
from book.exercises.check.shown import Shown
from lib import copy_to, reduce_from, shard

ROOMS = [importlib.import_module(f"book.exercises.{room.name}") for room in pkgutil.iter_modules(exercises.__path__)]
TASKS = [task for room in ROOMS for task in vars(room).values() if isinstance(task, Shown)]
EVERY = [task for task in TASKS if isinstance(task, Exercise)]


def programs_of(task):
    """(sentence, program): a known mistake of a count has the other counts right."""
    if not isinstance(task, Counting):
        yield from task.slips.items()
        return
    for at, name in enumerate(task.returns):
        for sentence, slip in task.slips.get(name, {}).items():

            def program(*case, at=at, slip=slip):
                given = task.solution(*case)
                numbers = list(given) if isinstance(given, tuple) else [given]
                return [*numbers[:at], slip(*case), *numbers[at + 1 :]]

            yield sentence, program


@pytest.mark.parametrize("task", TASKS, ids=checks.name_of)
def test_every_known_program_is_told_its_own_sentence(task):
    for sentence, slip in programs_of(task):
        verdict = task.check(lambda *given, slip=slip: slip(*given))
        assert sentence in str(verdict), verdict


class Narrow(TorchDispatchMode):
    """Refuses numbers of fewer digits than float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        narrow = isinstance(made, torch.Tensor) and made.is_floating_point() and made.dtype != torch.float64
        assert not narrow, f"{function} makes {made.dtype}"
        return made


@pytest.mark.parametrize("task", EVERY, ids=checks.name_of)
def test_what_is_right_is_counted_in_float64_so_that_no_right_answer_is_blamed_for_a_float32(task):
    for trial in task.trials:
        with Narrow():
            task.oracle(*trial.inputs.values())
    assert "float32" not in str(task.check(task.solution, required=True))


def column_in_zeros(group, x, w):
    each = w.shape[1] // group.size
    mine = slice(group.rank * each, (group.rank + 1) * each)
    y = x.new_zeros(len(x), w.shape[1])
    y[:, mine] = x @ w[:, mine]
    return group.all_reduce(y)


def heads_not_added(group, q, k, v, wo):
    return reduce_from(F.scaled_dot_product_attention(q, k, v, is_causal=True) @ wo, group)


def heads_averaged(group, q, k, v, wo):
    return reduce_from((F.scaled_dot_product_attention(q, k, v, is_causal=True) @ wo).mean(0), group)


def loss_averaged(group, *inputs):
    loss, gradient = tensor.cross_entropy.solution(group, *inputs)
    return loss.mean(), gradient


def loss_turned(group, *inputs):
    loss, gradient = tensor.cross_entropy.solution(group, *inputs)
    return -loss, gradient


def merged_without_the_maximum(group, out_a, lse_a, out_b, lse_b):
    lse = (lse_a.exp() + lse_b.exp()).log()
    return out_a * (lse_a - lse).exp()[:, None] + out_b * (lse_b - lse).exp()[:, None], lse


test_causes_that_need_no_exercise = checks.wrong_answers_are_rejected(
    [
        (sharding.column_forward, column_in_zeros, "the last 1 along dim 1 are 0: length // P drops"),
        (attention.heads_to_output, heads_not_added, "these are terms: added up over dim 0 they are right"),
        (attention.heads_to_output, heads_averaged, "all numbers are 0.2 times what they should be"),
        (tensor.cross_entropy, loss_averaged, "the right numbers, averaged over dim 0: the shape (2,) is asked for"),
        (tensor.cross_entropy, loss_turned, "the sign is turned"),
        (context.merge_parts, merged_without_the_maximum, "is inf, as of all above 709"),  # the first result is 0
    ]
)


def mlp_with(between, behind=lambda z: z):
    return lambda group, x, a, a_bias, b, b_bias: behind(
        reduce_from(between(copy_to(x, group) @ a + a_bias) @ b, group) + b_bias
    )


def backward_through(factor):
    def program(group, x, a, b, dz):
        h = x @ a
        dh = (dz @ b.T) * factor(h)
        return group.all_reduce(dh @ a.T), x.T @ dh, h.relu().T @ dz

    return program


def token_as_row(group, tokens, table, own):
    here = torch.isin(tokens, own)
    return reduce_from(table[tokens.clamp(max=len(table) - 1)] * here[:, None], group)


def by_own_column(group, x):
    largest = group.all_reduce(x.abs().amax(0), op="max")
    return torch.where(largest > 2.5, x / largest, x)


def qkv_head_by_head(group, x, w):
    blocks = shard(w.unflatten(0, (-1, 3, 4)), group, 0)
    return tuple((x @ blocks.flatten(0, 2).T).unflatten(1, (-1, 3, 4)).permute(2, 1, 0, 3))


def next_with(scale=math.sqrt, exchanged=False):
    def program(group, x, wq, wk, wv, wo, keys, values):
        if exchanged:
            wk, wv = wv, wk
        keys = torch.cat([keys, (wk @ x)[:, None]], 1)
        values = torch.cat([values, (wv @ x)[:, None]], 1)
        scores = (wq @ x)[:, None] @ keys.transpose(1, 2) / scale(wq.shape[1])
        return group.all_reduce((scores.softmax(2) @ values @ wo).sum((0, 1))), keys, values

    return program


def merged_upside_down(group, out_a, lse_a, out_b, lse_b):
    lse = torch.logaddexp(lse_a, lse_b)
    return out_a * (lse - lse_a).exp()[:, None] + out_b * (lse - lse_b).exp()[:, None], lse


def gated_with(join):
    def program(group, x, gate_up, down):
        mine = torch.cat([shard(block, group, 0) for block in gate_up.chunk(2)])
        gate, up = (copy_to(x, group) @ mine.T).chunk(2, 1)
        return reduce_from(join(gate, up) @ shard(down, group, 1).T, group)

    return program


def turned_with(base, power=1):
    def program(group, x):
        mine, places = shard(x, group, 0), shard(torch.arange(len(x)), group, 0)
        planes = x.shape[1] // 2
        angles = places[:, None] / base ** (power * torch.arange(planes, dtype=x.dtype) / planes)
        a, b = mine.chunk(2, 1)
        return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], 1)

    return program


def balanced_by(divide):
    def program(group, probability, expert):
        count = probability.shape[1]
        rows = torch.bincount(expert.flatten(), minlength=count).to(probability)
        rows, sums = group.all_reduce(torch.stack([rows, probability.sum(0)]))
        return count * (rows / rows.sum() * divide(sums, rows.sum())).sum()

    return program


test_formulas_of_the_exercises = checks.wrong_answers_are_rejected(
    [
        (tensor.mlp, mlp_with(lambda h: h, F.gelu), "the GeLU stands after b"),
        (tensor.mlp, mlp_with(F.silu), "this is SiLU; GeLU was asked for"),
        (tensor.mlp_backward, backward_through(torch.relu), "times 1, not times relu(x a)"),
        (tensor.mlp_backward, backward_through(lambda h: h < 0), "the wrong half comes through"),
        (tensor.embed, token_as_row, "a token's number is not its row in the own table"),
        (
            sharding.two_layers,
            lambda group, x, a, b: reduce_from(F.gelu(copy_to(x, group) @ a) @ b, group),
            "this is GeLU",
        ),
        (collectives.normalize, by_own_column, "each column was divided by its own largest"),
        (attention.fused_qkv, qkv_head_by_head, "w is read as [query, key, value of head 0"),
        (attention.next_token, next_with(float), "divided by the head size itself"),
        (attention.next_token, next_with(exchanged=True), "the new key and the new value are exchanged"),
        (context.merge_parts, merged_upside_down, "the weights are upside down"),
        (llama.gated_mlp, gated_with(lambda gate, up: gate.sigmoid() * up), "this is the sigmoid alone"),
        (llama.gated_mlp, gated_with(lambda gate, up: F.gelu(gate) * up), "this is GeLU; SiLU was asked for"),
        (llama.gated_mlp, gated_with(lambda gate, up: F.silu(gate) + up), "gate and up were added"),
        (llama.rotate_own, turned_with(100, power=2), "the base is 100, and the exponent i / planes"),
        (llama.rotate_own, turned_with(10_000), "the base is 100, and the exponent i / planes"),
        (llama.rotate_own, turned_with(0.01), "turns by the position DIVIDED by 100^(i / planes)"),
        (experts.balance, balanced_by(lambda sums, rows: sums / rows), "there are half as many as rows"),
        (experts.balance, balanced_by(lambda sums, rows: sums), "divide the sum of the probabilities"),
    ]
)
