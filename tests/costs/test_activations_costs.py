"""Activation memory: the formula of the paper, and what our layer really keeps, term by term."""

import weakref
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parallel.variants import variant
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib import Cluster, ParallelBlock, Replicate, Shard
from lib.costs.activations import (
    LayerShape,
    activation_bytes,
    activation_terms,
    saved_by_term,
)
from lib.costs.measure import measure
from lib.costs.saved_tensors import SavedBlock

PAPER = {  # Korthikanti et al. 2022, table 3: of each model one layer's micro-batch; 8 devices
    "22B": LayerShape(2048, 4, 6144, 64),
    "175B": LayerShape(2048, 1, 12288, 96),
    "530B": LayerShape(2048, 1, 20480, 128),
    "1T": LayerShape(2048, 1, 25600, 160),
}
SMALL = LayerShape(24, 2, 64, 4)  # a head has 16 numbers


@cache  # several tests ask for the same
def layer_saved(shape, devices, sp=False, way=None, rank=0, device="meta"):
    """What device `rank` keeps of a layer, in bfloat16, with dropout."""
    make, cut = variant(ParallelBlock, sp), Shard(1) if sp else Replicate()
    return measure(
        lambda group: make(shape.hidden, shape.heads, group, dropout=0.1, recompute=way),
        (shape.batch, shape.sequence, shape.hidden),
        devices=devices, cut=cut, device=device, rank=rank, backward=False,
    ).kept  # fmt: skip


WAYS = [(sp, way) for sp in (False, True) for way in (None, "selective", "full")]
STATISTICS = "statistics of LayerNorm"


@given(
    s=st.integers(1, 9),
    b=st.integers(1, 5),
    d=st.integers(1, 9),
    per=st.integers(1, 4),
    t=st.sampled_from([1, 2, 3, 8]),
)
@settings(max_examples=40, deadline=None)
def test_the_terms_add_up_to_the_formulas_of_the_paper(s, b, d, per, t):
    s, a = s * t, per * t
    h = a * d
    shape, sbh = LayerShape(s, b, h, a), s * b * h
    table_2 = {
        (False, None): sbh * (10 + 24 / t + 5 * a * s / (h * t)),
        (True, None): sbh * (34 / t + 5 * a * s / (h * t)),
        (False, "selective"): sbh * (10 + 24 / t),
        (True, "selective"): sbh * 34 / t,
        (False, "full"): sbh * 2,
        (True, "full"): sbh * 2 / t,
    }
    for (sp, way), expected in table_2.items():
        assert activation_bytes(shape, t, sp, way) == pytest.approx(expected, rel=1e-12)
    if t == 1:
        assert activation_bytes(shape) == pytest.approx(sbh * (34 + 5 * a * s / h), rel=1e-12)


def test_the_parts_of_the_paper():
    shape = PAPER["22B"]
    sbh, as2b = 2048 * 4 * 6144, 64 * 2048**2 * 4
    terms = activation_terms(shape)

    def of(*names):
        return sum(term.size for term in terms if term.module in names)

    # Section 4.1; the dropout behind the MLP is counted with it, that behind attention with attention.
    assert of("attention", "attention.qkv", "attention.dropout", "attention.out") + sbh == 11 * sbh + 5 * as2b
    assert of("mlp", "mlp.up", "mlp.down") + sbh == 19 * sbh
    assert of("norm1", "norm2") == 4 * sbh
    assert of("dropout") == 2 * sbh


def test_a_term_says_how_it_grows():
    written = [term.formula for term in activation_terms(SMALL, 2)]
    assert written == [
        *("2sbh", "2sbh", "6sbh/t", "2as²b/t", "as²b/t", "2as²b/t", "2sbh/t", "sbh"),
        *("2sbh", "2sbh", "8sbh/t", "8sbh/t", "sbh"),
    ]
    assert all(term.formula.endswith("/t") for term in activation_terms(SMALL, 2, sequence_parallel=True))


# One model in every way, and every way once more in another model: a term that fits both does so in any size.
SIZED = [("175B", *way) for way in WAYS] + [
    (model, *WAYS[at]) for model, at in [("22B", 0), ("22B", 4), ("530B", 2), ("530B", 3), ("1T", 1), ("1T", 5)]
]


@pytest.mark.parametrize(("model", "sp", "way"), SIZED)
def test_at_the_sizes_of_the_paper_every_term_is_kept_to_the_byte(model, sp, way):
    shape = PAPER[model]
    terms = activation_terms(shape, 8, sp, way)
    blocks = layer_saved(shape, 8, sp, way)
    kept = saved_by_term(terms, blocks)
    # Two LayerNorms keep a mean and a deviation of four bytes each per token. The formula leaves them out.
    tokens = shape.sequence * shape.batch // (8 if sp else 1)
    extra = {} if way == "full" else {STATISTICS: 2 * 2 * 4 * tokens}
    assert kept == {term.name: term.size for term in terms} | extra
    assert sum(kept.values()) == pytest.approx(activation_bytes(shape, 8, sp, way), rel=1e-3)


