"""What a consumer has in its hands: what starts next, how much is read, what is handed back."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.consumer.prefetch_buffer import HORIZON, STUCK, Intake
from streamq.wire.delivery import Delivery

_numbers = count(1)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


def an_intake(clock, *, weights=(6, 3, 1), slots=10, max_prefetch=1000, suspect_after=2, patience=30.0):
    return Intake(
        weights, slots=slots, max_prefetch=max_prefetch, suspect_after=suspect_after, patience=patience, clock=clock
    )


def some(number, tier=0, crashes=()):
    return [
        Delivery(tier, str(tier), b"%d-0" % next(_numbers), [b"task", b"t"], redelivered=bool(crashes), crashes=crashes)
        for _ in range(number)
    ]


def run_at(intake, clock, per_second, seconds=1.0, tier=0):
    """Take in, start and end deliveries at an even rate."""
    for _ in range(int(seconds / 0.01)):
        clock.move(0.01)
        for delivery in intake.accept(tier, some(int(per_second * 0.01), tier)):
            assert intake.take() is delivery
            intake.done(delivery)
            intake.forget(tier, delivery.entry_id)
        intake.prefetch()


def test_the_prefetch_follows_the_rate():
    """Little's law: hold what will start within HORIZON at the rate at which tasks lately finished."""
    clock = Clock()
    intake = an_intake(clock)
    assert intake.prefetch() == 0
    run_at(intake, clock, 5000)
    assert abs(intake.prefetch() - 5000 * HORIZON) <= 1
    for _ in range(100):
        clock.move(0.05)
        intake.prefetch()
    assert intake.prefetch() == 0


def test_the_prefetch_is_enough_for_tasks_that_end_together():
    """Two bursts within a quarter of a second foretell a third; one alone, after minutes say, foretells nothing."""
    clock = Clock()
    intake = an_intake(clock, slots=50)
    running = [intake.take() for _ in intake.accept(0, some(50))]
    held = []
    for _ in range(3):
        clock.move(0.1)
        intake.accept(0, some(50))
        for delivery in running:
            intake.done(delivery)
        running = [intake.take() for _ in running]
        held.append(intake.prefetch())
    assert held == [0, 50, 50]
    clock.move(0.3)
    assert intake.prefetch() == 0
    intake.accept(0, some(50))
    for delivery in running:
        intake.done(delivery)
        intake.take()
    assert intake.prefetch() == 0


def test_the_prefetch_has_a_limit():
    """However fast tasks finish, no more than max_prefetch is held beyond the slots."""
    clock = Clock()
    intake = an_intake(clock, max_prefetch=7)
    run_at(intake, clock, 100_000, 0.1)
    assert intake.prefetch() == 7
    assert intake.room() == 17


def test_slow_tasks_are_not_hoarded():
    """A worker whose tasks take long holds nothing that an idle one could run."""
    clock = Clock()
    intake = an_intake(clock, slots=2)
    intake.accept(0, some(2))
    started = [intake.take(), intake.take()]
    for _ in range(5):
        clock.move(60)
        assert intake.room() == 0
        assert intake.plan() == {}
    intake.done(started[0])
    assert intake.room() == 1


def test_what_was_prefetched_and_cannot_start_is_handed_back():
    """After STUCK seconds without a start, the deliveries that wait are taken back, once."""
    clock = Clock()
    intake = an_intake(clock, slots=1)
    waiting = intake.accept(0, some(3))
    running = intake.take()
    assert intake.stuck() == []
    assert intake.overdue() == clock.now + STUCK
    clock.move(STUCK)
    assert intake.stuck() == waiting[1:]
    assert intake.stuck() == []
    assert intake.overdue() is None
    assert intake.waiting == 0
    assert intake.take() is None
    assert running is waiting[0]


def test_stuck_counts_from_the_last_start_and_spares_suspects():
    """A delivery that comes in after a long silence is not stuck, and suspects wait for their turn."""
    clock = Clock()
    intake = an_intake(clock, slots=1)
    clock.move(1000)
    intake.accept(0, some(1))
    assert intake.stuck() == []
    (suspect,) = intake.accept(0, some(1, crashes=("a", "b")))
    clock.move(STUCK)
    assert len(intake.stuck()) == 1
    assert intake.waiting == 1
    assert intake.take() is suspect


def test_a_suspect_runs_alone():
    """What took two workers down starts when nothing runs, and nothing starts beside it."""
    clock = Clock()
    intake = an_intake(clock)
    intake.accept(0, some(2))
    first = intake.take()
    (suspect,) = intake.accept(0, some(1, crashes=("a", "b")))
    assert intake.take() is None
    assert not intake.startable
    assert intake.room() == 0
    intake.done(first)
    assert intake.startable
    assert intake.take() is suspect
    assert suspect.alone
    assert intake.take() is None
    assert intake.room() == 0
    intake.done(suspect)
    assert intake.take() is not None


def test_one_crash_is_no_suspicion():
    """A task that merely ran beside the culprit once runs as any other."""
    intake = an_intake(Clock())
    one, two = intake.accept(0, some(2, crashes=("a",)))
    assert intake.take() is one
    assert intake.take() is two
    assert not one.alone


