"""The exercises of the chapter "A GPT on many devices". Each function is a solution: read it after your own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from book.exercises.check.cost import Talk
from book.exercises.check.counting import counting
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input, Ties, Vocabulary
from lib.devices import Cluster, Group, Mesh
from lib.devices.collectives import AllGather, AllReduce
from lib.devices.pieces import cut
from lib.devices.traffic import Traffic
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.generate import generate
from lib.parallel.gpt.model import GPT
from lib.parallel.sharding.placement import Replicate, Shard
from lib.parallel.sharding.shards import shard


def of_all_heads(attn: Tensor, attn_bias: Tensor, proj: Tensor, proj_bias: Tensor) -> tuple[Tensor, ...]:
    qkv, qkv_bias = attn.T.unflatten(0, (3, -1, 4)), attn_bias.unflatten(0, (3, -1, 4))
    return qkv, qkv_bias, proj.T.unflatten(1, (-1, 4)), proj_bias


def equal_pieces(parts: int, attn: Tensor, *others: Tensor) -> Tensor:
    each = attn.shape[1] // 12 // parts  # heads; without the last ones, where the devices do not divide them
    pieces = [attn.T[12 * each * r : 12 * each * (r + 1)] for r in range(parts)]
    return torch.cat([piece.unflatten(0, (3, -1, 4)) for piece in pieces], 1)


def with_out_bias(group: Group, weights: tuple[Tensor, ...], bias: Tensor) -> tuple[Tensor, ...]:
    qkv, qkv_bias, out, _ = of_all_heads(*weights)
    return shard(qkv, group, 1), shard(qkv_bias, group, 1), shard(out, group, 1), bias


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
    slips={
        "out_bias was shared out. It is added once, after the sum over the devices: it stays whole.": (
            lambda group, *weights: with_out_bias(group, weights, weights[3] / group.size)
        ),
        "out_bias is on rank 0 alone. It is added after the sum, on every device: it stays whole.": (
            lambda group, *weights: with_out_bias(group, weights, weights[3] * (group.rank == 0))
        ),
        "out_bias was cut. It is added after the sum over the devices, to all features: it stays whole.": (
            lambda group, *weights: with_out_bias(group, weights, shard(weights[3], group, 0))
        ),
        "a head was cut through: its 4 rows belong together. Cut a dim that counts heads.": (
            lambda group, attn, *others: (
                torch.cat([shard(y, group, 0) for y in attn.T.chunk(3)]).unflatten(0, (3, -1, 4)),
                *with_out_bias(group, (attn, *others), others[2])[1:],
            )
        ),
    },
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
class OfEach(Talk):
    """A call about a tensor that is longer the more devices there are: "devices" is a length like any other."""

    def traffic(self, lengths: Mapping[str, int], parts: int, padded: bool = False) -> list[Traffic]:
        """What each device moves."""
        return super().traffic({**lengths, "devices": parts}, parts, padded)


def likeliest(logits: Tensor, own: Tensor) -> Tensor:
    return logits.argmax(1)


def place_of_winner(logits: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """The device that has the likeliest token, and its place there, when pieces are as long as the first."""
    token = logits.argmax(1)
    ends = torch.tensor([piece.shape[1] for piece in cut(logits, parts, 1)]).cumsum(0)
    rank = torch.searchsorted(ends, token, right=True)
    return rank, token - torch.cat([ends.new_zeros(1), ends])[rank]


def guesses_its_tokens(group: Group, logits: Tensor, own: Tensor) -> Tensor:
    token = logits.argmax(1) + group.rank * len(own)
    offers = group.all_gather(torch.stack([logits.amax(1), token.double()]), 0)
    return offers[1::2].gather(0, offers[::2].argmax(0, keepdim=True))[0].long()


@exercise(
    oracle=likeliest,
    inputs={"logits": Ties("texts 7*vocabulary", Shard(1)), "own": Vocabulary("7*vocabulary", Shard(0))},
    returns={"the tokens": Replicate()},
    forward=(OfEach(AllGather(0), "2*devices texts"),),
    only=("all_gather",),
    slips={
        "a device's first token is own[0]; rank * len(own) only where all have equally many.": guesses_its_tokens,
        "the largest token won, not the one with the largest logit.": lambda group, logits, own: (
            group.all_gather(torch.stack([logits.amax(1), own[logits.argmax(1)].double()]), 0)[1::2].amax(0).long()
        ),
    },
    mistakes={
        "the least likely token won: max, not min.": lambda parts, logits, own: logits.argmin(1),
        "the place among the winner's own columns is not the token: that is own[place].": lambda parts, logits, own: (
            place_of_winner(logits, parts)[1]
        ),
        "the rank of the winner was returned, not its token.": lambda parts, logits, own: place_of_winner(
            logits, parts
        )[0],
        "of several tokens with the largest logit the first counts; this is the last.": lambda parts, logits, own: (
            logits.shape[1] - 1 - logits.flip(1).argmax(1)
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
            "the prompt goes through the model at once, not token by token.": (
                lambda layers, prompt, count: (2 * layers + 2) * (prompt + count - 1)
            ),
            "the prompt goes through the model at once, not token by token; only new tokens are chosen.": (
                lambda layers, prompt, count: (2 * layers + 1) * (prompt + count - 1) + count
            ),
            "the pass over the prompt gives the first new token: there are count passes, not count + 1.": (
                lambda layers, prompt, count: (2 * layers + 2) * (count + 1)
            ),
            "the last new token is written, and goes through no model: but the pass over the prompt counts, too.": (
                lambda layers, prompt, count: (2 * layers + 2) * (count - 1)
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


REPLICAS = 2


@dataclass(frozen=True)
class OfReplicas(Talk):
    """A call of the devices that hold the same columns, one in each replica."""

    def traffic(self, lengths: Mapping[str, int], parts: int, padded: bool = False) -> list[Traffic]:
        """What each device moves, in rank order: replica after replica."""
        whole = torch.empty(Input(self.dims).shape(lengths), dtype=torch.float64, device="meta")
        columns = cut(whole, parts // REPLICAS, 1)
        return [self.verb.traffic([piece] * REPLICAS)[replica] for replica in range(REPLICAS) for piece in columns]

    def __str__(self) -> str:
        return f"one {self.verb.name} of the own columns of ({self.dims.replace(' ', ', ')}) in mesh.dp"


@dataclass(frozen=True)
class InReplica(Talk):
    """A call of the devices of one replica."""

    def traffic(self, lengths: Mapping[str, int], parts: int, padded: bool = False) -> list[Traffic]:
        """What each device moves, in rank order: replica after replica."""
        return super().traffic(lengths, parts // REPLICAS, padded) * REPLICAS

    def __str__(self) -> str:
        return f"one {self.verb.name} of ({self.dims.replace(' ', ', ')}) in mesh.tp"


def gradient(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """Of the mean over the samples of `|x w - y|^2 / 2`."""
    return x.T @ (x @ w - y) / len(x)


def halves(x: Tensor, w: Tensor, y: Tensor) -> list[Tensor]:
    """The gradient of each replica's own samples."""
    pieces = zip(cut(x, REPLICAS, 0), cut(y, REPLICAS, 0), strict=True)
    return [gradient(mine, w, right) for mine, right in pieces]


