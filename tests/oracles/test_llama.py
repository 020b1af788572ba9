"""Our Llama on any number of devices against those of `transformers`, built from configs with random weights."""

import pytest
import torch
from oracles.llamas import KINDS, apart, reference, texts
from parallel.small_model import one_thread  # noqa: F401
from torch.nn import functional as F

from lib import dense_state, fused_attend, load_dense
from lib.devices import Cluster
from lib.parallel.attention.kernels import attend
from lib.parallel.gpt.generate import generate
from lib.parallel.llama.model import Llama
from lib.parallel.llama.sequence import SequenceLlama
from lib.parallel.llama.weights import from_llama, read_llama


@pytest.mark.parametrize("make", [Llama, SequenceLlama], ids=["TP", "TP+SP"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_loss_and_every_gradient(kind, make):
    theirs = reference(kind)
    config, state = read_llama(theirs)
    tokens, targets = texts()
    logits = theirs(tokens).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    grads = from_llama({name: p.grad for name, p in theirs.named_parameters()}, config)

    def program(group, attend):
        model = make(config, group, attend=attend).double()
        load_dense(model, state, group)
        whole = model.whole_logits(model(tokens)).detach()
        ours = model(tokens, targets)
        ours.backward()
        for p in model.parameters():
            p.data = p.grad  # dense_state then merges the gradients
        return whole, ours.detach(), model

    for size in KINDS[kind][3] if make is Llama else KINDS[kind][3][1::2]:
        results = Cluster(size).run(program, fused_attend if size % 4 else attend)
        for whole, ours, _ in results:
            assert apart(whole, logits.detach()) < 1e-10, size
            assert apart(ours, loss.detach()) < 1e-10, size
        merged = dense_state([model for _, _, model in results])
        assert merged.keys() == grads.keys()
        for name, grad in grads.items():
            assert apart(merged[name], grad) < 1e-10, (size, name)


@pytest.mark.parametrize("kind", KINDS)
def test_text_token_for_token(kind):
    theirs = reference(kind)
    config, state = read_llama(theirs)
    prompt = texts()[0][:, :4]
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    assert len(expected[0].unique()) > 4, "a text that stands still proves little"

    def program(group):
        model = Llama(config, group).double()
        load_dense(model, state, group)
        return generate(model, prompt, 8)

    for size in KINDS[kind][3][-1:]:
        assert all(torch.equal(text, expected) for text in Cluster(size).run(program)), size


def test_drawn_text_is_the_same_on_any_number_of_devices_and_without_a_cache():
    config, state = read_llama(reference("one kv head"))
    prompt = texts()[0][:, :4]

    def program(group, make=Llama, **options):
        model = make(config, group).double()
        load_dense(model, state, group)
        return generate(model, prompt, 6, **options)

    drawn = {"temperature": 0.7, "top_k": 9, "seed": 3}
    alone = Cluster(1).run(program, **drawn)[0]
    for size in 2, 3, 6:
        assert all(torch.equal(text, alone) for text in Cluster(size).run(program, **drawn)), size
    assert torch.equal(Cluster(2).run(program, cache=False, **drawn)[0], alone)
    assert torch.equal(Cluster(2).run(program, SequenceLlama, cache=False, **drawn)[0], alone)
    assert not torch.equal(Cluster(1).run(program)[0], alone)


def test_drawn_text_is_theirs_with_the_same_random_numbers(monkeypatch):
    """Their temperature and top-k, with our numbers in the place of those that `multinomial` draws."""
    theirs, random = reference("llama 3"), torch.Generator().manual_seed(3)
    config, state = read_llama(theirs)
    prompt = texts()[0][:, :4]

    def draw(shares, num_samples):
        noise = torch.empty(shares.shape[::-1], dtype=torch.float64).exponential_(generator=random).T
        return (shares.double() / noise).argmax(-1, keepdim=True)

    monkeypatch.setattr(torch, "multinomial", draw)
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=True, temperature=0.7, top_k=9,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip

    def program(group, **options):
        model = Llama(config, group).double()
        load_dense(model, state, group)
        return generate(model, prompt, 10, **options)

    drawn = Cluster(4).run(program, temperature=0.7, top_k=9, seed=3)
    assert all(torch.equal(text, expected) for text in drawn)
    assert not torch.equal(Cluster(1).run(program)[0], expected)


@pytest.mark.parametrize("kind", ["llama 3", "qwen3"])
def test_bfloat16_is_as_near_as_their_own_rounding(kind):
    """Every order of additions rounds otherwise. Ours, on any number of devices, is about as far from the exact logits
    as theirs is on one."""
    tokens, _ = texts()
    exact = reference(kind)(tokens).logits.detach()
    theirs = reference(kind, torch.bfloat16)
    config, state = read_llama(theirs)

    def off(logits):
        return float((logits.detach().double() - exact).norm() / exact.norm())

    def program(group):
        model = Llama(config, group, attend=fused_attend).bfloat16()
        load_dense(model, state, group)
        return model.whole_logits(model(tokens))

    rounding = off(theirs(tokens).logits)
    assert 1e-3 < rounding < 3e-2
    for size in 1, 2, 4:
        assert rounding / 1.5 < off(Cluster(size).run(program)[0]) < rounding * 1.5, size
