"""The exercises of the chapter "Experts". Each function is a solution: read it after your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input
from lib.devices import Group, Mesh
from lib.devices.collectives import AllGather, AllReduce, AllToAll
from lib.devices.pieces import cut, shard_sizes
from lib.devices.traffic import Traffic
from lib.parallel.experts.capacity import count_rows, keep_first
from lib.parallel.sharding.conjugates import all_gather, all_to_all
from lib.parallel.sharding.placement import Replicate, Shard

EP = 2  # by how many devices the experts of the last exercise are divided
ROOM = 2  # rows that an expert takes, in the exercise about capacity


# ---- inputs, and what they cost ----


def choices(tokens: int, experts: int) -> Tensor:
    """(tokens, 2): two different experts for each token. The same for the same sizes, so that bytes can be foretold."""
    random = torch.Generator().manual_seed(100 * tokens + experts)
    return torch.rand(tokens, experts, generator=random).square().topk(2, -1).indices


@dataclass(frozen=True)
class Choices(Input):
    """Dims "tokens 2 < experts": for each token two experts."""

    def shape(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """The shape without the bound."""
        return Input(self.dims.partition("<")[0]).shape(lengths)

    def draw(self, lengths: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Whole numbers."""
        return choices(lengths["tokens"], lengths["experts"])


