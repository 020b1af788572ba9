"""The exercises of the chapter "Context parallelism". Each function is a solution: read it after your own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input, Logits, Vocabulary
from lib.devices import Group
from lib.devices.collectives import AllGather, ReduceScatter
from lib.parallel.context.cut import CutTokens
from lib.parallel.sharding.placement import Replicate, Shard

# ---- merge two partial softmaxes ----


def both_parts(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    lse = torch.logaddexp(lse_a, lse_b)
    return out_a * (lse_a - lse).exp()[:, None] + out_b * (lse_b - lse).exp()[:, None], lse


def merged_with(
    lse: Callable[[Tensor, Tensor], Tensor], out: Callable[..., Tensor] | None = None
) -> Callable[..., tuple[Tensor, Tensor]]:
    """The solution with another log-sum-exp, or with another average."""

    def program(group: Group, out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
        right, _ = both_parts(out_a, lse_a, out_b, lse_b)
        return right if out is None else out(out_a, lse_a, out_b, lse_b), lse(lse_a, lse_b)

    return program


@exercise(
    oracle=both_parts,
    inputs={
        "out_a": Input("tokens size"),
        "lse_a": Logits("tokens"),
        "out_b": Input("tokens size"),
        "lse_b": Logits("tokens"),
    },
    returns={"out": Replicate(), "lse": Replicate()},
    slips={
        "the two log-sum-exps were added. Sums are added, not their logarithms: log(exp(a) + exp(b)).": merged_with(
            lambda a, b: a + b
        ),
        "this is the larger of the two log-sum-exps: the other part is missing in it.": merged_with(torch.maximum),
        "the log-sum-exp is that of the mean of the two denominators. The whole has their sum.": merged_with(
            lambda a, b: torch.logaddexp(a, b) - math.log(2)
        ),
        "the two log-sum-exps were averaged. The whole has more keys than each part, so its log-sum-exp is larger.": (
            merged_with(lambda a, b: (a + b) / 2)
        ),
        "out was divided by nothing: weights relative to the larger one do not add up to 1.": merged_with(
            torch.logaddexp,
            lambda x, a, y, b: (
                x * (a - torch.maximum(a, b)).exp()[:, None] + y * (b - torch.maximum(a, b)).exp()[:, None]
            ),
        ),
    },
    mistakes={
        "the outputs were averaged, as if both parts weighed the same.": lambda parts, x, a, y, b: (x + y) / 2,
        "the outputs were added: each is an average already, and so must the result be.": (
            lambda parts, x, a, y, b: x + y
        ),
        "the weights are upside down: the share of a part is exp(its log-sum-exp - that of the whole).": (
            lambda parts, x, a, y, b: (
                x * (torch.logaddexp(a, b) - a).exp()[:, None] + y * (torch.logaddexp(a, b) - b).exp()[:, None]
            )
        ),
        "each output got the weight of the other.": lambda parts, x, a, y, b: both_parts(x, b, y, a)[0],
        "the weights are the log-sum-exps themselves; they must be their exps, divided by the sum of both.": (
            lambda parts, x, a, y, b: (x * a[:, None] + y * b[:, None]) / (a + b)[:, None]
        ),
    },
    refused={"lse_b has one token more": {"lse_b": "tokens+1"}},
    hints=(
        "exp(lse) is the denominator of a part. What is the denominator of the whole? And with which share of it does "
        "each part come in?",
        "lse = torch.logaddexp(lse_a, lse_b) is log(exp(lse_a) + exp(lse_b)), without ever computing either exp.",
        "The share of the first part is (lse_a - lse).exp(), one number per token: [:, None] makes it fit out_a.",
    ),
)
def merge_parts(group: Group, out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to two parts of the keys, merged: (out, lse). Nothing is sent; all devices do the same.

    out_a (tokens, size) is the average of the first part's values, weighted by the softmax over these keys alone, and
    lse_a (tokens,) the logarithm of its denominator, log sum exp(scores). The same for b. The log-sum-exps are large.
    """
    lse = torch.logaddexp(lse_a, lse_b)  # (tokens,)
    return out_a * (lse_a - lse).exp()[:, None] + out_b * (lse_b - lse).exp()[:, None], lse


