"""The same training at every stage of ZeRO, so that the tests can compare and meter them."""

from parallel.small_model import OPTIMIZERS, make_model, weights

from lib import broadcast_parameters, clip_gradients, shard_batch
from lib.parallel.zero.fully_sharded import FullySharded
from lib.parallel.zero.optimizer import ShardedOptimizer

BUCKET_BYTES = 500


def make(group, stage, optimizer, bucket_bytes=BUCKET_BYTES):
    """The small model, what steps it, the pieces of its parameters, and a function that gives all weights."""
    model = make_model(seed=group.rank)
    broadcast_parameters(model, group)
    if stage == 3:
        sharded = FullySharded(model, group, layers=[model.first, model.frozen, model.second], allow_unused=True)
        return model, OPTIMIZERS[optimizer](model.parameters()), list(model.parameters()), sharded.whole_parameters
    zero = ShardedOptimizer(model, group, OPTIMIZERS[optimizer], bucket_bytes)
    return model, zero, zero.pieces, lambda: weights(model)


def train(group, stage, optimizer, batches, micro_batches=1, max_norm=None, bucket_bytes=BUCKET_BYTES):
    """Returns losses and weights, as `train_alone` does for one device."""
    model, zero, pieces, whole = make(group, stage, optimizer, bucket_bytes)
    losses = []
    for batch, whole_target in batches:
        tokens, target = shard_batch(batch, group), shard_batch(whole_target, group)
        share = len(tokens) / len(batch)
        zero.zero_grad()
        loss = 0.0
        for some, wanted in zip(tokens.tensor_split(micro_batches), target.tensor_split(micro_batches), strict=True):
            part = model.loss(some, wanted) * len(some) / len(tokens)
            if stage == 1:
                part.backward()
            elif stage == 2:
                with zero.reducing(share, allow_unused=True):
                    part.backward()
            else:
                (part * share * group.size).backward()
            loss += part.detach()
        if stage == 1:
            zero.reduce_gradients(share, allow_unused=True)
        if max_norm is not None:
            clip_gradients(pieces, group, max_norm, sharded=pieces)
        zero.step()
        losses.append(float(group.all_reduce(loss * share)))
    return losses, whole()
