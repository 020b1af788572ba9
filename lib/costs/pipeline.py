"""What a pipeline costs: its bubble, and the bytes it sends. (What it holds: `lib.parallel.pipeline.held`.)

Two fractions are called "bubble". Both come from one idle time:

    of the ideal time:   idle / (m (T_F + T_B))      (p - 1) / m            Narayanan et al. 2021, section 2.2
    of the total time:   idle / total                (p - 1) / (m + p - 1)  Huang et al. 2019; Qi et al. 2023

for GPipe and for 1F1B alike: the two have the same bubble.
"""

from dataclasses import dataclass

from lib.devices.counts import check_counts
from lib.parallel.pipeline.clock import Slot, Times, timeline
from lib.parallel.pipeline.messages import with_messages
from lib.parallel.pipeline.steps import Schedule, Send


@dataclass(frozen=True)
class Bubble:
    """Seconds that the slowest device takes, from its first step to its last, and the work in them (`ideal`)."""

    total: float
    ideal: float

    @property
    def of_ideal(self) -> float:
        """Idle time as a share of the working time: the (p - 1) / m of the literature."""
        return (self.total - self.ideal) / self.ideal

    @property
    def of_total(self) -> float:
        """Idle time as a share of all time: (p - 1) / (m + p - 1)."""
        return (self.total - self.ideal) / self.total

    @property
    def efficiency(self) -> float:
        """The share of the time in which a device works."""
        return self.ideal / self.total


def bubble(schedule: Schedule, times: Times | None = None, together: bool = False) -> Bubble:
    """The bubble of `schedule`. The step of a device lasts from its first step to its last: the next one may begin
    while others still end this one. `together`: all begin and end together, as with a norm that all must know.

    With stages of unequal work, the ideal is that of the device with the most.
    """
    times = times or Times()
    return bubble_of(timeline(schedule, times), times, together)


def bubble_of(lanes: list[list[Slot]], times: Times, together: bool = False) -> Bubble:
    """The same, of what `timeline` returned."""
    ideal = max(sum(times.of(slot.step) for slot in lane) for lane in lanes)
    if together:
        return Bubble(max(lane[-1].end for lane in lanes), ideal)
    return Bubble(max(lane[-1].end - lane[0].start for lane in lanes), ideal)


def pipeline_bytes(
    schedule: Schedule, batch: int, sequence: int, hidden: int, itemsize: int = 2, scatter: int = 1
) -> list[int]:
    """Bytes that each device sends: batch x sequence x hidden numbers per boundary, micro-batch and direction.

    `batch` is that of a micro-batch. Between two stages on one device nothing is sent. A tensor-parallel device sends
    as much, a copy. Cut over t = `scatter` devices, which must divide hidden, each sends 1/t of it (`scatter` of
    `run_pipeline`; or sequence parallelism); the receivers' all-gathers are not counted.
    """
    sizes = {"batch": batch, "sequence": sequence, "hidden": hidden, "itemsize": itemsize, "scatter": scatter}
    check_counts("pipeline_bytes", sizes)
    if hidden % scatter:
        raise ValueError(f"pipeline_bytes: hidden={hidden} cannot be cut over scatter={scatter} devices alike")
    lists = (schedule if schedule.has_messages else with_messages(schedule, "beside")).steps
    one = batch * sequence * (hidden // scatter) * itemsize
    return [one * sum(isinstance(step, Send) for step in steps) for steps in lists]


def split_flops(batch: int, sequence: int, hidden: int) -> tuple[int, int, int]:
    """FLOPs of one layer for one micro-batch: forward, backward for the input, backward for the weights.

    The products with weights are the same in all three; those of attention are twice in the second, and not in the
    third. So T_B is above T_W, the more so the longer the text. Qi et al. 2023, table 1.
    """
    check_counts("split_flops", {"batch": batch, "sequence": sequence, "hidden": hidden})
    weights, attention = 24 * batch * sequence * hidden**2, 4 * batch * sequence**2 * hidden
    return weights + attention, weights + 2 * attention, weights
