"""Tables of text: the one place where columns are aligned."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (), gap: str = "  ") -> list[str]:
    """A line for each row, columns a gap apart and flush right, as numbers are read; those of `left` flush left.

    Raises ValueError when the rows are not equally long.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    flush = [str.ljust if column in left else str.rjust for column in range(len(widths))]
    padded = ([put(text, width) for put, text, width in zip(flush, row, widths, strict=True)] for row in rows)
    return [gap.join(row).rstrip() for row in padded]
