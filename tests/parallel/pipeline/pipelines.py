"""Schedules to try, and a small GPT that is run by them."""

from functools import cache

import torch
from parallel.small_gpt import dense_weights

from lib import (
    GPT,
    GPTConfig,
    SequenceGPT,
    breadth_first,
    cut_gpt,
    dual_pipe_v,
    gpipe,
    interleaved,
    load_dense,
    mean_loss,
    naive,
    one_f_one_b,
    reduce_tied,
    run_pipeline,
    search_schedule,
    split_backward,
    vocab_parallel_cross_entropy,
    zb_h1,
    zb_h2,
    zb_v,
)

CONFIG = GPTConfig(layers=7, hidden=16, heads=4, vocabulary=30, positions=8)  # 7 layers: stages are not all equal
STATE = dense_weights(CONFIG)
MAKERS = {
    "naive": naive,
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": lambda p, m: interleaved(p, m, 2),
    "breadth first": lambda p, m: breadth_first(p, m, 2),
    "zb-h1": zb_h1,
    "zb-h2": zb_h2,
    "zb-v": zb_v,
    "dual pipe v": dual_pipe_v,
    "searched": cache(lambda p, m: search_schedule(p, m, 1.5 * p)),
    "searched v": cache(lambda p, m: search_schedule(p, m, p, place=[*range(p), *reversed(range(p))])),
    "gpipe, split": lambda p, m: split_backward(gpipe(p, m)),
}
FREE = [name for name in MAKERS if name not in ("interleaved", "dual pipe v")]  # in the number of micro-batches


def batch(texts=6, length=8, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CONFIG.vocabulary, (2, texts, length), generator=generator)


def build(group, sequence_parallel=False, config=CONFIG, **options):
    """The whole GPT with the weights of the tests, split over `group`."""
    gpt = (SequenceGPT if sequence_parallel else GPT)(config, group, **options).double()
    load_dense(gpt, STATE if config is CONFIG else dense_weights(config), group)
    return gpt


def loss_of(gpt, targets, count):
    """The part of the mean over `count` texts that each micro-batch of `targets` has."""

    def loss(logits, k):
        losses = vocab_parallel_cross_entropy(logits, targets[k], gpt.group, CONFIG.vocabulary)
        return mean_loss(losses, targets[k]) * (len(targets[k]) / count)

    return loss


def gradients(group, schedule, tokens, targets, sizes=None, **options):
    """One device's step: the loss if it has it, and the gradients of its weights."""
    gpt = build(group.split(group.size), **options)
    stages = cut_gpt(gpt, schedule, group.rank, sizes)
    some, follow = (x.tensor_split(schedule.micros) for x in (tokens, targets))
    losses = run_pipeline(group, schedule, stages, some, loss_of(gpt, follow, len(tokens)))
    reduce_tied(group, schedule, gpt)
    return losses, {name: p.grad for name, p in gpt.named_parameters()}


def one_device(group, tokens, targets, **options):
    """The same by the dense model, with the whole batch at once."""
    gpt = build(group, **options)
    loss = gpt(tokens, targets)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in gpt.named_parameters()}


def check_equal(outputs, right):
    """The parts of the loss add up, every weight is somewhere, and its gradient is that of one device."""
    loss, expected = right
    (losses,) = [list(found.values()) for found, _ in outputs if found]
    assert abs(sum(losses) - loss) < 1e-12
    assert {name for _, grads in outputs for name in grads} == set(expected)
    for _, grads in outputs:
        for name, grad in grads.items():
            off = (grad - expected[name]).abs().max() / expected[name].abs().max()
            assert off <= 1e-12, f"{name}: {off:.1e}"
