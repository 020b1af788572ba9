"""Text, token by token, from a model whose logits are split over devices, and never put together.

The next token is always the largest of V numbers: every device offers the largest of its own, and the largest offer
wins. That is greedy choice if the numbers are the logits. It is a draw from softmax(logits / temperature) if they are
logits / temperature + noise of Gumbel's distribution: -log of an exponential random number, one for each token.
Every device draws the noise of the whole vocabulary from the same seed, so that no device count changes the text.

The Gumbel-max trick, as told by Maddison, Tarlow, Minka 2014, arXiv 1411.0030.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lib.devices import Group, same_random
from lib.parallel.attention.cache import KVCache
from lib.parallel.tensor.vocabulary import PaddedShard


class Writer(Protocol):
    """A module that can write: a GPT, a Llama, or whatever else says which token may follow."""

    config: Any  # with its `vocabulary`, and the `positions` that it has
    group: Group
    blocks: Sequence[Any]  # its layers: each gets a cache

    def next_logits(self, tokens: Tensor, caches: Sequence[KVCache] | None = None) -> Tensor:
        """(batch, S) -> (batch, padded V/P) Shard(-1): for the token that follows, padding -inf."""


@torch.no_grad()
def generate(
    model: Writer,
    tokens: Tensor,
    count: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int | None = None,
    cache: bool = True,
) -> Tensor:
    """tokens (batch, S), the prompt, Replicate -> (batch, S + count) Replicate. Nothing is dropped out.

    Temperature 0 always takes the likeliest token; above, tokens are drawn, only from the `top_k` likeliest if given.
    Without a `seed`, rank 0 draws one and sends it to the others. With `cache`, keys and values are kept, and each
    step computes one position; without, all of them again.
    Communication per token, besides that of the layers: an all-gather of two numbers, one more with `top_k`.
    """
    _check(model, tokens, count, temperature, top_k)
    random = torch.Generator("cpu")
    if temperature:
        random.manual_seed(_common_seed(model.group) if seed is None else seed)
    caches = [KVCache() for _ in model.blocks] if cache else None
    was_training = model.training
    model.eval()
    try:
        for _ in range(count):
            new = tokens[:, caches[0].seen :] if caches else tokens
            scores = model.next_logits(new, caches)  # (batch, padded V/P)  Shard(-1)
            if temperature:
                if top_k is not None:
                    scores = keep_largest(scores, top_k, model.group)
                scores = scores / temperature + _own_noise(scores, model, random)
            tokens = torch.cat([tokens, largest(scores, model.group)[:, None]], 1)
    finally:
        model.train(was_training)
    return tokens


def largest(scores: Tensor, group: Group) -> Tensor:
    """scores (batch, V/P) Shard(-1) -> (batch,) Replicate: the token with the largest score; of several, the first."""
    best, token = scores.max(-1)
    token = token + group.rank * scores.shape[-1]
    offer = torch.stack([best.double(), token.double()]).unsqueeze(-1)  # one message: float64 holds a token exactly
    best, token = group.all_gather(offer, -1)  # (batch, P) each, Replicate
    winner = best.argmax(-1, keepdim=True)  # the first of equals, as on one device
    return token.gather(-1, winner).squeeze(-1).long()


def keep_largest(scores: Tensor, k: int, group: Group) -> Tensor:
    """scores (batch, V/P) Shard(-1): unchanged where among the k largest of all devices, -inf elsewhere.

    The k largest of all are among the k largest of each device: so many are sent. Equals of the last stay in too.
    """
    own = scores.topk(min(k, scores.shape[-1])).values
    offered = group.all_gather(own, -1)  # (batch, up to k P)  Replicate
    least = offered.topk(min(k, offered.shape[-1])).values[:, -1:]
    return scores.masked_fill(scores < least, -torch.inf)


def _own_noise(scores: Tensor, model: Writer, random: torch.Generator) -> Tensor:
    vocabulary = model.config.vocabulary
    exponential = torch.empty(vocabulary, len(scores), dtype=torch.float64, device="cpu").exponential_(generator=random)
    return PaddedShard(vocabulary).piece(-exponential.log(), model.group.size, model.group.rank).T.to(scores.device)


def _common_seed(group: Group) -> int:
    with same_random(group):
        return int(torch.randint(2**63 - 1, (), device="cpu"))


def _check(model: Writer, tokens: Tensor, count: int, temperature: float, top_k: int | None) -> None:
    where = f"generate on rank {model.group.rank} of {model.group.size}"
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise ValueError(f"{where}: the prompt of shape {tuple(tokens.shape)} must be (batch, S) with S at least 1")
    if count < 0 or tokens.shape[1] + count > model.config.positions:
        raise ValueError(
            f"{where}: count={count} tokens after a prompt of {tokens.shape[1]}; the model has "
            f"{model.config.positions} positions in all"
        )
    if not 0 <= temperature < math.inf:
        raise ValueError(f"{where}: temperature={temperature} must be 0 (the likeliest token) or above, and finite")
    if top_k is not None and top_k < 1:
        raise ValueError(f"{where}: top_k={top_k} must be at least 1, or None for all tokens")
