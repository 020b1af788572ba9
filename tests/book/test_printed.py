"""Long lines of a text go on below, and nothing is lost."""

from book import folded
from book.printed import WIDTH

TABLE = "\n".join(
    [
        "DeadlockError: no device can move: 1 of 2 wait for something that will never happen",
        "  rank  waits for        in",
        "     0  barrier() in group (0, 1)  a_program_with_a_long_name, line 3: y = group.all_reduce(x) / 2",
        "",
    ]
)


def test_long_lines_are_folded_and_nothing_is_lost():
    text = folded(TABLE)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.split() == TABLE.split()
    assert text.splitlines()[1] == "  rank  waits for        in"
    assert text.splitlines()[3].startswith(" " * 9)


def test_short_lines_stay_as_they_are():
    assert folded("a\n\n  b  c") == "a\n\n  b  c"
    assert folded(ValueError("x")) == "x"
