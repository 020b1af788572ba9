"""What the commands of this room are asked alike: a model, its texts, the devices; and sizes as people write them."""

import argparse
import math
import re
import sys
from collections.abc import Callable

from lib.costs.shapes import MODELS, ModelShape
from lib.devices.hardware import PRESETS

UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
NUMBER = r"(?:\d+\.?\d*|\.\d+)"


def read_bytes(text: str) -> float:
    """ "80GB" -> 80e9, "80GiB" -> 80 * 2**30. Raises ValueError for bits ("Gb") and for what is no number of bytes.

    A number alone is refused too: whoever writes 80 means GB, and would be told that nothing fits.
    """
    found = re.fullmatch(rf"({NUMBER}) *((?:[kKMGT]i?)?B)", text.strip())
    if not found or not 0 < float(found[1]) < math.inf:
        raise ValueError(f"{text!r} is no number of bytes above 0: write 80GB (1e9 bytes each) or 80GiB (2**30)")
    return float(found[1]) * UNITS[found[2].upper()]


def read_count(text: str) -> float:
    """ "15.6T" -> 15.6e12, "300B" -> 300e9, "2e12" as it is. Raises ValueError for what is no number of tokens."""
    found = re.fullmatch(rf"({NUMBER}(?:e\d+)?) *([KMBT]?)", text.strip(), re.IGNORECASE)
    if not found or not 0 < float(found[1]) < math.inf:
        raise ValueError(f"{text!r} is no number of tokens above 0: write 300B, 15.6T or 2e12")
    return float(found[1]) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[found[2].upper()]


def shape_of(model: str) -> ModelShape:
    """By its published name; what looks like a path is that of a config.json."""
    return ModelShape.from_config(model) if "/" in model or model.endswith(".json") else ModelShape.preset(model)


def length_of(options: argparse.Namespace, shape: ModelShape) -> int:
    """Tokens of a text: those that were asked for, or the longest that the model has a position for, or 4096."""
    return (shape.learned_positions or 4096) if options.sequence is None else options.sequence


def make_parser(command: str, about: str) -> argparse.ArgumentParser:
    """The options that both commands have, each with what it means."""
    parser = argparse.ArgumentParser(f"python -m {command}", description=about.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", help=f"one of {', '.join(MODELS)}, or the path of a config.json")
    parser.add_argument("--devices", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--sequence", type=int, help="tokens of a text (4096, or the longest that the model has)")
    parser.add_argument("--hardware", default="H100", help=f"one of {', '.join(PRESETS)} (%(default)s)")
    parser.add_argument("--memory", help="of one device, such as 80GB or 40GiB (that of the hardware)")
    return parser


def reply(command: str, answer: Callable[[], str]) -> int:
    """Prints the answer: 0. Or, where it raises ValueError or OSError, one sentence that says why there is none: 2.
    When it is interrupted: 130, as a shell counts it.
    """
    try:
        said = answer()
    except (ValueError, OSError) as error:
        print(f"python -m {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(said)
    return 0
