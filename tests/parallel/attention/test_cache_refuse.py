"""A cache or heads where something would be broadcast, counted twice, or come out as no number: refused by name."""

import pytest
import torch

from lib import Cluster, KVCache, ParallelBlock, attend, fused_attend
from lib.costs.saved_tensors import saved_activations

ATTEND = pytest.mark.parametrize("attend", [attend, fused_attend])


@pytest.mark.parametrize("recompute", [None, "selective", "full"])
def test_a_cache_with_recomputation(recompute):
    def program(group):
        torch.manual_seed(0)
        x, block = torch.randn(2, 5, 16).double(), ParallelBlock(16, 4, group, recompute=recompute).double()
        right, cache = block(x), KVCache()
        with torch.no_grad():
            found = torch.cat([block(x[:, :2], cache), block(x[:, 2:], cache)], 1)
        return (found - right).abs().max().item(), cache.seen

    for difference, seen in Cluster(2).run(program):
        assert difference < 1e-12
        assert seen == 5


def test_gradients_through_a_cache_that_the_backward_would_extend_again():
    def program(group):
        ParallelBlock(16, 4, group, recompute="full")(torch.ones(2, 5, 16), KVCache())

    with pytest.raises(ValueError, match="recompute='full' would put keys and values in the cache a second time"):
        Cluster(2).run(program)


@pytest.mark.parametrize("recompute", [None, "selective"])
def test_gradients_through_a_cache_otherwise(recompute):
    def program(group, pieces):
        torch.manual_seed(0)
        x = torch.randn(2, 5, 16).double().requires_grad_()
        block, cache = ParallelBlock(16, 4, group, recompute=recompute).double(), KVCache()
        torch.cat([block(part, cache) for part in x.split(pieces, 1)], 1).square().sum().backward()
        return x.grad

    right, found = (Cluster(2).run(program, pieces)[0] for pieces in ([5], [2, 3]))
    assert torch.allclose(found, right, rtol=0, atol=1e-12)


def test_another_text_in_the_same_cache():
    cache = KVCache()
    cache.extend(torch.ones(2, 4, 3, 8), torch.ones(2, 4, 3, 8))
    with pytest.raises(ValueError, match=r"it holds \(batch, heads\) = \(2, 4\), and new keys come with \(3, 4\)"):
        cache.extend(torch.ones(3, 4, 1, 8), torch.ones(3, 4, 1, 8))


@ATTEND
@pytest.mark.parametrize(("of_q", "of_k", "of_v"), [(6, 4, 4), (1, 4, 4), (2, 4, 4), (4, 4, 2), (4, 2, 1)])
def test_heads_that_do_not_go_together(attend, of_q, of_k, of_v):
    with pytest.raises(ValueError, match="the heads of q a multiple of those of k and v"):
        attend(*(torch.ones(1, heads, 3, 4) for heads in (of_q, of_k, of_v)))


@ATTEND
def test_more_queries_than_keys(attend):
    q, k = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="attention of 5 queries to 3 keys"):
        attend(q, k, k)
    assert not attend(q, k, k, causal=False).isnan().any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 5), (3, 5)])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_the_fused_kernel_equals_the_steps_written_out(causal, queries, keys, kv_heads):
    def gradients(attend):
        torch.manual_seed(0)
        q = torch.randn(2, 6, queries, 4, dtype=torch.float64)
        k, v = torch.randn(2, 2, kv_heads, keys, 4, dtype=torch.float64)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        y = attend(*leaves, causal)
        y.backward(torch.randn_like(y))
        return [y.detach(), *(x.grad for x in leaves)]

    for fused, written in zip(gradients(fused_attend), gradients(attend), strict=True):
        assert torch.allclose(fused, written, rtol=0, atol=1e-12)


def test_the_fused_kernel_keeps_no_scores():
    def program(group, attend):
        block = ParallelBlock(16, 4, group, attend=attend)
        return max(block.shape[-2] * block.shape[-1] for block in saved_activations(block, torch.ones(1, 512, 16)))

    (written,), (fused,) = (Cluster(1).run(program, kind) for kind in (attend, fused_attend))
    assert written == 512 * 512
    assert fused < 512 * 512 / 4


def test_dropout_reaches_the_fused_kernel():
    def program(group):
        block = ParallelBlock(16, 4, group, dropout=0.5, attend=fused_attend)
        x = torch.randn(2, 6, 16)
        first, second = block.attention(x), block.attention(x)
        block.eval()
        return torch.equal(first, second), torch.equal(block.attention(x), block.attention(x))

    assert Cluster(2).run(program) == [(False, True)] * 2
