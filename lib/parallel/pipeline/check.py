"""What cannot work is found before anything runs: a schedule is a list, and a list can be read."""

from collections import Counter, defaultdict

from lib.parallel.pipeline.clock import Stuck, timeline
from lib.parallel.pipeline.messages import with_messages
from lib.parallel.pipeline.steps import Backward, BackwardInput, BackwardWeight, Forward, Recv, Schedule, Send


def check_schedule(schedule: Schedule, rendezvous: bool = False, tags: bool = True) -> None:
    """Raises ValueError when `schedule` cannot run, or would not compute the gradients of one device, and says why.

    `rendezvous`: sends wait for their receives. `tags=False`: messages have no tags, so between two devices they must
    be asked for in the order in which they are sent. NCCL is both.
    """
    _check_stages(schedule)
    _check_work(schedule)
    _check_order(schedule)
    if schedule.has_messages:
        _check_messages(schedule)
    if not tags:
        _check_fifo(schedule if schedule.has_messages else with_messages(schedule))
    try:
        timeline(schedule, rendezvous=rendezvous)
    except Stuck as stuck:
        raise ValueError(f"{stuck}\n{_circle(schedule, stuck)}") from None


def _check_stages(schedule: Schedule) -> None:
    if list(schedule.device_of) != list(range(schedule.stages)) or not schedule.stages:
        raise ValueError(
            f"{schedule.name}: it has forwards of the stages {list(schedule.device_of)}; the stages must be 0, 1, 2 "
            "and so on, without a gap"
        )
    for device, steps in enumerate(schedule.steps):
        for step in steps:
            home = schedule.device_of.get(step.stage)
            if home is None:
                raise ValueError(f"{schedule.name}: device {device} has {step}, but stage {step.stage} has no forward")
            if home != device:
                raise ValueError(
                    f"{schedule.name}: device {device} has {step}, but stage {step.stage} lies on device {home}; all "
                    "steps of a stage must be on the device that has its weights"
                )
            if step.micro < 0:
                raise ValueError(f"{schedule.name}: {step} on device {device}: micro-batches count from 0")


def _check_work(schedule: Schedule) -> None:
    """Every stage does every micro-batch once, forward and backward."""
    seen = Counter(step for steps in schedule.steps for step in steps if not isinstance(step, Send | Recv))
    for stage, device in schedule.device_of.items():
        for micro in range(schedule.micros):
            forward, whole, inputs, weights = (
                seen[kind(stage, micro)] for kind in (Forward, Backward, BackwardInput, BackwardWeight)
            )
            where = f"{schedule.name}: stage {stage} on device {device}, micro-batch {micro}"
            if forward != 1:
                raise ValueError(f"{where}: {forward} forwards; there must be 1, or it is {_lost(forward)}")
            if (whole, inputs, weights) not in ((1, 0, 0), (0, 1, 1)):
                raise ValueError(
                    f"{where}: {whole} backwards (B), {inputs} for the input (I), {weights} for the weights (W); there "
                    "must be one B, or one I and one W, or its gradient is missing or counts twice"
                )


def _lost(times: int) -> str:
    return "computed twice" if times else "lost"


def _check_order(schedule: Schedule) -> None:
    """What one device can get wrong alone."""
    for device, steps in enumerate(schedule.steps):
        done = set()
        for step in steps:
            before = {Backward: Forward, BackwardInput: Forward, BackwardWeight: BackwardInput}.get(type(step))
            if before and before(step.stage, step.micro) not in done:
                raise ValueError(
                    f"{schedule.name}: device {device} has {step} before {before(step.stage, step.micro)}: a backward "
                    "needs what its forward has kept, and the weights' half comes behind the input's"
                )
            done.add(step)


def _check_messages(schedule: Schedule) -> None:
    """Both ends of every message, once each."""
    sent: Counter[tuple] = Counter()  # what, from which stage, to which, micro-batch
    asked: Counter[tuple] = Counter()
    for steps in schedule.steps:
        for step in steps:
            if isinstance(step, Send):
                sent[step.what, step.stage, step.peer, step.micro] += 1
            elif isinstance(step, Recv):
                asked[step.what, step.peer, step.stage, step.micro] += 1
    where = schedule.device_of
    for stage, micro in [(s, k) for s in range(schedule.stages) for k in range(schedule.micros)]:
        for what, to in (("F", stage + 1), ("B", stage - 1)):
            key = what, stage, to, micro
            needed = int(to in where and where[to] != where[stage])
            kind = {"F": "activation", "B": "gradient"}[what]
            told = f"{schedule.name}: the {kind} of micro-batch {micro} from stage {stage} to stage {to}"
            if sent[key] < needed:
                raise ValueError(f"{told} is sent by nobody: device {where[stage]} needs {Send(stage, micro, what)}")
            if asked[key] < needed:
                raise ValueError(f"{told} is asked for by nobody: device {where[to]} needs {Recv(to, micro, what)}")
            if max(sent[key], asked[key]) > needed:
                raise ValueError(f"{told} is sent {sent[key]} times and asked for {asked[key]} times; needed: {needed}")


def _check_fifo(schedule: Schedule) -> None:
    """Between two devices, the n-th send meets the n-th receive, whatever they carry."""
    where, sent, asked = schedule.device_of, defaultdict(list), defaultdict(list)
    for device, steps in enumerate(schedule.steps):
        for step in steps:
            if isinstance(step, Send):
                sent[device, where[step.peer]].append((step.what, step.peer, step.micro))
            elif isinstance(step, Recv):
                asked[where[step.peer], device].append((step.what, step.stage, step.micro))
    for (src, dst), messages in sent.items():
        for n, (one, other) in enumerate(zip(messages, asked[src, dst], strict=True)):
            if one != other:
                (a, to, k), (b, at, j) = one, other
                raise ValueError(
                    f"{schedule.name}: message {n} from device {src} to device {dst} is sent as {a}{k} for stage {to}, "
                    f"but received as {b}{j} for stage {at}. Without tags the two would be taken for each other, in "
                    "silence. Ask in the order of the sends: with_messages(schedule, 'paired')"
                )


def _circle(schedule: Schedule, stuck: Stuck) -> str:
    """Who waits for whom: a circle, or a chain that ends at a device that has done all its steps."""
    device, seen = next(iter(stuck.waits)), []
    while device in stuck.waits and device not in seen:
        seen.append(device)
        what, stage, _ = stuck.waits[device][1]
        source = {"F": stage - 1, "B": stage + 1}.get(what, stage)
        device = schedule.device_of[source]
    if device not in stuck.waits:
        return f"Device {device} has done all its steps, so nobody makes what the others wait for."
    ring = [*seen[seen.index(device) :], device]
    return f"A circle: device {' waits for device '.join(map(str, ring))}."
