"""The one rule by which a length is cut into pieces; everything in this book that splits, splits like this."""

from torch import Tensor


def shard_sizes(length: int, parts: int) -> list[int]:
    """Sizes of `parts` consecutive pieces of `length`, as even as possible: the first `length % parts` get one more.

    This is the rule of `torch.tensor_split`. `torch.chunk` rounds up instead and may return fewer pieces than asked
    for (6 over 4 gives 2, 2, 2): one device would stand idle. Here 6 over 4 gives 2, 2, 1, 1, and 2 over 4 gives
    1, 1, 0, 0.
    """
    if length < 0 or parts < 1:
        raise ValueError(f"cannot cut a length of {length} into {parts} pieces: length >= 0 and parts >= 1 are needed")
    each, more = divmod(length, parts)
    return [each + 1] * more + [each] * (parts - more)


def cut(x: Tensor, parts: int, dim: int) -> tuple[Tensor, ...]:
    """Consecutive pieces of `x` along `dim`, as views (no copy), sized by `shard_sizes`."""
    return x.split(shard_sizes(x.shape[dim], parts), dim)
