"""How a command of `lib` ends when others end it: without a traceback.

Ctrl-C may come while PyTorch is still being imported, and who reads the output may go, as `| head` does.
"""

import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def interruptible_from_the_start() -> None:
    """For the door of `lib`: where `python -m` looks for one of its commands, Ctrl-C ends the process without a word,
    until `run_command` takes over.
    """
    if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` and exits with its code: 130 after Ctrl-C, and 141 where nobody reads, as a shell counts them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            code = main()
        finally:
            if sys.stdout is not None:  # as it is in a process without an output
                sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException as error:
        if not nobody_reads(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python will try to write once more
        sys.exit(141)


def nobody_reads(error: BaseException) -> bool:
    """Whether it comes of writing to the output, whose reader has gone."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, BrokenPipeError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return False
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # it tells a broken pipe unasked
    return bool(output.poll(0))
