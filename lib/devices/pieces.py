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


def row_major(x: Tensor) -> Tensor:
    """`x`, copied unless its elements lie row by row. Where a dim is of length 0 or 1, any stride would do: it gets
    that of a new tensor."""
    if x.is_contiguous() and x.numel() and 1 not in x.shape:
        return x
    return x.contiguous().reshape(-1).view(x.shape)


def cut(x: Tensor, parts: int, dim: int) -> tuple[Tensor, ...]:
    """Consecutive pieces of `x` along `dim`, as views (no copy), sized by `shard_sizes`."""
    return x.split(shard_sizes(x.shape[dim], parts), dim)
