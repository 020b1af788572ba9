"""The end of a model over a cut vocabulary, alone: a model of one norm and one weight."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib import Cluster, GPTConfig, Shard, VocabParallelEmbedding, load_dense
from lib.parallel.gpt.head import VocabularyHead
from lib.parallel.sequence.model import SequenceHead

VOCABULARY, HIDDEN = 10, 8
torch.manual_seed(0)
X = torch.randn(2, 6, HIDDEN, dtype=torch.float64)  # what the last layer leaves
WEIGHT = torch.randn(VOCABULARY, HIDDEN, dtype=torch.float64)


def model_of(kind, group):
    model = kind()
    model.group, model.config = group, GPTConfig(1, HIDDEN, 1, VOCABULARY)
    model.norm = nn.LayerNorm(HIDDEN).double()
    model.head_layer = VocabParallelEmbedding(VOCABULARY, HIDDEN, group).double()
    load_dense(model.head_layer, {"weight": WEIGHT}, group)
    x = Shard(1).piece(X, group.size, group.rank) if kind is SequenceHead else X
    model.trunk = lambda tokens, caches: x
    return model, x


@pytest.mark.parametrize("kind", [VocabularyHead, SequenceHead])
@pytest.mark.parametrize("size", [1, 3])
def test_the_logits_are_those_of_one_device(kind, size):
    def program(group):
        model, x = model_of(kind, group)
        last = model.whole_logits(model.next_logits(X[..., 0], None))
        return model.whole_logits(model.enter(model.norm(x), model.head_weight)), last

    wanted = F.linear(F.layer_norm(X, (HIDDEN,)), WEIGHT)
    for logits, last in Cluster(size).run(program):
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(last, wanted[:, -1], rtol=0, atol=1e-12)


def test_no_token_beyond_the_vocabulary_can_follow():
    pieces = Cluster(4).run(lambda group: model_of(VocabularyHead, group)[0].next_logits(X[..., 0], None))
    whole = torch.cat(pieces, -1)
    assert whole.shape[-1] == 12
    assert whole[:, VOCABULARY:].eq(-torch.inf).all()
    assert whole[:, :VOCABULARY].isfinite().all()
