"""The token bucket by itself: reservations, late tasks, drains."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamq.middleware.token_bucket import SLACK, Bucket, Rate, Reservation


class Rated:
    """A bucket with its rate."""

    def __init__(self, rate=10.0, size=1):
        self.rate = Rate.of(rate, size)
        self.bucket = Bucket()

    def acquire(self, now, reservation):
        return self.bucket.acquire(self.rate, now, reservation)

    def drain(self, now, after):
        return self.bucket.drain(self.rate, now, after)

    def idle(self, now):
        return self.bucket.idle(now)


bucket = Rated


class TestBucket:
    def test_each_task_gets_a_reservation_of_its_own(self):
        """However many come at once, reservations are 1/rate apart and all different."""
        some = bucket()
        assert some.acquire(0.0, None) is None
        reservations = [some.acquire(0.0, None).due for _ in range(1000)]
        assert reservations == pytest.approx([0.1 * (at + 1) for at in range(1000)])

    def test_a_burst_is_saved_up(self):
        """After a pause `burst` start at once, and then they are spread."""
        some = bucket(size=3)
        for begin in (0.0, 50.0):
            assert [some.acquire(begin, None) for _ in range(3)] == [None] * 3
            assert some.acquire(begin, None).due == pytest.approx(begin + 0.1)

    def test_an_early_task_keeps_its_reservation(self):
        """Asking too early neither moves nor spends a reservation."""
        some = bucket()
        some.acquire(0.0, None)
        reservation = some.acquire(0.0, None)
        assert some.acquire(0.05, reservation) == reservation
        assert some.acquire(0.1, reservation) is None

    def test_a_late_task_starts_at_once(self):
        """A task that is late alone does not wait again, and the next ones are on time."""
        some = bucket()
        reservations = [some.acquire(0.0, None) for _ in range(4)][1:]
        assert some.acquire(0.15, reservations[0]) is None
        assert some.acquire(0.2, reservations[1]) is None
        assert some.acquire(5.0, reservations[2]) is None

    def test_an_outage_does_not_end_in_a_burst(self):
        """Tasks that missed their reservations together start at the rate, in order."""
        some = bucket()
        reservations = [some.acquire(0.0, None) for _ in range(101)][1:]
        waiting = [(60.0, at, reservation) for at, reservation in enumerate(reservations)]
        started = drive(some, waiting)
        assert [at for _, at in started] == list(range(100))
        assert started[-1][0] - started[0][0] == pytest.approx(9.8, abs=0.15)  # two at once, then ten a second

    def test_late_tasks_go_first(self):
        """While some wait for the second time, tasks on time and new ones come after them."""
        some = bucket()
        reservations = [some.acquire(0.0, None) for _ in range(101)][1:]
        waiting = [
            (5.0 if at < 50 else reservation.due, at, reservation) for at, reservation in enumerate(reservations)
        ]
        started = drive(some, waiting)
        order = [at for _, at in started]
        assert max(abs(at - place) for place, at in enumerate(order)) <= 2

    @settings(max_examples=150)
    @given(
        rate=st.sampled_from([0.5, 3.0, 10.0, 200.0]), size=st.integers(1, 5), count=st.integers(1, 60),
        lateness=st.lists(st.floats(0, 30), min_size=1, max_size=20), seed=st.integers(0, 1000),
    )  # fmt: skip
    def test_never_more_than_promised(self, rate, size, count, lateness, seed):
        """In any T seconds at most burst + T * rate + max(1, SLACK * rate) start; all start in the end."""
        some = bucket(rate, size)
        dice = random.Random(seed)
        fresh = [(dice.uniform(0, 5), at, None) for at in range(count)]
        started = drive(some, fresh, late=lambda: dice.choice(lateness))
        assert len(started) == count
        times = [when for when, _ in started]
        for first, begin in enumerate(times):
            for last in range(first, len(times)):
                allowed = size + max(1, int(SLACK * rate)) + (times[last] - begin + 0.01) * rate
                assert last - first + 1 <= allowed

    def test_a_drain_lets_nothing_start_and_then_goes_on_evenly(self):
        """Tasks that were due in that time come after it, in order; the task that asked is first; there is no burst."""
        some = bucket(size=3)
        reservations = [some.acquire(0.0, None) for _ in range(103)][3:]
        asked = some.drain(1.0, 5.0)
        assert asked == Reservation(6.0, missed=True)
        waiting = [(reservation.due, at, reservation) for at, reservation in enumerate(reservations)] + [
            (asked.due, -1, asked)
        ]
        started = drive(some, [one for one in waiting if one[0] > 1.0])
        assert started[0] == (6.0, -1)
        assert [at for _, at in started[1:]] == sorted(at for _, at in started[1:])
        times = [when for when, _ in started]
        assert times == pytest.approx([6.0 + 0.1 * place for place in range(len(times))], abs=0.01)

    def test_idle_is_like_new(self):
        some = bucket()
        assert some.idle(0.0)
        some.acquire(0.0, None)
        some.acquire(0.0, None)
        assert not some.idle(0.15)
        assert some.idle(0.2)


def drive(some, waiting, late=lambda: 0.0):
    """Let tasks come back when they are due, or later; return (time, number) of the starts."""
    heapq.heapify(waiting)
    started = []
    while waiting:
        now, at, reservation = heapq.heappop(waiting)
        reservation = some.acquire(now, reservation)
        if reservation is None:
            started.append((now, at))
        else:
            heapq.heappush(waiting, (max(now, reservation.due) + late(), at, reservation))
        assert len(started) < 10_000
    return started


def test_a_reservation_of_another_process_is_due():
    """It has no time on this clock."""
    some = bucket()
    assert some.acquire(5.0, Reservation(float("-inf"))) is None
