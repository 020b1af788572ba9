"""A program with its types beside every line: the source of its functions, and what the last typed run found."""

import inspect
from collections.abc import Callable

from lib.parallel.typed.mode import Typed


def typed_listing(types: Typed, *functions: Callable, width: int = 84) -> str:
    """The lines of `functions` that made a tensor while `types` watched, without comments.

    Before each stands the kind of what it made last, in the short form, axis by axis: "R|P" is Replicate with gradient
    Partial. Lines longer than `width` end with three dots.
    """
    found = {place: " ".join(kind.short for kind in kinds.values()) for place, kinds in types.lines.items()}
    column = max((len(text) for text in found.values()), default=3) + 2
    told = []
    for function in map(inspect.unwrap, functions):
        lines, first = inspect.getsourcelines(function)
        file = inspect.getsourcefile(function)
        told.append(f"{'':{column}}{function.__qualname__}")
        for number, text in enumerate(lines, first):
            if (file, number) in found:
                line = f"{found[file, number]:{column}}    {text.split('  # ')[0].strip()}"
                told.append(line if len(line) <= width else line[: width - 3] + "...")
    return "\n".join(told)
