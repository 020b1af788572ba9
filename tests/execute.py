"""`python tests/execute.py NAME ...` is `python -m book.build.outputs NAME ...`."""

import sys

from book.build.outputs import main

if __name__ == "__main__":
    sys.exit(main())
