"""The rules of a grid, one function each: None where it is kept, else a sentence that says what keeps it.

Most say that a number divides another. Then the nearest smaller and the nearest larger value that do are named, and
where the axis cannot be changed alone, the sentence says what else to change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import lcm
from typing import Any

from lib.devices.counts import counted
from lib.parallel.grid.nearest import divisors, nearest, nearest_multiple


@dataclass(frozen=True)
class Case:
    """What a rule looks at: a `ParallelConfig`, and what it is asked about (see `ParallelConfig.problems`)."""

    config: Any
    devices: int
    model: Any
    sequence: int | None
    batch: int | None

    def of_model(self, name: str, default: int | None = None) -> int | None:
        """A size of the model, if it has that."""
        return getattr(self.model, name, default)

    @property
    def length(self) -> int | None:
        """Tokens of a text."""
        longest = self.of_model("positions") or self.of_model("learned_positions") or None
        return longest if self.sequence is None else self.sequence


def _device_count(case: Case) -> str | None:
    config, devices = case.config, case.devices
    if config.devices == devices:
        return None
    axes = {name: getattr(config, name) for name in ("dp", "pp", "cp", "tp")}
    grid = " x ".join(f"{name} {size}" for name, size in axes.items())
    mended = [  # each axis alone, if it can
        f"{name}={devices * size // config.devices}"
        for name, size in axes.items()
        if devices * size % config.devices == 0
    ]
    one = config.devices // config.dp  # the devices of one replica
    advice = (
        f"take {' or '.join(mended)}"
        if mended
        else f"one replica takes pp x cp x tp = {one} devices, so the count must be a multiple of {one}: "
        f"{nearest_multiple(devices, one)}"
    )
    return f"devices: {grid} = {counted(config.devices, 'device')}, not {devices}; {advice}"


def _heads(case: Case) -> str | None:
    heads, tp = case.of_model("heads"), case.config.tp
    if heads % tp == 0:
        return None
    return f"heads: tp={tp} does not divide {heads} heads; nearest tp: {nearest(tp, divisors(heads))}"


def _kv_heads(case: Case) -> str | None:
    heads, kv_heads, tp = case.of_model("heads"), case.of_model("kv_heads"), case.config.tp
    if kv_heads is None or kv_heads == heads or kv_heads % tp == 0 or tp % kv_heads == 0:
        return None
    fits = [n for n in divisors(heads) if kv_heads % n == 0 or n % kv_heads == 0]
    return (
        f"KV heads: of tp={tp} and {kv_heads} heads of keys and values, one must divide the other; nearest tp: "
        f"{nearest(tp, fits)}"
    )


def _inner(case: Case) -> str | None:
    inner, tp = case.of_model("inner") or 4 * case.of_model("hidden", case.config.tp), case.config.tp
    if inner % tp == 0:
        return None
    return f"MLP: tp={tp} does not divide its inner size of {inner}; nearest tp: {nearest(tp, divisors(inner))}"


def _vocabulary(case: Case) -> str | None:
    vocabulary, tp = case.of_model("vocabulary"), case.config.tp
    if vocabulary >= tp:  # rows of zeros make the pieces equal, so it need not divide
        return None
    return f"vocabulary: {vocabulary} tokens for tp={tp} devices, some would have none; tp at most {vocabulary}"


def _layers(case: Case) -> str | None:
    config, layers = case.config, case.of_model("layers")
    stages = f"pp x chunks = {config.pp} x {config.chunks} = {config.stages} stages"
    if config.stages > layers:
        return f"layers: {stages} for {layers} layers, some would have none; take at most {layers} stages"
    if config.uneven_stages or layers % config.stages == 0:
        return None
    return (
        f"layers: {stages} do not divide {layers} layers; nearest: {nearest(config.stages, divisors(layers))} stages, "
        "or uneven_stages=True"
    )


def _chunks(case: Case) -> str | None:
    if case.config.chunks == 1 or case.config.pp > 1:
        return None
    return f"chunks: chunks={case.config.chunks} on one pipeline device change nothing; take chunks=1, or pp=2"


def _rounds(case: Case) -> str | None:
    config = case.config
    if config.chunks == 1 or config.micro_batches % config.pp == 0:
        return None
    return (
        f"micro-batches: interleaving takes them in rounds of pp={config.pp}, which does not divide "
        f"{config.micro_batches}; nearest: {nearest_multiple(config.micro_batches, config.pp)}"
    )


def _batch(case: Case) -> str | None:
    config, batch = case.config, case.batch
    pieces = config.dp * config.micro_batches
    if batch is None or batch % pieces == 0:
        return None
    return (
        f"batch: {batch} texts cannot be cut into dp x micro-batches = {config.dp} x {config.micro_batches} = {pieces} "
        f"equal pieces; nearest batch: {nearest_multiple(batch, pieces)}"
    )


def _sequence(case: Case) -> str | None:
    """Zigzag cuts a sequence into 2 cp stretches; sequence parallelism cuts what a device has into tp."""
    config, length = case.config, case.length
    parts = (2 * config.cp if config.cp > 1 else 1, config.cp * config.tp if config.sequence_parallel else 1)
    if length is None or all(length % part == 0 for part in parts):
        return None
    why = " and ".join(
        told for told, part in zip(("2 cp stretches", "cp x tp stretches"), parts, strict=True) if length % part
    )
    return (
        f"sequence: {length} tokens cannot be cut into {why} of equal length (cp={config.cp}, tp={config.tp}); nearest "
        f"length: {nearest_multiple(length, lcm(*parts))}"
    )


def _experts(case: Case) -> str | None:
    config, experts = case.config, case.of_model("experts", 1)
    if experts % config.ep == 0:
        return None
    return (
        f"experts: ep={config.ep} does not divide {counted(experts, 'expert')}; nearest ep: "
        f"{nearest(config.ep, divisors(experts))}"
    )


def _expert_devices(case: Case) -> str | None:
    config = case.config
    if config.dp % config.ep == 0:
        return None
    return (
        f"experts: ep cuts the data-parallel devices, and ep={config.ep} does not divide dp={config.dp}; nearest ep: "
        f"{nearest(config.ep, divisors(config.dp))}"
    )


def _zero(case: Case) -> str | None:
    config = case.config
    if config.zero < 2 or config.pp == 1:
        return None
    return (
        f"ZeRO: zero={config.zero} cuts the gradients after every backward, so with pp={config.pp} they would travel "
        "for every micro-batch; DeepSpeed refuses the pair too. Take zero=1, or pp=1"
    )


RULES: tuple[Callable[[Case], str | None], ...] = (
    _device_count,
    _heads,
    _kv_heads,
    _inner,
    _vocabulary,
    _layers,
    _chunks,
    _rounds,
    _batch,
    _sequence,
    _experts,
    _expert_devices,
    _zero,
)
