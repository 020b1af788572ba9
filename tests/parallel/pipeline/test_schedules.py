"""The lists of the schedules: printed, checked, timed, and what they hold."""

import time

import numpy as np
import pytest
from parallel.pipeline.pipelines import FREE, MAKERS

from lib import (
    Forward,
    Schedule,
    Times,
    breadth_first,
    bubble,
    check_schedule,
    dual_pipe_v,
    gpipe,
    held,
    in_flight,
    interleaved,
    naive,
    one_f_one_b,
    search_schedule,
    timeline,
    with_messages,
    zb_h1,
    zb_h2,
    zb_v,
)


def test_a_schedule_is_printed_as_pytorch_writes_it():
    assert str(one_f_one_b(2, 3)) == "1F1B, 3 micro-batches\n  0: 0F0 0F1 0B0 0F2 0B1 0B2\n  1: 1F0 1B0 1F1 1B1 1F2 1B2"


@pytest.mark.parametrize("name", MAKERS)
def test_reading_is_the_other_way_round(name):
    schedule = with_messages(MAKERS[name](3, 6))
    lines = [line.split(": ")[1] for line in str(schedule).splitlines()[1:]]
    assert Schedule.read(schedule.name, *lines) == schedule


def test_what_is_no_step():
    for text in ("F0", "0X1", "0SEND_W1", "0F"):
        with pytest.raises(ValueError, match=f"'{text}' is no step"):
            Schedule.read("?", text)


def test_a_schedule_knows_its_placement():
    assert zb_v(3, 4).device_of == {0: 0, 1: 1, 2: 2, 3: 2, 4: 1, 5: 0}
    assert interleaved(2, 4, 3).stages_of(1) == [1, 3, 5]
    assert (interleaved(2, 4, 3).chunks, interleaved(2, 4, 3).micros, interleaved(2, 4, 3).stages) == (3, 4, 6)


@pytest.mark.parametrize(
    ("name", "p", "m"),
    [(name, p, m) for name in MAKERS for p, m in [(1, 2), (4, 8), (3, 9)]]
    + [(name, p, m) for name in FREE for p, m in [(4, 2), (2, 5)]],  # fewer than stages; not a multiple
)
def test_all_pass_the_checker_with_messages_and_without(name, p, m):
    schedule = MAKERS[name](p, m)
    check_schedule(schedule, tags=False)
    check_schedule(with_messages(schedule), rendezvous=True, tags=False)


@pytest.mark.parametrize("p", [1, 2, 4, 8])
@pytest.mark.parametrize("m", [8, 16, 24])
def test_bubbles_are_those_of_the_papers(p, m):
    """With T_F = T_B = T_W and free links: Narayanan et al. 2021; Qi et al. 2023, table 2."""
    of = lambda schedule: bubble(schedule, Times().cut(schedule.chunks)).of_ideal  # noqa: E731
    assert of(gpipe(p, m)) == pytest.approx((p - 1) / m)
    assert of(one_f_one_b(p, m)) == pytest.approx((p - 1) / m)
    assert bubble(one_f_one_b(p, m)).of_total == pytest.approx((p - 1) / (m + p - 1))
    assert of(interleaved(p, m, 2)) == pytest.approx((p - 1) / (2 * m))
    assert of(breadth_first(p, m, 4)) == pytest.approx((p - 1) / (4 * m))
    assert of(naive(p, m)) == pytest.approx(p - 1)
    assert of(zb_h1(p, m)) == pytest.approx((p - 1) / (3 * m))
    if m >= 2 * p - 1:
        assert of(zb_h2(p, m)) == pytest.approx(0)
        assert of(zb_v(p, m)) == pytest.approx(0)


def test_zero_bubble_with_unequal_times_is_what_table_2_says():
    """(p - 1) (T_F + T_B - T_W) and (p - 1) (T_F + T_B - 2 T_W), as long as T_W is not the longest."""
    p, m, times = 4, 16, Times(1.0, 1.25, 0.75)
    idle = lambda schedule: bubble(schedule, times).total - bubble(schedule, times).ideal  # noqa: E731
    assert idle(one_f_one_b(p, m)) == pytest.approx((p - 1) * 3)
    assert idle(zb_h1(p, m)) == pytest.approx((p - 1) * 1.5, rel=0.35)
    assert 0 < idle(zb_h2(p, m)) < idle(zb_h1(p, m)) < idle(one_f_one_b(p, m))


def test_with_the_last_step_in_common_zero_bubble_has_the_bubble_of_h1():
    assert bubble(zb_h2(4, 8)).of_ideal == 0
    assert bubble(zb_h2(4, 8), together=True).of_ideal == pytest.approx(bubble(zb_h1(4, 8), together=True).of_ideal)


