"""Schedules whose stages lie in a V: device r has the stages r and 2 p - 1 - r.

    device 0:  stage 0   stage 7        The last stage lies on the first device. A micro-batch turns around where it
    device 1:  stage 1   stage 6        began, every device holds as many micro-batches as the others, and embedding
    device 2:  stage 2   stage 5        and head are on one device.
    device 3:  stage 3   stage 4

zb_v: Qi et al. 2023, arXiv 2401.10241, section 6. dual_pipe_v: DeepSeek-AI, github.com/deepseek-ai/DualPipe.
"""

from collections import Counter, deque

from lib.parallel.pipeline.schedules import check_sizes
from lib.parallel.pipeline.steps import Backward, BackwardInput, BackwardWeight, Forward, Schedule, Step


def zb_v(p: int, m: int) -> Schedule:
    """No bubble where all three parts take equally long, and the memory of 1F1B's first device on each."""
    check_sizes(p, m)
    return Schedule("ZB-V", [_zb_v(p, m, r) for r in range(p)])


def _zb_v(p: int, m: int, r: int) -> list[Step]:
    down, up, mine = r, 2 * p - 1 - r, _Device()
    full = max(m, 2 * p - 1)  # it is laid out for at least so many; those above m are taken out at the end
    for _ in range(2 * (p - r) - 1):
        mine.does(Forward, down)
    for _ in range(r):
        mine.does(Forward, up)
        mine.does(Forward, down)
    for _ in range(p - r):
        mine.does(Forward, up)
        mine.does_both_halves(up)
    while mine.done[Forward, up] < full:
        if mine.done[Forward, down] < full:
            mine.does(Forward, down)
        mine.does_both_halves(down)
        mine.does(Forward, up)
        mine.does_both_halves(up)
    for _ in range(r):  # from here on, the gradients of the inputs are in a hurry
        mine.does(BackwardInput, down)
        mine.does(BackwardInput, up)
    for _ in range(p - r):
        mine.does_both_halves(down)
    for stage in (up, down):
        while mine.done[BackwardWeight, stage] < full:
            mine.does(BackwardWeight, stage)
    return [step for step in mine.steps if step.micro < m]


def dual_pipe_v(p: int, m: int) -> Schedule:
    """In the middle, every backward has a forward beside it that does not depend on it: while one of the two computes,
    the other may communicate, which experts need. Raises ValueError when m is below 2 p."""
    check_sizes(p, m)
    if m < 2 * p:
        raise ValueError(
            f"DualPipeV: {m} micro-batches on {p} devices; it needs at least {2 * p}, one for each stage. Take more "
            "micro-batches, or zb_v"
        )
    return Schedule("DualPipeV", [_dual_pipe_v(p, m, r) for r in range(p)])


def _dual_pipe_v(p: int, m: int, r: int) -> list[Step]:
    down, up, mine = r, 2 * p - 1 - r, _Device()
    for _ in range(2 * (p - r - 1)):
        mine.does(Forward, down)
    for _ in range(r + 1):
        mine.does(Forward, down)
        mine.does(Forward, up)
    for _ in range(p - r - 1):
        mine.does_first_half(up)
        mine.does_oldest_weights()
        mine.does(Forward, up)
    for _ in range(m - 2 * p + r + 1):
        mine.does(Forward, down)
        mine.does(Backward, up)
        mine.does(Forward, up)
        mine.does(Backward, down)
    for _ in range(p - r - 1):
        mine.does(Backward, up)
        mine.does(Forward, up)
        mine.does(Backward, down)
    for i in range(2 * (r + 1)):  # up and down in turn; from the middle on, the inputs alone are in a hurry
        stage = down if i % 2 else up
        if i > r:
            mine.does_first_half(stage)
        else:
            mine.does(Backward, stage)
    for _ in range(p - r - 1):
        mine.does_oldest_weights()
        mine.does_first_half(down)
    while mine.off:
        mine.does_oldest_weights()
    return mine.steps


class _Device:
    """The list of one device while it is made. Each stage takes the micro-batches in their order."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.done: Counter[tuple[type[Step], int]] = Counter()  # kind, stage -> how many
        self.off: deque[Step] = deque()  # weights put off

    def does(self, kind: type[Step], stage: int) -> None:
        self.steps.append(kind(stage, self.done[kind, stage]))
        self.done[kind, stage] += 1

    def does_both_halves(self, stage: int) -> None:
        self.does(BackwardInput, stage)
        self.does(BackwardWeight, stage)

    def does_first_half(self, stage: int) -> None:
        micro = self.done[Backward, stage]
        self.done[Backward, stage] += 1
        self.steps.append(BackwardInput(stage, micro))
        self.off.append(BackwardWeight(stage, micro))

    def does_oldest_weights(self) -> None:
        self.steps.append(self.off.popleft())
