"""The two ends of a language model, split along the vocabulary: the embedding, and the loss.

Device r holds the rows of some consecutive tokens. Where P does not divide the vocabulary, rows of zeros are added at
the end, as everyone does who wants equal pieces; they are never looked up, and no probability goes to them.

Shoeybi et al. 2019, arXiv 1909.08053, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from lib.devices import Group
from lib.parallel.sharding.autocast import autocast_type
from lib.parallel.sharding.conjugates import reduce_from
from lib.parallel.sharding.cuts import declare_cuts
from lib.parallel.sharding.first_order import first_order
from lib.parallel.sharding.named import named


def padded_vocabulary(vocabulary: int, parts: int) -> int:
    """The next multiple of `parts`: 50257 over 4 devices becomes 50260."""
    return -(-vocabulary // parts) * parts


@dataclass(frozen=True)
class PaddedShard:
    """Shard(0) of a tensor of `length` rows, after rows of zeros were added so that all pieces are equal."""

    length: int

    def piece(self, whole: Tensor, parts: int, rank: int) -> Tensor:
        """What device `rank` of `parts` holds of `whole` (length, ...). Raises ValueError for another length."""
        if len(whole) != self.length:
            raise ValueError(f"a tensor of shape {tuple(whole.shape)} does not have the {self.length} rows to cut")
        more = padded_vocabulary(self.length, parts) - self.length
        padded = torch.cat([whole, whole.new_zeros(more, *whole.shape[1:])]) if more else whole
        return padded.chunk(parts)[rank]

    def whole(self, pieces: Sequence[Tensor]) -> Tensor:
        """The (length, ...) tensor, without the padding."""
        return torch.cat(list(pieces))[: self.length]


class VocabParallelEmbedding(nn.Module):
    """One device's rows of an embedding: weight (padded V/P, hidden).

    Input tokens (batch, S), integers, Replicate. Output (batch, S, hidden) Replicate.
    Communication: forward one all-reduce of the output, backward nothing.

    Raises IndexError for a token outside of the vocabulary.
    """

    def __init__(self, vocabulary: int, hidden: int, group: Group):
        super().__init__()
        if vocabulary < group.size:
            raise ValueError(f"a vocabulary of {vocabulary} cannot be split over {group.size} devices: too few tokens")
        self.vocabulary, self.group = vocabulary, group
        self.layout = {"weight": PaddedShard(vocabulary)}
        dense = nn.Embedding(vocabulary, hidden).weight.detach()
        self.weight = nn.Parameter(self.layout["weight"].piece(dense, group.size, group.rank).clone())
        declare_cuts(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, S) -> (batch, S, hidden)."""
        declare_cuts(self)
        check_tokens(tokens, self.vocabulary, self.group, "VocabParallelEmbedding")
        mine, local = own_tokens(tokens, len(self.weight), self.group)
        y = F.embedding(local, self.weight) * mine.unsqueeze(-1)  # (batch, S, hidden)  Partial: one device has each row
        return self.leave(y)

    def leave(self, y: Tensor) -> Tensor:
        """Out of the sharded region, by g: (batch, S, hidden) Partial -> Replicate."""
        return reduce_from(y, self.group)


