"""The exercises on experts: the stub waits, solutions pass, each typical mistake is rejected by its name."""

import exercise_checks as checks
import torch

from book.exercises import experts as tasks
from lib import all_gather, all_to_all, gather_from
from lib.devices import Mesh

EVERY = [tasks.dispatch_and_combine, tasks.capacity, tasks.router_gradient, tasks.reduce_gradients, tasks.balance]
SENTENCES = {"reduce_gradients": "is right on 1, 2, 4 and 6 devices"}


# ---- dispatch and combine ----


def way(group, expert, owner):
    flat = expert.flatten()
    order = owner[flat].argsort(stable=True)
    table = group.table_of(torch.bincount(owner[flat], minlength=group.size).tolist())
    return flat, order, table, int((owner < group.rank).sum())


def dispatch_by_hand(
    group, x, expert, gate, w, owner, first=None, back=True, order_back=True, weigh=lambda y, g: y * g
):
    flat, order, table, start = way(group, expert, owner)
    first = start if first is None else first
    there = all_to_all(x[order // 2], group, 0, 0, sizes=table)
    y = torch.tanh(there * w[group.all_to_all(flat[order], sizes=table) - first])
    if back:
        y = all_to_all(y, group, 0, 0, sizes=list(zip(*table, strict=True)))
    if order_back:
        y = torch.zeros_like(y).index_copy(0, order, y)
    return weigh(y.view(*expert.shape, -1), gate[..., None]).sum(1)


def dispatch_with_own_sizes(group, x, expert, gate, w, owner):
    """Each call tells its own lengths: an all-gather each."""
    flat, order, table, first = way(group, expert, owner)
    sizes = list(table[group.rank])
    there = all_to_all(x[order // 2], group, 0, 0, sizes=sizes)
    numbers = group.all_to_all(flat[order], sizes=sizes)
    back = all_to_all(torch.tanh(there * w[numbers - first]), group, 0, 0, sizes=[row[group.rank] for row in table])
    y = torch.zeros_like(back).index_copy(0, order, back).view(*expert.shape, -1)
    return (y * gate[..., None]).sum(1)


def dispatch_by_counts(group, x, expert, gate, w, owner):
    """Sorted by expert, and counts in the place of numbers."""
    flat = expert.flatten()
    order = flat.argsort(stable=True)
    everyone = group.all_gather(torch.bincount(flat, minlength=len(owner))[None])  # (P, experts)
    mine = owner == group.rank
    table = [[int(row[owner == r].sum()) for r in range(group.size)] for row in everyone]
    there = all_to_all(x[order // 2], group, 0, 0, sizes=table)
    numbers = torch.cat([torch.arange(int(mine.sum())).repeat_interleave(row[mine]) for row in everyone])
    y = all_to_all(torch.tanh(there * w[numbers]), group, 0, 0, sizes=list(zip(*table, strict=True)))
    return torch.zeros_like(x).index_add(0, order // 2, y * gate.flatten()[order, None])


def dispatch_no_gates(group, *inputs):
    return dispatch_by_hand(group, *inputs, weigh=lambda y, g: y)


def dispatch_averaged(group, *inputs):
    return dispatch_by_hand(group, *inputs, weigh=lambda y, g: y / 2)


def dispatch_order_lost(group, *inputs):
    return dispatch_by_hand(group, *inputs, order_back=False)


def dispatch_one_way(group, x, expert, gate, w, owner):
    flat, order, table, first = way(group, expert, owner)
    there = all_to_all(x[order // 2], group, 0, 0, sizes=table)
    y = torch.tanh(there * w[group.all_to_all(flat[order], sizes=table) - first])
    y = torch.cat([y, y.new_zeros(len(flat), y.shape[1])])[: len(flat)]
    return torch.zeros_like(x).index_add(0, order // 2, y * gate.flatten()[order, None])


def dispatch_places(group, x, expert, gate, w, owner):
    flat, order, table, _ = way(group, expert, owner)
    there = all_to_all(x[order // 2], group, 0, 0, sizes=table)
    y = torch.tanh(there * w[group.all_to_all(flat[order], sizes=table) % len(w)])
    back = all_to_all(y, group, 0, 0, sizes=list(zip(*table, strict=True)))
    return torch.zeros_like(x).index_add(0, order // 2, back * gate.flatten()[order, None])


def dispatch_gate_before(group, x, expert, gate, w, owner):
    flat, order, table, first = way(group, expert, owner)
    there = all_to_all((x[:, None] * gate[..., None]).flatten(0, 1)[order], group, 0, 0, sizes=table)
    y = torch.tanh(there * w[group.all_to_all(flat[order], sizes=table) - first])
    back = all_to_all(y, group, 0, 0, sizes=list(zip(*table, strict=True)))
    return torch.zeros_like(x).index_add(0, order // 2, back)


def dispatch_bare_verb(group, x, expert, gate, w, owner):
    _, order, table, _ = way(group, expert, owner)
    return group.all_to_all(x[order // 2], sizes=table)


def dispatch_gathers_the_experts(group, x, expert, gate, w, owner):
    return tasks.by_loop(x, expert, gate, all_gather(w, group, 0), owner)


def dispatch_gathers_without_the_sum(group, x, expert, gate, w, owner):
    return tasks.by_loop(x, expert, gate, gather_from(w, group, 0), owner)


# ---- capacity ----


def room(group, expert, gate, load, most=2, before=True, normalize=True):
    counts = torch.bincount(expert.flatten(), minlength=len(load))
    everyone = group.all_gather(counts[None])
    taken = everyone[: group.rank].sum(0) if before else torch.zeros_like(counts)
    left = gate.clone()
    for t, row in enumerate(expert.tolist()):
        for j, e in enumerate(row):
            if taken[e] >= most:
                left[t, j] = 0
            taken[e] += 1
    return left / left.sum(1, keepdim=True).clamp(min=1e-300) if normalize else left


def room_of_each_device(group, *inputs):
    return room(group, *inputs, before=False)


def room_not_normalized(group, *inputs):
    return room(group, *inputs, normalize=False)


def room_for_three(group, *inputs):
    return room(group, *inputs, most=3)


def room_for_one(group, *inputs):
    return room(group, *inputs, most=1)


def room_first_choices_first(group, expert, gate, load):
    whole, weights = group.all_gather(expert), group.all_gather(gate)
    sizes = [n for (n,) in group.table_of([len(expert)])]
    start = sum(sizes[: group.rank])
    return tasks.first_choices_first(whole, weights, load)[start : start + len(expert)]


def room_without_end(group, expert, gate, load):
    group.barrier()
    return gate.clone()


# ---- the router's gradient ----


def router_by_autograd(group, x, r, y, dz):
    with torch.enable_grad():
        r = r.clone().requires_grad_()
        best, _ = (x @ r.T).topk(2, -1)
        (y * best.softmax(-1)[..., None]).sum(1).backward(dz)
    return group.all_reduce(r.grad)


def router(group, x, r, y, dz, through=tasks.right_way, add=True):
    mine = tasks.of_gates(x, r, y, dz, through)
    return group.all_reduce(mine) if add else mine


def router_averaged(group, *inputs):
    return router(group, *inputs) / group.size


def router_alone(group, *inputs):
    return router(group, *inputs, add=False)


def router_without_the_other(group, *inputs):
    return router(group, *inputs, through=lambda g, d: g * d)


def router_of_sigmoids(group, *inputs):
    return router(group, *inputs, through=lambda g, d: g * (1 - g) * d)


def router_of_gates(group, *inputs):
    return router(group, *inputs, through=lambda g, d: d)


# ---- the groups of each gradient ----


def mesh_of(group):
    ep = min(2, group.size)
    return Mesh(group, replicas=group.size // ep, experts=ep)


def groups_by_split(group, router, expert):
    pairs = [list(range(r, group.size, 2)) for r in range(min(2, group.size))]
    same = group.split(pairs)
    return group.all_reduce(router / group.size), same.all_reduce(expert / group.size)


def groups_own_average(group, router, expert):
    replicas = mesh_of(group).replicas
    return group.all_reduce(router) / group.size, replicas.all_reduce(expert) / replicas.size


def groups_over_experts(group, router, expert):
    return group.all_reduce(router) / group.size, mesh_of(group).experts.all_reduce(expert) / group.size


def groups_over_all(group, router, expert):
    return group.all_reduce(router) / group.size, group.all_reduce(expert) / group.size


def groups_not_divided(group, router, expert):
    return group.all_reduce(router) / group.size, mesh_of(group).replicas.all_reduce(expert)


def groups_expert_alone(group, router, expert):
    return group.all_reduce(router) / group.size, expert / group.size


def groups_router_over_replicas(group, router, expert):
    replicas = mesh_of(group).replicas
    return replicas.all_reduce(router) / replicas.size, replicas.all_reduce(expert) / group.size


def gates_by_product(group, x, r, y, dz):
    logits = x @ r.T
    best, expert = logits.topk(2, dim=-1)
    gate = best.softmax(-1)
    d_gate = (y @ dz[:, :, None])[:, :, 0]
    d_best = gate * (d_gate - (gate * d_gate).sum(-1, keepdim=True))
    return group.all_reduce(torch.zeros_like(logits).scatter(1, expert, d_best).T @ x)


def dispatch_gates_not_sorted(group, x, expert, gate, w, owner):
    flat, order, table, first = way(group, expert, owner)
    there = all_to_all(x[order // 2], group, 0, 0, sizes=table)
    y = torch.tanh(there * w[group.all_to_all(flat[order], sizes=table) - first])
    back = all_to_all(y, group, 0, 0, sizes=list(zip(*table, strict=True)))
    return torch.zeros_like(x).index_add(0, order // 2, back * gate.flatten()[:, None])


def dispatch_sets(group, x, expert, gate, w, owner):
    flat, order, table, first = way(group, expert, owner)
    there = all_to_all(x[order // 2], group, 0, 0, sizes=table)
    y = torch.tanh(there * w[group.all_to_all(flat[order], sizes=table) - first])
    back = all_to_all(y, group, 0, 0, sizes=list(zip(*table, strict=True)))
    out = torch.zeros_like(x)
    out[order // 2] = back * gate.flatten()[order, None]
    return out


def dispatch_first_choice(group, *inputs):
    return dispatch_by_hand(group, *inputs, weigh=lambda y, g: y * g * torch.tensor([[1.0], [0.0]], dtype=y.dtype))


def room_by_mask(group, expert, gate, load):
    """The places of all rows at once: how many of the same expert stand before."""
    flat = expert.flatten()
    before = group.all_gather(torch.bincount(flat, minlength=len(load))[None])[: group.rank].sum(0)
    same = torch.nn.functional.one_hot(flat, len(load))
    place = (same.cumsum(0) - same + before).gather(1, flat[:, None]).view_as(expert)
    left = gate.masked_fill(place >= 2, 0)
    return (left / left.sum(1, keepdim=True)).nan_to_num(0)


def room_counted_twice(group, expert, gate, load):
    everyone = group.all_gather(torch.bincount(expert.flatten(), minlength=len(load))[None])
    taken, left = everyone[: group.rank + 1].sum(0), gate.clone()
    for t, row in enumerate(expert.tolist()):
        for j, e in enumerate(row):
            left[t, j] = 0 if taken[e] >= 2 else left[t, j]
            taken[e] += 1
    return left / left.sum(1, keepdim=True).clamp(min=1e-300)


def room_both_or_none(group, expert, gate, load):
    return gate * (room(group, expert, gate, load, normalize=False) > 0).all(1, keepdim=True)


def room_softmax(group, expert, gate, load):
    left = room(group, expert, gate, load, normalize=False)
    return left.masked_fill(left == 0, -torch.inf).softmax(1).nan_to_num(0)


def router_by_jacobian(group, x, r, y, dz):
    """Token by token, with the softmax's Jacobian written out."""
    total = torch.zeros_like(r)
    for token, answers, above in zip(x, y, dz, strict=True):
        best, expert = (r @ token).topk(2)
        g = best.softmax(0)
        d = (torch.diag(g) - torch.outer(g, g)) @ (answers @ above)
        total[expert] += torch.outer(d, token)
    return group.all_reduce(total)


def router_over_all_experts(group, *inputs):
    return group.all_reduce(tasks.of_all_experts(*inputs))


def router_not_scattered(group, *inputs):
    return group.all_reduce(tasks.to_first_experts(*inputs))


def router_turned(group, *inputs):
    return -router(group, *inputs)


def groups_nothing_divided(group, router, expert):
    return group.all_reduce(router), mesh_of(group).replicas.all_reduce(expert)


def groups_router_not_divided(group, router, expert):
    return group.all_reduce(router), mesh_of(group).replicas.all_reduce(expert) / group.size


def groups_divided_by_ep(group, router, expert):
    return group.all_reduce(router) / group.size, mesh_of(group).replicas.all_reduce(expert) / min(2, group.size)


def groups_weighed_before(group, router, expert):
    return group.all_reduce(router / group.size), mesh_of(group).replicas.all_reduce(expert / group.size)


def balance_in_two_calls(group, probability, expert):
    rows = group.all_reduce(torch.nn.functional.one_hot(expert, probability.shape[1]).sum((0, 1)).to(probability))
    tokens = rows.sum() / 2
    return probability.shape[1] * (rows / (2 * tokens)) @ (group.all_reduce(probability.sum(0)) / tokens)


def balance_gathered(group, probability, expert):
    probability, expert = group.all_gather(probability), group.all_gather(expert)
    rows = torch.bincount(expert.flatten(), minlength=probability.shape[1])
    return probability.shape[1] * (rows / rows.sum() * probability.mean(0)).sum()


def balance_by_loops(group, probability, expert):
    tokens, experts = int(group.all_reduce(torch.tensor(len(expert)))), probability.shape[1]
    both = torch.stack([torch.stack([(expert == e).sum().double(), probability[:, e].sum()]) for e in range(experts)])
    return experts * group.all_reduce(both).prod(1).sum() / (2 * tokens * tokens)


def balance_own(group, *inputs):
    return tasks.balance_of(*inputs)


def balance_mean_of_products(group, *inputs):
    return group.all_reduce(tasks.balance_of(*inputs)) / group.size


def balance_sum_of_products(group, *inputs):
    return group.all_reduce(tasks.balance_of(*inputs))


def balance_mean_of_means(group, probability, expert):
    f = torch.bincount(expert.flatten(), minlength=probability.shape[1]).to(probability) / expert.numel()
    f, p = group.all_reduce(torch.stack([f, probability.mean(0)])) / group.size
    return probability.shape[1] * (f * p).sum()


def balance_without_e(group, probability, expert):
    return tasks.balance.solution(group, probability, expert) / probability.shape[1]


def balance_by_tokens(group, *inputs):
    return 2 * tasks.balance.solution(group, *inputs)


RIGHT = [
    (tasks.capacity, room_by_mask),
    (tasks.router_gradient, router_by_jacobian),
    (tasks.reduce_gradients, groups_weighed_before),
    (tasks.balance, balance_in_two_calls),
    (tasks.balance, balance_by_loops),
    (tasks.router_gradient, gates_by_product),
    (tasks.dispatch_and_combine, dispatch_by_hand),
    (tasks.dispatch_and_combine, dispatch_by_counts),
    (tasks.capacity, room),
    (tasks.router_gradient, router_by_autograd),
    (tasks.reduce_gradients, groups_by_split),
]

REMARKED = [
    (tasks.balance, balance_gathered, "Right, but it sends more than it needs"),
    (tasks.dispatch_and_combine, dispatch_with_own_sizes, "Right, but it sends more than it needs"),
]

WRONG = [
    (tasks.dispatch_and_combine, dispatch_no_gates, "the answers were added without their gates"),
    (tasks.dispatch_and_combine, dispatch_averaged, "the two answers were averaged"),
    (tasks.dispatch_and_combine, dispatch_order_lost, "the answers were not put back"),
    (tasks.dispatch_and_combine, dispatch_one_way, "there is one all-to-all, and it takes two"),
    (tasks.dispatch_and_combine, dispatch_gate_before, "the gate was multiplied into the token before the expert"),
    (tasks.dispatch_and_combine, dispatch_bare_verb, "requires grad"),
    (tasks.dispatch_and_combine, dispatch_gathers_without_the_sum, "the gradient of w"),
    (tasks.dispatch_and_combine, dispatch_gates_not_sorted, "the gates are in the order of the choices"),
    (tasks.dispatch_and_combine, dispatch_sets, "one answer of a token replaced the other"),
    (tasks.dispatch_and_combine, dispatch_first_choice, "only the first choice counts here"),
    (tasks.capacity, room_counted_twice, "your own rows were counted twice"),
    (tasks.capacity, room_both_or_none, "a token lost both choices"),
    (tasks.capacity, room_softmax, "what is left went through a softmax"),
    (tasks.router_gradient, router_over_all_experts, "the softmax is over the two chosen logits"),
    (tasks.router_gradient, router_not_scattered, "experts 0 and 1 learned"),
    (tasks.router_gradient, router_turned, "the sign is turned"),
    (tasks.reduce_gradients, groups_nothing_divided, "nothing was divided"),
    (tasks.reduce_gradients, groups_router_not_divided, "the router's gradient was summed over all devices"),
    (tasks.reduce_gradients, groups_divided_by_ep, "the experts' gradients were divided by EP"),
    (tasks.balance, balance_own, "the loss of your own tokens alone"),
    (tasks.balance, balance_mean_of_products, "each device's own loss was averaged"),
    (tasks.balance, balance_sum_of_products, "the losses of the devices were added"),
    (tasks.balance, balance_mean_of_means, "the devices' means were averaged"),
    (tasks.balance, balance_without_e, "the number of experts is missing"),
    (tasks.balance, balance_by_tokens, "a token has two"),
    (tasks.capacity, room_of_each_device, "each device let 2 rows of its own through"),
    (tasks.capacity, room_not_normalized, "gates are not normalized after dropping"),
    (tasks.capacity, room_for_three, "3 rows got through"),
    (tasks.capacity, room_for_one, "1 row got through"),
    (tasks.capacity, room_first_choices_first, "all first choices came before all second ones"),
    (tasks.capacity, room_without_end, "nothing was dropped"),
    (tasks.router_gradient, router_averaged, "averaged over the devices"),
    (tasks.router_gradient, router_alone, "each device has the gradient of its own tokens alone"),
    (tasks.router_gradient, router_without_the_other, "raising one lowers the other"),
    (tasks.router_gradient, router_of_sigmoids, "a softmax of two is no sigmoid of each"),
    (tasks.router_gradient, router_of_gates, "this is the gradient of the gates"),
    (tasks.reduce_gradients, groups_own_average, "EP times too large: divide by P"),
    (tasks.reduce_gradients, groups_over_experts, "summed over the devices that divide the experts"),
    (tasks.reduce_gradients, groups_over_all, "averaged over all devices"),
    (tasks.reduce_gradients, groups_not_divided, "the sum over the replicas was not divided"),
    (tasks.reduce_gradients, groups_expert_alone, "were not added over the replicas"),
    (tasks.reduce_gradients, groups_router_over_replicas, "averaged over the replicas alone"),
]

test_the_stub_waits = checks.stubs_wait(EVERY)
test_right_answers_pass = checks.right_answers_pass([], RIGHT, SENTENCES)
test_right_but = checks.right_but(REMARKED)
test_wrong_answers_are_rejected = checks.wrong_answers_are_rejected(WRONG)
test_each_gradient_is_asked_for = checks.each_gradient_is_asked_for([(tasks.dispatch_and_combine, "x gate w")])
test_pages_show_task_and_hints = checks.pages_show_task_and_hints(EVERY)
test_solutions_can_be_copied = checks.solutions_can_be_copied(
    EVERY, SENTENCES, torch=torch, Mesh=Mesh, all_to_all=all_to_all
)


def test_the_oracle_of_the_router_is_autograd():
    x, r = torch.randn(5, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y, dz = torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    best, _ = (x @ r.T).topk(2, -1)
    (y * best.softmax(-1)[..., None]).sum(1).backward(dz)
    assert float((tasks.by_hand(x, r.detach(), y, dz) - r.grad).abs().max()) < 1e-12
