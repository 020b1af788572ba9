"""Rotary positions: only distances count, a piece of a text needs its own positions, and scaling is transformers'."""

import pytest
import torch
from transformers import LlamaConfig as TheirConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lib.parallel.llama.rotary import LinearScaling, Llama3Scaling, rotate, turn_of


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_product_depends_on_the_distance_alone():
    q, k = random(1, 1, 1, 8), random(1, 1, 1, 8, seed=1)

    def product(at, other):
        turned = [rotate(x, turn_of(torch.tensor([p]), 8)) for x, p in ((q, at), (k, other))]
        return float((turned[0] * turned[1]).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), rel=1e-5)
    assert product(7, 3) != pytest.approx(product(3, 7), rel=1e-2)
    assert product(5, 5) == pytest.approx(float((q * k).sum()), rel=1e-6)


def test_a_plane_is_turned_and_no_length_is_changed():
    x = random(2, 3, 5, 8)
    y = rotate(x, turn_of(torch.arange(5), 8, theta=100.0))
    planes = [z.unflatten(-1, (2, 4)) for z in (x, y)]
    assert torch.allclose(*(z.norm(dim=-2) for z in planes), rtol=1e-6)
    assert torch.equal(x[:, :, 0], y[:, :, 0])  # position 0 stays
    i, p = 2, 3
    angle = torch.tensor(p / 100.0 ** (2 * i / 8))
    expected = x[..., p, i] * angle.cos() - x[..., p, i + 4] * angle.sin()
    assert torch.allclose(y[..., p, i], expected, rtol=1e-5)


def test_pieces_of_a_text_with_their_positions_are_the_text():
    x = random(1, 2, 12, 4)
    whole = rotate(x, turn_of(torch.arange(12), 4))
    for parts in 2, 3, 4:
        pieces = zip(x.chunk(parts, 2), torch.arange(12).chunk(parts), strict=True)
        assert torch.equal(torch.cat([rotate(y, turn_of(p, 4)) for y, p in pieces], 2), whole)
        local = [rotate(y, turn_of(torch.arange(12 // parts), 4)) for y in x.chunk(parts, 2)]
        assert not torch.allclose(torch.cat(local, 2), whole)


@pytest.mark.parametrize(
    ("scaling", "theirs"),
    [
        (None, {"rope_type": "default"}),
        (LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0}),
        (
            Llama3Scaling(8.0, 1.0, 4.0, 128),
            {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        ),
    ],
    ids=["default", "linear", "llama3"],
)  # fmt: skip
def test_angles_are_those_of_transformers(scaling, theirs):
    config = TheirConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=4096,
        rope_parameters={"rope_theta": 10_000.0, **theirs},
    )  # fmt: skip
    positions = torch.tensor([0, 1, 100, 1000, 4095])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float64), positions[None])
    ours = turn_of(positions, 64, 10_000.0, scaling)
    assert torch.equal(ours[0].double(), cos[0, :, :32])
    assert torch.equal(ours[1].double(), sin[0, :, :32])


def test_scaling_of_llama_3_leaves_fast_planes_and_slows_the_others():
    frequencies = 1 / 10_000.0 ** (torch.arange(0, 64, 2) / 64)
    slower = frequencies / Llama3Scaling(8.0, positions=128).scaled(frequencies)
    turns = 128 * frequencies / (2 * torch.pi)
    assert torch.allclose(slower[turns > 4], torch.ones(()))
    assert torch.allclose(slower[turns < 1], torch.full((), 8.0))
    between = slower[(turns < 4) & (turns > 1)]
    assert len(between) > 3
    assert bool((between.diff() > 0).all())


def test_angles_are_computed_in_float32_whatever_the_model_is():
    near = turn_of(torch.tensor([1000, 1001]), 8)
    assert near[0].dtype == torch.float32
    assert float((near[0][0] - near[0][1]).abs().max()) > 0.1
    assert torch.tensor(1000.0).bfloat16() == torch.tensor(1001.0).bfloat16()  # and so it must not be computed in it
    with torch.device("meta"):
        assert turn_of(torch.arange(3), 8)[1].shape == (3, 4)
