"""Attributes of modules and classes that are other ones for a while."""

from types import ModuleType
from typing import Any

import torch

from lib.guest.private import WRITTEN_FOR

_MISSING = object()


class Patches:
    """What was changed, so that `undo` can put everything back."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def set(self, where: ModuleType | type, name: str, value: Any) -> None:
        """`where.name` is `value` from now on. RuntimeError when there was none."""
        if not hasattr(where, name):
            raise RuntimeError(
                f"lib.guest puts something in place of {where.__name__}.{name}, and PyTorch {torch.__version__} has "
                f"no such name. It is written for PyTorch {WRITTEN_FOR}: install that one (see requirements.txt)"
            )
        # Only what `where` has itself counts: what a class inherits comes back when its own attribute goes.
        self._before.append((where, name, vars(where).get(name, _MISSING)))
        setattr(where, name, value)

    def undo(self) -> None:
        """Puts back what was there, the last change first."""
        while self._before:
            where, name, value = self._before.pop()
            if value is _MISSING:
                delattr(where, name)
            else:
                setattr(where, name, value)
