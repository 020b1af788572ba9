"""Activation memory of one transformer layer: the terms of the published formula, and what our layer really keeps.

Korthikanti et al. 2022, arXiv 2205.05198, sections 4.1 and 5, table 2. s = sequence, b = batch, h = hidden, a = heads,
t = devices; bytes per device, for 16-bit activations and dropout masks of one byte per element::

                        tensor parallel              tensor and sequence parallel
    keep all            sbh (10 + 24/t + 5as/(ht))   sbh/t (34 + 5as/h)
    selective           sbh (10 + 24/t)              sbh/t 34
    full                sbh 2                        sbh/t 2

On one device the first row is sbh (34 + 5as/h) in both columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lib.costs.saved_tensors import SavedBlock
from lib.parallel.attention.heads import check_heads
from lib.parallel.gpt.block import Recompute

Part = Literal["scores", "attention", "MLP", "inputs", "LayerNorm", "dropout", "layer"]


@dataclass(frozen=True)
class LayerShape:
    """s, b, h and a of a layer: what its activations depend on."""

    sequence: int
    batch: int
    hidden: int
    heads: int


@dataclass(frozen=True)
class Term:
    """`size` bytes that `module` of a `ParallelBlock` keeps: `factor` times sbh, or for the scores times as²b.

    `sharded`: divided by the devices. Else each of them keeps the same.
    """

    name: str
    part: Part
    module: str
    factor: int
    sharded: bool
    size: float

    @property
    def formula(self) -> str:
        """The term as the paper writes it, such as "8sbh/t"."""
        unit = "as²b" if self.part == "scores" else "sbh"
        return f"{self.factor if self.factor > 1 else ''}{unit}{'/t' * self.sharded}"


# In the order of the forward: name, part, module that keeps it, factor, and whether tensor parallelism alone cuts it.
_LAYER: tuple[tuple[str, Part, str, int, bool], ...] = (
    ("input of LayerNorm 1", "LayerNorm", "norm1", 2, False),
    ("input of attention", "inputs", "attention.qkv", 2, False),
    ("queries, keys, values", "attention", "attention", 6, True),
    ("softmax of the scores", "scores", "attention", 2, True),
    ("mask of dropout on it", "scores", "attention.dropout", 1, True),
    ("weights after dropout", "scores", "attention", 2, True),
    ("input of the projection", "attention", "attention.out", 2, True),
    ("mask of dropout 1", "dropout", "dropout", 1, False),
    ("input of LayerNorm 2", "LayerNorm", "norm2", 2, False),
    ("input of the MLP", "inputs", "mlp.up", 2, False),
    ("input of GeLU", "MLP", "mlp", 8, True),
    ("output of GeLU", "MLP", "mlp.down", 8, True),
    ("mask of dropout 2", "dropout", "dropout", 1, False),
)
_INPUT: tuple[tuple[str, Part, str, int, bool], ...] = (("input of the layer", "layer", "", 2, False),)


def activation_terms(
    shape: LayerShape, devices: int = 1, sequence_parallel: bool = False, recompute: Recompute | None = None
) -> list[Term]:
    """What each device keeps of one layer for its backward, by the paper's formula. In the order of the forward.

    Left out, as in the paper: the statistics of LayerNorm, below 0.1 % of any layer with thousands of hidden units.

    Raises ValueError when the devices do not divide the heads, or with `sequence_parallel` the sequence.
    """
    check_heads(shape.hidden, shape.heads, shape.heads, devices)
    if recompute not in (None, *get_args(Recompute)):
        raise ValueError(f"recompute={recompute!r} must be None, 'selective' or 'full'")
    if sequence_parallel and shape.sequence % devices:
        raise ValueError(f"a sequence of {shape.sequence} cannot be cut in {devices} equal pieces")
    sbh = shape.sequence * shape.batch * shape.hidden
    as2b = shape.heads * shape.sequence**2 * shape.batch
    terms = []
    for name, part, module, factor, cut in _INPUT if recompute == "full" else _LAYER:
        if recompute == "selective" and part == "scores":
            continue
        sharded = cut or sequence_parallel
        size = factor * (as2b if part == "scores" else sbh) / (devices if sharded else 1)
        terms.append(Term(name, part, module, factor, sharded, size))
    return terms


def activation_bytes(
    shape: LayerShape, devices: int = 1, sequence_parallel: bool = False, recompute: Recompute | None = None
) -> float:
    """The sum of `activation_terms`: bytes per device and layer."""
    return sum(term.size for term in activation_terms(shape, devices, sequence_parallel, recompute))


def saved_by_term(terms: Sequence[Term], blocks: Sequence[SavedBlock]) -> dict[str, int]:
    """The bytes of `blocks` by the name of their term. What belongs to none is listed after the terms, by its own name.

    Terms and blocks are those of the same layer, devices and way to recompute. Scores are known by their square shape,
    so the size of a head must not be the length of the sequence.
    """
    kept = {term.name: 0 for term in terms}
    for block in blocks:
        fitting = [term for term in terms if term.module == block.module]
        if len({term.part for term in fitting}) > 1:
            square = block.shape[-1] == block.shape[-2]
            fitting = [term for term in fitting if (term.part == "scores") == square]
        if block.module.startswith("norm") and block.shape[-1] == 1:
            name = "statistics of LayerNorm"
        elif fitting:  # several terms of one module take its blocks in order, and the last takes the rest
            name = next((term.name for term in fitting if not kept[term.name]), fitting[-1].name)
        else:
            name = f"{block.module or 'layer'}: {block.shape}, {block.dtype}"
        kept[name] = kept.get(name, 0) + block.size
    return kept