def test_a_suspect_waits_only_as_long_as_its_patience():
    """Beside a run that takes for ever a suspect starts after `patience`, and does not count as alone."""
    clock = Clock()
    intake = an_intake(clock, patience=30.0)
    intake.accept(0, some(1))
    intake.take()
    (suspect,) = intake.accept(0, some(1, crashes=("a", "b")))
    assert intake.take() is None
    clock.move(29.9)
    assert intake.take() is None
    clock.move(0.2)
    assert intake.take() is suspect
    assert not suspect.alone


def test_what_is_here_already_is_not_taken_in_twice():
    """A sweep may find what this consumer holds itself."""
    intake = an_intake(Clock())
    deliveries = some(3)
    assert intake.accept(0, deliveries) == deliveries
    again = some(1)
    assert intake.accept(0, [*deliveries, *again]) == again
    assert intake.waiting == 4
    intake.forget(0, deliveries[0].entry_id)
    assert intake.accept(0, [deliveries[0]]) == [deliveries[0]]


def test_starts_follow_the_weights():
    """With every tier at hand, ten starts are six, three and one."""
    intake = an_intake(Clock(), slots=100)
    for tier in range(3):
        intake.accept(tier, some(20, tier))
    tiers = [intake.take().tier for _ in range(20)]
    assert [tiers.count(tier) for tier in range(3)] == [12, 6, 2]


def test_the_plan_shares_the_room_by_weight():
    """Reads are planned per tier, because COUNT is per stream."""
    intake = an_intake(Clock(), slots=100)
    assert intake.plan() == {60: [0], 30: [1], 10: [2]}


def test_tiers_without_a_backlog_are_asked_too():
    """A tier that showed nothing is read along with the others, at least one, so that it is seen when it comes back."""
    intake = an_intake(Clock(), slots=10)
    intake.seen(0, more=False)
    intake.seen(1, more=False)
    reads = {tier: number for number, tiers in intake.plan().items() for tier in tiers}
    assert reads[2] == 10
    assert reads[0] >= 1
    assert reads[1] >= 1


def test_nothing_is_planned_where_nothing_is_known_to_wait():
    """Without any backlog the blocking read does the work."""
    intake = an_intake(Clock())
    for tier in range(3):
        intake.seen(tier, more=False)
    assert intake.plan() == {}


def test_closed_starts_and_reads_nothing():
    """A worker that drains takes nothing more, and gives back what has not started."""
    intake = an_intake(Clock())
    waiting = intake.accept(1, some(4, 1))
    intake.closed = True
    assert intake.take() is None
    assert intake.plan() == {}
    assert intake.unstarted() == waiting
    assert intake.quiet


def test_a_delivery_that_has_not_started_can_be_dropped():
    """One that waits is taken back; one that started is not."""
    intake = an_intake(Clock())
    one, two = intake.accept(0, some(2))
    assert intake.take() is one
    assert not intake.drop(one)
    assert intake.drop(two)
    assert not intake.drop(two)
    (suspect,) = intake.accept(0, some(1, crashes=("a", "b")))
    assert intake.drop(suspect)
    assert intake.take() is None


@pytest.mark.slow
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=6),
    st.integers(0, 40),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_no_plan_asks_for_more_than_there_is_room_for(weights, slots, taken_in, starts, backlog):
    """Reads for tiers with a backlog fit the room; the others add at most one each, or their share."""
    intake = an_intake(Clock(), weights=weights, slots=slots)
    for tier, number in taken_in:
        if tier < len(weights):
            intake.accept(tier, some(number, tier))
    for _ in range(min(starts, slots)):
        intake.take()
    for tier in range(len(weights)):
        intake.seen(tier, more=backlog[tier])
    room = max(0, intake.room())
    reads = {tier: number for number, tiers in intake.plan().items() for tier in tiers}
    assert all(number > 0 for number in reads.values())
    # What one tier has too much of is not asked of the others: each asks for its share of the whole.
    wanted = room + intake._buffered
    known = [tier for tier in reads if backlog[tier]]
    assert sum(reads[tier] + len(intake._buffers[tier]) for tier in known) <= wanted
    for tier, number in reads.items():
        assert backlog[tier] or number <= max(1, wanted)


@given(
    st.lists(
        st.tuples(st.sampled_from(["in", "suspect", "take", "done", "drop", "back"]), st.integers(0, 2)), max_size=80
    )
)
def test_every_delivery_is_in_exactly_one_place(history):
    """Whatever happens, each delivery starts once or is given back once, and is never lost in here."""
    clock = Clock()
    intake = an_intake(clock, slots=3)
    waiting, running, started = set(), [], set()
    for what, tier in history:
        clock.move(0.1)
        if what == "in":
            waiting |= set(intake.accept(tier, some(2, tier)))
        elif what == "suspect":
            waiting |= set(intake.accept(tier, some(1, tier, ("a", "b"))))
        elif what == "take":
            delivery = intake.take()
            if delivery is not None:
                assert delivery in waiting
                assert delivery not in started
                waiting.remove(delivery)
                started.add(delivery)
                running.append(delivery)
        elif what == "done" and running:
            intake.done(running.pop(0))
        elif what == "drop" and waiting:
            delivery = waiting.pop()
            assert intake.drop(delivery)
            assert not intake.drop(delivery)
        elif what == "back":
            assert set(intake.unstarted()) == waiting
            waiting.clear()
        assert intake.waiting == len(waiting)
        assert intake.running == len(running)
    assert set(intake.unstarted()) == waiting
