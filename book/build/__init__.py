"""From the notebooks to the built book: what is stale, what is executed, what is shown."""

import sys

# Jupyter's packages load this grammar of web addresses in every process: 2.5 s, for a check they can do without.
sys.modules.setdefault("rfc3987_syntax", None)
