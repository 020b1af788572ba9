"""A step of training as the model of time sees it: a `TrainingPlan`, and how its pipeline runs."""

from dataclasses import dataclass
from typing import Literal, get_args

from lib.costs.training_plan import TrainingPlan
from lib.devices.counts import check_counts

PipelineSchedule = Literal["1f1b", "zb-h1", "zb-h2"]
Split = Literal["equal", "ends", "best"]


@dataclass(frozen=True)
class StepPlan(TrainingPlan):
    """Devices lie in the cluster with tensor fastest, then data, then pipeline: tensor groups inside the nodes.

    `interleaved`: stages that each pipeline device has (v). `split` of the layers over the stages: "equal"; "ends",
    where the first and the last stage have a layer less, for embedding and head; "best", dealt so that the slowest
    stage is as fast as it can be. `overlap`: gradients travel while the last micro-batch's backward runs.
    Raises ValueError for what cannot be, naming it.
    """

    interleaved: int = 1
    schedule: PipelineSchedule = "1f1b"
    split: Split = "equal"
    overlap: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts("StepPlan", {"interleaved": self.interleaved})
        for name, allowed in (("schedule", get_args(PipelineSchedule)), ("split", get_args(Split))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"StepPlan: {name}={getattr(self, name)!r} must be one of {allowed}")
        if self.interleaved > 1 and (self.pipeline == 1 or self.schedule != "1f1b"):
            raise ValueError(f"StepPlan: interleaved={self.interleaved} needs a pipeline, and 1F1B")

    @property
    def tokens(self) -> int:
        """Of one micro-batch."""
        return self.micro_batch * self.sequence

    @property
    def in_flight(self) -> float:
        """Micro-batches of a whole stage that the first pipeline device keeps for their backward."""
        p, held = self.pipeline, min(self.pipeline, self.micro_batches)
        if self.schedule == "zb-h2":
            return min(2 * p - 1, self.micro_batches)
        return held * (1 + (p - 1) / (p * self.interleaved)) if self.interleaved > 1 else held
