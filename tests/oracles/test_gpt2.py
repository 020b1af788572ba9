"""Our GPT on any number of devices against the GPT-2 of `transformers`, built from a config with random weights."""

from dataclasses import replace

import pytest
import torch
from covering import covering
from parallel.small_gpt import COUNTS, one_thread  # noqa: F401
from parallel.variants import variant
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from lib import dense_state, load_dense
from lib.devices import Cluster
from lib.parallel.gpt.config import SIZES, GPTConfig
from lib.parallel.gpt.generate import generate
from lib.parallel.gpt.model import GPT
from lib.parallel.gpt.weights import from_gpt2, read_gpt2, to_gpt2, write_gpt2

VOCABULARY, POSITIONS, LENGTH = 50, 24, 13  # 12 devices divide none of them
EXACT, FAST = (torch.float64, 1e-10), (torch.float32, 1e-5)


def reference(dtype=torch.float64, activation="gelu_new", **options):
    """Weights large enough that attention is not uniform and GeLU not linear."""
    torch.manual_seed(0)
    settings = {
        "n_layer": 2, "n_embd": 48, "n_head": 12, "vocab_size": VOCABULARY, "n_positions": POSITIONS,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    model = GPT2LMHeadModel(GPT2Config(**settings, activation_function=activation, **options)).to(dtype)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3 if p.ndim > 1 else 1.0)
    return model


def texts():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (2, LENGTH), generator=generator), torch.randint(
        VOCABULARY, (2, LENGTH), generator=generator
    )


def apart(ours, theirs):
    """The largest difference, relative to the largest number."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(
    ("activation", "precision", "sequence_parallel"), covering(["gelu_new", "gelu"], [EXACT, FAST], [False, True])
)
def test_logits_loss_and_every_gradient(activation, precision, sequence_parallel):
    dtype, tolerance = precision
    theirs = reference(dtype, activation)
    config, state = read_gpt2(theirs)
    tokens, targets = texts()
    logits = theirs(tokens).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    grads = from_gpt2({name: p.grad for name, p in theirs.named_parameters()}, config)

    def program(group):
        model = variant(GPT, sequence_parallel)(config, group).to(dtype)
        load_dense(model, state, group)
        whole = model.whole_logits(model(tokens)).detach()
        ours = model(tokens, targets)
        ours.backward()
        for p in model.parameters():
            p.data = p.grad  # dense_state then merges the gradients
        return whole, ours.detach(), model

    for size in COUNTS if precision == EXACT else COUNTS[::2]:
        results = Cluster(size).run(program)
        for whole, ours, _ in results:
            assert apart(whole, logits.detach()) < tolerance, size
            assert apart(ours, loss.detach()) < tolerance, size
        merged = dense_state([model for _, _, model in results])
        assert merged.keys() == grads.keys()
        for name, grad in grads.items():
            assert apart(merged[name], grad) < tolerance, (size, name)


def test_the_two_kinds_of_gelu_are_told_apart():
    tokens, _ = texts()
    tanh, exact = (reference(activation=name)(tokens).logits.detach() for name in ("gelu_new", "gelu"))
    assert apart(tanh, exact) > 1e-6


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_greedy_generation_token_for_token(cache):
    theirs = reference()
    config, state = read_gpt2(theirs)
    prompt = texts()[0][:, :4]
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False, eos_token_id=None,
        pad_token_id=0, use_cache=cache,
    )  # fmt: skip
    assert len(expected[0].unique()) > 4, "a text that stands still proves little"

    def program(group):
        model = GPT(config, group).double()
        load_dense(model, state, group)
        return generate(model, prompt, 20, cache=cache)

    for size in (1, 3, 12) if cache else (1, 4):
        assert all(torch.equal(text, expected) for text in Cluster(size).run(program)), size


def test_a_downloaded_folder_and_back(tmp_path):
    theirs = reference(torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    config, state = read_gpt2(tmp_path / "theirs" / "model.safetensors")
    assert config == read_gpt2(theirs)[0]

    def program(group):
        model = GPT(config, group)
        load_dense(model, state, group)
        return model

    merged = dense_state(Cluster(4).run(program))
    (tmp_path / "ours").mkdir()
    write_gpt2(tmp_path / "ours" / "model.safetensors", replace(config, approximate="none"), merged)
    back = GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    assert back.config.activation_function == "gelu"
    assert read_gpt2(back)[0] == replace(config, approximate="none")
    before, after = theirs.state_dict(), back.state_dict()
    assert before.keys() == after.keys() == to_gpt2(merged, config).keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_without_head_and_a_state_that_they_load():
    theirs = reference()
    config, state = read_gpt2(theirs.transformer)
    assert isinstance(theirs.transformer, GPT2Model)
    assert all(torch.equal(x, read_gpt2(theirs)[1][name]) for name, x in state.items())
    other = GPT2LMHeadModel(theirs.config).double()
    other.load_state_dict(to_gpt2(state, config))
    tokens, _ = texts()
    assert torch.equal(other(tokens).logits, theirs(tokens).logits)


@pytest.mark.parametrize("name", SIZES)
def test_as_many_parameters_as_theirs(name):
    config = GPTConfig.preset(name)
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(
            GPT2Config(
                n_layer=config.layers, n_embd=config.hidden, n_head=config.heads, n_positions=config.positions
            )
        )  # fmt: skip
    assert config.parameters == theirs.num_parameters()
