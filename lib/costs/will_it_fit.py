"""How much memory a step of training needs on a real machine, and whether there is room for it.

The count is that of `lib.costs.memory`, moment by moment. But gradients are summed in buffers that are always there,
activations are kept `copies` times as large as counted, and there is a `reserve`.
"""

from dataclasses import dataclass

from lib.costs.machine import Machine
from lib.costs.memory import USES, moments
from lib.costs.memory_terms import stage_layers
from lib.costs.shapes import ModelShape
from lib.costs.step_plan import StepPlan


@dataclass(frozen=True)
class Room:
    """Bytes on one device of pipeline stage `stage`, when it holds most. `moment` says when that is."""

    stage: int
    moment: str
    parameters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    working: float
    reserve: float

    @property
    def parts(self) -> dict[str, float]:
        """Each use and its bytes."""
        return {use: getattr(self, use) for use in (*USES, "reserve")}

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.parts.values())


def stage_room(shape: ModelShape, plan: StepPlan, machine: Machine, stage: int = 0) -> Room:
    """What a device of this stage needs."""
    found = moments(shape, plan, stage)
    sums = max(moment.gradients for moment in found)
    # `moments` knows plain 1F1B; the first stage of other schedules keeps more.
    more = plan.in_flight / min(plan.pipeline, plan.micro_batches) if stage == 0 else 1.0
    gathered = 0.0
    if plan.sequence_parallel and plan.pipeline == 1:
        whole = 2 * plan.tokens * shape.hidden * (1 - 1 / plan.tensor)
        gathered = machine.gathered * stage_layers(shape, plan, stage) * whole

    def room(moment):
        kept = machine.copies * (moment.activations * more + gathered * (moment.activations > 0))
        return Room(
            stage, moment.name, moment.parameters, sums, moment.optimizer, kept, moment.logits, moment.working,
            machine.reserve,
        )  # fmt: skip

    return max(map(room, found), key=lambda one: one.total)


def room_needed(shape: ModelShape, plan: StepPlan, machine: Machine) -> Room:
    """What a device of the fullest stage needs: the first, which keeps most, or the last, which has the head."""
    return max((stage_room(shape, plan, machine, stage) for stage in {0, plan.pipeline - 1}), key=lambda one: one.total)
