"""The exercises of the chapter "A GPT on many devices". Each function is a solution: read it after your own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.trials import Input
from book.exercises.counts import synchronizations
from book.exercises.grid import grid_gradient
from book.exercises.vocabulary import Vocabulary
from lib.devices import Group
from lib.devices.collectives import AllGather
from lib.devices.pieces import cut
from lib.devices.traffic import Traffic
from lib.parallel.sharding.placement import Replicate, Shard
from lib.parallel.sharding.shards import shard

__all__ = ["greedy", "grid_gradient", "load_attention", "synchronizations"]


def of_all_heads(attn: Tensor, attn_bias: Tensor, proj: Tensor, proj_bias: Tensor) -> tuple[Tensor, ...]:
    qkv, qkv_bias = attn.T.unflatten(0, (3, -1, 4)), attn_bias.unflatten(0, (3, -1, 4))
    return qkv, qkv_bias, proj.T.unflatten(1, (-1, 4)), proj_bias


def equal_pieces(parts: int, attn: Tensor, *others: Tensor) -> Tensor:
    each = attn.shape[1] // 12 // parts  # heads; without the last ones, where the devices do not divide them
    pieces = [attn.T[12 * each * r : 12 * each * (r + 1)] for r in range(parts)]
    return torch.cat([piece.unflatten(0, (3, -1, 4)) for piece in pieces], 1)


def dealt(qkv: Tensor, parts: int) -> Tensor:
    return torch.cat([qkv[:, rank::parts] for rank in range(parts)], 1)


@exercise(
    oracle=of_all_heads,
    inputs={
        "attn": Input("hidden 3*heads*4"),
        "attn_bias": Input("3*heads*4"),
        "proj": Input("heads*4 hidden"),
        "proj_bias": Input("hidden"),
    },
    returns={"qkv": Shard(1), "qkv_bias": Shard(1), "out": Shard(1), "out_bias": Replicate()},
    mistakes={
        "attn was reshaped. A Conv1D holds (in, out) and nn.Linear (out, in): transpose it first.": (
            lambda parts, attn, *others: attn.reshape(3, -1, 4, len(attn))
        ),
        "attn was cut in P equal pieces. Its first third are the queries of ALL heads: cut each third.": equal_pieces,
        "attn is read as [query, key, value of head 0 | of head 1 | ...]; it has all queries, all keys, all values.": (
            lambda parts, attn, *others: attn.T.unflatten(0, (-1, 3, 4)).transpose(0, 1)
        ),
        "the heads were dealt out one by one; they are shared in order, the first ones to rank 0.": (
            lambda parts, attn, *others: dealt(attn.T.unflatten(0, (3, -1, 4)), parts)
        ),
        "proj was reshaped. A Conv1D holds (in, out) and nn.Linear (out, in): transpose it first.": (
            lambda parts, attn, attn_bias, proj, proj_bias: proj.reshape(proj.shape[1], -1, 4)
        ),
    },
    refused={"attn has a column too many for thirds of whole heads": {"attn": "hidden 3*heads*4+1"}},
    hints=(
        "attn.T is what nn.Linear would hold: its first rows are the queries of head 0, then those of head 1; behind "
        "all queries come the keys. Which of them are this device's?",
        "attn.T.unflatten(0, (3, -1, 4)) is (3, heads, 4, hidden). The devices share the heads, so shard cuts along "
        "dim 1. The bias has the same rows, without the last dim.",
        "proj.T.unflatten(1, (-1, 4)) is (hidden, heads, 4): the columns of each head, cut along dim 1. Its bias is "
        "added after the sum over the devices, so it stays whole.",
    ),
)
def load_attention(group: Group, attn: Tensor, attn_bias: Tensor, proj: Tensor, proj_bias: Tensor) -> tuple:
    """This device's pieces of an attention layer, from the four weights in a file of GPT-2.

    attn (hidden, 3 heads 4) and proj (heads 4, hidden) are whole, and of the kind Conv1D: x @ attn. Every head has 4
    features. We keep weights as nn.Linear does, (out, in), with a dim for the heads. Return four: qkv (3, heads/P, 4,
    hidden), qkv_bias (3, heads/P, 4), out (hidden, heads/P, 4), out_bias (hidden,). Nothing is sent.
    """
    qkv = shard(attn.T.unflatten(0, (3, -1, 4)), group, 1)  # (3, heads/P, 4, hidden)  Shard(1)
    qkv_bias = shard(attn_bias.unflatten(0, (3, -1, 4)), group, 1)  # (3, heads/P, 4)  Shard(1)
    out = shard(proj.T.unflatten(1, (-1, 4)), group, 1)  # (hidden, heads/P, 4)  Shard(1)
    return qkv, qkv_bias, out, proj_bias


@dataclass(frozen=True)
class Ties(Input):
    """Random numbers; in every row the largest one stands twice, in most rows."""

    def draw(self, lengths: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Random numbers in float64."""
        x = super().draw(lengths, random)
        again = torch.randint(x.shape[1], (len(x), 1), generator=random)
        return x.scatter(1, again, x.amax(1, keepdim=True))


