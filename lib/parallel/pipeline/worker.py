"""One worker for all schedules: it does what stands in the list of its device.

    losses = run_pipeline(group, gpipe(4, 8), {group.rank: my_layers}, micro_batches, loss)

It knows nothing of GPipe or 1F1B. Afterwards every weight's `.grad` is that of one device, if `loss` counts each
micro-batch by its share (usually divides by their number): the gradients of micro-batches are added.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lib.devices import Group, Handle
from lib.devices.counts import counted
from lib.parallel.pipeline.check import check_schedule
from lib.parallel.pipeline.halves import Later
from lib.parallel.pipeline.messages import with_messages
from lib.parallel.pipeline.steps import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Forward,
    Recv,
    Schedule,
    Send,
    Step,
    What,
)
from lib.parallel.sharding.named import named
from lib.parallel.sharding.shards import shard

Stage = Callable[[Tensor], Tensor]


@named
def run_pipeline(
    group: Group,
    schedule: Schedule,
    stages: Mapping[int, Stage],
    inputs: Sequence[Tensor],
    loss: Callable[[Tensor, int], Tensor],
    scatter: Group | None = None,
) -> dict[int, Tensor]:
    """Does this device's steps. Returns the loss of each micro-batch on the device of the last stage; {} elsewhere.

    `stages` are those that lie on this device, by number: modules, or functions of one tensor. `inputs[k]` is
    micro-batch k, used by stage 0; `loss(y, k)` makes one number of the last stage's output, already weighted. What
    goes from stage to stage is one tensor. Communication: one message per boundary, micro-batch and direction.

    `scatter` is the tensor-parallel group of this stage, whose devices all hold the same tensor: then each sends 1/t of
    it, cut along the last dim, and the receivers put it together by an all-gather over their own group.

    In a trace, each step is a span under its own name, such as "1F0". Raises ValueError before anything runs when the
    schedule cannot work, or does not fit the group, the stages or the inputs. Whether what one stage makes is what the
    next one takes, `check_shapes` finds out.
    """
    _check(group, schedule, stages, inputs)
    if not schedule.has_messages:
        schedule = with_messages(schedule)
    worker = _Worker(group, schedule, stages, inputs, loss, scatter)
    for step in schedule.steps[group.rank]:
        with group.span(str(step)):
            worker.do(step)
    return worker.losses


def total_loss(group: Group, schedule: Schedule, losses: Mapping[int, Tensor]) -> Tensor:
    """The sum of the losses that `run_pipeline` returned: () float64, Replicate. By a broadcast from the last stage."""
    mine = torch.stack([loss.double() for loss in losses.values()]).sum() if losses else None
    return group.broadcast(mine, src=schedule.device_of[schedule.stages - 1])


class _Worker:
    """What a device has in its hands between two steps."""

    def __init__(
        self,
        group: Group,
        schedule: Schedule,
        stages: Mapping[int, Stage],
        inputs: Sequence[Tensor],
        loss: Callable[[Tensor, int], Tensor],
        scatter: Group | None,
    ):
        self.group, self.schedule, self.stages, self.inputs, self.loss = group, schedule, stages, inputs, loss
        self.scatter = scatter
        self.last = schedule.stages - 1
        self.split = {(s.stage, s.micro) for s in schedule.steps[group.rank] if isinstance(s, BackwardInput)}
        self.later = Later()
        self.losses: dict[int, Tensor] = {}
        self.here: dict[tuple[What, int, int], Tensor | Handle] = {}  # came in: for which stage, and micro-batch
        self.made: dict[tuple[What, int, int], Tensor] = {}  # to be sent: from which stage
        self.graphs: dict[tuple[int, int], tuple[Tensor, GradientEdge]] = {}  # input, and where the backward begins

    def do(self, step: Step) -> None:
        match step:
            case Send():
                self.group.send(self.made.pop((step.what, step.stage, step.micro)), self._device(step.peer), _tag(step))
            case Recv():
                handle = self.group.recv(self._device(step.peer), _tag(step), async_op=True)
                self.here[step.what, step.stage, step.micro] = handle
            case Forward():
                self.forward(step.stage, step.micro)
            case Backward():
                self.backward(step.stage, step.micro)
            case BackwardInput():
                with self.later.entered((step.stage, step.micro)):
                    self.backward(step.stage, step.micro)
            case BackwardWeight():
                self.later.run((step.stage, step.micro))

    def forward(self, stage: int, micro: int) -> None:
        x = self.inputs[micro] if stage == 0 else self._take("F", stage, micro).requires_grad_()
        with self.later.entered() if (stage, micro) in self.split else nullcontext():
            y = self._one_tensor(self.stages[stage](x), stage, micro)
        if stage == self.last:
            y = self.loss(y, micro)
            self.losses[micro] = y.detach()
        else:
            self._give("F", stage, stage + 1, micro, y.detach())
        if not y.requires_grad:
            raise ValueError(
                f"run_pipeline on rank {self.group.rank}: what stage {stage} makes of micro-batch {micro} has no "
                f"gradient, {_why_none(stage)}"
            )
        # The edge, not y: what was sent need not be kept.
        self.graphs[stage, micro] = x, get_gradient_edge(y)

    def backward(self, stage: int, micro: int) -> None:
        x, edge = self.graphs.pop((stage, micro))
        torch.autograd.backward(edge, None if stage == self.last else self._take("B", stage, micro))
        if stage == 0:
            return
        if x.grad is None:
            raise ValueError(
                f"run_pipeline on rank {self.group.rank}: stage {stage} gives its input no gradient, so nothing before "
                "it would learn. Is there a detach() or a no_grad() in the stage?"
            )
        self._give("B", stage, stage - 1, micro, x.grad)

    def _one_tensor(self, y: object, stage: int, micro: int) -> Tensor:
        if not isinstance(y, Tensor):
            raise TypeError(
                f"run_pipeline on rank {self.group.rank}: stage {stage} made {type(y).__name__} of micro-batch "
                f"{micro}, and one tensor goes from stage to stage: return one"
            )
        return y

    def _take(self, what: What, stage: int, micro: int) -> Tensor:
        value = self.here.pop((what, stage, micro))
        if not isinstance(value, Handle):  # it was made here
            return value
        value = value.wait()  # with `scatter`  Shard(-1) -> Replicate
        return value if self.scatter is None else self.scatter.all_gather(value, -1)

    def _give(self, what: What, stage: int, to: int, micro: int, value: Tensor) -> None:
        if self._device(to) == self.group.rank:  # the next stage lies here, too
            self.here[what, to, micro] = value
        else:
            self.made[what, stage, micro] = value if self.scatter is None else shard(value, self.scatter, -1)

    def _device(self, stage: int) -> int:
        return self.schedule.device_of[stage]


def _tag(step: Send | Recv) -> int:
    """One for each boundary and direction: messages of one tag keep their order, those of others may overtake them."""
    boundary = max(step.stage, step.peer)
    return 2 * boundary + (step.what == "B")


def _why_none(stage: int) -> str:
    if stage > 0:
        return "so nothing before it would learn. Is there a detach() or a no_grad() in the stage?"
    return (
        "so the first stage would not learn. Is there a detach() or a no_grad() in it? If all its weights are frozen, "
        "it has no backward: compute its outputs beforehand, and hand these in as the inputs of a pipeline without it"
    )


def _check(group: Group, schedule: Schedule, stages: Mapping[int, Stage], inputs: Sequence[Tensor]) -> None:
    who = f"run_pipeline on rank {group.rank} of {group.size}"
    if not isinstance(schedule, Schedule):
        raise TypeError(f"{who} needs a Schedule, not {type(schedule).__name__}")
    if schedule.devices != group.size:
        raise ValueError(f"{who}: {schedule.name} is for {counted(schedule.devices, 'device')}, not {group.size}")
    check_schedule(schedule)
    mine = schedule.stages_of(group.rank)
    if sorted(stages) != mine:
        raise ValueError(f"{who}: it was given the stages {sorted(stages)}, but {schedule.name} puts {mine} here")
    if len(inputs) != schedule.micros:
        raise ValueError(
            f"{who}: {len(inputs)} micro-batches for a schedule of {schedule.micros}; cut the batch into "
            f"{schedule.micros}, or make the schedule for {len(inputs)}"
        )
    if 0 in stages and (empty := [k for k, x in enumerate(inputs) if not x.numel()]):
        raise ValueError(f"{who}: nothing is in micro-batch {empty[0]}; make fewer than {len(inputs)} of this batch")
