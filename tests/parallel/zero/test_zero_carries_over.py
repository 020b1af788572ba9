"""What was done to a parameter before it was cut, to its weights behind an optimizer's back, or is asked of a gradient:
as on one device, or refused by name."""

import math

import pytest
import torch
from torch import nn

from lib import FullySharded, MasterWeights, ShardedOptimizer, gradient_norm, shard_batch, whole_parameters
from lib.devices import Cluster

X = torch.linspace(-1, 1, 24, dtype=torch.float64).view(6, 4).sin()


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def by_notes(parameters):
    """Weight decay as the caller noted it on each parameter."""
    parameters = list(parameters)
    noted = [[p for p in parameters if p.decays == wanted] for wanted in (True, False)]
    groups = [{"params": some, "weight_decay": decay} for some, decay in zip(noted, (0.5, 0.0), strict=True)]
    return torch.optim.AdamW(groups, lr=0.1)


@pytest.mark.parametrize("masters", [False, True])
@pytest.mark.parametrize("stage", [1, 3])
def test_notes_on_parameters_are_on_their_pieces(stage, masters):
    def make(parameters):
        return MasterWeights(parameters, by_notes, torch.float64) if masters else by_notes(parameters)

    def program(group, stage):
        model = net()
        for name, p in model.named_parameters():
            p.decays = name == "2.bias"
        if stage == 3:
            FullySharded(model, group)
        optimizer = ShardedOptimizer(model, group, make) if stage == 1 else make(model.parameters())
        model(shard_batch(X, group)).square().mean().backward()
        if stage == 1:
            optimizer.reduce_gradients()
        optimizer.step()
        return whole_parameters(model)

    right = Cluster(1).run(program, 0)[0]
    for found in Cluster(3).run(program, stage):
        assert all(torch.allclose(found[name], p, rtol=0, atol=1e-12) for name, p in right.items())


def on_arrival(p):
    p.grad.zero_()


