"""From the notebooks to the built book: what is stale, what is executed, what is shown.

As a plugin of pytest, `-p book.build`, it is loaded before nbval, and so before what takes long below.
"""

import sys

# nbformat loads jsonschema, which compiles this grammar of web addresses in every process: 2 s, for a check that no
# field of a notebook needs. jsonschema does without it where it is not installed.
sys.modules.setdefault("rfc3987_syntax", None)
