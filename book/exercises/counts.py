"""An exercise of the chapter "A GPT on many devices": how often must the devices meet? Read it after your own."""

from __future__ import annotations

import torch

from book.exercises.check.counting import counting
from lib.devices import Cluster
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.generate import generate
from lib.parallel.gpt.model import GPT


def counted(layers: int, prompt: int, count: int) -> tuple[int, int]:
    config = GPTConfig(layers, hidden=6, heads=2, vocabulary=5, positions=prompt + count)
    cluster, calls = Cluster(2), []
    tokens = torch.zeros(1, prompt, dtype=torch.long)
    for program in (
        lambda group: GPT(config, group)(tokens, targets=tokens).backward(),
        lambda group: generate(GPT(config, group), tokens, count),
    ):
        cluster.run(program)
        calls.append(cluster.meters.count(0).calls)
    return calls[0], calls[1]


@counting(
    oracle=counted,
    returns=("a training step", "a text"),
    cases=((3, 5, 4), (1, 3, 2), (2, 2, 1), (12, 2, 1)),
    slips={
        "a training step": {
            "two for each layer is a forward pass without embedding and loss; the backward has as many.": (
                lambda layers, prompt, count: 2 * layers
            ),
            "this is the forward pass; the backward has two for each layer, and one for the head.": (
                lambda layers, prompt, count: 2 * layers + 4
            ),
            "two for each layer and direction are right; embedding, loss and head have some, too.": (
                lambda layers, prompt, count: 4 * layers
            ),
            "the three small all-reduces of the loss are missing.": lambda layers, prompt, count: 4 * layers + 2,
            "one is missing: the embedding's forward, or the head's backward.": (
                lambda layers, prompt, count: 4 * layers + 4
            ),
            "the loss has three in the forward, and none in the backward.": lambda layers, prompt, count: (
                4 * layers + 8
            ),
        },
        "a text": {
            "this is one forward pass; a text takes one for each new token.": lambda layers, prompt, count: (
                2 * layers + 1
            ),
            "this is one new token; the others need as many each.": lambda layers, prompt, count: 2 * layers + 2,
            "layers x tokens counts hand-overs from layer to layer; a layer cut over devices has two all-reduces.": (
                lambda layers, prompt, count: layers * count
            ),
            "two for each layer and token; the embedding has one as well, and choosing the token another.": (
                lambda layers, prompt, count: 2 * layers * count
            ),
            "all forward passes are there; but with logits cut over devices, choosing the token takes one more.": (
                lambda layers, prompt, count: (2 * layers + 1) * count
            ),
            "nobody computes a loss when a text is written.": lambda layers, prompt, count: (2 * layers + 5) * count,
            "the tokens of the prompt go through the model together, in the pass that gives the first new one.": (
                lambda layers, prompt, count: (2 * layers + 2) * (prompt + count)
            ),
        },
    },
    hints=(
        "Walk through the picture of the model: embedding, then for each layer attention and MLP, then the head. After "
        "which of them do the devices hold partial sums, forward? And which inputs are copied into a sharded region, "
        "so that their gradients are partial, backward?",
        "Forward: 1 for the embedding and 2 for each layer, then 3 small ones for the loss. Backward: 2 for each "
        "layer and 1 for the head. Now the text: how many forward passes are there, and how is a token chosen?",
        "A text of count new tokens takes count forward passes, since the prompt goes through at once. Each has the "
        "forward's all-reduces without the loss, and one all-gather of offers.",
    ),
)
def synchronizations(layers: int, prompt: int, count: int) -> tuple[int, int]:
    """How often all devices of a tensor-parallel GPT meet: in a training step, and to write `count` tokens.

    Of a GPT with `layers` layers, cut over two or more devices. Return two numbers: the collectives of one forward,
    loss and backward; and those of writing `count` new tokens after a prompt of `prompt`, greedily, with a cache.
    """
    forward = 1 + 2 * layers  # the embedding; attention and MLP of each layer
    backward = 2 * layers + 1  # the same layers; the head
    return forward + 3 + backward, count * (forward + 1)  # the loss has three; a choice has one
