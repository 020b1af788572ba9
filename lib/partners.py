"""Which functions do a verb and keep the gradient. The floor above says so itself: no import has to go up.

A reader who has asked `lib` for a Cluster only has loaded none of them. So the door, which stands above all rooms, says
where they are, and they are loaded when an error first has to name one.
"""

import inspect
from collections.abc import Callable
from importlib import import_module

_PARTNERS: dict[str, list[Callable]] = {}
_HOMES: list[str] = []  # of partners that may not be loaded yet


def partner_of(*verbs: str) -> Callable[[Callable], Callable]:
    """Decorator for a differentiable function: an error about a tensor that requires grad in `verbs` will name it."""

    def register(function: Callable) -> Callable:
        for verb in verbs:
            _PARTNERS.setdefault(verb, []).append(function)
        return function

    return register


def partners_are_in(module: str) -> None:
    """`module` has partners of verbs, and says so when it is loaded."""
    _HOMES.append(module)


def advice(verb: str) -> str:
    """How an advice begins: "use reduce_from(x, group), which knows the backward, or"; empty without a partner."""
    for home in _HOMES:
        import_module(home)
    known = _PARTNERS.get(verb, [])
    if not known:
        return ""
    calls = " or ".join(f"{f.__name__}({', '.join(_needed(f))})" for f in known)
    package = ".".join(known[0].__module__.split(".")[:2])
    return f"use {calls} of {package}, which knows the backward, or "


def _needed(function: Callable) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty]
