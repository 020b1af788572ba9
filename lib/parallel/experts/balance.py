"""Keeping the experts equally busy: two losses and a bias.

A router that starts at random is uneven, and it tends to stay so: an expert that gets more tokens learns more, and is
chosen more. The busiest device sets the pace of all, so three things push back:

    balance loss    E sum_e f_e p_e    f_e: share of the rows that expert e got; p_e: its mean probability
    z-loss          mean over tokens of (log sum_e exp logit_e)², which keeps the logits small
    bias            no loss: after each step, the score of an overloaded expert is lowered by a constant, for the choice

The balance loss is 1 when all is even. f counts, so it has no gradient: it says how hard to push p_e down. Both f and
p are means over the whole batch. p is linear in the tokens, so each device may take its own; f multiplies it, so f
must be that of all devices. Fedus et al. 2021, arXiv 2101.03961, section 2.2; z-loss: Zoph et al. 2022, arXiv
2202.08906; bias: Wang et al. 2024, arXiv 2408.15664, used in DeepSeek-V3.
"""

import torch
from torch import Tensor

from lib.parallel.experts.layer import Seen
from lib.parallel.experts.router import Router


def load_share(rows: Tensor) -> Tensor:
    """(P, E) rows -> (E,): the share of all rows that each expert got. They sum to 1."""
    loads = rows.sum(0).double()  # whole numbers would be divided in the default dtype
    return loads / loads.sum().clamp(min=1)


def balance_loss(seen: Seen) -> Tensor:
    """() Partial(mean): of this device, with the loads of all devices and the probabilities of its own tokens.

    It is a mean over own tokens. So add it to a loss that is one, before that is multiplied by this device's share of
    the tokens. Loads are those the router wanted, before any drop.
    """
    scores = seen.routing.scores  # (n/P, E)
    probabilities = scores / scores.sum(-1, keepdim=True)  # sigmoids do not sum to 1; softmax does
    share = load_share(seen.wanted).to(scores)  # counts: no gradient
    return scores.shape[-1] * (share * _mean(probabilities)).sum()


def z_loss(seen: Seen) -> Tensor:
    """() Partial(mean): the mean over this device's tokens of the squared logarithm of the softmax's denominator."""
    return _mean(seen.routing.logits.logsumexp(-1).square())


def _mean(x: Tensor) -> Tensor:
    """Over the tokens, dim 0. Of none it is 0: the share of a device without tokens is 0 too."""
    return x.mean(0) if len(x) else x.sum(0)


@torch.no_grad()
def update_bias(router: Router, seen: Seen, rate: float = 1e-3) -> None:
    """After a step: `rate` more for every expert below the mean load, `rate` less for every one above.

    All devices know all loads, so all biases stay the same. A rate that is too large makes the loads swing.
    """
    loads = seen.wanted.sum(0).to(router.bias)
    router.bias += rate * (loads.mean() - loads).sign()


def imbalance(rows: Tensor) -> float:
    """(P, E) rows -> the largest load over the mean load: 1 is even, E is all on one."""
    loads = rows.sum(0)
    return float(loads.max() / loads.double().mean())