@pytest.mark.parametrize(("sp", "way"), WAYS)
def test_the_trace_of_the_run_holds_the_same(sp, way):
    cluster = Cluster(8, hardware="A100")
    results = cluster.run(_forward, PAPER["175B"], sp, way, "meta")  # kept: with it goes the graph
    blocks = layer_saved(PAPER["175B"], 8, sp, way)
    end = cluster.trace.seconds
    at_end = [b for b in cluster.trace.memory if b.rank == 0 and b.kind == "activations" and b.end == end]
    assert sorted(block.size for block in at_end) == sorted(block.size for block in blocks)
    assert len(results) == 8


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize(("sp", "way"), WAYS)
def test_on_real_tensors_every_term_is_kept_to_the_byte(devices, sp, way):
    terms = activation_terms(SMALL, devices, sp, way)
    for rank in range(devices):
        kept = saved_by_term(terms, layer_saved(SMALL, devices, sp, way, rank, "cpu"))
        kept.pop(STATISTICS, None)  # in bfloat16 here, where a GPU and meta have them in float32
        assert kept == {term.name: term.size for term in terms}


def test_unless_asked_nothing_is_cut_along_the_sequence_or_recomputed():
    terms = activation_terms(SMALL, 2)
    assert [term.size for term in terms] == [term.size for term in activation_terms(SMALL, 2, False, None)]
    kept = saved_by_term(terms, layer_saved(SMALL, 2, rank=1))
    kept.pop(STATISTICS)
    assert kept == {term.name: term.size for term in terms}


@pytest.mark.parametrize(("sp", "way"), WAYS)
def test_nothing_else_outlives_the_forward(sp, way):
    """Two other ways to count: what autograd is handed, and which memory of the forward is still there after it."""
    made = {}
    runs = Cluster(4).run(_forward, SMALL, sp, way, "cpu", made)
    blocks = [layer_saved(SMALL, 4, sp, way, rank, "cpu") for rank in range(4)]
    alive = {key for key, ref in made.items() if ref() is not None}
    expected = set()
    for (x, y, saved), mine in zip(runs, blocks, strict=True):
        assert sum(saved.values()) == sum(block.size for block in mine)
        expected |= {*saved, _key(y)} - {_key(x)}
    assert alive == expected


def _forward(group, shape, sp, way, device, made=None):
    """One forward: (input, output, bytes by storage that autograd was handed); `made` gets all storages of it."""
    with torch.device(device):
        layer = variant(ParallelBlock, sp)(shape.hidden, shape.heads, group, dropout=0.1, recompute=way).bfloat16()
        tokens = shape.sequence // (group.size if sp else 1)
        # As from a layer before: not a leaf.
        x = torch.randn(shape.batch, tokens, shape.hidden, dtype=torch.bfloat16, requires_grad=True) * 1
    if made is None:
        return layer(x)
    weights = {_key(p) for p in layer.parameters()}
    saved = {}

    def pack(tensor):
        if _key(tensor) not in weights:
            saved[_key(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()

    with Everything(made), saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    return x, y, saved


def _key(x):
    return x.untyped_storage().data_ptr()


class Everything(TorchDispatchMode):
    """Notes every storage that comes out of an operation, and does not keep it."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.nbytes and _key(x) not in given:
                self.made[_key(x)] = weakref.ref(x.untyped_storage())
        return result


def test_what_belongs_to_no_term_is_named():
    terms = activation_terms(SMALL, 2, recompute="selective")
    stranger = SavedBlock("attention.dropout", (2, 2, 24, 24), torch.bool, 2304)
    odd = SavedBlock("", (5,), torch.float32, 20)
    kept = saved_by_term(terms, [stranger, odd])
    assert {name: size for name, size in kept.items() if size} == {
        "attention.dropout: (2, 2, 24, 24), torch.bool": 2304,
        "layer: (5,), torch.float32": 20,
    }
    assert list(kept)[: len(terms)] == [term.name for term in terms]


def test_a_square_input_is_not_taken_for_scores():
    shape = LayerShape(32, 1, 32, 4)
    terms = activation_terms(shape, 1)
    kept = saved_by_term(terms, layer_saved(shape, 1))
    kept.pop(STATISTICS)
    assert kept == {term.name: term.size for term in terms}


def test_refuses():
    with pytest.raises(ValueError, match="4 heads cannot be split over 3 devices: possible are 1, 2, 4"):
        activation_terms(SMALL, 3)
    with pytest.raises(ValueError, match="a sequence of 25 cannot be cut in 2 equal pieces"):
        activation_terms(LayerShape(25, 2, 64, 4), 2, sequence_parallel=True)
    with pytest.raises(ValueError, match="recompute='some' must be None, 'selective' or 'full'"):
        activation_terms(SMALL, 2, recompute="some")
    assert activation_bytes(LayerShape(25, 2, 64, 4), 2) > 0