def test_what_each_device_holds():
    p, m, v = 4, 12, 2
    assert in_flight(gpipe(p, m)) == [m] * p
    assert in_flight(one_f_one_b(p, m)) == [p - r for r in range(p)]
    assert in_flight(interleaved(p, m, v))[0] == pytest.approx(p * (1 + (p - 1) / (p * v)))  # Korthikanti et al. 4.2.3
    assert in_flight(zb_h2(p, m))[0] == 2 * p - 1
    assert in_flight(zb_v(p, m), weight=0.5) == [p] * p
    assert in_flight(dual_pipe_v(p, m), weight=0.5) == [p + 0.5] * p


def test_what_is_held_over_time():
    lane = timeline(one_f_one_b(2, 2), Times(1, 1, 1))[0]
    assert held(lane) == [(0, 0), (0, 1), (1, 2), (6, 1), (9, 0)]
    assert held(lane, chunks=2)[-2:] == [(6, 0.5), (9, 0)]


def test_a_device_that_waits():
    lanes = timeline(gpipe(2, 1), Times(1, 2, 3, message=10))
    assert [[(str(step), start, end) for step, start, end in lane] for lane in lanes] == [
        [("0F0", 0, 1), ("0B0", 27, 32)],
        [("1F0", 11, 12), ("1B0", 12, 17)],
    ]


def test_stages_of_unequal_time():
    times = Times(forward=(1, 4), input=1, weight=1)
    assert [lane[-1].end for lane in timeline(gpipe(2, 2), times)] == [15, 13]


@pytest.mark.parametrize("number", [float, int, np.float32, np.int64, np.float64])
def test_whatever_number_the_seconds_are(number):
    plain = timeline(gpipe(2, 2), Times(forward=(1, 4), input=2, weight=1))
    assert timeline(gpipe(2, 2), Times(np.array([1, 4]), number(2), number(1))) == plain


def test_messages_cost_what_1f1b_cannot_hide():
    """With a message of half a forward, the wave of 1F1B waits for each gradient; GPipe only at its two ends."""
    times = Times(1, 1, 1, message=0.5)
    assert bubble(gpipe(4, 16), times).of_ideal == pytest.approx(0.25)
    assert bubble(one_f_one_b(4, 16), times).of_ideal > 0.4


def test_a_search_keeps_to_its_memory_and_is_worth_it():
    times = Times(1, 1.2, 0.9, 0.1)
    best = {memory: search_schedule(4, 8, memory, times) for memory in (4, 6, 8)}
    for memory, schedule in best.items():
        check_schedule(schedule)
        assert max(in_flight(schedule, 0.5)) <= memory
    bubbles = [bubble(schedule, times).of_ideal for schedule in best.values()]
    assert bubbles == sorted(bubbles, reverse=True)
    assert bubbles[0] <= bubble(zb_h1(4, 8), times).of_ideal
    assert bubbles[1] < bubble(zb_h1(4, 8), times).of_ideal, "between H1 and H2, nobody has a name for it"
    with pytest.raises(ValueError, match="found nothing for 4 devices that holds at most 0.5"):
        search_schedule(4, 8, 0.5)
    with pytest.raises(ValueError, match="each of 3 devices needs one"):
        search_schedule(3, 8, 3, place=[0, 1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gpipe(0, 4), "p = 0: devices are counted by an integer of at least 1"),
        (lambda: gpipe(4, 2.5), "m = 2.5: micro-batches"),
        (lambda: interleaved(4, 6, 2), "m must be a multiple of p. Take 8, or breadth_first"),
        (lambda: dual_pipe_v(4, 7), "needs at least 8, one for each stage"),
        (lambda: with_messages(with_messages(gpipe(2, 2))), "has messages already"),
        (lambda: with_messages(gpipe(2, 2), "early"), "must be 'paired', 'beside' or 'batched'"),
    ],
)
def test_what_cannot_be_made(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_64_stages_and_128_micro_batches_in_a_second_and_a_quarter():
    """Four times as many micro-batches take four times as long."""
    start = time.process_time()
    schedule = one_f_one_b(64, 128)
    check_schedule(schedule)
    assert bubble(schedule).of_ideal == pytest.approx(63 / 128)
    assert time.process_time() - start < 1.25


def test_a_forward_is_a_value():
    assert Forward(1, 2) == Forward(1, 2) != Forward(2, 1)
    assert len({Forward(1, 2), Forward(1, 2)}) == 1
