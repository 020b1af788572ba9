"""Where the sends and receives of a schedule stand.

    beside     a receive right before the step that uses it, a send right after the step that makes it
    batched    the same, but where messages are neighbors the receives come first: `batch_isend_irecv`
    paired     both ends are put into the lists together, in one order of time for all devices

Where a send waits until its receiver asks (NCCL), `beside` deadlocks as soon as two devices want to send to each other,
`batched` mends neighbors, and `paired` never deadlocks: of all messages that are still to come, the earliest can go.
"""

from typing import Literal

from lib.parallel.pipeline.clock import Times, timeline
from lib.parallel.pipeline.steps import Backward, BackwardInput, Forward, Recv, Schedule, Send, Step

How = Literal["paired", "beside", "batched"]


def with_messages(schedule: Schedule, how: How = "paired", times: Times | None = None) -> Schedule:
    """`schedule` with its sends and receives. `times` are what `paired` takes its order from (all steps alike).

    Raises ValueError when there are messages in it already, or when it can never run.
    """
    if schedule.has_messages:
        raise ValueError(f"{schedule.name} has messages already: take them out, or leave them as they are")
    if how not in ("paired", "beside", "batched"):
        raise ValueError(f"with_messages: how={how!r} must be 'paired', 'beside' or 'batched'")
    lists: list[list[Step]] = [[] for _ in schedule.steps]
    if how == "paired":
        lanes = enumerate(timeline(schedule, times))
        slots = sorted((slot.end, device, i, slot.step) for device, lane in lanes for i, slot in enumerate(lane))
        for _, device, _, step in slots:
            lists[device].append(step)
            for send, recv in _message(schedule, step):
                lists[device].append(send)
                lists[schedule.device_of[recv.stage]].append(recv)
    else:
        for mine, steps in zip(lists, schedule.steps, strict=True):
            for step in steps:
                mine += [*_wanted(schedule, step), step, *(send for send, _ in _message(schedule, step))]
        if how == "batched":
            lists = [_receives_first(steps) for steps in lists]
    return Schedule(schedule.name, lists)


def _message(schedule: Schedule, step: Step) -> list[tuple[Send, Recv]]:
    """Both ends of what `step` makes for another device, if it makes something."""
    match step:
        case Forward():
            what, to = "F", step.stage + 1
        case Backward() | BackwardInput():
            what, to = "B", step.stage - 1
        case _:
            return []
    where = schedule.device_of
    if where.get(to, where[step.stage]) == where[step.stage]:
        return []
    return [(Send(step.stage, step.micro, what), Recv(to, step.micro, what))]


def _wanted(schedule: Schedule, step: Step) -> list[Recv]:
    """The receive that `step` needs from another device, if it needs one."""
    match step:
        case Forward():
            recv = Recv(step.stage, step.micro, "F")
        case Backward() | BackwardInput():
            recv = Recv(step.stage, step.micro, "B")
        case _:
            return []
    where = schedule.device_of
    return [recv] if where.get(recv.peer, where[step.stage]) != where[step.stage] else []


def _receives_first(steps: list[Step]) -> list[Step]:
    made: list[Step] = []
    batch: list[Step] = []
    for step in steps:
        if isinstance(step, Send | Recv):
            batch.append(step)
            continue
        made += sorted(batch, key=lambda message: isinstance(message, Send)) + [step]  # stable: each kind in its order
        batch = []
    return made + batch
