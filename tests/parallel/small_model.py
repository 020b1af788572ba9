"""A small model with everything that makes data parallelism hard, its data, and its training on one device."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

TOKENS, D, LENGTH = 11, 6, 4


@pytest.fixture(autouse=True)
def one_thread():
    """For products this small, a team of threads costs more than it does, and much more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Tagger(nn.Module):
    """(B, T) tokens -> (B, T, TOKENS) scores. Tied, frozen, sometimes used and never used layers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(TOKENS, D, dtype=torch.float64)
        self.first = nn.Linear(D, 2 * D, dtype=torch.float64)
        self.never = nn.Linear(D, D, dtype=torch.float64)
        self.frozen = nn.Linear(2 * D, 2 * D, dtype=torch.float64).requires_grad_(False)
        self.rare = nn.Linear(2 * D, 2 * D, dtype=torch.float64)
        self.second = nn.Linear(2 * D, D, dtype=torch.float64)
        self.head = nn.Linear(D, TOKENS, bias=False, dtype=torch.float64)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        h = F.gelu(self.frozen(self.first(self.embed(tokens))))  # (B, T, 2D)
        rare = tokens == 0
        if rare.any():
            h = h + rare[..., None] * self.rare(h)
        return self.head(self.second(h))  # (B, T, TOKENS)

    def loss(self, tokens, target):
        return F.cross_entropy(self(tokens).flatten(0, 1), target.flatten())


def make_model(seed=0):
    torch.manual_seed(seed)
    return Tagger()


def make_batches(sizes, seed=1):
    """One (tokens, target) per size; the target follows from the tokens, so that it can be learned.

    Token 0 is in every third batch nowhere, in the others in the first sample alone.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for number, size in enumerate(sizes):
        tokens = torch.randint(1, TOKENS, (size, LENGTH), generator=generator)
        if number % 3:
            tokens[0, 0] = 0
        batches.append((tokens, (3 * tokens + 1) % TOKENS))
    return batches


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1),
}


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def train_alone(model, optimizer, batches, max_norm=None):
    """The oracle: one device, whole batches, nothing of lib. Returns losses and weights."""
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    losses = []
    for tokens, target in batches:
        optimizer.zero_grad()
        loss = model.loss(tokens, target)
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, weights(model)


def distance(some, others):
    """The largest difference between two sets of weights."""
    assert some.keys() == others.keys()
    return max(float((some[name] - others[name]).abs().max()) for name in some)