@named
def vocab_parallel_cross_entropy(
    logits: Tensor, targets: Tensor, group: Group, vocabulary: int, ignore_index: int = -100
) -> Tensor:
    """The cross-entropy of each token, (batch, S) Replicate, without ever putting the whole logits together.

    logits (batch, S, padded V/P) Shard(-1); targets (batch, S) integers, Replicate; `vocabulary` without padding.
    Where a target is `ignore_index`, the loss is 0 and nothing gets a gradient: see `mean_loss` for their mean. Under
    autocast the loss is computed in float32, as PyTorch's own.
    -log softmax(z)[t] = log sum exp(z - max z) - (z[t] - max z), and the maximum, the sum and z[t] are one number per
    token each. Communication: three all-reduces of (batch, S) forward, two of them in float32 at least; nothing
    backward.
    """
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise TypeError(f"vocab_parallel_cross_entropy: targets are numbers of tokens, not {targets.dtype}")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"vocab_parallel_cross_entropy on rank {group.rank} of {group.size}: targets {tuple(targets.shape)} for "
            f"logits {tuple(logits.shape)}; there must be one for each token: {tuple(logits.shape[:-1])}"
        )
    targets = targets.long()
    ignored = targets == ignore_index
    some = not targets.is_meta and bool(ignored.any())
    if some:
        targets = targets.masked_fill(ignored, 0)  # any token: its loss is taken out again
    check_tokens(targets, vocabulary, group, "vocab_parallel_cross_entropy")
    if autocast_type(logits):
        logits = logits.float()
    width = logits.shape[-1]
    if width * group.size != padded_vocabulary(vocabulary, group.size):
        raise ValueError(
            f"vocab_parallel_cross_entropy on rank {group.rank} of {group.size}: logits {tuple(logits.shape)} are not "
            f"this device's piece of a vocabulary of {vocabulary}: the last dim must be "
            f"{padded_vocabulary(vocabulary, group.size) // group.size}"
        )
    real = max(0, min(width, vocabulary - group.rank * width))  # the columns behind it are padding
    if real < width:
        logits = logits[..., :real]
    losses = _CrossEntropy.apply(logits, *own_tokens(targets, width, group), group)
    return losses.masked_fill(ignored, 0) if some else losses


class _CrossEntropy(Function):
    """Written with PyTorch's own operations, it would make three tensors as large as the logits for their gradient.
    So it keeps the softmax alone, and makes the gradient out of it at once. Half precision is computed in float32 and
    rounded once, as PyTorch does."""

    @staticmethod
    def forward(ctx, logits, mine, local, group):
        at_least = torch.promote_types(logits.dtype, torch.float32)
        real = logits.shape[-1]  # none where all columns of a device are padding
        largest = logits.amax(-1) if real else logits.new_full(mine.shape, -torch.inf)
        largest = group.all_reduce(largest, "max").to(at_least)  # (batch, S)  Replicate
        # In place: a subtraction of two dtypes would make one copy more, on the CPU.
        shifted = logits.to(at_least, copy=True).sub_(largest.unsqueeze(-1))  # (batch, S, V/P)  Shard(-1)
        wanted = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1) if real else torch.zeros_like(largest)
        wanted = group.all_reduce(wanted.where(mine, 0))  # (batch, S)  Partial, one device has each target -> Replicate
        softmax = shifted.exp_()
        total = group.all_reduce(softmax.sum(-1))  # (batch, S)  Partial -> Replicate
        softmax = softmax.div_(total.unsqueeze(-1)).to(logits.dtype)
        ctx.save_for_backward(softmax, mine, local)
        return (total.log() - wanted).to(logits.dtype)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        softmax, mine, local = ctx.saved_tensors
        gradient = softmax * grad.unsqueeze(-1)  # d loss / d z = softmax(z) - 1 where z is the target's
        if gradient.shape[-1]:
            gradient.scatter_add_(-1, local.unsqueeze(-1), -(grad * mine).unsqueeze(-1))
        return gradient, None, None, None


@named
def mean_loss(losses: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """The mean of the losses of all tokens (batch, S) whose target is not `ignore_index`: a single number."""
    counted = count_targets(targets, ignore_index)
    return losses.mean() if counted == targets.numel() else losses.sum() / counted  # of none: not a number


def count_targets(targets: Tensor, ignore_index: int = -100) -> int:
    """How many targets are not `ignore_index`; on meta, where no one knows, all."""
    # As signed numbers: PyTorch compares bytes with -100 as if it were 156.
    return targets.numel() if targets.is_meta else int((targets.long() != ignore_index).sum())


@named
def own_tokens(tokens: Tensor, width: int, group: Group) -> tuple[Tensor, Tensor]:
    """Which tokens this device holds the rows of (bool), and the number of the row (0 for the others)."""
    local = tokens - group.rank * width
    mine = (local >= 0) & (local < width)
    return mine, local * mine


@named
def check_tokens(tokens: Tensor, vocabulary: int, group: Group, who: str) -> None:
    """Raises IndexError when a token is outside of the vocabulary. On the meta device there is nothing to look at."""
    if tokens.is_meta or not tokens.numel():
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise IndexError(
            f"{who} on rank {group.rank} of {group.size}: token {low if low < 0 else high} is not in a vocabulary of "
            f"{vocabulary}; tokens are 0 to {vocabulary - 1}"
        )
