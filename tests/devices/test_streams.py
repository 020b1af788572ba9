"""Random numbers: each device has its own stream, and every run repeats bit for bit."""

import pytest
import torch

from lib.devices import Cluster, different_random, same_random


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1234)


def draws(count):
    return torch.rand(count).tolist()


def test_every_device_draws_what_the_caller_would():
    expected = [torch.rand(3).tolist(), torch.rand(3).tolist()]
    torch.manual_seed(1234)

    def program(group):
        first = draws(3)
        group.barrier()
        return [first, draws(3)]

    assert Cluster(4).run(program) == [expected] * 4


def test_one_device_draws_what_a_plain_call_draws_and_the_caller_goes_on_from_there():
    expected = draws(3), draws(2), draws(4)
    torch.manual_seed(1234)
    before = draws(3)
    (inside,) = Cluster(1).run(lambda group: draws(2))
    assert (before, inside, draws(4)) == expected


def test_the_caller_goes_on_where_rank_0_stopped():
    draws(5)
    expected = draws(2)
    torch.manual_seed(1234)
    Cluster(3).run(lambda group: draws(5 if group.rank == 0 else 50))
    assert draws(2) == expected


def test_a_failed_run_leaves_the_caller_s_stream_as_it_was():
    expected = draws(2)
    torch.manual_seed(1234)
    with pytest.raises(ZeroDivisionError):
        Cluster(2).run(lambda group: [draws(3), group.barrier(), 1 / 0])
    assert draws(2) == expected


def test_streams_stay_private_when_devices_take_turns():
    ten = draws(10)
    torch.manual_seed(1234)

    def program(group):
        mine = []
        for _ in range(3):
            mine += draws(2 if group.rank == 0 else 1)
            group.barrier()
        return mine

    assert Cluster(3).run(program) == [ten[:6], ten[:3], ten[:3]]


def test_streams_stay_private_when_devices_exchange_messages():
    ten = draws(10)
    torch.manual_seed(1234)

    def program(group):
        if group.rank == 0:
            return [*draws(1), float(group.recv(src=1)), *draws(2)]
        mine = draws(3)
        group.send(torch.tensor(-1.0), dst=0)
        return mine + draws(1)

    assert Cluster(2).run(program) == [[ten[0], -1.0, *ten[1:3]], ten[:4]]


def test_runs_repeat_bit_for_bit():
    def program(group):
        with different_random(group):
            x = torch.randn(20)
        return group.all_reduce(torch.dropout(x, 0.5, True) * torch.rand(20))

    def outputs():
        torch.manual_seed(7)
        return torch.stack(Cluster(4).run(program))

    assert torch.equal(outputs(), outputs())


def test_different_random_is_different_on_every_device_and_new_at_every_use():
    def program(group):
        numbers = []
        for _ in range(2):
            with different_random(group):
                numbers.append(float(torch.rand(())))
        return numbers

    outputs = Cluster(50).run(program)
    assert len({number for pair in outputs for number in pair}) == 100


def test_different_random_repeats_after_the_same_seed():
    def program(group):
        with different_random(group):
            return draws(3)

    first = Cluster(3).run(program)
    torch.manual_seed(1234)
    assert Cluster(3).run(program) == first
    torch.manual_seed(1235)
    assert Cluster(3).run(program) != first


def test_after_different_random_the_replicated_stream_goes_on_as_if_one_number_had_been_drawn():
    torch.randint(2**63 - 1, ())
    expected = draws(3)
    torch.manual_seed(1234)

    def program(group):
        with different_random(group):
            draws(5 + group.rank)
            group.barrier()
            draws(2)
        return draws(3)

    assert Cluster(4).run(program) == [expected] * 4


def test_rank_0_goes_on_from_the_seed_that_was_drawn():
    seed = int(torch.randint(2**63 - 1, ()))
    expected = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
    torch.manual_seed(1234)

    def program(group):
        with different_random(group):
            return draws(3)

    assert Cluster(3).run(program)[0] == expected


def test_different_random_within_a_sub_group_follows_the_rank_in_it():
    def program(group):
        pair = group.split([[0, 1], [2, 3]])
        with different_random(pair):
            return draws(2)

    first, second, third, fourth = Cluster(4).run(program)
    assert first != second
    assert (third, fourth) == (first, second)  # each pair is the same sharded model: only its ranks differ


def test_different_random_on_one_device_costs_nothing_and_moves_no_message():
    cluster = Cluster(3)

    def program(group):
        with different_random(group):
            pass

    cluster.run(program)
    assert cluster.meters.rows() == []


def test_same_random_brings_streams_together_that_had_come_apart():
    def program(group):
        draws(group.rank)
        with same_random(group):
            together = draws(3)
        return together, draws(1)

    outputs = Cluster(4).run(program)
    assert len({tuple(together) for together, _ in outputs}) == 1
    assert len({tuple(own) for _, own in outputs}) == 4, "outside, each goes on with its own stream"


def test_same_random_is_new_at_every_use_and_costs_one_broadcast_of_8_bytes():
    def program(group):
        numbers = []
        for _ in range(2):
            with same_random(group):
                numbers.append(float(torch.rand(())))
        return numbers

    cluster = Cluster(2)
    outputs = cluster.run(program)
    assert outputs[0] == outputs[1]
    assert outputs[0][0] != outputs[0][1]
    assert cluster.meters.verbs() == ["broadcast"]
    assert cluster.meters.count(0).bytes_sent == 2 * 8


def test_same_random_leaves_streams_that_were_equal_equal():
    def program(group):
        with same_random(group):
            draws(4)
        return draws(2)

    outputs = Cluster(3).run(program)
    assert outputs == [outputs[0]] * 3


def test_an_error_inside_gives_the_stream_back():
    torch.randint(2**63 - 1, ())
    expected = draws(2)
    torch.manual_seed(1234)

    def program(group):
        try:
            with different_random(group):
                draws(9)
                raise ValueError
        except ValueError:
            return draws(2)

    assert Cluster(2).run(program) == [expected] * 2


@pytest.mark.parametrize("context", [different_random, same_random])
def test_under_the_meta_device_too(context):
    def program(group):
        with context(group):
            return tuple(torch.rand(3).shape)

    with torch.device("meta"):
        assert Cluster(2).run(program) == [(3,)] * 2


@pytest.mark.parametrize("there", [True, False])
def test_an_accelerator_is_seeded_too_where_there_is_one(there, monkeypatch):
    seeds, seed_all = [], torch.manual_seed
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: [seeds.append(seed), seed_all(seed)])

    def program(group):
        with different_random(group):
            return draws(2)

    first, second = Cluster(2).run(program)
    assert first != second
    assert len(set(seeds)) == 2 * there
