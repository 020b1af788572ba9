"""How a model is spread over a grid of devices: one number for each axis, and the rules that they must keep.

    dp   replicas, each with texts of its own        pp   stages of layers
    cp   parts of each sequence                      tp   parts of each matrix
    ep   parts of the set of experts; it takes no devices of its own, it cuts the data-parallel ones

So dp x pp x cp x tp devices are needed, and ep must divide dp. Where a rule is broken, `validate` names all broken ones
at once, each with the nearest values that keep it: who mends one at a time starts a job on a thousand devices five
times. The rules themselves are in `rules.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product
from math import prod
from typing import Any

from lib.devices.counts import check_counts, no_counts
from lib.parallel.gpt.block import Recompute
from lib.parallel.grid.nearest import divisors
from lib.parallel.grid.rules import RULES, Case

SIZES = ("dp", "pp", "cp", "tp", "ep", "micro_batches", "chunks")
AXES = ("pp", "dp", "cp", "tp")  # those that take devices, outermost first; see `RankGrid` for why this order


@dataclass(frozen=True)
class ParallelConfig:
    """One way to spread a model: sizes of the axes, and what goes on along them.

    `micro_batches` are those of one replica and step. Each pipeline device has `chunks` stages (interleaving).
    `sequence_parallel` cuts the tokens over the tensor group between the matrices. `zero` is the stage of ZeRO over
    the devices with the same weights, dp x cp. `recompute` is that of `ParallelBlock`. With `uneven_stages`, the
    layers need not divide into equal stages.

    Raises ValueError, naming every field, for what is no size or choice at all; the rest needs `validate`.
    """

    dp: int = 1
    pp: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1
    micro_batches: int = 1
    chunks: int = 1
    sequence_parallel: bool = False
    zero: int = 0
    recompute: Recompute | None = None
    uneven_stages: bool = False

    def __post_init__(self) -> None:
        wrong = no_counts({name: getattr(self, name) for name in SIZES})
        if isinstance(self.zero, bool) or self.zero not in (0, 1, 2, 3):
            wrong.append(f"zero={self.zero!r} must be 0 (none), 1, 2 or 3")
        if self.recompute not in (None, "selective", "full"):
            wrong.append(f"recompute={self.recompute!r} must be None, 'selective' or 'full'")
        if wrong:
            raise ValueError("ParallelConfig: " + "; ".join(wrong))

    def __str__(self) -> str:
        """Only what differs from one device, as in dp 2 x tp 4, zero 1."""
        axes = [f"{name} {getattr(self, name)}" for name in ("dp", "pp", "cp", "tp") if getattr(self, name) > 1]
        rest = [
            f"{field.name} {getattr(self, field.name)}"
            for field in fields(self)
            if field.name not in AXES and getattr(self, field.name) != field.default
        ]
        return ", ".join([" x ".join(axes) or "one device", *rest])

    @property
    def devices(self) -> int:
        """How many devices the grid needs."""
        return prod(getattr(self, name) for name in AXES)

    @property
    def stages(self) -> int:
        """Into how many pieces the layers are cut."""
        return self.pp * self.chunks

    @property
    def model_parallel(self) -> int:
        """How many devices hold one copy of the weights that are not experts."""
        return self.pp * self.tp

    def problems(self, devices: int, model: Any, sequence: int | None = None, batch: int | None = None) -> list[str]:
        """Every rule that is broken, in words, with the nearest values that keep it. Empty when the grid is valid.

        `model` has `layers`, `heads` and `vocabulary`, and maybe `kv_heads`, `inner` and `experts`: a `GPTConfig`,
        `LlamaConfig`, `ExpertGPTConfig` or `ModelShape`. `sequence` is the number of tokens of a text (None: the
        longest that the model has positions for, if it says so), `batch` the texts of a step, of all replicas
        together (None: not looked at).
        """
        given = {name: value for name, value in (("sequence", sequence), ("batch", batch)) if value is not None}
        wrong = no_counts({"devices": devices, **given})
        case = Case(self, devices, model, sequence, batch)
        return wrong or [told for rule in RULES if (told := rule(case)) is not None]

    def validate(self, devices: int, model: Any, sequence: int | None = None, batch: int | None = None) -> None:
        """Raises one ValueError that tells all `problems`."""
        problems = self.problems(devices, model, sequence, batch)
        if problems:
            count = f"{len(problems)} rule{'s are' if len(problems) > 1 else ' is'} broken"
            raise ValueError(f"ParallelConfig({self}) on {devices} devices: {count}\n  " + "\n  ".join(problems))


def valid_configs(
    devices: int, model: Any, sequence: int | None = None, batch: int | None = None, **choices: Sequence[Any]
) -> Iterator[ParallelConfig]:
    """Every valid way to spread `model` over exactly `devices`, the largest dp first.

    `choices` are fields of `ParallelConfig` and what may be tried: `zero=(0, 1)`, `chunks=(1, 2)`, `cp=(1,)`. Axes that
    are not named try all sizes; `ep` those that divide dp and the experts, the other fields their default;
    `micro_batches` as many as there are stages' devices, pp. Raises ValueError for a field that is unknown.
    """
    known = {field.name: field.default for field in fields(ParallelConfig)}
    unknown = sorted(choices.keys() - known)
    if unknown:
        raise ValueError(f"valid_configs: there is no {', '.join(unknown)}; a ParallelConfig has {', '.join(known)}")
    check_counts("valid_configs", {"devices": devices})
    free = [name for name in known if name not in (*AXES, "ep", "micro_batches")]
    for tp, cp, pp in product(*(_tried(choices, name, devices) for name in ("tp", "cp", "pp"))):
        dp = devices // (tp * cp * pp)
        if tp * cp * pp * dp != devices or dp not in choices.get("dp", (dp,)):
            continue
        axes = {"dp": dp, "pp": pp, "cp": cp, "tp": tp}
        experts = [ep for ep in divisors(dp) if getattr(model, "experts", 1) % ep == 0]
        micro = choices.get("micro_batches", (pp,))
        for ep, m, *rest in product(
            choices.get("ep", experts), micro, *(choices.get(name, (known[name],)) for name in free)
        ):
            config = ParallelConfig(**axes, ep=ep, micro_batches=m, **dict(zip(free, rest, strict=True)))
            if not config.problems(devices, model, sequence, batch):
                yield config


def _tried(choices: dict[str, Sequence[int]], axis: str, devices: int) -> Sequence[int]:
    return choices.get(axis, divisors(devices))
