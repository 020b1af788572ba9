"""Programs with experts for real processes: on our group, and on torch.distributed alone."""

import torch
import torch.distributed as dist
from parallel.expert_layer import HIDDEN, INNER, inputs, one_step
from torch.nn import functional as F

from lib.devices import Cluster
from lib.parallel.experts.layer import MixtureOfExperts
from lib.parallel.experts.nodes import NodeFirstExperts
from lib.parallel.experts.overlap import OverlappedExperts
from lib.parallel.experts.router import ExpertChoiceRouter, RoutingRule

RULE = RoutingRule(8, 2, nodes=2, node_limit=1)
PROGRAMS = {
    "dropless": {},
    "few tokens": {"tokens": 3},
    "capacity": {"capacity_factor": 0.7, "renormalize": True},
    "expert choice": {"router": ExpertChoiceRouter},
    "overlapped": {"kind": OverlappedExperts, "shared": 1},
    "nodes": {"kind": NodeFirstExperts},
}


def all_programs(group):
    """Output, input's gradient and all others, of every program; the grid is experts x data where it can be."""
    found = {}
    for name, options in PROGRAMS.items():
        options = dict(options)
        x, above = inputs(options.pop("tokens", 37))
        one = one_step(group, RULE, x, above, group.size, 1, **options)
        found[name] = [one["output"], one["input"], *(grad for grad, _ in one["grads"].values())]
    one = one_step(group, RULE, *inputs(), 2, group.size // 2, gated=True)
    found["experts x tensor"] = [one["output"], one["input"], *(grad for grad, _ in one["grads"].values())]
    return found


def plain_layer(x, router, up, down):
    """The same layer forward in torch.distributed alone: an all_gather of counts, and all_to_all_single both ways."""
    size, rank = dist.get_world_size(), dist.get_rank()
    x = x.tensor_split(size)[rank]
    gates, chosen = (x @ router.T).softmax(-1).topk(2, -1)
    gates = (gates / gates.sum(-1, keepdim=True)).flatten()
    flat, per = chosen.flatten(), len(router) // size
    order = flat.argsort(stable=True)
    counts = [torch.empty(len(router), dtype=torch.int64) for _ in range(size)]
    dist.all_gather(counts, torch.bincount(flat, minlength=len(router)))
    to = [int(part.sum()) for part in counts[rank].split(per)]
    coming = [c[rank * per : (rank + 1) * per].tolist() for c in counts]
    arrived = torch.empty(sum(map(sum, coming)), x.shape[1], dtype=x.dtype)
    dist.all_to_all_single(arrived, x[order // 2], [sum(c) for c in coming], to)
    answers, start = torch.empty_like(arrived), 0
    for numbers in coming:
        for e, count in enumerate(numbers):
            rows = arrived[start : start + count]
            answers[start : start + count] = F.gelu(rows @ up[rank * per + e].T) @ down[rank * per + e].T
            start += count
    back = torch.empty(len(flat), x.shape[1], dtype=x.dtype)
    dist.all_to_all_single(back, answers, to, [sum(c) for c in coming])
    return torch.zeros_like(x).index_add(0, order // 2, back * gates[order, None])


def weights():
    """Of the dense layer with which all programs begin."""

    def program(group):
        torch.manual_seed(0)
        return MixtureOfExperts(HIDDEN, INNER, RoutingRule(8, 2), group).double()

    return {name: p.detach() for name, p in Cluster(1).run(program)[0].named_parameters()}
