"""What real processes write into the store that they share, in plain JSON.

Under torchrun the store listens to the whole network, and whoever reaches it may write there. So what is read is never
run, as a pickle would be; it is looked at, and refused when no process of ours writes such a thing.
"""

import json
from typing import Any

import torch.distributed as dist


def write(store: dist.Store, key: str, note: Any) -> None:
    """`note` consists of None, numbers, texts, lists, and dicts by texts."""
    store.set(key, json.dumps(note))


def read(store: dist.Store, key: str) -> Any:
    """The note that stands under `key`; tuples have become lists. ConnectionError when it is none."""
    text = store.get(key)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, or no text at all
        raise foreign(key, text) from error


def foreign(key: str, found: Any) -> ConnectionError:
    """The error for a note that no process of this run can have written."""
    return ConnectionError(
        f"the store that all processes share holds under {key!r} what none of them writes: {str(found)[:60]}. Somebody "
        "else reaches it: use a network that only these machines share, and a port that is free"
    )