@pytest.mark.parametrize("how", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_of_the_whole_gradient_is_refused(how):
    def program(group):
        model = net()
        getattr(model[0].weight, how)(on_arrival)
        FullySharded(model, group)

    with pytest.raises(ValueError, match=r"0.weight \(5, 4\) has a hook .* Register the hook after sharding"):
        Cluster(2).run(program)


def test_the_hooks_of_the_clock_are_none():
    """It looks at the memory of gradients, on parameters that have been used."""

    def program(group):
        model = net()
        model(X)
        FullySharded(model, group)

    Cluster(2, hardware="H100").run(program)


def test_in_inference_mode():
    def program(group):
        model = net()
        FullySharded(model, group, layers=[model[0]])
        with torch.inference_mode():
            return model(X)

    right = net()(X)
    assert all(torch.allclose(found, right) for found in Cluster(3).run(program))


ASKED = {
    "largest": lambda grad: grad.abs().max(),
    "not a number": lambda grad: grad.isnan().any(),
    "finite": lambda grad: torch.isfinite(grad).all(),
    "smallest": lambda grad: torch.amin(grad),
    "zeros": lambda grad: grad.count_nonzero(),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_what_one_device_cannot_say_of_a_gradient_is_refused(ask):
    """One device finds an infinity in its piece, skips the step, and the others do not."""

    def program(group):
        model = net()
        FullySharded(model, group)
        model(shard_batch(X, group)).square().mean().backward()
        ask(model[0].weight.grad)

    with pytest.raises(RuntimeError, match=r"of the gradient of 0.weight \(5, 4\): .* gradient_norm\(pieces, group\)"):
        Cluster(2).run(program)
    Cluster(1).run(program)


def test_an_infinity_anywhere_shows_in_the_norm_everywhere():
    def program(group):
        model = net()
        FullySharded(model, group)
        model(shard_batch(X, group)).square().mean().backward()
        if group.rank == 1:
            model[2].bias.grad.fill_(math.inf)
        return float(gradient_norm(model, group)), float(gradient_norm(model, group, norm_type=math.inf))

    assert Cluster(2).run(program) == [(math.inf, math.inf)] * 2


@torch.no_grad()
def loaded(model):
    model.load_state_dict({name: x + 1 for name, x in model.state_dict().items()})


@torch.no_grad()
def clamped(model):
    for p in model.parameters():
        p.clamp_(-0.1, 0.1)


def by_data(model):
    for p in model.parameters():
        p.data = p.data * 2


@pytest.mark.parametrize("change", [loaded, clamped, by_data])
def test_what_was_written_into_parameters_counts_for_their_masters(change):
    """And where nothing was written, the masters keep the bits that the parameters lack."""

    def train(change, dtype):
        model = net(torch.bfloat16).to(dtype)
        masters = MasterWeights(model.parameters(), lambda p: torch.optim.SGD(p, lr=1e-3), torch.float64)
        for step in range(3):
            if step == 2:
                change(model)
            for p in model.parameters():
                p.grad = torch.full_like(p, 1.0)
            masters.step()
        return torch.cat([p.detach().double().flatten() for p in model.parameters()]), masters

    (found, masters), (right, _) = train(change, torch.bfloat16), train(change, torch.float64)
    assert torch.allclose(found, right, rtol=2**-7, atol=1e-3)
    kept, _ = train(lambda model: None, torch.float64)
    _, masters = train(lambda model: None, torch.bfloat16)
    assert torch.allclose(torch.cat([x.detach().flatten() for x in masters.masters]), kept, rtol=0, atol=1e-15)


def test_gradients_of_pieces_may_be_compared():
    def program(group):
        model = net()
        FullySharded(model, group)
        model(shard_batch(X, group)).square().mean().backward()
        torch.testing.assert_close(model[0].bias.grad, model[0].bias.grad.clone())

    Cluster(2).run(program)


READ_AS = {
    "conjugate": lambda x, w: (x.to(w.dtype) @ w.conj()).abs(),
    "real numbers": lambda x, w: (x[:, :, None, None] * torch.view_as_real(w)).sum((1, 3)),
    "imaginary part": lambda x, w: x @ w.imag,
    "negative": lambda x, w: x @ w.conj().imag,
    "transpose": lambda x, w: (w.T.conj() @ x.T.to(w.dtype)).abs(),
}


@pytest.mark.parametrize("read", READ_AS.values(), ids=READ_AS)
def test_complex_weights_however_they_are_read(read):
    """A conjugate is a view, of the same memory: the backward must read it as the forward did."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = net()[:1]
            self.weight = nn.Parameter(torch.randn(5, 2, dtype=torch.complex128))

        def forward(self, x):
            return read(self.first(x), self.weight)

    def program(group, shards):
        torch.manual_seed(0)
        model = Net()
        if shards:
            FullySharded(model, group)
        model(shard_batch(X, group)).square().sum(1 if read is not READ_AS["transpose"] else 0).mean().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        return whole_parameters(model)

    right = Cluster(1).run(program, False)[0]
    for found in Cluster(2).run(program, True):
        assert all(torch.allclose(found[name], p, rtol=0, atol=1e-12) for name, p in right.items())


@pytest.mark.parametrize("again", ["reduce_gradients", "reducing"])
def test_gradients_of_the_last_step_are_not_added_to(again):
    """zero_grad() of the module, as one is used to, does not know the pieces."""

    def program(group, whose):
        model = net()
        zero = ShardedOptimizer(model, group, lambda p: torch.optim.SGD(p, lr=0.1))
        for _ in range(2):
            (zero if whose == "optimizer" else model).zero_grad()
            if again == "reducing":
                with zero.reducing():
                    model(X).square().mean().backward()
            else:
                model(X).square().mean().backward()
                model(X).square().mean().backward()  # micro-batches add up
                zero.reduce_gradients()
            zero.step()

    Cluster(2).run(program, "optimizer")
    with pytest.raises(ValueError, match=r"on rank \d of 2: the pieces have the gradients of the last step"):
        Cluster(2).run(program, "module")


def test_a_step_with_gradients_that_nobody_has_reduced():
    """It would leave all parameters where they are, and say nothing."""

    def program(group):
        model = net()
        zero = ShardedOptimizer(model, group, lambda p: torch.optim.SGD(p, lr=0.1))
        model(X).square().mean().backward()
        zero.step()

    with pytest.raises(ValueError, match="0.weight, 0.bias, 2.weight still has its whole .* Call reduce_gradients()"):
        Cluster(2).run(program)


@pytest.mark.parametrize("again", ["reduce_gradients", "reducing"])
@pytest.mark.parametrize("by_hand", [False, True])
def test_reductions_add_up_after_the_gradients_are_cleared(by_hand, again):
    """Twice in each step; who clears the pieces by hand has one reduction."""

    def program(group):
        model = net()
        zero = ShardedOptimizer(model, group, lambda p: torch.optim.SGD(p, lr=0.1))
        for _ in range(2):
            for _ in range(1 if by_hand else 2):
                if again == "reducing":
                    with zero.reducing():
                        model(X).square().mean().backward()
                else:
                    model(X).square().mean().backward()
                    zero.reduce_gradients()
            zero.step()
            for piece in zero.pieces if by_hand else ():
                piece.grad = None
            if not by_hand:
                zero.zero_grad()
        return whole_parameters(model)

    right = net()
    for _ in range(2):
        right.zero_grad()
        ((1 if by_hand else 2) * right(X).square().mean()).backward()
        torch.optim.SGD(right.parameters(), lr=0.1).step()
    for found in Cluster(2).run(program):
        assert all(torch.allclose(found[name], p, rtol=0, atol=1e-12) for name, p in right.named_parameters())


NUMBERS = "all amax amin aminmax any count_nonzero dot logsumexp max mean median min nanmean nansum norm prod quantile"


@pytest.mark.parametrize("name", [*NUMBERS.split(), "std", "sum", "var"])
def test_no_number_of_all_elements_is_that_of_a_piece(name):
    def program(group):
        model = net()
        FullySharded(model, group)
        model(shard_batch(X, group)).square().mean().backward()
        grad = model[0].weight.grad
        rest = {"dot": [grad.detach()], "logsumexp": [0], "quantile": [0.5]}.get(name, [])
        getattr(torch, name)(grad, *rest)

    with pytest.raises(RuntimeError, match=r"0.weight \(5, 4\)"):
        Cluster(2).run(program)
    Cluster(1).run(program)


@pytest.mark.parametrize("name", ["max", "min"])
def test_the_larger_of_two_is_asked_of_each_element(name):
    def program(group):
        model = net()
        FullySharded(model, group)
        model(shard_batch(X, group)).square().mean().backward()
        grad = model[0].weight.grad
        return torch.equal(getattr(torch, name)(grad, torch.zeros(len(grad))).detach(), clamped_at_0(grad, name))

    def clamped_at_0(grad, name):
        return grad.detach().clamp(**{"max" if name == "min" else "min": 0})

    assert Cluster(2).run(program) == [True, True]


@pytest.mark.parametrize("ask", [torch.isfinite, torch.isinf, torch.isnan])
def test_where_a_gradient_is_finite_is_known_of_the_piece_alone(ask):
    """So its `any()` is refused."""

    def program(group):
        model = net()
        FullySharded(model, group)
        model(shard_batch(X, group)).square().mean().backward()
        ask(model[0].weight.grad).any()

    with pytest.raises(RuntimeError, match=r"0.weight \(5, 4\)"):
        Cluster(2).run(program)


def test_what_is_made_of_a_complex_gradient_is_a_piece_too():
    def program(group):
        model = nn.Linear(4, 2, dtype=torch.complex128)
        FullySharded(model, group)
        model(X.to(torch.complex128)).abs().sum().backward()
        (2 * model.weight.grad).sum()

    with pytest.raises(RuntimeError, match=r"weight \(2, 4\)"):
        Cluster(2).run(program)


def test_a_hook_beside_those_of_the_clock_is_refused():
    def program(group):
        model = net()
        model(X)
        model[0].weight.register_post_accumulate_grad_hook(on_arrival)
        FullySharded(model, group)

    with pytest.raises(ValueError, match=r"0.weight \(5, 4\) has a hook"):
        Cluster(2, hardware="H100").run(program)
