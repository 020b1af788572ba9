"""What a device and its links can do: the numbers that the virtual clock charges by.

Bytes are bytes (not bits), bandwidths are bytes per second in ONE direction, latencies are seconds. Data sheets differ
on all three: "400 Gb/s" is 50e9 bytes/s, and "900 GB/s NVLink" of an H100 adds both directions, so one is 450e9.

The presets hold the dense bf16 peak (fp16 on V100), memory and link figures collected in Stas Bekman's Machine Learning
Engineering book (github.com/stas00/ml-engineering), and the per-hop latencies of a ring in the Simple protocol from
NCCL's own tuning table (github.com/NVIDIA/nccl, src/graph/tuning.cc): 3.4 us over NVLink, 14 us over the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise


@dataclass(frozen=True)
class Link:
    """A message of n bytes takes `latency` + n / `bandwidth` seconds: the alpha-beta model, with beta = 1 / bandwidth.

    It leaves out: contention, small-message protocols, and switches that compute.
    """

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        _check_positive(self, may_be_zero=("latency",))

    @staticmethod
    def reaching(bandwidth: float, messages: int, size: float, seconds: float) -> "Link":
        """The link of this bandwidth on which `messages` messages of `size` bytes in all took `seconds`, as measured:
        what the bandwidth does not explain is latency."""
        return Link((seconds - size / bandwidth) / messages, bandwidth)

    def seconds(self, messages: int, size: float) -> float:
        """Time for `messages` messages of `size` bytes in all, one after the other."""
        return messages * self.latency + size / self.bandwidth


NVLINK_HOP, NETWORK_HOP = 3.4e-6, 14e-6


@dataclass(frozen=True)
class Hardware:
    """Equal devices in nodes of `per_node`: fast links `inside` a node, slower ones `between` nodes.

    `flops` is the peak in FLOP/s, `efficiency` the share of it that large matrix products reach, `memory_bandwidth` in
    bytes/s, `memory` in bytes. `between` is None where nodes are not connected. `launch`, in seconds, is what the host
    needs to issue a kernel or a call: it runs ahead of the device, and a device that is faster than its host waits.
    """

    name: str
    flops: float
    memory_bandwidth: float
    memory: float
    inside: Link
    between: Link | None = None
    per_node: int = 8
    efficiency: float = 1.0
    launch: float = 0.0

    def __post_init__(self) -> None:
        _check_positive(self, may_be_zero=("launch",))
        if self.efficiency > 1:
            raise ValueError(f"Hardware {self.name}: efficiency={self.efficiency} is a share of the peak, at most 1")

    @property
    def reached(self) -> float:
        """FLOP/s that large matrix products reach: `efficiency` of the peak."""
        return self.flops * self.efficiency

    def compute_seconds(self, flops: float, moved: float) -> float:
        """Roofline: the time of the arithmetic or of the memory traffic (`moved` bytes), whichever is longer."""
        return max(flops / self.reached, moved / self.memory_bandwidth)

    def link(self, ranks: Sequence[int]) -> Link:
        """The slowest link that a ring over `ranks` crosses (ranks of the cluster; a pair is a ring of two)."""
        for a, b in pairwise([*ranks, ranks[0]]):
            if a // self.per_node != b // self.per_node:
                if self.between is None:
                    raise ValueError(
                        f"{self.name} has no link between rank {a} (node {a // self.per_node}) and rank {b} "
                        f"(node {b // self.per_node}): give the hardware between=Link(latency, bandwidth), or keep the "
                        f"group inside one node of {self.per_node} devices"
                    )
                return self.between
        return self.inside

    @staticmethod
    def preset(name: str) -> "Hardware":
        """One of the presets by its name. Raises ValueError with the list of names for any other."""
        if name not in PRESETS:
            raise ValueError(
                f"there is no hardware {name!r}; the presets are {', '.join(PRESETS)}, or make a Hardware(...)"
            )
        return PRESETS[name]


def _check_positive(thing: Link | Hardware, may_be_zero: tuple[str, ...] = ()) -> None:
    for field in fields(thing):
        value = getattr(thing, field.name)
        kind = {"name": str, "inside": Link, "between": Link | None, "per_node": int}.get(field.name, int | float)
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"{type(thing).__name__}: {field.name}={value!r} must be {kind}")
        if isinstance(value, int | float) and not (value > 0 or (value == 0 and field.name in may_be_zero)):
            least = "at least 0" if field.name in may_be_zero else "above 0"
            raise ValueError(f"{type(thing).__name__}: {field.name}={value} must be {least}")


V100 = Hardware("V100", 125e12, 0.9e12, 32e9, Link(NVLINK_HOP, 150e9), Link(NETWORK_HOP, 12.5e9))
A100 = Hardware("A100", 312e12, 2.039e12, 80e9, Link(NVLINK_HOP, 300e9), Link(NETWORK_HOP, 25e9))
H100 = Hardware("H100", 989.4e12, 3.35e12, 80e9, Link(NVLINK_HOP, 450e9), Link(NETWORK_HOP, 50e9))
H200 = Hardware("H200", 989.4e12, 4.8e12, 141e9, Link(NVLINK_HOP, 450e9), Link(NETWORK_HOP, 50e9))
B200 = Hardware("B200", 2250e12, 8.0e12, 180e9, Link(NVLINK_HOP, 900e9), Link(NETWORK_HOP, 50e9))

# What training really got; the data sheet's figures are 18 to 52 % too optimistic.
# A100: 0.68 of the peak in matrix products, fitted to the step times of Megatron-LM (Narayanan et al. 2021, arXiv
# 2104.04473, table 1); an all-reduce inside a node at 235 of 300 GB/s (Bekman's book).
# H100: fitted to the public runs of one code base, nanotron in the Ultra-Scale Playbook: 0.59, 165 GB/s inside a node,
# 40 us to issue a kernel. The latency is the one with which an all-reduce of 58 MB over 8 devices reaches 150 of the
# 450 GB/s, as measured (Austin et al. 2025, How to Scale Your Model, on GPUs): bandwidth depends on the message's size.
_MOVED = 2 * 7 / 8 * 58e6
A100_MEASURED = replace(A100, name="A100 measured", efficiency=0.68, inside=Link(NVLINK_HOP, 235e9))
H100_MEASURED = replace(
    H100, name="H100 measured", efficiency=0.59, launch=40e-6, inside=Link.reaching(165e9, 14, _MOVED, _MOVED / 150e9)
)
PRESETS = {hardware.name: hardware for hardware in (V100, A100, H100, H200, B200, A100_MEASURED, H100_MEASURED)}
