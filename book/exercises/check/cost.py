"""What an answer may cost: the calls it needs, charged as the engine charges them, and no multiplication done twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from book.exercises.check.inputs import Input
from book.exercises.check.trials import Trial, Work
from book.exercises.check.verdict import Excess, Fault
from lib.devices import Meters
from lib.devices.collectives import AllGather, Collective, ReduceScatter
from lib.devices.pieces import cut
from lib.devices.rooted import Broadcast, Scatter
from lib.devices.traffic import Traffic

FORMULAS = {"all_reduce": "2(P-1)/P · N"}  # of a ring; the other verbs go round it once


@dataclass(frozen=True)
class Talk:
    """One call that an exercise needs: the verb, and the names of the dims of the whole tensor it is about."""

    verb: Collective
    dims: str

    def traffic(self, lengths: Mapping[str, int], parts: int, padded: bool = False) -> list[Traffic]:
        """What each device moves, as the engine itself would charge it. `padded`: in pieces of one size, rounded up."""
        shape = list(Input(self.dims).shape(lengths))
        if padded and isinstance(self.verb, AllGather | ReduceScatter):
            shape[self.verb.dim] += -shape[self.verb.dim] % parts
        whole = torch.empty(shape, dtype=torch.float64, device="meta")
        brought = cut(whole, parts, self.verb.dim) if isinstance(self.verb, AllGather) else [whole] * parts
        return self.verb.traffic(list(brought))

    def __str__(self) -> str:
        formula, shape = FORMULAS.get(self.verb.name, "(P-1)/P · N"), self.dims.replace(" ", ", ")
        if isinstance(self.verb, Broadcast):
            return f"(P-1) · N bytes in all, as a broadcast of ({shape}) sends"
        if isinstance(self.verb, Scatter):
            return f"(P-1)/P · N bytes from rank {self.verb.src}, as a scatter of ({shape}) sends"
        if not shape:
            return f"one {self.verb.name} of a single number"
        return f"{formula} bytes per device, as one ring {self.verb.name} of ({shape}) sends"


@dataclass(frozen=True)
class Spent:
    """What one device called: verb -> (calls, bytes sent)."""

    verbs: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, meters: Meters, rank: int) -> Spent:
        """What `rank` called in a run."""
        counts = {verb: meters.count(rank, verb) for verb in meters.verbs()}
        return cls({verb: (count.calls, count.bytes_sent) for verb, count in counts.items()})

    def __sub__(self, other: Spent) -> Spent:
        before = {verb: other.verbs.get(verb, (0, 0)) for verb in self.verbs}
        return Spent({v: (calls - before[v][0], sent - before[v][1]) for v, (calls, sent) in self.verbs.items()})

    @property
    def bytes_sent(self) -> int:
        """Bytes sent, whatever the verb."""
        return sum(sent for _, sent in self.verbs.values())

    @property
    def calls(self) -> int:
        """Collectives called. Single messages may be many: a collective is made of them, and the bytes limit them."""
        return sum(calls for verb, (calls, _) in self.verbs.items() if verb not in ("send", "recv"))

    def __str__(self) -> str:
        called = [f"{calls} {verb}" for verb, (calls, _) in sorted(self.verbs.items()) if calls]
        return ", ".join(called) or "nothing"


def check_silence(talks: Sequence[Talk], trial: Trial, spent: Sequence[Spent]) -> None:
    """Raises Fault when talk is needed and nobody sent a byte."""
    if trial.devices > 1 and talks and not any(mine.bytes_sent for mine in spent):
        raise Fault(
            f"gives the right numbers, but no device sent anything, on {trial}.",
            f"Needed: {_listed(talks)}.",
            "Cause: each device computed from data that is not its own piece.",
        )


def check_bytes(phase: str, talks: Sequence[Talk], trial: Trial, spent: Sequence[Spent]) -> None:
    """Raises Fault when the devices sent less than `talks` move, and Excess when they sent more, or in more calls.

    `spent` is by rank; `phase` is " forward", " backward", or "" when there is only one.
    """
    if trial.devices == 1:
        return
    each = [talk.traffic(trial.lengths, trial.devices) for talk in talks]
    # Pieces of different lengths may be padded to one length before they travel.
    most = [talk.traffic(trial.lengths, trial.devices, padded=True) for talk in talks]
    # A single number may be gathered as well: P of them are still few.
    number = [8 * (trial.devices - 1) if not talk.dims else 0 for talk in talks]
    allowed = [
        sum(max(traffic[rank].bytes_sent, few) for traffic, few in zip(most, number, strict=True))
        for rank in range(trial.devices)
    ]
    sent = [mine.bytes_sent for mine in spent]
    needed = f"Needed{phase}: {_listed(talks)}."
    # A single number may travel in any type: a count is as right in four bytes as in eight.
    tensors = [traffic for talk, traffic in zip(talks, each, strict=True) if talk.dims]
    least = sum(device.bytes_sent for traffic in tensors for device in traffic)
    if sum(sent) < least:
        raise Fault(
            f"gives the right numbers, but from too few bytes{phase}, on {trial}.",
            f"all devices together: {sum(sent):,} bytes sent, {least:,} are needed. Rank 0 called: {spent[0]}.",
            needed,
            "Cause: this is not the way that is asked for, or a device computed from data that is not its own piece.",
        )
    # Uneven pieces, and a broadcast, can travel in more than one fair way; then only the total of all devices counts.
    pairs = enumerate(zip(sent, allowed, strict=True))
    fair = trial.even and not any(isinstance(talk.verb, Broadcast) for talk in talks)
    over = [(f"rank {rank}", given, enough) for rank, (given, enough) in pairs if given > enough and fair]
    if sum(sent) > sum(allowed):
        over.append(("all devices together", sum(sent), sum(allowed)))
    if over:
        who, given, enough = over[0]
        raise Excess(
            f"gives the right numbers, but sends too many bytes{phase}, on {trial}.",
            f"{who}: {given:,} bytes sent, {enough:,} are enough. Rank 0 called: {spent[0]}.",
            needed,
        )
    if spent[0].calls > len(talks):
        raise Excess(
            f"gives the right numbers, but with too many calls{phase}, on {trial}.",
            f"Rank 0 called: {spent[0]}. Every call makes all devices wait for each other once more.",
            needed,
        )


def check_verbs(only: Sequence[str], trial: Trial, spent: Spent) -> None:
    """Raises Fault when a verb was called that this exercise is to do without. No `only`: all may be called."""
    others = [verb for verb in spent.verbs if only and verb not in only]
    if others:
        raise Fault(
            f"gives the right numbers, but with {' and '.join(others)}.",
            f"This exercise is about doing it with {' and '.join(only)} alone.",
        )


def check_ring(trial: Trial, paths: set[tuple[int, int]]) -> None:
    """Raises Fault when a device sent to one that is not beside it on the ring."""
    for src, dst in sorted(paths):
        if (dst - src) % trial.devices not in (1, trial.devices - 1):
            raise Fault(
                f"gives the right numbers, but not round the ring, on {trial}.",
                f"Rank {src} sent to rank {dst}. On a ring it has two neighbors, {(src - 1) % trial.devices} and "
                f"{(src + 1) % trial.devices}.",
                "Cause: pieces went straight to everyone. Pass on to the next device what came last.",
            )


def check_steps(enough: int, trial: Trial, steps: int) -> None:
    """Raises Fault when more messages than `enough` had to wait for each other."""
    if steps > enough:
        raise Fault(
            f"gives the right numbers, but in too many steps, on {trial}.",
            f"{steps} messages go one after the other; {enough} are enough.",
            "Cause: devices that have it already stand idle. Let each of them tell another one, all at the same time.",
        )


def check_work(
    oracle: Callable[..., Tensor | tuple[Tensor, ...]],
    trial: Trial,
    work: Sequence[int],
    same_alone: Callable[[], int],
) -> str | None:
    """Raises Fault when the devices together multiplied more than one device would. `work` is by rank.

    An answer may multiply where the oracle does not, one-hot rows for example. So it is compared with itself too:
    `same_alone()` is what the same program multiplies on one device. Work that is divided is not done twice; returns
    a remark on it.
    """
    with Work() as alone:
        oracle(*trial.inputs.values())
    if sum(work) <= alone.done:
        return None
    enough = max(alone.done, same_alone())
    if sum(work) > enough:
        raise Fault(
            f"gives the right numbers, but does work twice, on {trial}.",
            f"One device needs {enough:,} multiplications; these {trial.devices} did {sum(work):,} together.",
            "Cause: a product of more than the own piece. Cut first, then multiply.",
        )
    return "Right, with a product of matrices that it can do without."


def praise(phase: str, talks: Sequence[Talk], spent: Spent) -> str:
    """What a correct answer costs. `spent` is rank 0's: who came there by other verbs is told them, too."""
    title, known = phase.strip().capitalize() or "Sent", Counter(talk.verb.name for talk in talks)
    if known == {verb: calls for verb, (calls, _) in spent.verbs.items() if calls}:
        return f"{title}: {_listed(talks)}."
    return f"{title}: rank 0 called {spent}. Enough is: {_listed(talks)}."


def _listed(talks: Sequence[Talk]) -> str:
    times = Counter(map(str, talks))
    return "; ".join(talk if n == 1 else f"{n} times: {talk}" for talk, n in times.items()) or "nothing"
