"""Whether somebody has drawn from a random stream is seen by a few bytes of memory; where it cannot be, by copying."""

import ctypes
import random
import struct
import sys

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from lib.devices import Cluster
from lib.devices.engine import draws
from lib.devices.engine.own import Owned

STREAMS = (draws.OfTorch, draws.OfPython, draws.OfNumpy)
SEEDS = {draws.OfTorch: torch.manual_seed, draws.OfPython: random.seed, draws.OfNumpy: np.random.seed}
TWO_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
DRAWS = {
    draws.OfTorch: {
        "rand": lambda: torch.rand(()),
        "rand of many": lambda: torch.rand(1000),
        "all 624 numbers, so that the next one stands where it stood": lambda: torch.randint(2, (624,)),
        "randn, which keeps a second number": lambda: torch.randn(()),
        "randn of many": lambda: torch.randn(1000),
        "dropout": lambda: torch.dropout(torch.ones(9), 0.5, True),
        "randperm": lambda: torch.randperm(9),
        "bernoulli": lambda: torch.bernoulli(torch.full((9,), 0.5)),
        "randint": lambda: torch.randint(9, ()),
        "multinomial": lambda: torch.multinomial(torch.ones(9), 2),
        "exponential_": lambda: torch.empty(2).exponential_(),
        "the weights of a module": lambda: torch.nn.Linear(2, 2),
        "seed": torch.seed,
    },
    draws.OfPython: {
        "random": random.random,
        "all 624 numbers": lambda: [random.random() for _ in range(312)],
        "gauss": lambda: random.gauss(0, 1),
        "shuffle": lambda: random.shuffle([*range(9)]),
        "seed": random.seed,
    },
    draws.OfNumpy: {
        "rand": np.random.rand,
        "all 624 numbers": lambda: np.random.rand(312),
        "randn, which keeps a second number": np.random.randn,
        "permutation": lambda: np.random.permutation(9),
        "seed": np.random.seed,
    },
}


def start_anew():
    for seed in SEEDS.values():
        seed(1)


@pytest.fixture(autouse=True)
def seeded():
    start_anew()


@pytest.fixture
def default(dtype):
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def unproven(monkeypatch):
    """Nothing is found in memory."""
    monkeypatch.setattr(draws.Stream, "mark", lambda stream: object())


def numbers():
    """Of each stream: singly, so that second numbers are kept, and plain ones."""
    normal = [float(torch.randn(())), random.gauss(0, 1), np.random.randn()]
    return [*normal, float(torch.rand(())), random.random(), np.random.rand()]


# ---- marks ----


@pytest.mark.parametrize("stream", STREAMS)
def test_the_mark_is_found_with_the_versions_of_requirements_txt(stream):
    assert stream().parts, f"{stream.__name__} is copied at every turn. Find out where its numbers stand now"


@TWO_DTYPES
@pytest.mark.parametrize(("stream", "draw"), [(stream, name) for stream in STREAMS for name in DRAWS[stream]])
def test_the_mark_moves_with_every_draw_and_only_then(stream, draw, dtype, default):
    thing = stream()
    for _ in range(2):  # at the second time, a number may come that the first one kept
        before = thing.mark()
        assert thing.mark() == before
        DRAWS[stream][draw]()
        assert thing.mark() != before


@pytest.mark.parametrize("stream", STREAMS)
def test_the_mark_is_that_of_the_state(stream):
    thing = stream()
    mark = thing.mark()
    SEEDS[stream](2)
    assert thing.mark() != mark
    SEEDS[stream](1)
    assert thing.mark() == mark


@TWO_DTYPES
@pytest.mark.parametrize(("stream", "draw"), [(stream, name) for stream in STREAMS for name in DRAWS[stream]])
def test_a_state_that_is_written_has_the_mark_that_it_was_read_with(stream, draw, dtype, default):
    thing = stream()
    DRAWS[stream][draw]()
    mark, state = thing.mark(), thing.read()
    for between in DRAWS[stream].values():
        between()
        thing.write(state)
        assert thing.mark() == mark


@TWO_DTYPES
@pytest.mark.parametrize("stream", STREAMS)
def test_streams_that_stand_alike_and_keep_different_numbers_have_different_marks(stream, dtype):
    one = {
        draws.OfTorch: lambda: torch.randn((), dtype=dtype),
        draws.OfPython: lambda: random.gauss(0, 1),
        draws.OfNumpy: np.random.randn,
    }[stream]
    two = {  # takes as many numbers as a pair of normal ones
        draws.OfTorch: lambda: torch.rand(2, dtype=torch.float64),
        draws.OfPython: lambda: [random.random(), random.random()],
        draws.OfNumpy: lambda: np.random.rand(2),
    }[stream]
    place = {  # the state as it is told, without the number that is kept
        draws.OfTorch: lambda: bytes(torch.get_rng_state()[: 24 + 8 * 624].tolist()),
        draws.OfPython: lambda: random.getstate()[1],
        draws.OfNumpy: lambda: np.random.get_state()[2],
    }[stream]
    marks, places = set(), set()
    for order in ([one, two], [one, one, one], [two, two]):
        SEEDS[stream](2)  # with it, NumPy, which throws some pairs away, takes the first two
        for draw in order:
            draw()
        marks.add(str(stream().mark()))
        places.add(place())
    assert len(places) == 1, "else this says nothing"
    assert len(marks) == 3


