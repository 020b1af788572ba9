"""The exercises on attention: stubs wait or are wrong, solutions pass, typical mistakes are rejected by name."""

import math

import exercise_checks as checks
import torch
from torch.nn import functional as F

from book.exercises import attention as tasks
from lib import Cluster, FusedHeads, attend, copy_to, gather_from, reduce_from, shard

EVERY = [tasks.fused_qkv, tasks.heads_to_output, tasks.shared_heads, tasks.next_token]
SENTENCES = {"shared_heads": "is right on 1, 2 and 4 devices"}


# ---- fused_qkv ----


def split(x, rows):
    """(3 * heads/P * 4, hidden) -> 3 x (heads/P, tokens, 4)."""
    return tuple((x @ rows.T).unflatten(1, (3, -1, 4)).permute(1, 2, 0, 3))


def fused_block_by_block(group, x, w):
    rows = [shard(block.unflatten(0, (-1, 4)), group, 0) for block in w.chunk(3)]
    return [(x @ block.flatten(0, 1).T).unflatten(1, (-1, 4)).transpose(0, 1) for block in rows]


def fused_batched(group, x, w):
    mine = shard(w.unflatten(0, (3, -1, 4)), group, 1)
    return (x @ mine.transpose(2, 3)).unbind(0)


def fused_columns_within_heads(group, x, w):
    rows = torch.cat([shard(block, group, 0) for block in w.chunk(3)])
    return split(x, rows)


def fused_interleaved(group, x, w):
    return split(x, shard(w.unflatten(0, (-1, 3, 4)).transpose(0, 1), group, 1).flatten(0, 2))


def fused_whole_product(group, x, w):
    return tuple(shard(block, group, 0) for block in split(x, w))


def fused_all_heads(group, x, w):
    return split(x, w)


def fused_gathered(group, x, w):
    mine = shard(w.unflatten(0, (3, -1, 4)), group, 1).flatten(0, 2)
    return tuple(group.all_gather(y, 0) for y in split(x, mine))


def fused_keys_and_values_swapped(group, x, w):
    q, k, v = fused_block_by_block(group, x, w)
    return q, v, k


def fused_one_tensor(group, x, w):
    return torch.cat(fused_block_by_block(group, x, w))


def fused_accepts_anything(group, x, w):
    return fused_block_by_block(group, x, w[: len(w) // 12 * 12])


# ---- heads_to_output ----


def output_with_the_book(group, q, k, v, wo):
    return reduce_from((attend(q[None], k[None], v[None])[0] @ wo).sum(0), group)


def output_with_torch(group, q, k, v, wo):
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return reduce_from(o.transpose(0, 1).flatten(1) @ wo.flatten(0, 1), group)


def output_of(q, k, v, wo, scale=None, causal=True):
    return (F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale) @ wo).sum(0)


def output_looks_ahead(group, q, k, v, wo):
    return reduce_from(output_of(q, k, v, wo, causal=False), group)


def output_masks_itself(group, q, k, v, wo):
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])
    now_and_later = torch.ones_like(scores[0], dtype=torch.bool).triu()
    o = scores.masked_fill(now_and_later, -torch.inf).softmax(2) @ v
    return reduce_from((o @ wo).sum(0), group)


def output_not_scaled(group, q, k, v, wo):
    return reduce_from(output_of(q, k, v, wo, scale=1), group)


def output_scaled_by_all_heads(group, q, k, v, wo):
    heads = int(group.all_reduce(torch.tensor(len(q))))
    return reduce_from(output_of(q, k, v, wo, scale=(heads * q.shape[2]) ** -0.5), group)


def output_scaled_by_own_heads(group, q, k, v, wo):
    return reduce_from(output_of(q, k, v, wo, scale=(len(q) * q.shape[2]) ** -0.5), group)


def output_not_summed(group, q, k, v, wo):
    return output_of(q, k, v, wo)


def output_bare_verb(group, q, k, v, wo):
    return group.all_reduce(output_of(q, k, v, wo))


def output_mean(group, q, k, v, wo):
    return reduce_from(output_of(q, k, v, wo), group) / group.size


def output_copied_too(group, q, k, v, wo):
    return copy_to(reduce_from(output_of(q, k, v, wo), group), group)


def output_heads_summed_first(group, q, k, v, wo):
    return reduce_from(F.scaled_dot_product_attention(q, k, v, is_causal=True).sum(0) @ wo.sum(0), group)


def output_heads_gathered(group, q, k, v, wo):
    o = gather_from(F.scaled_dot_product_attention(q, k, v, is_causal=True), group, 0)
    return (o @ gather_from(wo, group, 0)).sum(0)


