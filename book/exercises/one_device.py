"""The exercises of the chapter "Why one device is not enough". Each function is a solution: read it after your own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from book.exercises.check.counting import counting
from lib.costs.compute import six_n_d
from lib.costs.money import HOUR, TrainingRun
from lib.costs.zero import zero_bytes


def flops_of_a_layer(tokens: int, hidden: int, heads: int, kv_heads: int, inner: int) -> tuple[int]:
    """What PyTorch counts while one layer runs forward."""
    head = hidden // heads
    with torch.device("meta"):
        sizes = {"q": hidden, "k": kv_heads * head, "v": kv_heads * head, "o": hidden}
        attention = {name: nn.Linear(hidden, size, bias=False) for name, size in sizes.items()}
        gate, up, down = nn.Linear(hidden, inner), nn.Linear(hidden, inner), nn.Linear(inner, hidden)
        x = torch.empty(1, tokens, hidden)
        with FlopCounterMode(display=False) as counter:
            q, k, v = (attention[name](x).unflatten(-1, (-1, head)).transpose(1, 2) for name in "qkv")
            k, v = (each.repeat_interleave(heads // kv_heads, 1) for each in (k, v))
            y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
            x = x + attention["o"](y.transpose(1, 2).flatten(2))
            down(F.silu(gate(x)) * up(x))
    return (counter.get_total_flops(),)


def _layer(tokens: int, hidden: int, heads: int, kv_heads: int, inner: int, matrices: int = 3) -> int:
    projections = 2 * tokens * hidden * (2 * hidden + 2 * hidden * kv_heads // heads)
    return projections + 4 * tokens**2 * hidden + 2 * tokens * matrices * hidden * inner


@counting(
    oracle=flops_of_a_layer,
    returns=("FLOPs",),
    counted="PyTorch counted",
    cases=((64, 32, 4, 4, 96), (96, 64, 8, 2, 160), (17, 48, 6, 1, 128)),
    slips={
        "FLOPs": {
            "the MLP has three matrices, since it is gated: gate, up and down.": (
                lambda *sizes: _layer(*sizes, matrices=2)
            ),
            "keys and values have fewer heads than queries: their matrices are smaller.": (
                lambda tokens, hidden, heads, kv_heads, inner: _layer(tokens, hidden, heads, heads, inner)
            ),
            "a multiplication and an addition are two FLOPs.": lambda *sizes: _layer(*sizes) // 2,
            "the scores are left out: queries times keys, and weights times values.": (
                lambda tokens, hidden, *rest: _layer(tokens, hidden, *rest) - 4 * tokens**2 * hidden
            ),
            "the scores count whole, and twice: queries times keys, and weights times values.": (
                lambda tokens, hidden, *rest: _layer(tokens, hidden, *rest) - 2 * tokens**2 * hidden
            ),
            "the output projection is forgotten.": (
                lambda tokens, hidden, *rest: _layer(tokens, hidden, *rest) - 2 * tokens * hidden**2
            ),
            "every query head has scores, also where heads share keys.": (
                lambda tokens, hidden, heads, kv_heads, inner: (
                    _layer(tokens, hidden, heads, kv_heads, inner)
                    - 4 * tokens**2 * (hidden - hidden // heads * kv_heads)
                )
            ),
            "keys and values are two matrices; one of them is missing.": (
                lambda tokens, hidden, heads, kv_heads, inner: (
                    _layer(tokens, hidden, heads, kv_heads, inner) - 2 * tokens * hidden * (hidden // heads * kv_heads)
                )
            ),
            "this is the whole step: the forward alone was asked for.": lambda *sizes: 3 * _layer(*sizes),
        }
    },
    hints=(
        "Seven matrices and two products of activations. A product of (m, k) and (k, n) is 2 m k n FLOPs.",
        "The matrices are (hidden, hidden) for queries and output, (hidden, kv_heads * head) for keys and for values, "
        "and three of hidden x inner. How large are the two products without weights, for all heads together?",
        "For each head, scores are (tokens, head) times (head, tokens), and the weights times V as much again: for all "
        "heads 4 * tokens**2 * hidden.",
    ),
)
def layer_flops(tokens: int, hidden: int, heads: int, kv_heads: int, inner: int) -> int:
    """The FLOPs of the matrix products of one forward pass of a Llama layer over one text.

    The MLP is gated; `heads` heads of hidden // heads numbers share `kv_heads` heads of keys and values.
    """
    keys = kv_heads * (hidden // heads)
    projections = 2 * tokens * hidden * (hidden + keys + keys + hidden)
    scores = 2 * 2 * tokens * tokens * hidden
    return projections + scores + 3 * 2 * tokens * hidden * inner


def state_of(parameters: int, devices: int, zero: int) -> tuple[int, int, int]:
    state = zero_bytes(parameters, devices, zero)
    return int(state.parameters), int(state.gradients), int(state.optimizer)


def _each(size: int, *stages: int) -> Callable[[int, int, int], int]:
    """`size` bytes for each parameter, divided by the devices at these stages."""
    return lambda parameters, devices, zero: size * parameters // (devices if zero in stages else 1)


@counting(
    oracle=state_of,
    returns=("bytes of parameters", "bytes of gradients", "bytes of the optimizer"),
    counted="the formula of lib/costs/zero.py says",
    cases=((4_000, 4, 0), (4_000, 4, 1), (8_000, 8, 2), (8_000, 2, 3)),
    slips={
        "bytes of parameters": {
            "these are 4 bytes each; the weights have 16 bits, and the master weights belong to the optimizer.": (
                _each(4, 3)
            ),
            "these are 6 bytes each: the master weights are counted here. They belong to the optimizer.": _each(6, 3),
            "the master weights are counted here, and divided from stage 1 on. They belong to the optimizer.": (
                lambda parameters, devices, zero: (
                    _each(2, 3)(parameters, devices, zero) + _each(4, 1, 2, 3)(parameters, devices, zero)
                )
            ),
            "16 each are bits, or all three together. The weights have 2 bytes each.": _each(16, 3),
            "this is 1 byte each; 16 bits are 2 bytes.": _each(1, 3),
            "stage 3 divides the parameters.": _each(2),
            "only stage 3 divides the parameters.": _each(2, 0, 1, 2, 3),
            "stage 2 does not divide the parameters yet.": _each(2, 2, 3),
            "stages 1 and 2 do not divide the parameters yet.": _each(2, 1, 2, 3),
            "the stages go the other way: stage 3 divides the parameters, and stage 1 the optimizer's state.": (
                _each(2, 1)
            ),
        },
        "bytes of gradients": {
            "gradients are forgotten.": lambda *sizes: 0,
            "these are 4 bytes each; the gradients have 16 bits here, as the weights.": _each(4, 2, 3),
            "stages 0 and 1 do not divide the gradients yet.": _each(2, 0, 1, 2, 3),
            "stage 1 does not divide the gradients yet.": _each(2, 1, 2, 3),
            "stage 2 divides the gradients already.": _each(2, 3),
            "what stage 2 divides, stage 3 divides as well: the gradients.": _each(2, 2),
            "stages 2 and 3 divide the gradients.": _each(2),
        },
        "bytes of the optimizer": {
            "the master weights are missing: 4 bytes beside momentum and variance.": _each(8, 1, 2, 3),
            "this is one number of 4 bytes; momentum, variance and master weights are three.": _each(4, 1, 2, 3),
            "these are 2 bytes each; momentum, variance and master weights are float32.": _each(6, 1, 2, 3),
            "weights and gradients are counted again; 12 bytes are momentum, variance and master weights.": (
                _each(16, 1, 2, 3)
            ),
            "the master weights are divided too, as momentum and variance are.": lambda parameters, devices, zero: (
                4 * parameters + _each(8, 1, 2, 3)(parameters, devices, zero)
            ),
            "momentum and variance are divided too, as the master weights are.": lambda parameters, devices, zero: (
                8 * parameters + _each(4, 1, 2, 3)(parameters, devices, zero)
            ),
            "from stage 1 on each device keeps the state of its own share only.": _each(12),
            "stage 0 divides nothing.": _each(12, 0, 1, 2, 3),
            "stage 1 divides the optimizer's state already.": _each(12, 2, 3),
            "stages 1 and 2 divide the optimizer's state already.": _each(12, 3),
            "what stage 1 divides, stages 2 and 3 divide as well: the optimizer's state.": _each(12, 1),
        },
    },
    hints=(
        "Per parameter: 2 bytes for the weight, 2 for its gradient, 12 for the optimizer. Which of them does each "
        "stage of ZeRO divide?",
        "Stage 1 divides the optimizer's, stage 2 the gradients too, stage 3 the weights too.",
        "share = parameters // devices; then 2 * (share if zero >= 3 else parameters), and so on.",
    ),
)
def state_bytes(parameters: int, devices: int, zero: int) -> tuple[int, int, int]:
    """Bytes of parameters, gradients and optimizer (with master weights) on each of `devices`, at stage `zero`."""
    share = parameters // devices
    return (
        2 * (share if zero >= 3 else parameters),
        2 * (share if zero >= 2 else parameters),
        12 * (share if zero >= 1 else parameters),
    )


def by_trying(memory: int, state: int, per_text: int, logits: int) -> tuple[int]:
    """One text more, as long as it fits."""
    texts = 0
    while state + (texts + 1) * (per_text + logits) <= memory:
        texts += 1
    return (texts,)


@counting(
    oracle=by_trying,
    returns=("texts",),
    counted="by trying one text more at a time, there fit",
    cases=((100, 40, 7, 3), (100, 40, 7, 5), (80, 90, 7, 3), (60, 60, 5, 1), (1_000, 128, 9, 0)),
    slips={
        "texts": {
            "the state takes its place too.": lambda memory, state, per_text, logits: memory // (per_text + logits),
            "every text brings its logits.": lambda memory, state, per_text, logits: max(0, memory - state) // per_text,
            "the logits come with every text, not once.": (
                lambda memory, state, per_text, logits: max(0, memory - state - logits) // per_text
            ),
            "half a text does not fit: round down.": (
                lambda memory, state, per_text, logits: -(-(memory - state) // (per_text + logits))
            ),
            "half a text does not fit: round down to a whole number.": (
                lambda memory, state, per_text, logits: max(0, (memory - state) / (per_text + logits))
            ),
            "where not one text fits, the answer is 0.": (
                lambda memory, state, per_text, logits: max(1, (memory - state) // (per_text + logits))
            ),
            "fewer than no text cannot be: return 0.": (
                lambda memory, state, per_text, logits: (memory - state) // (per_text + logits)
            ),
        }
    },
    hints=(
        "What is left for the texts when the state has its place?",
        "Each text needs per_text + logits. Half a text does not train.",
        "max(0, (memory - state) // (per_text + logits))",
    ),
)
def largest_batch(memory: int, state: int, per_text: int, logits: int) -> int:
    """How many texts fit: `state` bytes are always there, each text adds `per_text` and, for the loss, `logits`."""
    return max(0, (memory - state) // (per_text + logits))


def priced(parameters: int, tokens: int, devices: int, teraflops: int, cents: int) -> tuple[int, int]:
    run = TrainingRun(six_n_d(parameters * 1e9, tokens * 1e9), devices, teraflops * 1e12, 1.0)
    hours = -int(-run.seconds // HOUR)
    return hours, hours * devices * cents // 100


def _hours(flops: int, parameters: int, tokens: int, devices: int, teraflops: int) -> int:
    return -(-flops * parameters * tokens * 10**6 // (devices * teraflops * 3600))


@counting(
    oracle=priced,
    returns=("hours", "dollars"),
    counted="the formula of lib/costs/money.py says",
    cases=(
        (7, 140, 64, 300, 200),
        (70, 1_400, 512, 400, 250),
        (1, 20, 8, 120, 100),
        (3, 24, 4, 100, 200),  # a whole number of hours: 300
        (1, 20, 3, 125, 134),  # cents are left over, more than half a dollar
    ),
    slips={
        "hours": {
            "the backward is left out: it is two forwards more, 6 FLOPs per parameter and token in all.": (
                lambda p, t, d, f, c: _hours(2, p, t, d, f)
            ),
            "this counts the recomputation of every layer; there is none.": lambda p, t, d, f, c: _hours(8, p, t, d, f),
            "this is what one device would take.": lambda p, t, d, f, c: _hours(6, p, t, 1, f),
            "a whole hour needs no other: rounding up leaves it as it is.": (
                lambda p, t, d, f, c: 6 * p * t * 10**6 // (d * f * 3600) + 1
            ),
            "these are dollars: the two results are swapped.": (
                lambda p, t, d, f, c: _hours(6, p, t, d, f) * d * c // 100
            ),
            "round up to whole hours.": lambda p, t, d, f, c: 6 * p * t * 10**6 / (d * f * 3600),
            "round up: an hour that has begun is paid.": lambda p, t, d, f, c: 6 * p * t * 10**6 // (d * f * 3600),
            "these are seconds.": lambda p, t, d, f, c: -(-6 * p * t * 10**6 // (d * f)),
            "these are days.": lambda p, t, d, f, c: -(-_hours(6, p, t, d, f) // 24),
        },
        "dollars": {
            "what is left of a dollar is cut off, not rounded.": lambda p, t, d, f, c: round(
                _hours(6, p, t, d, f) * d * c / 100
            ),
            "what is left of a dollar is cut off: whole dollars are asked for.": lambda p, t, d, f, c: (
                _hours(6, p, t, d, f) * d * c / 100
            ),
            "all devices are paid for, not one.": lambda p, t, d, f, c: _hours(6, p, t, d, f) * c // 100,
            "these are of the hours before they were rounded up.": (
                lambda p, t, d, f, c: 6 * p * t * 10**6 * c // (f * 3600 * 100)
            ),
            "these are hours: the two results are swapped.": lambda p, t, d, f, c: _hours(6, p, t, d, f),
            "these are cents.": lambda p, t, d, f, c: _hours(6, p, t, d, f) * d * c,
        },
    },
    hints=(
        "FLOPs of the whole training, then the FLOPs that all devices do in an hour.",
        "6 * parameters * tokens FLOPs, where both are in billions: 6 * parameters * tokens * 10**18.",
        "An hour of all devices is devices * teraflops * 10**12 * 3600. Divide, round up with -(-a // b), and multiply "
        "the hours by devices and price.",
    ),
)
def hours_and_dollars(parameters: int, tokens: int, devices: int, teraflops: int, cents: int) -> tuple[int, int]:
    """Whole hours, rounded up, and dollars for all devices. `parameters` and `tokens` are in billions.

    `cents` is the price of one device for an hour. What is left of a dollar is cut off.
    """
    hours = -(-6 * parameters * tokens * 10**6 // (devices * teraflops * 3600))
    return hours, hours * devices * cents // 100