@dataclass(frozen=True)
class OfEach(Talk):
    """A call about a tensor that is longer the more devices there are: "devices" is a length like any other."""

    def traffic(self, lengths: Mapping[str, int], parts: int) -> list[Traffic]:
        """What each device moves."""
        return super().traffic({**lengths, "devices": parts}, parts)


def likeliest(logits: Tensor, own: Tensor) -> Tensor:
    return logits.argmax(1)


def place_of_winner(logits: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """The device that has the likeliest token, and its place there, when pieces are as long as the first."""
    token = logits.argmax(1)
    ends = torch.tensor([piece.shape[1] for piece in cut(logits, parts, 1)]).cumsum(0)
    rank = torch.searchsorted(ends, token, right=True)
    return rank, token - torch.cat([ends.new_zeros(1), ends])[rank]


@exercise(
    oracle=likeliest,
    inputs={"logits": Ties("texts 7*vocabulary", Shard(1)), "own": Vocabulary("7*vocabulary", Shard(0))},
    returns={"the tokens": Replicate()},
    forward=(OfEach(AllGather(0), "2*devices texts"),),
    only=("all_gather",),
    mistakes={
        "the place among the winner's own columns is not the token: that is own[place].": lambda parts, logits, own: (
            place_of_winner(logits, parts)[1]
        ),
        "the rank of the winner was returned, not its token.": lambda parts, logits, own: place_of_winner(
            logits, parts
        )[0],
        "of several tokens with the largest logit the first counts; this is the last.": lambda parts, logits, own: (
            logits.shape[1] - 1 - logits.flip(1).argmax(1)
        ),
        "a device's first token is own[0]; rank * len(own) only where all have equally many.": (
            lambda parts, logits, own: sum(
                x * y for x, y in zip(place_of_winner(logits, parts), (len(cut(own, parts, 0)[-1]), 1), strict=True)
            )
        ),
    },
    hints=(
        "The largest of all logits is the largest of one device. What does each device have to tell about its best "
        "token, so that all can decide?",
        "best, place = logits.max(1), and the token is own[place]. float64 holds a token exactly, so the two numbers "
        "per text fit in one message: torch.stack([best, token.double()]).",
        "After group.all_gather of (2, texts) along dim 0 come 2 P rows: even ones are logits, odd ones tokens, in "
        "rank order. argmax takes the first of equals: the smallest rank, which has the smallest token.",
    ),
)
def greedy(group: Group, logits: Tensor, own: Tensor) -> Tensor:
    """The likeliest next token of every text, from logits cut along the vocabulary, with one small all_gather.

    logits (texts, vocabulary/P) are this device's columns, and own (vocabulary/P,) the tokens that they belong to. Of
    several largest logits the first counts. Return (texts,), integers, on every device; send two numbers per text.
    """
    best, place = logits.max(1)  # (texts,) each
    offers = group.all_gather(torch.stack([best, own[place].double()]), 0)  # (2P, texts)  Replicate
    winner = offers[::2].argmax(0, keepdim=True)  # (1, texts): a rank
    return offers[1::2].gather(0, winner)[0].long()  # (texts,)  Replicate
