"""The schedules of the literature, each a few lines that make its lists. `p` devices, `m` micro-batches, `v` chunks.

    naive           one micro-batch at a time, there and back
    gpipe           all forwards, then all backwards               Huang et al. 2019, arXiv 1811.06965
    one_f_one_b     the backward as soon as it can be              Narayanan et al. 2021, arXiv 2104.04473
    interleaved     1F1B with v smaller stages on each device      Narayanan et al. 2021, section 2.2
    breadth_first   GPipe with v smaller stages on each device     Lamy-Poirier 2022, arXiv 2211.05953
    zb_h1, zb_h2    1F1B with the backward in two halves           Qi et al. 2023, arXiv 2401.10241

Those whose stages lie in a V are in `v_shaped`.
"""

from collections import deque

from lib.devices.counts import is_count
from lib.parallel.pipeline.steps import Backward, BackwardInput, BackwardWeight, Forward, Schedule, Step


def naive(p: int, m: int) -> Schedule:
    """Each device waits for the next, and for its gradient: no two ever work at the same time."""
    check_sizes(p, m)
    return Schedule("naive", [[kind(r, k) for k in range(m) for kind in (Forward, Backward)] for r in range(p)])


def gpipe(p: int, m: int) -> Schedule:
    """All forwards, then all backwards: every device holds m micro-batches."""
    check_sizes(p, m)
    return Schedule("GPipe", [[kind(r, k) for kind in (Forward, Backward) for k in range(m)] for r in range(p)])


def one_f_one_b(p: int, m: int) -> Schedule:
    """Device r does p - 1 - r forwards ahead, then a forward and a backward in turn: it holds p - r micro-batches."""
    check_sizes(p, m)
    lists = []
    for r in range(p):
        ahead = min(m, p - 1 - r)
        forwards, backwards = [Forward(r, k) for k in range(m)], [Backward(r, k) for k in range(m)]
        lists.append(_alternate(forwards, backwards, ahead))
    return Schedule("1F1B", lists)


def interleaved(p: int, m: int, v: int) -> Schedule:
    """Stage s on device s mod p. In rounds of p micro-batches, through all of a device's chunks. m must be a multiple
    of p."""
    check_sizes(p, m, v)
    if m % p:
        raise ValueError(
            f"interleaved: {m} micro-batches on {p} devices; m must be a multiple of p. Take {m - m % p + p}, or "
            "breadth_first, which takes any"
        )
    # (chunk, micro-batch) in the order of the forwards; the backwards go through the chunks the other way.
    order = [(c, k) for start in range(0, m, p) for c in range(v) for k in range(start, start + p)]
    lists = []
    for r in range(p):
        forwards = [Forward(c * p + r, k) for c, k in order]
        backwards = [Backward((v - 1 - c) * p + r, k) for c, k in order]
        lists.append(_alternate(forwards, backwards, min(m * v, 2 * (p - 1 - r) + (v - 1) * p)))
    return Schedule(f"interleaved, v = {v}", lists)


def breadth_first(p: int, m: int, v: int) -> Schedule:
    """Stage s on device s mod p. All micro-batches through a chunk before the next chunk begins."""
    check_sizes(p, m, v)
    lists = []
    for r in range(p):
        down = [Forward(c * p + r, k) for c in range(v) for k in range(m)]
        lists.append(down + [Backward(c * p + r, k) for c in reversed(range(v)) for k in range(m)])
    return Schedule(f"breadth-first, v = {v}", lists)


def zb_h1(p: int, m: int) -> Schedule:
    """1F1B, where device r puts off the weights of r micro-batches: the same memory, a third of the bubble."""
    check_sizes(p, m)
    return Schedule("ZB-H1", [put_off(steps, r) for r, steps in enumerate(one_f_one_b(p, m).steps)])


def zb_h2(p: int, m: int) -> Schedule:
    """2 (p - r) - 1 forwards before the first backward, and 2 r micro-batches of weights put off: no bubble where all
    three parts take equally long, and twice the memory."""
    check_sizes(p, m)
    lists = []
    for r in range(p):
        ahead = min(m, 2 * (p - r) - 1)
        steps: list[Step] = [Forward(r, k) for k in range(ahead)]
        for k in range(m):
            steps.append(Backward(r, k))
            steps += [Forward(r, ahead + k)] * (ahead + k < m)
        lists.append(put_off(steps, 2 * r))
    return Schedule("ZB-H2", lists)


def split_backward(schedule: Schedule) -> Schedule:
    """The same with every backward in two halves, one after the other."""
    return Schedule(f"{schedule.name}, split", [put_off(steps, 0) for steps in schedule.steps])


def _alternate(forwards: list[Step], backwards: list[Step], ahead: int) -> list[Step]:
    """So many forwards ahead, then one forward and one backward in turn, then the backwards that are left."""
    steps = forwards[:ahead]
    for forward, backward in zip(forwards[ahead:], backwards, strict=False):
        steps += [forward, backward]
    return steps + backwards[len(forwards) - ahead :]


def put_off(steps: list[Step], later: int) -> list[Step]:
    """Every backward in two halves; the weights `later` backwards behind their inputs."""
    off: deque[Step] = deque()
    made: list[Step] = []
    for step in steps:
        if not isinstance(step, Backward):
            made.append(step)
            continue
        made.append(BackwardInput(step.stage, step.micro))
        off.append(BackwardWeight(step.stage, step.micro))
        if len(off) > later:
            made.append(off.popleft())
    return made + list(off)


def check_sizes(p: int, m: int, v: int = 1) -> None:
    """Raises ValueError when one of them is not a number of things."""
    for name, value, what in (("p", p, "devices"), ("m", m, "micro-batches"), ("v", v, "chunks on a device")):
        if not is_count(value):
            raise ValueError(f"a schedule with {name} = {value!r}: {what} are counted by an integer of at least 1")