# ---- what is not proven is not looked at ----


def test_another_pytorch_s_memory_is_not_read(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.14.0")
    monkeypatch.setattr(draws, "_parts_of", lambda generator: pytest.fail("looked"))
    assert not draws._torch_keeps_them_there.__wrapped__()


@pytest.mark.parametrize("at", [0, 8, 16, 20, 20 + 4 * 623], ids=str)
def test_numbers_of_pytorch_that_stand_elsewhere_are_not_taken_for_them(at, monkeypatch):
    """One bit is different from what the generator tells: of the seed, of how many are left, of the next one, of the
    first and the last number."""
    generator = torch.Generator("cpu")
    (address,) = {ctypes.addressof(draws._parts_of(generator)[0])}
    memory = (ctypes.c_ubyte * 2520).from_address(address)
    told = generator.get_state().clone()

    class Other:
        _cdata = generator._cdata
        get_state = staticmethod(lambda: told)

    assert draws._parts_of(Other)
    memory[at] ^= 1
    assert draws._parts_of(Other) == []


@pytest.mark.parametrize("shown", [3, 0], ids=["no kept number", "none"])
def test_memory_of_pytorch_that_does_not_show_every_draw_is_not_looked_at(shown, monkeypatch):
    inner = draws._parts_of
    monkeypatch.setattr(draws, "_parts_of", lambda generator: inner(generator)[:shown])
    assert not draws._torch_keeps_them_there.__wrapped__()


def test_whether_pytorch_keeps_a_number_is_not_enough_it_must_be_seen_which(monkeypatch):
    inner = draws._parts_of

    def only_whether(generator):
        *numbers, kept = inner(generator)
        return [*numbers, (ctypes.c_char * 1).from_address(ctypes.addressof(kept) + 8)]

    monkeypatch.setattr(draws, "_parts_of", only_whether)
    assert not draws._torch_keeps_them_there.__wrapped__()


def test_memory_that_does_not_move_with_every_draw_proves_nothing(monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: torch.tensor(0.5))
    monkeypatch.setattr(draws, "_parts_of", lambda generator: [ctypes.create_string_buffer(struct.pack("d", 0.5))])
    assert not draws._torch_keeps_them_there.__wrapped__()


def test_the_proof_is_the_same_in_a_mode_without_data():
    with FakeTensorMode():
        assert draws._torch_keeps_them_there.__wrapped__()


def test_an_unproven_stream_has_no_parts_and_its_mark_is_never_equal(monkeypatch):
    monkeypatch.setattr(draws, "_torch_keeps_them_there", lambda: False)
    thing = draws.OfTorch()
    assert not thing.parts
    assert thing.mark() != thing.mark()


def test_python_s_numbers_must_be_all_there(monkeypatch):
    version, (*state, following), gauss = random.getstate()
    for other in ((*state[:-1], state[-1] ^ 1, following), (*state, following - 1)):
        monkeypatch.setattr(draws.random, "getstate", lambda other=other: (version, other, gauss))
        assert not draws.OfPython().parts
    monkeypatch.undo()
    assert draws.OfPython().parts


@pytest.mark.parametrize("what", ["another generator", "other numbers", "another place", "no kept number"])
def test_numpy_s_numbers_must_be_all_there(what, monkeypatch):
    told = np.random.get_state(legacy=False)

    class Stream:
        _bit_generator = np.random.mtrand._rand._bit_generator

        def get_state(self, legacy):
            return told

    monkeypatch.setattr(np.random.mtrand, "_rand", Stream())
    monkeypatch.setattr(draws, "_memory_of", lambda x: ctypes.create_string_buffer(200))
    monkeypatch.setattr(draws, "_where_numpy_keeps_a_second_number", lambda cls: 80)
    assert draws.OfNumpy().parts
    if what == "another generator":
        told["bit_generator"] = "PCG64"
    elif what == "other numbers":
        told["state"]["key"][-1] ^= 1
    elif what == "another place":
        told["state"]["pos"] -= 1
    else:
        monkeypatch.setattr(draws, "_where_numpy_keeps_a_second_number", lambda cls: None)
    assert not draws.OfNumpy().parts


def test_the_memory_that_is_looked_at_stays_numpy_s():
    looked_at = np.random.mtrand._rand, np.random.mtrand._rand._bit_generator
    draws.OfNumpy()
    before = [sys.getrefcount(x) for x in looked_at]
    thing = draws.OfNumpy()
    assert [sys.getrefcount(x) for x in looked_at] == [n + 1 for n in before], "or numpy.random may free it"
    assert thing.parts


@pytest.mark.parametrize("flag", ["always", "never", "nowhere"])
def test_where_numpy_keeps_a_number_it_must_say_whether_it_does(flag):
    memory = ctypes.create_string_buffer(64)

    class Trial:
        def get_state(self, legacy):
            return {"has_gauss": 0, "gauss": 0.0}

        def set_state(self, state):
            has = {"always": 1, "never": 0, "nowhere": state["has_gauss"], "right": state["has_gauss"]}[self.flag]
            memory[24:40] = struct.pack("qd", has, state["gauss"] * (self.flag != "nowhere"))
            memory[-9] = has  # where one would look for it in front of nothing

    trial = Trial()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "_memory_of", lambda x: memory)
        for trial.flag, found in ((flag, None), ("right", 24)):
            assert draws._where_numpy_keeps_a_second_number.__wrapped__(lambda seed: trial) == found


