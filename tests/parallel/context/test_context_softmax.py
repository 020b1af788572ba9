"""Attention to parts of the keys, merged in any order, is attention to all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parallel.dense_transformer import assert_close, double  # noqa: F401

from lib import attend
from lib.parallel.context import softmax
from lib.parallel.context.blocks import Block
from lib.parallel.context.softmax import Running, attend_blocks, attend_part, attend_part_backward, merge_parts


def tensors(kv_heads=4, n=5, m=12, large=1.0):
    return torch.randn(2, 4, n, 3) * large, *torch.randn(2, 2, kv_heads, m, 3)


@given(st.permutations(range(4)), st.sampled_from([1, 2, 4]), st.sampled_from([1.0, 1e3]))
def test_any_order_gives_the_whole(order, kv_heads, large):
    q, k, v = tensors(kv_heads, large=large)
    parts = [attend_part(q, k[:, :, i : i + 3], v[:, :, i : i + 3]) for i in range(0, 12, 3)]
    out, lse = parts[order[0]]
    for i in order[1:]:
        out, lse = merge_parts((out, lse), parts[i])
    assert_close(out, attend(q, k, v, causal=False), "output")
    scores = q @ k.repeat_interleave(4 // kv_heads, 1).mT / 3**0.5
    assert_close(lse, scores.logsumexp(-1), "log-sum-exp")


def test_merging_is_associative_and_pairs_may_be_merged_first():
    q, k, v = tensors()
    a, b, c, d = (attend_part(q, k[:, :, i : i + 3], v[:, :, i : i + 3]) for i in range(0, 12, 3))
    for x, y in zip(
        merge_parts(merge_parts(a, b), merge_parts(c, d)),
        merge_parts(a, merge_parts(b, merge_parts(c, d))),
        strict=True,
    ):
        assert_close(x, y, "merged")


def test_what_sees_nothing_adds_nothing():
    q, k, v = tensors()
    seen = torch.ones(5, 12, dtype=torch.bool)
    seen[2] = False
    out, lse = attend_part(q, k, v, seen)
    assert bool((lse[:, :, 2] == -torch.inf).all())
    nothing = torch.zeros_like(out), torch.full_like(lse, -torch.inf)
    for pair in (merge_parts((out, lse), nothing), merge_parts(nothing, (out, lse))):
        assert torch.equal(pair[0], out)
        assert torch.equal(pair[1], lse)
    assert not merge_parts(nothing, nothing)[0].isnan().any()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    "seen", ["all", "triangle", torch.ones(5, 12, dtype=torch.bool).tril(3)], ids=["all", "tri", "mask"]
)
def test_written_out_and_fused_are_the_same(kv_heads, seen, monkeypatch):
    """What other devices than CPUs run: the kernel written out."""
    q, k, v = tensors(kv_heads)
    above = torch.randn_like(q)
    fused = attend_part(q, k, v, seen)
    fused_back = attend_part_backward(above, q, k, v, *fused, seen)
    monkeypatch.setattr(softmax, "FUSED_ON", ())
    written = attend_part(q, k, v, seen)
    for x, y in zip(
        (*written, *attend_part_backward(above, q, k, v, *written, seen)), (*fused, *fused_back), strict=True
    ):
        assert_close(x, y, "written out")


def test_gradients_of_blocks_add_up():
    """Two blocks of keys, and a third that only some queries see."""
    q, k, v = (x.requires_grad_() for x in tensors())
    blocks = [Block(slice(0, 5), slice(0, 4), "all"), Block(slice(2, 5), slice(4, 12), "all")]
    mask = torch.ones(5, 12, dtype=torch.bool)
    mask[:2, 4:] = False
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    found, above = attend_blocks(q, k, v, blocks), torch.randn(2, 4, 5, 3)
    assert_close(found, expected, "output")
    for x, y in zip(
        torch.autograd.grad(found, (q, k, v), above), torch.autograd.grad(expected, (q, k, v), above), strict=True
    ):
        assert_close(x, y, "gradient")


def test_a_first_block_that_not_all_queries_see():
    q, k, v = tensors()
    running = Running(q)
    running.add(k, v, [Block(slice(2, 5), slice(0, 12), "all"), Block(slice(0, 2), slice(0, 6), "all")])
    out, _ = running.result()
    assert_close(out[:, :, 2:], attend(q[:, :, 2:], k, v, causal=False), "late queries")
    assert_close(out[:, :, :2], attend(q[:, :, :2], k[:, :, :6], v[:, :, :6], causal=False), "early queries")
    assert not Running(q).result()[0].any()


def test_half_precision_is_merged_in_float32():
    q, k, v = (x.bfloat16() for x in tensors(m=12))
    running = Running(q)
    for i in range(0, 12, 3):
        running.add(k[:, :, i : i + 3], v[:, :, i : i + 3], [Block(slice(0, 5), slice(0, 3), "all")])
    assert running.total[0].dtype == torch.float32
    assert running.result()[0].dtype == torch.bfloat16


@pytest.mark.parametrize("turned", range(5), ids=["grad", "q", "k", "v", "out"])
def test_whose_numbers_do_not_lie_next_to_each_other(turned):
    """Each of what the backward gets, alone: the kernel would read other numbers."""
    q, k, v = tensors()
    out, lse = attend_part(q, k, v)
    given = [torch.randn_like(q), q, k, v, out]
    right = attend_part_backward(*given, lse)
    given[turned] = given[turned].mT.contiguous().mT
    for mine, whole in zip(attend_part_backward(*given, lse), right, strict=True):
        assert_close(mine, whole, "gradient")
    assert_close(attend_part(*given[1:4])[0], out, "output")