def own_columns(group: Group, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    mesh = Mesh(group, dp=REPLICAS, tp=group.size // REPLICAS)
    mine, wanted = shard(x, mesh.dp, 0), shard(shard(y, mesh.dp, 0), mesh.tp, 1)
    return mesh.dp.all_reduce(mine.T @ (mine @ shard(w, mesh.tp, 1) - wanted)) / len(x)


def columns_added(parts: int, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """All devices' gradients added, whatever their columns; the devices that have fewer columns are left out."""
    columns = parts // REPLICAS
    pieces = cut(gradient(x, w, y), columns, 1)
    return torch.cat([sum(piece[:, : pieces[-1].shape[1]] for piece in pieces)] * columns, 1)


@exercise(
    oracle=gradient,
    inputs={"x": Input("batch in"), "w": Input("in out"), "y": Input("batch out")},
    returns={"the gradient": Replicate()},
    forward=(OfReplicas(AllReduce(), "in out"), InReplica(AllGather(1), "in out")),
    devices=(2, 4, 6),
    slips={
        "these are the own columns alone. The others are on the other devices of mesh.tp: gather them.": own_columns
    },
    mistakes={
        "this is w after a step; the gradient was asked for.": lambda parts, x, w, y: w - gradient(x, w, y),
        "the replicas did not talk: this is the gradient of one replica's samples.": lambda parts, x, w, y: halves(
            x, w, y
        )[0],
        "the gradients of different columns were added: only devices with the same columns share a mean, mesh.dp.": (
            columns_added
        ),
        "a mean of means: a replica with fewer samples counts as much as the other. Add sums, divide by len(x).": (
            lambda parts, x, w, y: sum(halves(x, w, y)) / REPLICAS
        ),
        "nothing was divided by the number of samples: this is the gradient of the sum, not of the mean.": (
            lambda parts, x, w, y: gradient(x, w, y) * len(x)
        ),
    },
    refused={"y has one column more than w": {"y": "batch out+1"}},
    hints=(
        "Two cuts that know nothing of each other: the samples over mesh.dp, the columns of w over mesh.tp. Which rows "
        "of x, which rows and columns of y does a device need?",
        "g = mine.T @ (mine @ columns - wanted) is the sum over the replica's samples, for the own columns. Who has "
        "the other terms of the same sum? Only the devices that hold the same columns.",
        "mesh.dp.all_reduce(g) / len(x) is the mean's gradient for the own columns, finished. mesh.tp.all_gather joins "
        "the columns.",
    ),
)
def grid_gradient(group: Group, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """The gradient of the mean of `|x w - y|^2 / 2`, data x tensor parallel: two replicas, w cut by columns in each.

    x (batch, in), w (in, out) and y (batch, out) are whole on every device; compute with this device's part alone.
    Make the grid with Mesh(group, dp=2, tp=group.size // 2). Return the whole gradient (in, out) on every device.
    """
    mesh = Mesh(group, dp=2, tp=group.size // 2)
    mine, columns = shard(x, mesh.dp, 0), shard(w, mesh.tp, 1)  # (batch/2, in), (in, out/tp)
    wanted = shard(shard(y, mesh.dp, 0), mesh.tp, 1)  # (batch/2, out/tp)
    g = mine.T @ (mine @ columns - wanted)  # (in, out/tp)  Partial over dp, Shard(1) over tp
    return mesh.tp.all_gather(mesh.dp.all_reduce(g) / len(x), 1)  # (in, out)  Replicate
