"""How long a training run takes, and what it costs: from tokens and FLOPs to days, dollars and energy.

    seconds = FLOPs of the run / (devices x peak x share of the peak that is used)

That share has two names. MFU counts the FLOPs of the model, 6 N D and the scores. HFU counts all that the hardware
does, also what is computed anew: with full recomputation it is a third larger for the same speed. So hand in the FLOPs
that belong to the share.
"""

from dataclasses import dataclass
from math import inf

HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class TrainingRun:
    """`flops` of the whole run, on `devices` that each do `peak` FLOP/s at best and reach the share `used` of it.

    `dollars_per_hour` and `watts` are those of one device with its share of the machine around it.
    Raises ValueError for what cannot be: nothing to do, no device, a share above 1.
    """

    flops: float
    devices: int
    peak: float
    used: float
    dollars_per_hour: float = 0.0
    watts: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flops", "devices", "peak", "used"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"TrainingRun: {name}={getattr(self, name)!r} must be above 0, and finite")
        for name in ("dollars_per_hour", "watts"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"TrainingRun: {name}={getattr(self, name)!r} must be at least 0, and finite")
        if self.used > 1:
            raise ValueError(
                f"TrainingRun: used={self.used} is a share of the peak, at most 1; 40 % is 0.4. Is the peak the one "
                "without sparsity?"
            )

    @property
    def seconds(self) -> float:
        """From the first step to the last, without a pause."""
        return self.flops / (self.devices * self.peak * self.used)

    @property
    def days(self) -> float:
        """The same in days."""
        return self.seconds / DAY

    @property
    def device_hours(self) -> float:
        """What is paid for: hours times devices. More devices do not change it, as long as `used` stays."""
        return self.devices * self.seconds / HOUR

    @property
    def dollars(self) -> float:
        """Device hours at their price."""
        return self.device_hours * self.dollars_per_hour

    @property
    def kilowatt_hours(self) -> float:
        """Energy, without the cooling of the building."""
        return self.device_hours * self.watts / 1000


def share_of_peak(flops: float, seconds: float, devices: int, peak: float) -> float:
    """MFU if `flops` are those of the model, HFU if they are all that were computed, in `seconds` on `devices`.

    `peak` is the FLOP/s of one device at best.
    """
    return flops / (seconds * devices * peak)
