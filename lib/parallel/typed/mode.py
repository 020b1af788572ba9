"""The checker: a mode in which every tensor has a kind over every axis, and every operation follows its rule.

    with Typed(tp=group) as types:
        x, a, b = types.give(x), types.give(a, tp=Shard(1)), types.give(b, tp=Shard(0))
        y = reduce_from(F.gelu(copy_to(x, group) @ a) @ b, group)
        print(types.of(y))                       # tp: Replicate, gradient Replicate

The rule is asked before the operation runs, and knows shapes and kinds alone: so a mistake is found before a number is
computed, in the gradient too, and on the meta device. Nothing is ever moved for the program: what does not fit is
refused, with the line. A program that no rule refuses computes what it would without the mode.
"""

from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from lib.devices import Group
from lib.devices.collectives import Collective
from lib.devices.tensors import tensors_in
from lib.parallel.sharding.placement import Replicate
from lib.parallel.typed.declared import Declared
from lib.parallel.typed.gradients import STEPS, check_scale, checked_end
from lib.parallel.typed.kinds import CONSTANT, Kind, Operand, PlacementError
from lib.parallel.typed.rules import ASK, BESIDE, READ, RULES
from lib.parallel.typed.verbs import Seen, after_verb
from lib.parallel.typed.where import is_getter, lines_above, name_of, readers_frame, told


class Typed(Declared, TorchFunctionMode):
    """Kinds over one or several axes, each a group: `Typed(tp=group)`, `Typed(dp=mesh.dp, tp=mesh.tp)`.

    An axis of one device has no kinds: there, all are the same. `rules` are more rules, by the name of the function,
    or others than the book's. `lines` holds, by file and line, the kinds of what was made there last.
    """

    def __init__(self, rules: Mapping[str, Callable[..., Kind]] | None = None, **axes: Group):
        TorchFunctionMode.__init__(self)
        Declared.__init__(self, axes)
        self.rank = next(iter(axes.values())).me
        self.rules = {**RULES, **(rules or {})}
        self.inside = 0
        self.gathered: set[str] = set()  # axes over which this forward gathers ZeRO's pieces
        self.lines: dict[tuple[str, int], dict[str, Kind]] = {}

    def __enter__(self):
        for group in self.axes.values():
            group.place = Seen(group.place, self)
        return super().__enter__()

    def __exit__(self, *error):
        for group in self.axes.values():
            group.place = group.place.place
        return super().__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def run():
            self.inside += 1  # verbs of a move are the move
            try:
                return function(*args, **kwargs)
            finally:
                self.inside -= 1

        kwargs, name = kwargs or {}, name_of(function)
        if name == "grad" and is_getter(function):
            grad = run()
            if grad is not None and args[0] in self.kinds:
                self.of_gradient(args[0])
            return grad
        if name == "backward" or name in STEPS:
            return self._step(name, run, args, kwargs)
        if name in ASK or (name not in self.rules and name not in READ and is_getter(function)):
            return run()
        frame, tensors = readers_frame(), tensors_in([*args, *kwargs.values()])
        with told(frame, self.rank):
            found = {axis: self._rule(axis, name, args, kwargs) for axis in self.axes} if tensors else {}
        result = run()
        if name == "gather_parameters":
            self.gathered.update(self.axes_of(args[0].group.ranks))
        self._learn(result, found, frame)
        return result

    def after_verb(self, verb: Collective, ranks: tuple[int, ...], x: Tensor | None) -> dict[str, Kind]:
        """The kinds of what a verb among `ranks` makes of `x`. See `verbs`."""
        over, found = self.axes_of(ranks), {}
        with told(readers_frame(), self.rank):
            if not over and len(ranks) > 1:
                raise PlacementError(f"{verb.name} over ranks {list(ranks)}, which are no axis of these types")
            for axis, group in self.axes.items():
                operand = self._operand(x, axis, verb.name)
                found[axis] = after_verb(verb, operand, group.size) if axis in over else operand.kind.constant
        return found

    def _rule(self, axis: str, name: str, args: tuple, kwargs: dict[str, Any]) -> Kind | list[Kind]:
        args, kwargs = tree_map(lambda x: self._operand(x, axis, name), (args, kwargs))
        try:
            if name in READ:
                return _read(name, args)
            if name in BESIDE and not self._over(axis, args, kwargs):
                return BESIDE[name](*args, **kwargs)
            if name not in self.rules:
                raise PlacementError(f"there is no rule for {name}: give one, Typed(..., rules={{{name!r}: rule}})")
            return self.rules[name](*args, **kwargs)
        except PlacementError as error:
            raise PlacementError(f"over {axis}: {error}" if len(self.axes) > 1 else str(error)) from None

    def _over(self, axis: str, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Is this move over the axis? Over one device nothing moves; over a part of an axis only f has a meaning."""
        group = next(x for x in (*args, *kwargs.values()) if isinstance(x, Group) or hasattr(x, "group"))
        group = group if isinstance(group, Group) else group.group
        over = self.axes_of(group.ranks)
        if group.size > 1 and not over:
            moved = next(x for x in args if isinstance(x, Operand))
            if not (set(group.ranks) <= set(self.axes[axis].ranks) and moved.dim is not None):
                raise PlacementError(f"a move over ranks {list(group.ranks)}, which are no axis of these types")
        return axis in over

    def _operand(self, x: Any, axis: str, name: str) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x not in self.kinds:
            with torch._C.DisableTorchFunction():
                shape = tuple(x.shape)
            raise PlacementError(
                f"{name} of a tensor {shape} that has no type: say with types.give(x, ...) how it is placed, or with "
                "types.parameters(module, ...)"
            )
        kind = self.kinds[x][axis]
        with torch._C.DisableTorchFunction():
            if x.requires_grad and kind.grad is None:
                raise PlacementError(
                    f"{name} of a tensor {tuple(x.shape)} whose backward types do not know: it comes of a Function of "
                    "its own. Make it `named`, and give it a rule"
                )
            alike = [a for a, k in self.kinds[x].items() if a != axis and k.value == kind.value]
            return Operand(kind, tuple(x.shape), self.axes[axis].size, tuple(self.axes[a].size for a in alike))

    def _learn(self, result: Any, found: dict[str, Kind | list[Kind]], frame: FrameType | None) -> None:
        results = list(result) if isinstance(result, list | tuple) else [result]
        for i, x in enumerate(results):
            if not isinstance(x, Tensor):
                continue
            with torch._C.DisableTorchFunction():
                needs = x.requires_grad
            kinds = {}
            for axis in self.axes:
                kind = found.get(axis, CONSTANT)  # made of no tensor: the same on all devices
                kind = kind[i] if isinstance(kind, list) else kind
                kinds[axis] = kind.trained if needs else kind.constant
            self.kinds[x] = kinds
            for line in lines_above(frame) if not i else ():
                self.lines[line] = kinds

    def _step(self, name: str, run: Callable[[], Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """The end of the forward, and what follows the backward."""
        with told(readers_frame(), self.rank):
            if name != "backward":
                check, learn = STEPS[name]
                found = check(self, *args, **kwargs)
                result = run()
                learn(self, found, *args, **kwargs)
                return result
            self.ends = {axis: checked_end(self.kinds[args[0]][axis], axis in self.gathered) for axis in self.axes}
            self.gathered.clear()
            result = run()
            check_scale(self)
            return result


def _read(name: str, args: tuple) -> Kind:
    for x in args:
        if isinstance(x, Operand) and not isinstance(x.value, Replicate):
            raise PlacementError(f"{name} reads a number that is another one on each device ({x.kind})")
    return CONSTANT