@dataclass(frozen=True)
class Gates(Input):
    """Positive numbers; those of a token sum to 1."""

    def draw(self, lengths: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Random numbers in float64."""
        return super().draw(lengths, random).softmax(-1)


@dataclass(frozen=True)
class Owners:
    """Of every expert, the rank of the device that holds it: another vector for every number of devices."""

    def piece(self, whole: Tensor, parts: int, rank: int) -> Tensor:
        """(experts,) whatever -> (experts,) ranks."""
        return torch.arange(parts).repeat_interleave(torch.tensor(shard_sizes(len(whole), parts)))

    def whole(self, pieces: Sequence[Tensor]) -> Tensor:
        """They are all alike."""
        return pieces[0]


@dataclass(frozen=True)
class Rows(Talk):
    """The all-to-all of a row for each choice, there (or `back`), as the choices of these sizes need it."""

    back: bool = False

    def traffic(self, lengths: Mapping[str, int], parts: int, padded: bool = False) -> list[Traffic]:
        """What each device moves."""
        owner = Owners().piece(torch.empty(lengths["experts"]), parts, 0)
        each = cut(choices(lengths["tokens"], lengths["experts"]), parts, 0)
        table = [torch.bincount(owner[mine.flatten()], minlength=parts).tolist() for mine in each]
        table = tuple(zip(*table, strict=True)) if self.back else tuple(map(tuple, table))
        width = Input(self.dims).shape(lengths)[1:]
        rows = [torch.empty(sum(row), *width, dtype=torch.float64, device="meta") for row in table]
        return AllToAll(0, 0, table).traffic(rows)

    def __str__(self) -> str:
        return "an all_to_all of one row for each choice" + (", back" if self.back else "")


@dataclass(frozen=True)
class Numbers(Rows):
    """The same for one whole number for each choice. It is not needed where counts are sent instead."""

    dims: str = ""

    def traffic(self, lengths: Mapping[str, int], parts: int, padded: bool = False) -> list[Traffic]:
        """What each device moves."""
        return Rows(self.verb, "tokens").traffic(lengths, parts)

    def __str__(self) -> str:
        return "at most as much as the experts' numbers of the rows"


@dataclass(frozen=True)
class Counts(Talk):
    """An all-gather of a number of each device for each expert. Its dims are empty: it may be any whole number."""

    def traffic(self, lengths: Mapping[str, int], parts: int, padded: bool = False) -> list[Traffic]:
        """What each device moves."""
        mine = torch.empty(1, lengths["experts"], dtype=torch.int64, device="meta")
        return AllGather(0).traffic([mine] * parts)

    def __str__(self) -> str:
        return "an all_gather of one number for each expert"


# ---- 1: dispatch and combine ----


def by_loop(x: Tensor, expert: Tensor, gate: Tensor, w: Tensor, owner: Tensor) -> Tensor:
    answers = torch.tanh(x[:, None] * w[expert])  # (tokens, 2, hidden)
    return (gate[..., None] * answers).sum(1)


def dispatched(
    group: Group,
    x: Tensor,
    expert: Tensor,
    gate: Tensor,
    w: Tensor,
    owner: Tensor,
    returns: bool = True,
    keeps_order: bool = True,
    from_zero: bool = True,
    gates_sorted: bool = True,
    added: bool = True,
) -> Tensor:
    """The solution, and what is left of it with a mistake in it."""
    flat = expert.flatten()
    order = owner[flat].argsort(stable=True)
    table = group.table_of(torch.bincount(owner[flat], minlength=group.size).tolist())
    there = all_to_all(x[order // 2], group, 0, 0, sizes=table)
    numbers = group.all_to_all(flat[order], sizes=table)
    first = int((owner < group.rank).sum()) if from_zero else 0
    y = torch.tanh(there * w[(numbers - first) % len(w)])
    if returns:
        y = all_to_all(y, group, 0, 0, sizes=list(zip(*table, strict=True)))
    else:  # what was computed here stays here, as far as there is room for it
        y = torch.cat([y, y.new_zeros(len(flat), y.shape[1])])[: len(flat)]
    if not keeps_order:
        order = torch.arange(len(flat))
    weights = gate.flatten()[order, None] if gates_sorted else gate.flatten()[:, None]
    if not added:  # what is set last stays
        return torch.zeros_like(x).index_put((order // 2,), y * weights)
    return torch.zeros_like(x).index_add(0, order // 2, y * weights)


@exercise(
    oracle=by_loop,
    inputs={
        "x": Input("tokens hidden", Shard(0)),
        "expert": Choices("tokens 2 < experts", Shard(0)),
        "gate": Gates("tokens 2", Shard(0)),
        "w": Input("experts hidden", Shard(0)),
        "owner": Input("experts", Owners()),
    },
    returns={"the result": Shard(0)},
    gradients=("x", "gate", "w"),
    forward=(
        Rows(AllToAll(0, 0), "tokens hidden"),
        Rows(AllToAll(0, 0), "tokens hidden", back=True),
        Numbers(AllToAll(0, 0)),
        Counts(AllGather(0), ""),
    ),
    backward=(Rows(AllToAll(0, 0), "tokens hidden"), Rows(AllToAll(0, 0), "tokens hidden", back=True)),
    limited=False,
    slips={
        "the experts were gathered here, and the tokens stay. Real experts are far larger than the tokens: let tokens "
        "travel to them, and the answers back.": lambda group, x, expert, gate, w, owner: by_loop(
            x, expert, gate, all_gather(w, group, 0), owner
        ),
        "the answers were not put back: they come by device, not by token. order says which choice each one answers.": (
            lambda group, *inputs: dispatched(group, *inputs, keeps_order=False)
        ),
        "there is one all-to-all, and it takes two: the answers are on the experts' devices, not with their tokens.": (
            lambda group, *inputs: dispatched(group, *inputs, returns=False)
        ),
        "an expert's number was used as a place in w. Row 0 of w is the first of this device's own experts.": (
            lambda group, *inputs: dispatched(group, *inputs, from_zero=False)
        ),
        "the gates are in the order of the choices, and the answers in that of the devices: take the gates in order, "
        "too.": lambda group, *inputs: dispatched(group, *inputs, gates_sorted=False),
        "one answer of a token replaced the other: out[i] = y sets, and index_add adds.": (
            lambda group, *inputs: dispatched(group, *inputs, added=False)
        ),
    },
    mistakes={
        "the answers were added without their gates.": lambda parts, x, expert, gate, w, owner: by_loop(
            x, expert, torch.ones_like(gate), w, owner
        ),
        "the two answers were averaged. Each counts by its gate.": lambda parts, x, expert, gate, w, owner: by_loop(
            x, expert, torch.full_like(gate, 0.5), w, owner
        ),
        "only the first choice counts here: each token has two experts.": lambda parts, x, expert, gate, w, owner: (
            by_loop(x, expert, gate * torch.tensor([1.0, 0.0], dtype=gate.dtype), w, owner)
        ),
        "the gate was multiplied into the token before the expert. An expert is not linear: weigh its answer.": (
            lambda parts, x, expert, gate, w, owner: torch.tanh(gate[..., None] * x[:, None] * w[expert]).sum(1)
        ),
    },
    hints=(
        "Begin with a flat list of choices: expert.flatten(), in which choice c belongs to token c // 2. A row must "
        "lie beside the others for the same device. Which order is that, and how many go to each device?",
        "order = owner[flat].argsort(stable=True); sizes = torch.bincount(owner[flat], minlength=group.size).tolist(). "
        "Send x[order // 2] by lib's all_to_all(x, group, 0, 0, sizes=...), which knows its gradient, and the experts' "
        "numbers flat[order] by the verb. On the way back, what came from i goes to i.",
        "table = group.table_of(sizes) tells all of them, list(zip(*table)) is the way back. Row 0 of w is expert "
        "(owner < group.rank).sum(). At the end, index_add the answers times gate.flatten()[order, None] to the rows "
        "order // 2.",
    ),
)
def dispatch_and_combine(group: Group, x: Tensor, expert: Tensor, gate: Tensor, w: Tensor, owner: Tensor) -> Tensor:
    """For each token the sum of gate * tanh(x * w[e]) over its two experts e, whose rows of w are on other devices.

    x (tokens/P, hidden), expert (tokens/P, 2), integers, and gate (tokens/P, 2) are of this device's tokens; w
    (experts/P, hidden) are this device's experts, which stay where they are. owner (experts,), the same everywhere, is
    the rank of each expert's device, and experts lie in order. Return (tokens/P, hidden), with gradients of x, gate
    and w.
    """
    flat = expert.flatten()  # choice c belongs to token c // 2
    order = owner[flat].argsort(stable=True)  # by device
    table = group.table_of(torch.bincount(owner[flat], minlength=group.size).tolist())
    there = all_to_all(x[order // 2], group, 0, 0, sizes=table)  # (rows here, hidden)
    numbers = group.all_to_all(flat[order], sizes=table)
    y = torch.tanh(there * w[numbers - int((owner < group.rank).sum())])
    back = all_to_all(y, group, 0, 0, sizes=list(zip(*table, strict=True)))  # (choices, hidden)  by device
    return torch.zeros_like(x).index_add(0, order // 2, back * gate.flatten()[order, None])


# ---- 2: capacity ----


def with_room(expert: Tensor, gate: Tensor, load: Tensor) -> Tensor:
    kept, _ = keep_first(expert, count_rows(expert, len(load))[None], 0, ROOM)
    return renormalized(gate * (kept >= 0))


def renormalized(left: Tensor) -> Tensor:
    total = left.sum(-1, keepdim=True)
    return left / total.where(total > 0, torch.ones_like(total))


def first_choices_first(expert: Tensor, gate: Tensor, load: Tensor) -> Tensor:
    in_turn = expert.T.reshape(-1, 1)  # all first choices, then all second ones
    kept, _ = keep_first(in_turn, count_rows(in_turn, len(load))[None], 0, ROOM)
    return renormalized(gate * (kept.view(2, -1).T >= 0))


def kept_here(
    group: Group,
    expert: Tensor,
    gate: Tensor,
    load: Tensor,
    room: int = ROOM,
    alone: bool = False,
    whole: bool = True,
) -> Tensor:
    """The solution, and what is left of it with a mistake in it."""
    everyone = group.all_gather(count_rows(expert, len(load))[None])
    place = group.rank
    if alone:
        everyone, place = everyone[place][None], 0
    left = gate * (keep_first(expert, everyone, place, room)[0] >= 0)
    return renormalized(left) if whole else left


def counted_before(group: Group, expert: Tensor, gate: Tensor, load: Tensor, until: int) -> Tensor:
    """With the rows of the ranks up to `until` before this one counted as those that come first."""
    everyone = group.all_gather(count_rows(expert, len(load))[None])
    before = everyone[: max(0, until)].sum(0)
    own = before + count_rows(expert, len(load))
    kept, _ = keep_first(expert, torch.stack([before, own - before]), 1, ROOM)
    return renormalized(gate * (kept >= 0))


def both_or_none(expert: Tensor, gate: Tensor, load: Tensor) -> Tensor:
    kept, _ = keep_first(expert, count_rows(expert, len(load))[None], 0, ROOM)
    return gate * (kept >= 0).all(1, keepdim=True)


def last_rows(expert: Tensor, gate: Tensor, load: Tensor) -> Tensor:
    back = expert.flip(0, 1)
    kept, _ = keep_first(back, count_rows(back, len(load))[None], 0, ROOM)
    return renormalized(gate * (kept >= 0).flip(0, 1))


def softmax_of_what_is_left(expert: Tensor, gate: Tensor, load: Tensor) -> Tensor:
    kept, _ = keep_first(expert, count_rows(expert, len(load))[None], 0, ROOM)
    return gate.masked_fill(kept < 0, -torch.inf).softmax(-1).nan_to_num(0)


@exercise(
    oracle=with_room,
    inputs={
        "expert": Choices("tokens 2 < experts", Shard(0)),
        "gate": Gates("tokens 2", Shard(0)),
        "load": Input("experts"),
    },
    returns={"the gates": Shard(0)},
    forward=(Counts(AllGather(0), ""),),
    limited=False,
    slips={
        "nothing was dropped.": lambda group, expert, gate, load: gate,
        f"each device let {ROOM} rows of its own through. The room is that of all devices together: ask how many rows "
        "stand before yours.": lambda group, *inputs: kept_here(group, *inputs, alone=True),
        "your own rows were counted twice: before your first row stand those of the ranks before yours, without you.": (
            lambda group, *inputs: counted_before(group, *inputs, until=group.rank + 1)
        ),
        "gates are not normalized after dropping: what is left of a token's gates must sum to 1 again.": (
            lambda group, *inputs: kept_here(group, *inputs, whole=False)
        ),
        f"{ROOM + 1} rows got through: the last of them has {ROOM} before it already.": lambda group, *inputs: (
            kept_here(group, *inputs, room=ROOM + 1)
        ),
        f"{ROOM - 1} row got through: the next one has only {ROOM - 1} before it.": lambda group, *inputs: kept_here(
            group, *inputs, room=ROOM - 1
        ),
    },
    mistakes={
        "all first choices came before all second ones. Here tokens come in their order, with both choices.": (
            lambda parts, *inputs: first_choices_first(*inputs)
        ),
        "a token lost both choices where only one was dropped: the other one still counts.": (
            lambda parts, *inputs: both_or_none(*inputs)
        ),
        "the last rows of each expert were kept. Who comes first has a place.": lambda parts, *inputs: last_rows(
            *inputs
        ),
        "what is left went through a softmax. Gates are shares already: divide them by their sum.": (
            lambda parts, *inputs: softmax_of_what_is_left(*inputs)
        ),
    },
    hints=(
        "A row is kept if fewer than two rows for its expert come before it. Some of those are on this device. How "
        "many are on the devices before it?",
        "counts = torch.bincount(expert.flatten(), minlength=len(load)); everyone = group.all_gather(counts[None]); "
        "everyone[: group.rank].sum(0) rows come first. Go through your own choices in order and count on from there.",
        "before = everyone[: group.rank].sum(0).tolist(); then for each choice e in expert.flatten().tolist(): keep it "
        "if before[e] < 2, and add 1 to before[e]. Multiply, and divide each token's gates by their sum, if it is not "
        "0.",
    ),
)
def capacity(group: Group, expert: Tensor, gate: Tensor, load: Tensor) -> Tensor:
    """The gates after drops: every expert takes the first 2 rows of all devices together, and no more.

    expert (tokens/P, 2), integers, and gate (tokens/P, 2) are of this device's tokens; load (experts,) only says how
    many experts there are. Rows wait in the order of the whole batch: rank by rank, token by token, first choice before
    second. Return (tokens/P, 2): 0 where a choice is dropped, and the others scaled so that a token's gates sum to 1
    again (0 where both are dropped).
    """
    counts = torch.bincount(expert.flatten(), minlength=len(load))
    everyone = group.all_gather(counts[None])  # (P, experts)  Replicate
    before = everyone[: group.rank].sum(0).tolist()
    keep = []
    for e in expert.flatten().tolist():
        keep.append(before[e] < 2)
        before[e] += 1
    left = gate * torch.tensor(keep).view_as(gate)
    total = left.sum(-1, keepdim=True)
    return left / torch.where(total > 0, total, torch.ones_like(total))


# ---- 3: the router's gradient ----


def of_gates(x: Tensor, r: Tensor, y: Tensor, dz: Tensor, through: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The router's gradient, with `through` for the way through the gates."""
    logits = x @ r.T
    best, expert = logits.topk(2, -1)
    d_gate = (y * dz[:, None]).sum(-1)
    d_logits = torch.zeros_like(logits).scatter(1, expert, through(best.softmax(-1), d_gate))
    return d_logits.T @ x


def right_way(g: Tensor, d: Tensor) -> Tensor:
    return g * (d - (g * d).sum(-1, keepdim=True))


def of_all_experts(x: Tensor, r: Tensor, y: Tensor, dz: Tensor) -> Tensor:
    """As if the gates were the two best of a softmax over all experts."""
    logits = x @ r.T
    expert = logits.topk(2, -1).indices
    d_scores = torch.zeros_like(logits).scatter(1, expert, (y * dz[:, None]).sum(-1))
    return right_way(logits.softmax(-1), d_scores).T @ x


def to_first_experts(x: Tensor, r: Tensor, y: Tensor, dz: Tensor) -> Tensor:
    """Without the scatter: experts 0 and 1 learn, whoever was chosen."""
    best, _ = (x @ r.T).topk(2, -1)
    d_best = right_way(best.softmax(-1), (y * dz[:, None]).sum(-1))
    return torch.cat([d_best.T @ x, torch.zeros_like(r[2:])])


def by_hand(x: Tensor, r: Tensor, y: Tensor, dz: Tensor) -> Tensor:
    return of_gates(x, r, y, dz, right_way)


@exercise(
    oracle=by_hand,
    inputs={
        "x": Input("tokens hidden", Shard(0)),
        "r": Input("experts hidden"),
        "y": Input("tokens 2 hidden", Shard(0)),
        "dz": Input("tokens hidden", Shard(0)),
    },
    returns={"the router's gradient": Replicate()},
    forward=(Talk(AllReduce(), "experts hidden"),),
    slips={
        "averaged over the devices. Each device's dz is its share of one loss already: the gradients are added.": (
            lambda group, *inputs: group.all_reduce(of_gates(*inputs, right_way)) / group.size
        ),
        "each device has the gradient of its own tokens alone. The router is the same everywhere: add them up.": (
            lambda group, *inputs: of_gates(*inputs, right_way)
        ),
    },
    mistakes={
        "the gates sum to 1, so raising one lowers the other: d_logit = g (d_gate - sum of g d_gate).": (
            lambda parts, *inputs: of_gates(*inputs, lambda g, d: g * d)
        ),
        "a softmax of two is no sigmoid of each: the other gate's gradient is missing.": lambda parts, *inputs: (
            of_gates(*inputs, lambda g, d: g * (1 - g) * d)
        ),
        "the softmax is over the two chosen logits: experts that were not chosen get no gradient.": (
            lambda parts, *inputs: of_all_experts(*inputs)
        ),
        "experts 0 and 1 learned, whoever was chosen: scatter each gradient to its expert.": (
            lambda parts, *inputs: to_first_experts(*inputs)
        ),
        "divided by the number of tokens. dz is the gradient of the loss, its mean is in there already.": (
            lambda parts, x, *others: by_hand(x, *others) / len(x)
        ),
        "this is the gradient of the gates, not of the logits: go back through the softmax.": (
            lambda parts, *inputs: of_gates(*inputs, lambda g, d: d)
        ),
    },
    hints=(
        "z = gate_0 y_0 + gate_1 y_1. What is the gradient of gate_0, for one token? Then go back through the "
        "softmax of the two chosen logits.",
        "d_gate = (y * dz[:, None]).sum(-1) is (tokens/P, 2). Through a softmax g: d_best = g * (d_gate - (g * "
        "d_gate).sum(-1, keepdim=True)). Logits that were not chosen get nothing.",
        "Scatter d_best into zeros like the logits, at the chosen experts: d_logits. Then d_logits.T @ x is this "
        "device's term of the gradient, and one all_reduce adds them.",
    ),
)
def router_gradient(group: Group, x: Tensor, r: Tensor, y: Tensor, dz: Tensor) -> Tensor:
    """The gradient of the router's weight r by hand, the same on every device: one all-reduce.

    x (tokens/P, hidden) are this device's tokens, r (experts, hidden) is whole. Forward was: logits = x @ r.T; the two
    largest are chosen, and their softmax are the gates; z = gate_0 y_0 + gate_1 y_1. y (tokens/P, 2, hidden) are the
    answers of the chosen experts, in the order of topk, and dz (tokens/P, hidden) is the gradient of z: that of one
    loss over all tokens.
    """
    logits = x @ r.T  # (tokens/P, experts)
    best, expert = logits.topk(2, -1)
    gate = best.softmax(-1)  # (tokens/P, 2)
    d_gate = (y * dz[:, None]).sum(-1)
    d_best = gate * (d_gate - (gate * d_gate).sum(-1, keepdim=True))
    d_logits = torch.zeros_like(logits).scatter(1, expert, d_best)
    return group.all_reduce(d_logits.T @ x)  # (experts, hidden)  Partial -> Replicate


# ---- 4: the groups of each gradient ----


def ep_of(parts: int) -> int:
    return EP if parts > 1 else 1


@dataclass(frozen=True)
class ExpertsOf:
    """The experts of a device: cut over pairs of neighbors, the same in each pair. With `term`, a part of P times
    them: those of all replicas add up to that, as gradients of P means do."""

    term: bool = False

    def piece(self, whole: Tensor, parts: int, rank: int) -> Tensor:
        """What device `rank` of `parts` has."""
        ep = ep_of(parts)
        mine = cut(whole, ep, 0)[rank % ep]
        replicas = parts // ep
        weight = 2 * (rank // ep + 1) / (replicas * (replicas + 1))  # they sum to 1 over the replicas
        return mine * (parts * weight) if self.term else mine

    def whole(self, pieces: Sequence[Tensor]) -> Tensor:
        """Put together again."""
        return torch.cat(list(pieces[: ep_of(len(pieces))]))


@dataclass(frozen=True)
class TermOfMean:
    """A gradient of this device's own tokens: the mean of all devices' is the tensor."""

    def piece(self, whole: Tensor, parts: int, rank: int) -> Tensor:
        """What device `rank` of `parts` has."""
        return whole * (2 * (rank + 1) / (parts + 1))

    def whole(self, pieces: Sequence[Tensor]) -> Tensor:
        """Their mean."""
        return sum(pieces) / len(pieces)


@dataclass(frozen=True)
class OverReplicas(Talk):
    """An all-reduce of a device's experts over its replicas."""

    def traffic(self, lengths: Mapping[str, int], parts: int, padded: bool = False) -> list[Traffic]:
        """What each device moves."""
        ep = ep_of(parts)
        whole = torch.empty(*Input(self.dims).shape(lengths), dtype=torch.float64, device="meta")
        if parts == ep:
            return [Traffic(0, 0, 0, 0)] * parts
        found = [AllReduce().traffic([cut(whole, ep, 0)[e]] * (parts // ep)) for e in range(ep)]
        return [found[rank % ep][rank // ep] for rank in range(parts)]

    def __str__(self) -> str:
        return "an all_reduce of a device's own experts, over the devices that hold the same"


def as_given(router: Tensor, expert: Tensor) -> tuple[Tensor, Tensor]:
    return router, expert


def summed_over(
    group: Group,
    router: Tensor,
    expert: Tensor,
    experts_over: str,
    divide: Callable[[Mesh], float],
    router_over: str = "all",
    divide_router: Callable[[Mesh], float] | None = None,
) -> tuple[Tensor, Tensor]:
    """With these groups and factors. The router's is P unless given."""
    mesh = Mesh(group, replicas=group.size // ep_of(group.size), experts=ep_of(group.size))
    mine, theirs = (group if over == "all" else getattr(mesh, over) for over in (router_over, experts_over))
    factor = group.size if divide_router is None else divide_router(mesh)
    return mine.all_reduce(router) / factor, theirs.all_reduce(expert) / divide(mesh)


@exercise(
    oracle=as_given,
    inputs={
        "router": Input("2*experts hidden", TermOfMean()),
        "expert": Input("2*experts hidden", ExpertsOf(term=True)),
    },
    returns={"the router's gradient": Replicate(), "the experts' gradients": ExpertsOf()},
    forward=(Talk(AllReduce(), "2*experts hidden"), OverReplicas(AllReduce(), "2*experts hidden")),
    devices=(1, 2, 4, 6),
    slips={
        "the experts' gradients were averaged over their own group, the replicas. They hold the losses of all P "
        "devices, so they come out EP times too large: divide by P.": lambda group, router, expert: summed_over(
            group, router, expert, "replicas", lambda mesh: mesh.replicas.size
        ),
        "the experts' gradients were summed over the devices that divide the experts: those are other experts.": (
            lambda group, router, expert: summed_over(group, router, expert, "experts", lambda mesh: group.size)
        ),
        "the experts' gradients were averaged over the devices that divide the experts: those are other experts.": (
            lambda group, router, expert: summed_over(group, router, expert, "experts", lambda mesh: EP)
        ),
        "the experts' gradients were averaged over all devices. Only the replicas hold the same experts.": (
            lambda group, router, expert: summed_over(group, router, expert, "all", lambda mesh: group.size)
        ),
        "the sum over the replicas was not divided. A device's loss is a mean over its own tokens: divide by P.": (
            lambda group, router, expert: summed_over(group, router, expert, "replicas", lambda mesh: 1)
        ),
        "nothing was divided. A device's loss is a mean over its own tokens, and the batch's is the mean of all P.": (
            lambda group, *both: summed_over(group, *both, "replicas", lambda mesh: 1, divide_router=lambda mesh: 1)
        ),
        "the router's gradient was summed over all devices, and not divided: divide it by P.": (
            lambda group, *both: summed_over(
                group, *both, "replicas", lambda mesh: group.size, divide_router=lambda mesh: 1
            )
        ),
        "the router's gradient was averaged over the replicas alone. All P devices hold the same router.": (
            lambda group, *both: summed_over(
                group, *both, "replicas", lambda mesh: group.size, "replicas", lambda mesh: mesh.replicas.size
            )
        ),
        "the experts' gradients were divided by EP. The groups differ, the factor does not: divide by P.": (
            lambda group, *both: summed_over(group, *both, "replicas", lambda mesh: mesh.experts.size)
        ),
        "a factor came twice: what is divided by P before the sum needs no division behind it.": (
            lambda group, *both: summed_over(
                group, *both, "replicas", lambda mesh: group.size**2, divide_router=lambda mesh: group.size**2
            )
        ),
        "the experts' gradients were not added over the replicas.": lambda group, router, expert: (
            group.all_reduce(router) / group.size,
            expert / group.size,
        ),
    },
    hints=(
        "The loss of the batch is the mean of the devices' losses: (1/P) times their sum. Which devices' losses are in "
        "an expert's gradient already, and whose are missing?",
        "A device's experts have met the tokens of both devices of its pair. The other pairs hold the same experts: "
        "with ep = min(2, group.size), add over Mesh(group, replicas=group.size // ep, experts=ep).replicas.",
        "group.all_reduce(router) / group.size, and mesh.replicas.all_reduce(expert) / group.size for the mesh of hint "
        "2: the groups differ, the factor does not.",
    ),
)
def reduce_gradients(group: Group, router: Tensor, expert: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the mean loss over all devices, from those of each device's own mean loss.

    Every device computed the mean loss of its own tokens, equally many everywhere, and called backward. Pairs of
    neighbors (0 and 1, 2 and 3, ...) divide the experts between them, and tokens travel inside a pair; all pairs hold
    the same experts. One device alone holds all. router (2 experts, hidden) is the gradient of this device's router;
    expert (experts, hidden) that of its own experts, summed over the tokens that came to them. Return both.
    """
    ep = min(2, group.size)
    mesh = Mesh(group, replicas=group.size // ep, experts=ep)
    return group.all_reduce(router) / group.size, mesh.replicas.all_reduce(expert) / group.size


# ---- 5: the balance loss ----


def balance_of(probability: Tensor, expert: Tensor, share: Tensor | None = None) -> Tensor:
    """E times the sum over the experts of their share of the rows times their mean probability."""
    experts = probability.shape[1]
    share = count_rows(expert, experts).to(probability) / expert.numel() if share is None else share
    return experts * (probability @ share).mean()


def mean_of_means(group: Group, probability: Tensor, expert: Tensor) -> Tensor:
    rows = group.all_reduce(count_rows(expert, probability.shape[1]).to(probability) / expert.numel()) / group.size
    means = group.all_reduce(probability.mean(0)) / group.size
    return probability.shape[1] * (rows * means).sum()


@exercise(
    oracle=balance_of,
    inputs={
        "probability": Gates("tokens experts", Shard(0)),
        "expert": Choices("tokens 2 < experts", Shard(0)),
    },
    returns={"the balance loss": Replicate()},
    forward=(Talk(AllReduce(), "2*experts"),),
    limited=False,
    slips={
        "each device's own loss was averaged. f multiplies p, so both must be those of the whole batch first.": (
            lambda group, *inputs: group.all_reduce(balance_of(*inputs)) / group.size
        ),
        "this is the loss of your own tokens alone.": lambda group, *inputs: balance_of(*inputs),
        "the devices' means were averaged, as if all had equally many. Add up sums, and divide once.": mean_of_means,
        "the losses of the devices were added.": lambda group, *inputs: group.all_reduce(balance_of(*inputs)),
    },
    mistakes={
        "the number of experts is missing: where all is even, the loss must be 1.": lambda parts, p, expert: (
            balance_of(p, expert) / p.shape[1]
        ),
        "f is a share of the rows, and a token has two: divide by their number, not by that of the tokens.": (
            lambda parts, p, expert: 2 * balance_of(p, expert)
        ),
        "p is a mean over the tokens, and there are half as many as rows.": lambda parts, p, expert: (
            balance_of(p, expert) / 2
        ),
        "p is a mean: divide the sum of the probabilities by the number of tokens.": lambda parts, p, expert: (
            balance_of(p, expert) * len(p)
        ),
        "f counts the rows that each expert got. This is p in its place.": lambda parts, p, expert: balance_of(
            p, expert, p.mean(0)
        ),
        "f counts the first choices alone: both choices are rows.": lambda parts, p, expert: balance_of(
            p, expert[:, :1]
        ),
    },
    hints=(
        "f and p are means over all tokens of all devices, and they are multiplied with each other. So what must be "
        "known on every device before the product?",
        "Of each expert two sums over all devices: the rows that it got, torch.bincount(expert.flatten(), "
        "minlength=E), and its probabilities, probability.sum(0). One all_reduce can take both, stacked.",
        "rows, sums = group.all_reduce(torch.stack([counts.to(probability), probability.sum(0)])); f = rows / "
        "rows.sum(), and the tokens are rows.sum() / 2, so p = 2 * sums / rows.sum(). The loss is E * (f * p).sum().",
    ),
)
def balance(group: Group, probability: Tensor, expert: Tensor) -> Tensor:
    """The balance loss of the whole batch, E sum_e f_e p_e, the same single number on every device.

    probability (tokens/P, E) are the router's softmax for this device's tokens, and expert (tokens/P, 2), integers, the
    two experts that each of them chose. f_e is expert e's share of all rows, p_e its mean probability over all tokens.
    Devices may have different numbers of tokens.
    """
    experts = probability.shape[1]
    counts = torch.bincount(expert.flatten(), minlength=experts)
    rows, sums = group.all_reduce(torch.stack([counts.to(probability), probability.sum(0)]))  # (E,) each, Replicate
    f, p = rows / rows.sum(), 2 * sums / rows.sum()  # two rows for each token
    return experts * (f * p).sum()