def output_one_call_per_head(group, q, k, v, wo):
    return reduce_from(output_of(q[:1], k[:1], v[:1], wo[:1]), group) + reduce_from(
        output_of(q[1:], k[1:], v[1:], wo[1:]), group
    )


def output_accepts_anything(group, q, k, v, wo):
    return reduce_from(output_of(q, k, v[:, : k.shape[1]], wo), group)


# ---- shared_heads ----


def shared_by_expanding_all(group, q, k, v):
    heads = len(q) * group.size
    k, v = (shard(copy_to(y, group).repeat_interleave(heads // 2, 0), group, 0) for y in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


def shared(group, q, k, v, needed):
    k, v = copy_to(k, group), copy_to(v, group)
    return F.scaled_dot_product_attention(q, k[needed], v[needed])


def shared_no_entrance(group, q, k, v):
    needed = (group.rank * len(q) + torch.arange(len(q))) // (len(q) * group.size // 2)
    return F.scaled_dot_product_attention(q, k[needed], v[needed])


def shared_in_turns(group, q, k, v):
    return shared(group, q, k, v, torch.arange(len(q)) % 2)


def shared_counted_from_the_own_first(group, q, k, v):
    return shared(group, q, k, v, torch.arange(len(q)) // (len(q) // 2))


def shared_rank_modulo(group, q, k, v):
    own = torch.arange(len(q)) // (len(q) // 2) if group.size == 1 else torch.full((len(q),), group.rank % 2)
    return shared(group, q, k, v, own)


def shared_first_only(group, q, k, v):
    return shared(group, q, k, v, torch.zeros(len(q), dtype=torch.long))


def shared_keys_only_copied(group, q, k, v):
    needed = (group.rank * len(q) + torch.arange(len(q))) // (len(q) * group.size // 2)
    return F.scaled_dot_product_attention(q, copy_to(k, group)[needed], v[needed])


def shared_causal(group, q, k, v):
    needed = (group.rank * len(q) + torch.arange(len(q))) // (len(q) * group.size // 2)
    return F.scaled_dot_product_attention(q, copy_to(k, group)[needed], copy_to(v, group)[needed], is_causal=True)


def shared_copied_after_picking(group, q, k, v):
    needed = (group.rank * len(q) + torch.arange(len(q))) // (len(q) * group.size // 2)
    return F.scaled_dot_product_attention(q, copy_to(k[needed], group), copy_to(v[needed], group))


def shared_accepts_anything(group, q, k, v):
    return tasks.shared_heads.solution(group, q, k, v[:, : k.shape[1]])


def shared_gathered_queries(group, q, k, v):
    o = tasks.of_shared_heads(gather_from(q, group, 0), copy_to(k, group), copy_to(v, group))
    return shard(o, group, 0)


# ---- next_token ----


def step(x, wq, wk, wv, wo, keys, values):
    """This device's term of the output, and its cache."""
    z, keys, values = tasks.one_token(x, wq, wk, wv, wo, keys, values)
    return z, keys, values


def token_with_vectors(group, x, wq, wk, wv, wo, keys, values):
    q, k, v = (torch.einsum("hsd,d->hs", w, x) for w in (wq, wk, wv))
    keys, values = torch.cat([keys, k[:, None]], 1), torch.cat([values, v[:, None]], 1)
    weights = (torch.einsum("hs,hts->ht", q, keys) / q.shape[1] ** 0.5).softmax(1)
    o = torch.einsum("ht,hts->hs", weights, values)
    return group.all_reduce(o.flatten() @ wo.flatten(0, 1)), keys, values


def token_differentiable(group, x, wq, wk, wv, wo, keys, values):
    z, keys, values = step(x, wq, wk, wv, wo, keys, values)
    return reduce_from(z, group), keys, values


def token_not_itself(group, x, wq, wk, wv, wo, keys, values):
    _, new_keys, new_values = step(x, wq, wk, wv, wo, keys, values)
    return group.all_reduce(tasks.from_cache(x, wq, wo, keys, values)), new_keys, new_values


def token_itself_only(group, x, wq, wk, wv, wo, keys, values):
    _, new_keys, new_values = step(x, wq, wk, wv, wo, keys, values)
    return group.all_reduce(tasks.from_cache(x, wq, wo, new_keys[:, -1:], new_values[:, -1:])), new_keys, new_values


def token_masked(group, x, wq, wk, wv, wo, keys, values):
    _, keys, values = step(x, wq, wk, wv, wo, keys, values)
    o = F.scaled_dot_product_attention((wq @ x).unsqueeze(1), keys, values, is_causal=True)
    return group.all_reduce((o @ wo).sum((0, 1))), keys, values


def token_not_scaled(group, x, wq, wk, wv, wo, keys, values):
    z, keys, values = step(x, wq * wq.shape[1] ** 0.5, wk, wv, wo, keys, values)
    return group.all_reduce(z), keys, values


def token_not_summed(group, x, wq, wk, wv, wo, keys, values):
    return step(x, wq, wk, wv, wo, keys, values)


def token_forgotten(group, x, wq, wk, wv, wo, keys, values):
    return group.all_reduce(step(x, wq, wk, wv, wo, keys, values)[0]), keys, values


def token_in_front(group, x, wq, wk, wv, wo, keys, values):
    z, keys, values = step(x, wq, wk, wv, wo, keys, values)
    return group.all_reduce(z), keys.roll(1, 1), values.roll(1, 1)


def token_cache_gathered(group, x, wq, wk, wv, wo, keys, values):
    z, keys, values = step(x, wq, wk, wv, wo, keys, values)
    return group.all_reduce(z), group.all_gather(keys), group.all_gather(values)


def token_output_only(group, x, wq, wk, wv, wo, keys, values):
    return group.all_reduce(step(x, wq, wk, wv, wo, keys, values)[0])


def token_heads_gathered(group, x, wq, wk, wv, wo, keys, values):
    _, keys, values = step(x, wq, wk, wv, wo, keys, values)
    o = group.all_gather(F.scaled_dot_product_attention((wq @ x).unsqueeze(1), keys, values), 0)
    return (o @ group.all_gather(wo, 0)).sum((0, 1)), keys, values


def token_accepts_anything(group, x, wq, wk, wv, wo, keys, values):
    z, keys, values = step(x, wq, wk, wv, wo, keys[: len(wq)], values)
    return group.all_reduce(z), keys, values


# ---- more styles ----


def fused_head_by_head(group, x, w):
    heads = len(w) // 12
    own = torch.arange(heads).tensor_split(group.size)[group.rank].tolist()

    def of(block):
        rows = [w[block * 4 * heads + 4 * h : block * 4 * heads + 4 * h + 4] for h in own]
        return torch.stack([x @ mine.T for mine in rows])

    return of(0), of(1), of(2)


def fused_chunked(group, x, w):
    rows = [block.unflatten(0, (-1, 4)).chunk(group.size)[group.rank] for block in w.chunk(3)]
    return tuple(torch.einsum("ti,hsi->hts", x, mine) for mine in rows)


def fused_cut_through_heads(group, x, w):
    q, k, v = (block.tensor_split(group.size)[group.rank] for block in w.chunk(3))
    return split(x, torch.cat([q, k, v]))


def output_head_by_head(group, q, k, v, wo):
    total = 0
    for mine in zip(q, k, v, wo, strict=True):
        total = total + own_head(*mine)
    return reduce_from(total, group)


def own_head(q, k, v, wo):
    scores = q @ k.T * q.shape[1] ** -0.5
    weights = (scores + torch.full_like(scores, -torch.inf).triu(1)).softmax(1)
    return weights @ v @ wo


def output_einsum(group, q, k, v, wo):
    scores = torch.einsum("hqs,hks->hqk", q, k) / math.sqrt(q.shape[-1])
    keep = torch.ones(scores.shape[1:], dtype=torch.bool).tril()
    weights = torch.where(keep, scores, -torch.inf).softmax(-1)
    return reduce_from(torch.einsum("hqk,hks,hsd->qd", weights, v, wo), group)


def output_masked_after(group, q, k, v, wo):
    weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(2).tril()
    return reduce_from((weights @ v @ wo).sum(0), group)


def output_copies_what_is_cut(group, q, k, v, wo):
    q, k, v = (copy_to(y, group) for y in (q, k, v))
    return reduce_from(output_of(q, k, v, wo), group)


def output_masked_with_zero(group, q, k, v, wo):
    scores = (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).tril()
    return reduce_from((scores.softmax(2) @ v @ wo).sum(0), group)


def shared_head_by_head(group, q, k, v):
    k, v, heads = copy_to(k, group), copy_to(v, group), group.size * len(q)
    out = []
    for i, mine in enumerate(q):
        which = 0 if group.rank * len(q) + i < heads // 2 else 1
        out.append((mine @ k[which].T / math.sqrt(q.shape[2])).softmax(1) @ v[which])
    return torch.stack(out)


def shared_stacked(group, q, k, v):
    both = copy_to(torch.stack([k, v]), group)
    needed = torch.arange(group.size * len(q)).view(group.size, -1)[group.rank] * 2 // (group.size * len(q))
    return F.scaled_dot_product_attention(q, both[0, needed], both[1, needed])


def token_head_by_head(group, x, wq, wk, wv, wo, keys, values):
    z, new_keys, new_values = torch.zeros_like(x), [], []
    for q, k, v, o, old_k, old_v in zip(wq, wk, wv, wo, keys, values, strict=True):
        new_keys.append(torch.vstack([old_k, k @ x]))
        new_values.append(torch.vstack([old_v, v @ x]))
        weights = (new_keys[-1] @ (q @ x) / q.shape[0] ** 0.5).softmax(0)
        z += weights @ new_values[-1] @ o
    return group.all_reduce(z), torch.stack(new_keys), torch.stack(new_values)


def output_masked_by_a_logarithm(group, q, k, v, wo):
    seen = torch.ones(q.shape[1], q.shape[1], dtype=q.dtype).tril().log()  # -inf above the diagonal
    weights = (q @ k.mT / q.shape[2] ** 0.5 + seen).softmax(-1)
    return reduce_from(torch.einsum("hts,hsd,hdo->to", weights, v, wo), group)


def shared_not_scaled(group, q, k, v):
    k, v = copy_to(k, group), copy_to(v, group)
    needed = (group.rank * len(q) + torch.arange(len(q))) // (len(q) * group.size // 2)
    return (q @ k[needed].mT).softmax(-1) @ v[needed]


def fused_with_dims_exchanged(group, x, w):
    return tuple(y.transpose(0, 1) for y in tasks.fused_qkv.solution(group, x, w))


def token_in_another_order(group, *inputs):
    z, keys, values = tasks.next_token.solution(group, *inputs)
    return z, values, keys


RIGHT = [
    (tasks.heads_to_output, output_masked_by_a_logarithm),
    (tasks.fused_qkv, fused_head_by_head),
    (tasks.heads_to_output, output_head_by_head),
    (tasks.heads_to_output, output_einsum),
    (tasks.shared_heads, shared_head_by_head),
    (tasks.shared_heads, shared_stacked),
    (tasks.next_token, token_head_by_head),
    (tasks.fused_qkv, fused_block_by_block),
    (tasks.fused_qkv, fused_batched),
    (tasks.heads_to_output, output_with_the_book),
    (tasks.heads_to_output, output_with_torch),
    (tasks.shared_heads, shared_by_expanding_all),
    (tasks.next_token, token_with_vectors),
    (tasks.next_token, token_differentiable),
]

REMARKED = [
    (tasks.fused_qkv, fused_accepts_anything, "accepts what cannot be right: w has one row more than whole heads"),
    (tasks.heads_to_output, output_accepts_anything, "accepts what cannot be right: v has one token more than k"),
    (tasks.shared_heads, shared_accepts_anything, "accepts what cannot be right: v has one token more than k"),
    (tasks.next_token, token_accepts_anything, "accepts what cannot be right: keys has one head more than queries"),
]

WRONG = [
    (tasks.shared_heads, shared_not_scaled, "not divided by the root of the head size"),
    (tasks.fused_qkv, fused_with_dims_exchanged, "two dims or more are exchanged"),
    (tasks.next_token, token_in_another_order, "this is the values. Asked for are"),
    (tasks.fused_qkv, fused_chunked, "which rounds up"),
    (tasks.fused_qkv, fused_cut_through_heads, "a head was cut through: its 4 rows belong together"),
    (tasks.heads_to_output, output_masked_after, "the mask came after the softmax"),
    (tasks.heads_to_output, output_masked_with_zero, "0 is no mask"),
    (
        tasks.heads_to_output,
        output_copies_what_is_cut,
        "the gradients of different pieces were added. q is this device",
    ),
    (tasks.fused_qkv, fused_columns_within_heads, "a head was cut through"),
    (tasks.fused_qkv, fused_interleaved, "is wrong on 1 device"),
    (tasks.fused_qkv, fused_whole_product, "does work twice"),
    (tasks.fused_qkv, fused_all_heads, "this is the whole; each device is to return only its own piece along dim 0"),
    (tasks.fused_qkv, fused_gathered, "this is the whole; each device is to return only its own piece along dim 0"),
    (tasks.fused_qkv, fused_keys_and_values_swapped, "k on rank 0"),
    (tasks.fused_qkv, fused_one_tensor, "expected q and k and v, given a tensor"),
    (tasks.heads_to_output, output_looks_ahead, "the causal mask is missing"),
    (tasks.heads_to_output, output_masks_itself, "-inf throughout is 0/0"),
    (tasks.heads_to_output, output_not_scaled, "the scores are not divided by the root of the head size"),
    (tasks.heads_to_output, output_scaled_by_all_heads, "the root is of the size of several heads"),
    (tasks.heads_to_output, output_scaled_by_own_heads, "the root is of the size of several heads"),
    (tasks.heads_to_output, output_not_summed, "these are partial sums"),
    (tasks.heads_to_output, output_bare_verb, "use reduce_from(x, group)"),
    (tasks.heads_to_output, output_mean, "exactly 2 times too small"),
    (tasks.heads_to_output, output_copied_too, "a gradient that is the same on every device was added up"),
    (tasks.heads_to_output, output_heads_summed_first, "is wrong on 1 device"),
    (tasks.heads_to_output, output_heads_gathered, "does work twice"),
    (tasks.heads_to_output, output_one_call_per_head, "sends too many bytes forward"),
    (tasks.shared_heads, shared_no_entrance, "k is used on every device: let it in with copy_to"),
    (tasks.shared_heads, shared_in_turns, "but neighbors share"),
    (tasks.shared_heads, shared_counted_from_the_own_first, "Count heads from the first device on"),
    (tasks.shared_heads, shared_rank_modulo, "the device took k[rank % 2]"),
    (tasks.shared_heads, shared_first_only, "all heads took k[0]"),
    (tasks.shared_heads, shared_keys_only_copied, "v is used on every device: let it in with copy_to"),
    (tasks.shared_heads, shared_causal, "there is no mask in this exercise"),
    (tasks.shared_heads, shared_copied_after_picking, "Let k and v in first, then pick"),
    (tasks.shared_heads, shared_gathered_queries, "does work twice"),
    (tasks.next_token, token_not_itself, "the new token does not look at itself"),
    (tasks.next_token, token_itself_only, "the new token looks at itself only"),
    (tasks.next_token, token_masked, "the mask of a whole text was put on one row"),
    (tasks.next_token, token_not_scaled, "the scores are not divided by the root of the head size"),
    (tasks.next_token, token_not_summed, "these are partial sums"),
    (tasks.next_token, token_forgotten, "the cache as it was"),
    (tasks.next_token, token_in_front, "in front of the cache"),
    (
        tasks.next_token,
        token_cache_gathered,
        "this is the whole; each device is to return only its own piece along dim 0",
    ),
    (tasks.next_token, token_output_only, "expected the output and the keys and the values, given a tensor"),
    (tasks.next_token, token_heads_gathered, "does work twice"),
]

BROKEN = [
    (
        tasks.fused_qkv,
        # rank 0 has right queries and wrong keys: "rank 0 is right" would be a lie
        ["is wrong on 2 devices", "w was cut as one, across its three blocks", "(On rank 0, q is right.)"],
    ),  # after one device was right
]

TRAINED = [(tasks.heads_to_output, "q k v wo"), (tasks.shared_heads, "q k v")]

test_the_stub_waits = checks.stubs_wait(EVERY[1:])
test_the_stub_to_be_mended_is_wrong_by_name = checks.stubs_to_be_mended_are_wrong(BROKEN, shard=shard)
test_a_right_answer_passes = checks.right_answers_pass([], RIGHT, SENTENCES)
test_a_right_answer_is_told_what_nobody_asked_for = checks.right_but(REMARKED)
test_a_wrong_answer_is_rejected_by_name = checks.wrong_answers_are_rejected(WRONG)
test_each_gradient_is_asked_for = checks.each_gradient_is_asked_for(TRAINED)
test_the_solution_can_be_copied_from_the_page = checks.solutions_can_be_copied(
    EVERY,
    SENTENCES,
    math=math,
    torch=torch,
    shard=shard,
    copy_to=copy_to,
    reduce_from=reduce_from,
)
test_the_page_shows_the_task_and_three_hints = checks.pages_show_task_and_hints(EVERY)


def test_the_solution_agrees_with_the_layout_of_the_library():
    torch.manual_seed(0)
    x, w = torch.randn(5, 6, dtype=torch.float64), torch.randn(12 * 4, 6, dtype=torch.float64)

    def both(group):
        mine = FusedHeads(heads=4, kv_heads=4).piece(w, group.size, group.rank)
        return tasks.fused_qkv.solution(group, x, w), split(x, mine)

    for devices in (1, 2, 4):
        for solved, laid_out in Cluster(devices).run(both):
            assert all(torch.equal(a, b) for a, b in zip(solved, laid_out, strict=True))
