"""nbformat without a grammar that no notebook needs. As a plugin of pytest, `-p book.build.sooner`: starts it sooner.

To check a notebook's form, nbformat loads jsonschema; to check addresses in foreign alphabets, jsonschema loads
rfc3987_syntax; and that compiles a grammar, which takes nine tenths of the two seconds until nbformat is there. No
field of a notebook is such an address, and jsonschema does without the package where it is not installed.
"""

import sys


def without_grammar() -> None:
    """To be called before anything imports nbformat."""
    sys.modules.setdefault("rfc3987_syntax", None)  # an import of it is an ImportError


def pytest_addoption() -> None:
    """The first hook that is called, at once: before pytest loads nbval, which imports nbformat."""
    without_grammar()