def test_a_program_without_numpy_has_two_streams(monkeypatch):
    monkeypatch.delitem(draws.sys.modules, "numpy")
    assert [type(thing) for thing in draws.kept()] == [draws.DefaultDtype, draws.OfTorch, draws.OfPython]


# ---- each device draws as if it were alone ----


def a_program(case, rank, wait):
    """Draws now and then, while others do, and while nobody does."""
    drawn = [numbers()]
    for turn in range(6):
        wait()
        if turn == 2 and case == "a seed for each":
            for seed in SEEDS.values():
                seed(rank)
        if turn == 2 and case == "the same seed again" and rank != 1:
            start_anew()
        if turn == 2 and case == "set_rng_state":
            torch.set_rng_state(torch.Generator().manual_seed(rank).get_state())
        if turn == 3 and case == "fork_rng":
            with torch.random.fork_rng():
                torch.manual_seed(rank)
                wait()
                drawn.append(numbers())
        if turn == 3 and case != "fork_rng":
            wait()
        if turn in (rank, 4):
            drawn.append(numbers())
    return drawn


CASES = ("no seed", "a seed for each", "the same seed again", "set_rng_state", "fork_rng")


@pytest.mark.parametrize("found", [True, False], ids=["found", "unproven"])
@pytest.mark.parametrize("case", CASES)
@TWO_DTYPES
def test_each_device_draws_as_if_it_were_alone(case, dtype, default, found, request):
    if not found:
        request.getfixturevalue("unproven")
    expected = []
    for rank in range(3):
        start_anew()
        expected.append(a_program(case, rank, lambda: None))
    start_anew()
    assert Cluster(3).run(lambda group: a_program(case, group.rank, group.barrier)) == expected


@TWO_DTYPES
def test_a_second_normal_number_is_each_device_s_own(dtype, default):
    """Rank 0 keeps one, then all wait, and rank 1, whose stream stands alike, keeps another."""

    def program(rank, wait):
        for seed in SEEDS.values():
            seed(2)
        for draw in ([torch.randn, lambda _: torch.rand(2, dtype=torch.float64)], [torch.randn] * 3)[rank]:
            draw(())
        for draw in ([np.random.randn, lambda: np.random.rand(2)], [np.random.randn] * 3)[rank]:
            draw()
        wait()
        return numbers()

    expected = [program(rank, lambda: None) for rank in range(2)]
    assert expected[0] != expected[1]
    assert Cluster(2).run(lambda group: program(group.rank, group.barrier)) == expected


@pytest.fixture
def calls(monkeypatch):
    """What is done to PyTorch's stream, and how often it is looked at."""
    calls, looks = [], []

    class Counted(draws.OfTorch):
        def __init__(self):
            super().__init__()
            read, write = self.read, self.write
            self.read = lambda: calls.append("read") or read()
            self.write = lambda state: calls.append("write") or write(state)

        def mark(self):
            looks.append(None)
            return super().mark()

    monkeypatch.setattr(draws, "OfTorch", Counted)
    return calls, looks


def test_a_stream_that_nobody_drew_from_is_neither_read_nor_written(calls):
    calls, _ = calls
    Cluster(2).run(lambda group: [random.random()] + [group.barrier() for _ in range(5)])
    assert calls == ["read"], "once, before the run"
    calls.clear()
    Cluster(2).run(lambda group: [group.rank or torch.rand(())] + [group.barrier() for _ in range(5)])
    assert 0 < calls.count("read") < 5 <= calls.count("write"), "to read again is needed only where somebody draws"


def test_a_device_that_gets_the_turn_twice_is_read_once_after_a_draw(calls):
    calls, looks = calls
    owned = Owned(2)
    owned.take_up(0)
    torch.rand(())
    for _ in range(3):
        owned.lay_aside(0)
        owned.take_up(0)
    assert calls == ["read", "read"]
    assert len(looks) == 4, "before the run, and whenever it lays aside"
