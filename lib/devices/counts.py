"""What can count something: devices, layers, tokens; and how a count is said."""

from collections.abc import Mapping


def is_count(value: object) -> bool:
    """Whether it is an integer of at least 1; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def no_counts(sizes: Mapping[str, object]) -> list[str]:
    """Of sizes by their names, a sentence for each that is none."""
    return [f"{name}={size!r} must be an integer of at least 1" for name, size in sizes.items() if not is_count(size)]


def check_counts(whose: str, sizes: Mapping[str, object]) -> None:
    """Raises one ValueError that names all of the sizes that are no counts, and `whose` they are."""
    if wrong := no_counts(sizes):
        raise ValueError(f"{whose}: {'; '.join(wrong)}")


def counted(number: int, word: str) -> str:
    """ "1 device", "4 devices"; "2 processes", "2 micro-batches"."""
    ending = "es" if word.endswith(("s", "ch")) else "s"
    return f"{number} {word}" if number == 1 else f"{number} {word}{ending}"