# ---- the ring, forward ----


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.T / math.sqrt(q.shape[1])
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(1) @ v


def ring_with(
    at_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda mine, theirs: (mine, theirs),
    skipped: Callable[[int, int], bool] = lambda rank, source: False,
    hops: Callable[[int], int] = lambda size: size,
    join: str = "rescaled",
    travels: tuple[bool, bool, bool] = (True, True, True),
    first: float = -torch.inf,
) -> Callable[[Group, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The solution, with other positions in the mask, with hops left out, or with the parts joined in another way."""

    def program(group: Group, q: Tensor, k: Tensor, v: Tensor, at: Tensor) -> Tensor:
        mine, out, lse = at, torch.zeros_like(q), torch.full((len(q),), first, dtype=q.dtype)
        for hop in range(hops(group.size)):
            if not skipped(group.rank, (group.rank - hop) % group.size):
                rows, columns = at_of(mine, at)
                scores = q @ k.T / math.sqrt(q.shape[1])
                scores = scores.masked_fill(columns[None, :] > rows[:, None], -torch.inf)
                part = scores.logsumexp(1)
                new = torch.logaddexp(lse, part)
                if join == "each by itself":
                    out = out + scores.softmax(1).nan_to_num(0) @ v
                elif join == "average":
                    out = out + scores.softmax(1).nan_to_num(0) @ v / group.size
                elif join == "last":
                    out = (scores - part[:, None]).exp().nan_to_num(0) @ v
                else:
                    kept = out * (lse - new).exp()[:, None] if join == "rescaled" else out
                    out, lse = kept + (scores - new[:, None]).exp() @ v, new
            if hop < group.size - 1:
                moved = [x for x, moves in zip((k, v, at), travels, strict=True) if moves]
                for x in moved:
                    group.send(x, (group.rank + 1) % group.size)
                came = iter([group.recv((group.rank - 1) % group.size) for _ in moved])
                k, v, at = (next(came) if moves else x for x, moves in zip((k, v, at), travels, strict=True))
        return out

    return program


def by_row(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    return torch.arange(len(mine)), torch.arange(len(theirs))


ZIGZAG = CutTokens("zigzag", 0)


@exercise(
    oracle=lambda q, k, v, at: causal_attention(q, k, v),
    inputs={
        "q": Input("tokens size", ZIGZAG),
        "k": Input("tokens size", ZIGZAG),
        "v": Input("tokens size", ZIGZAG),
        "at": Vocabulary("tokens", ZIGZAG),
    },
    returns={"the output": ZIGZAG},
    forward=(Talk(AllGather(0), "tokens size"), Talk(AllGather(0), "tokens size"), Talk(AllGather(0), "tokens")),
    only=("send", "recv"),
    limited=False,
    ring=True,
    devices=(1, 2, 3),
    slips={
        "the mask is that of your own block: it compares row numbers, or your positions with your own again. The keys' "
        "positions must travel with the keys.": ring_with(by_row),
        "the keys went round, and the values stayed at home: a weight is for the value of its own key.": ring_with(
            travels=(True, False, True)
        ),
        "blocks of later devices were skipped. In zigzag their first tokens are earlier than your last ones.": (
            ring_with(skipped=lambda rank, source: source > rank)
        ),
        "lse began at 0, which counts a key that is not there: exp(0) = 1. A sum of nothing is log 0, -inf.": (
            ring_with(first=0.0)
        ),
        "the results of the blocks were averaged, as if all of them weighed the same.": ring_with(join="average"),
        "this is the result of the last block alone: merge it with what was there before.": ring_with(join="last"),
        "what was merged before was not rescaled: with every block, the denominator of the earlier ones grows too.": (
            ring_with(join="not rescaled")
        ),
        "each block had a softmax of its own, and the results were added: one denominator must hold for all keys.": (
            ring_with(join="each by itself")
        ),
        "a hop is missing: P blocks, the own one and P - 1 that come.": ring_with(hops=lambda size: max(1, size - 1)),
        "your queries saw your own keys only: send them round the ring.": ring_with(hops=lambda size: 1),
    },
    mistakes={
        "there is no causal mask: a token sees positions up to its own.": lambda parts, q, k, v, at: (
            (q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v
        ),
        "the mask is the wrong way round: a token sees itself and what came before.": lambda parts, q, k, v, at: (
            causal_attention(q.flip(0), k.flip(0), v.flip(0)).flip(0)
        ),
        "the scores are not divided by the root of the size.": lambda parts, q, k, v, at: causal_attention(
            q * math.sqrt(q.shape[1]), k, v
        ),
    },
    refused={"v has one token more than k": {"v": "tokens+1 size"}},
    hints=(
        "Begin with your own keys, and a sum of nothing: out = 0, lse = -inf. After each block, send k, v and their "
        "positions to the next device, and receive those of the one behind. How many blocks are there?",
        "For each block: scores, -inf where the key's position is larger than the query's, part = scores.logsumexp(1), "
        "new = torch.logaddexp(lse, part). Exp of (scores - new) gives weights with the right denominator at once.",
        "out = out * (lse - new).exp()[:, None] + (scores - new[:, None]).exp() @ v; lse = new. Keep your own "
        "positions under another name before the others come in.",
    ),
)
def ring_forward(group: Group, q: Tensor, k: Tensor, v: Tensor, at: Tensor) -> Tensor:
    """Causal attention of one head over a sequence that is cut in zigzag, round a ring: with send and recv only.

    q, k, v (tokens/P, size) are those of this device's tokens, and at (tokens/P,) their positions in the sequence. Send
    to neighbors on the ring only; k, v and at go round together. Return (tokens/P, size) for this device's tokens.
    """
    ahead, behind = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    mine, out, lse = at, torch.zeros_like(q), torch.full((len(q),), -torch.inf, dtype=q.dtype)
    for hop in range(group.size):
        scores = q @ k.T / math.sqrt(q.shape[1])  # (tokens/P, tokens/P): my queries, the keys that are here
        scores = scores.masked_fill(at[None, :] > mine[:, None], -torch.inf)
        new = torch.logaddexp(lse, scores.logsumexp(1))
        out = out * (lse - new).exp()[:, None] + (scores - new[:, None]).exp() @ v
        lse = new
        if hop < group.size - 1:
            for x in (k, v, at):
                group.send(x, ahead)
            k, v, at = group.recv(behind), group.recv(behind), group.recv(behind)
    return out


# ---- the ring, backward ----


def attention_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    weights = (q @ k.T / math.sqrt(q.shape[1]) - lse[:, None]).exp()
    dscores = weights * (dy @ v.T - (dy * out).sum(1)[:, None]) / math.sqrt(q.shape[1])
    return dscores @ k, dscores.T @ q, weights.T @ dy


def backward_with(
    ends: str = "home", own_lse: bool = False, delta: bool = True, scale: bool = True, sums_dq: bool = True
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The solution, with gradients that end elsewhere, or with another formula for a block."""

    def program(
        group: Group, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ahead, behind = (group.rank + 1) % group.size, (group.rank - 1) % group.size
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for hop in range(group.size):
            scores = q @ k.T / math.sqrt(q.shape[1])
            weights = (scores - (scores.logsumexp(1) if own_lse else lse)[:, None]).exp()
            dweights = dy @ v.T - ((dy * out).sum(1)[:, None] if delta else 0)
            dscores = weights * dweights / (math.sqrt(q.shape[1]) if scale else 1)
            dq = (dq if sums_dq else 0) + dscores @ k
            if ends == "own" and hop or ends == "others" and not hop:
                more = 0, 0
            elif ends == "mine":  # sums over all keys, on the device of the queries
                more = (
                    x[: len(dk)] if len(x) >= len(dk) else x.new_zeros(dk.shape)
                    for x in (dscores.T @ q, weights.T @ dy)
                )
            else:
                more = dscores.T @ q, weights.T @ dy
            dk, dv = (x + y for x, y in zip((dk, dv), more, strict=True))
            last = hop == group.size - 1
            stay = ends in ("own", "mine") or (last and ends == "short")
            for x in (() if last else (k, v)) + (() if stay else (dk, dv)):
                group.send(x, ahead)
            if not last:
                k, v = group.recv(behind), group.recv(behind)
            if not stay:
                dk, dv = group.recv(behind), group.recv(behind)
        return (dq, dv, dk) if ends == "exchanged" else (dq, dk, dv)

    return program


@exercise(
    oracle=attention_backward,
    inputs={
        "q": Input("tokens size", Shard(0)),
        "k": Input("tokens size", Shard(0)),
        "v": Input("tokens size", Shard(0)),
        "out": Input("tokens size", Shard(0)),
        "lse": Input("tokens", Shard(0)),
        "dy": Input("tokens size", Shard(0)),
    },
    returns={"dq": Shard(0), "dk": Shard(0), "dv": Shard(0)},
    forward=(
        Talk(AllGather(0), "tokens size"),
        Talk(AllGather(0), "tokens size"),
        Talk(ReduceScatter(0), "tokens size"),
        Talk(ReduceScatter(0), "tokens size"),
    ),
    only=("send", "recv"),
    limited=False,
    ring=True,
    devices=(1, 2, 3),
    slips={
        "dk and dv stopped one hop short: they are those of the next device's keys. One more hop brings them home.": (
            backward_with("short")
        ),
        "dk and dv hold what your own queries say of your keys. Other devices' queries saw them too: the sums must "
        "travel with the keys.": backward_with("own"),
        "dk and dv were added up where they were computed, for the keys of all devices together. Each sum must travel "
        "with its own keys.": backward_with("mine"),
        "your own share of your dk and dv is missing: hop 0 counts too.": backward_with("others"),
        "dk and dv are exchanged: dscores.T @ q is for the keys, weights.T @ dy for the values.": (
            backward_with("exchanged")
        ),
        "dq is that of the last block alone. Your queries saw all blocks: add the terms up.": (
            backward_with(sums_dq=False)
        ),
        "each block had a log-sum-exp of its own. Use lse, that of all keys: the weights are shares of the whole.": (
            backward_with(own_lse=True)
        ),
        "the gradient of the softmax lacks its second term: from dy @ v.T, take (dy * out).sum(1) of each query.": (
            backward_with(delta=False)
        ),
        "the gradient of the scores is not divided by the root of the size, as the scores were.": backward_with(
            scale=False
        ),
    },
    refused={"v has one token more than k": {"v": "tokens+1 size"}},
    hints=(
        "dq is yours: add to it at every hop. dk and dv belong to keys that are only visiting. Who has what has been "
        "added so far, and where must it be at the end?",
        "Let dk and dv travel with k and v: add your part, send all four on. After P blocks the gradients have been "
        "with everyone, and stand one device before their owner.",
        "After the last block k and v need not be sent, but dk and dv must, once more. (Keep your own share at home "
        "from the start, and P - 1 messages are enough.)",
    ),
)
def ring_backward(
    group: Group, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients (dq, dk, dv) of attention without a mask, round the ring, with send and recv only.

    All inputs are of this device's tokens: q, k, v and out (tokens/P, size), lse (tokens/P,) the log-sum-exp over all
    keys, and dy the gradient of out. For a block of keys: weights = exp(scores - lse[:, None]);
    dscores = weights * (dy @ v.T - (dy * out).sum(1)[:, None]) / sqrt(size); dq = dscores @ k; dk = dscores.T @ q;
    dv = weights.T @ dy.
    """
    ahead, behind = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    delta = (dy * out).sum(1)[:, None]  # (tokens/P, 1)
    dq = torch.zeros_like(q)
    for hop in range(group.size):
        weights = (q @ k.T / math.sqrt(q.shape[1]) - lse[:, None]).exp()  # my queries, the keys that are here
        dscores = weights * (dy @ v.T - delta) / math.sqrt(q.shape[1])
        dq = dq + dscores @ k
        dk, dv = dscores.T @ q, weights.T @ dy  # of these keys, through my queries
        if hop == 0:
            home = dk, dv  # my own keys: their sums will come back to me
        if hop > 1:
            dk, dv = dk + group.recv(behind), dv + group.recv(behind)
        if hop > 0:
            group.send(dk, ahead)
            group.send(dv, ahead)
        if hop < group.size - 1:
            group.send(k, ahead, 1)
            group.send(v, ahead, 1)
            k, v = group.recv(behind, 1), group.recv(behind, 1)
    if group.size == 1:
        return dq, *home
    return dq, home[0] + group.recv(behind), home[1] + group.recv(behind)


# ---- a cut that is balanced ----


def stretches(group: Group, x: Tensor, parts: int, second: Callable[[int, int], int | None]) -> Tensor:
    """Stretch `rank` of `parts`, and another one behind it."""
    pieces, other = x.tensor_split(parts), second(group.rank, group.size)
    return pieces[group.rank] if other is None else torch.cat([pieces[group.rank], pieces[other]])


@exercise(
    oracle=lambda x: x,
    inputs={"x": Input("tokens size")},
    returns={"the tokens": ZIGZAG},
    slips={
        "the second stretch is r + P: the last device has late tokens twice. Count it from the end: 2P - 1 - r.": (
            lambda group, x: stretches(group, x, 2 * group.size, lambda rank, size: rank + size)
        ),
        "this is one stretch, and the work of a late one is many times that of an early one.": (
            lambda group, x: stretches(group, x, group.size, lambda rank, size: None)
        ),
        "the text was cut into P stretches, and two of them taken: every token is on two devices. Cut it into 2P.": (
            lambda group, x: stretches(group, x, group.size, lambda rank, size: size - 1 - rank)
        ),
        "the tokens of the second stretch are in reverse order.": lambda group, x: torch.cat(
            [
                x.tensor_split(2 * group.size)[group.rank],
                x.tensor_split(2 * group.size)[2 * group.size - 1 - group.rank].flip(0),
            ]
        ),
        "the second stretch stands before the first: keep the order of the sequence.": lambda group, x: torch.cat(
            [x.tensor_split(2 * group.size)[i] for i in (2 * group.size - 1 - group.rank, group.rank)]
        ),
        "these are the pieces of torch.chunk, which rounds up: the last are shorter, or missing. Use tensor_split.": (
            lambda group, x: torch.cat([x.chunk(2 * group.size)[i] for i in (group.rank, -1 - group.rank)])
        ),
        "the stretches have length // 2P tokens, and those that are left over are nobody's: tensor_split.": (
            lambda group, x: torch.cat(
                [x.split(len(x) // (2 * group.size))[i] for i in (group.rank, 2 * group.size - 1 - group.rank)]
            )
        ),
        "these are every P-th token: balanced too (striped), but two stretches were asked for.": (
            lambda group, x: x[group.rank :: group.size]
        ),
    },
    hints=(
        "Under a causal mask, the work of a token is its position. Which two of 2P stretches add up to the same work, "
        "whoever has them?",
        "The first and the last; the second and the last but one; and so on. For device r: r, and which one counted "
        "from the end?",
        "pieces = x.tensor_split(2 * group.size); the two are pieces[r] and pieces[2P - 1 - r], in this order.",
    ),
)
def balanced(group: Group, x: Tensor) -> Tensor:
    """This device's tokens of a causal sequence, so that all devices have the same work: two stretches of 2P.

    x (tokens, size) is whole on every device. Return (tokens/P, size), in the order of the sequence. Nothing is sent.
    """
    pieces = x.tensor_split(2 * group.size)
    return torch.cat([pieces[group.rank], pieces[2 * group.size - 1 - group.rank]])
