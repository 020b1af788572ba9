"""The rule of attention over tokens that are cut, from the rules of its steps.

What a ring computes hop by hop is what one all-gather of keys and values gives, so both have one rule. Ulysses changes
tokens for heads, attends, and changes back.
"""

from dataclasses import replace

from lib.parallel.context.ulysses import UlyssesAttention
from lib.parallel.typed.elementwise import no_partial
from lib.parallel.typed.kinds import Kind, Operand, PlacementError, written
from lib.parallel.typed.moves import all_gather, all_to_all
from lib.parallel.typed.products import attention, matmul
from lib.parallel.typed.reductions import over


def context_attention(layer, q: Operand, k: Operand, v: Operand, *args, **kwargs) -> Kind:
    """q, k, v (batch, heads, n, d) of this device's tokens (`ContextAttention`)."""
    no_partial("attention", q, k, v)
    if any(x.dim != 2 for x in (q, k, v)):
        raise PlacementError(
            f"{type(layer).__name__} needs queries, keys and values whose tokens are cut, Shard(2) of (batch, heads, "
            f"S, d), and got {', '.join(written(x.value) for x in (q, k, v))}"
        )
    return _by_heads(q, k, v) if isinstance(layer, UlyssesAttention) else _by_tokens(q, k, v)


def _by_tokens(q: Operand, k: Operand, v: Operand) -> Kind:
    k, v = (_moved(x, all_gather(x, None, 2), 2, x.group_size) for x in (k, v))  # whole, and entered
    keys = replace(k, shape=(*k.shape[:2], k.shape[3], k.shape[2]))
    scores = replace(q, kind=matmul(q, keys), shape=(*q.shape[:3], k.shape[2]))
    weights = replace(scores, kind=over("softmax")(scores, -1))
    return matmul(weights, v)


def _by_heads(q: Operand, k: Operand, v: Operand) -> Kind:
    heads = q.shape[1]  # of keys and values, as many copies as there are devices
    q, k, v = (replace(x, shape=(x.shape[0], heads, *x.shape[2:])) for x in (q, k, v))
    q, k, v = (_moved(x, all_to_all(x, None, 1, 2), 2, x.group_size) for x in (q, k, v))
    return all_to_all(replace(q, kind=attention(q, k, v)), None, 2, 1)


def _moved(x: Operand, kind: Kind, dim: int, times: int) -> Operand:
    return replace(x, kind=kind, shape=tuple(n * times if d == dim else n for d, n in enumerate(x.shape)))


def context_beside(layer, q: Operand, k: Operand, v: Operand, *args, **kwargs) -> Kind:
    """The same over another axis: heads and texts may be cut."""
    return attention(q, k, v)
