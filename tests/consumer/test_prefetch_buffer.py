"""What a consumer has in its hands: what starts next, how much is read, what is handed back."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.consumer.prefetch_buffer import HORIZON, STUCK_AFTER, PrefetchBuffer
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


def an_intake(
    clock, *, weights=(6, 3, 1), slots=10, max_prefetch=1000, suspect_after=2, suspect_wait=30.0,
    prefetch_bytes=1 << 40,
):  # fmt: skip
    return PrefetchBuffer(
        weights,
        slots=slots,
        max_prefetch=max_prefetch,
        suspect_after=suspect_after,
        suspect_wait=suspect_wait,
        clock=clock,
        prefetch_bytes=prefetch_bytes,
    )


def some(number, tier=0, crashes=()):
    return [
        Delivery(
            tier,
            str(tier),
            b"%d-0" % next(_numbers),
            [b"task", b"t"],
            redelivered=bool(crashes),
            crashed_workers=crashes,
        )
        for _ in range(number)
    ]


def run_at(buffer, clock, per_second, seconds=1.0, tier=0):
    """Take in, start and end deliveries at an even rate."""
    for _ in range(int(seconds / 0.01)):
        clock.move(0.01)
        for delivery in buffer.accept(tier, some(int(per_second * 0.01), tier)):
            assert buffer.take() is delivery
            buffer.run_ended(delivery)
            buffer.forget(tier, delivery.entry_id)
        buffer.prefetch()


def test_the_prefetch_follows_the_rate():
    """Little's law: hold what will start within HORIZON at the rate at which tasks lately finished."""
    clock = Clock()
    buffer = an_intake(clock)
    assert buffer.prefetch() == 0
    run_at(buffer, clock, 5000)
    assert abs(buffer.prefetch() - 5000 * HORIZON) <= 1
    for _ in range(100):
        clock.move(0.05)
        buffer.prefetch()
    assert buffer.prefetch() == 0


def test_the_prefetch_is_enough_for_tasks_that_end_together():
    """Two bursts within a quarter of a second foretell a third; one alone, after minutes say, foretells nothing."""
    clock = Clock()
    buffer = an_intake(clock, slots=50)
    running = [buffer.take() for _ in buffer.accept(0, some(50))]
    held = []
    for _ in range(3):
        clock.move(0.1)
        buffer.accept(0, some(50))
        for delivery in running:
            buffer.run_ended(delivery)
        running = [buffer.take() for _ in running]
        held.append(buffer.prefetch())
    assert held == [0, 50, 50]
    clock.move(0.3)
    assert buffer.prefetch() == 0
    buffer.accept(0, some(50))
    for delivery in running:
        buffer.run_ended(delivery)
        buffer.take()
    assert buffer.prefetch() == 0


def test_the_prefetch_has_a_limit():
    """However fast tasks finish, no more than max_prefetch is held beyond the slots."""
    clock = Clock()
    buffer = an_intake(clock, max_prefetch=7)
    run_at(buffer, clock, 100_000, 0.1)
    assert buffer.prefetch() == 7
    assert buffer.room() == 17


def test_slow_tasks_are_not_hoarded():
    """A worker whose tasks take long holds nothing that an idle one could run."""
    clock = Clock()
    buffer = an_intake(clock, slots=2)
    buffer.accept(0, some(2))
    started = [buffer.take(), buffer.take()]
    for _ in range(5):
        clock.move(60)
        assert buffer.room() == 0
        assert buffer.plan_reads() == {}
    buffer.run_ended(started[0])
    assert buffer.room() == 1


def test_what_was_prefetched_and_cannot_start_is_handed_back():
    """After STUCK_AFTER seconds without a start, the deliveries that wait are taken back, once."""
    clock = Clock()
    buffer = an_intake(clock, slots=1)
    waiting = buffer.accept(0, some(3))
    running = buffer.take()
    assert buffer.take_stuck() == []
    assert buffer.next_check() == clock.now + STUCK_AFTER
    clock.move(STUCK_AFTER)
    assert buffer.take_stuck() == waiting[1:]
    assert buffer.take_stuck() == []
    assert buffer.next_check() is None
    assert buffer.waiting == 0
    assert buffer.take() is None
    assert running is waiting[0]


def test_stuck_counts_from_the_last_start_and_spares_suspects():
    """A delivery that comes in after a long silence is not stuck, and suspects wait for their turn."""
    clock = Clock()
    buffer = an_intake(clock, slots=1)
    clock.move(1000)
    buffer.accept(0, some(1))
    assert buffer.take_stuck() == []
    (suspect,) = buffer.accept(0, some(1, crashes=("a", "b")))
    clock.move(STUCK_AFTER)
    assert len(buffer.take_stuck()) == 1
    assert buffer.waiting == 1
    assert buffer.take() is suspect


def test_a_suspect_runs_alone():
    """What took two workers down starts when nothing runs, and nothing starts beside it."""
    clock = Clock()
    buffer = an_intake(clock)
    buffer.accept(0, some(2))
    first = buffer.take()
    (suspect,) = buffer.accept(0, some(1, crashes=("a", "b")))
    assert buffer.take() is None
    assert not buffer.startable
    assert buffer.room() == 0
    buffer.run_ended(first)
    assert buffer.startable
    assert buffer.take() is suspect
    assert suspect.isolated
    assert buffer.take() is None
    assert buffer.room() == 0
    buffer.run_ended(suspect)
    assert buffer.take() is not None


def test_one_crash_is_no_suspicion():
    """A task that merely ran beside the culprit once runs as any other."""
    buffer = an_intake(Clock())
    one, two = buffer.accept(0, some(2, crashes=("a",)))
    assert buffer.take() is one
    assert buffer.take() is two
    assert not one.isolated


def test_a_suspect_waits_only_as_long_as_its_patience():
    """Beside a run that takes for ever a suspect starts after `suspect_wait`, and does not count as alone."""
    clock = Clock()
    buffer = an_intake(clock, suspect_wait=30.0)
    buffer.accept(0, some(1))
    buffer.take()
    (suspect,) = buffer.accept(0, some(1, crashes=("a", "b")))
    assert buffer.take() is None
    clock.move(29.9)
    assert buffer.take() is None
    clock.move(0.2)
    assert buffer.take() is suspect
    assert not suspect.isolated


def test_what_is_here_already_is_not_taken_in_twice():
    """A sweep may find what this consumer holds itself."""
    buffer = an_intake(Clock())
    deliveries = some(3)
    assert buffer.accept(0, deliveries) == deliveries
    again = some(1)
    assert buffer.accept(0, [*deliveries, *again]) == again
    assert buffer.waiting == 4
    buffer.forget(0, deliveries[0].entry_id)
    assert buffer.accept(0, [deliveries[0]]) == [deliveries[0]]


def test_starts_follow_the_weights():
    """With every tier at hand, ten starts are six, three and one."""
    buffer = an_intake(Clock(), slots=100)
    for tier in range(3):
        buffer.accept(tier, some(20, tier))
    tiers = [buffer.take().tier for _ in range(20)]
    assert [tiers.count(tier) for tier in range(3)] == [12, 6, 2]


def test_the_plan_shares_the_room_by_weight():
    """Reads are planned per tier, because COUNT is per stream."""
    buffer = an_intake(Clock(), slots=100)
    assert buffer.plan_reads() == {60: [0], 30: [1], 10: [2]}


def test_tiers_without_a_backlog_are_asked_too():
    """A tier that showed nothing is read along with the others, at least one, so that it is seen when it comes back."""
    buffer = an_intake(Clock(), slots=10)
    buffer.note_read(0, more=False)
    buffer.note_read(1, more=False)
    reads = {tier: number for number, tiers in buffer.plan_reads().items() for tier in tiers}
    assert reads[2] == 10
    assert reads[0] >= 1
    assert reads[1] >= 1


def test_nothing_is_planned_where_nothing_is_known_to_wait():
    """Without any backlog the blocking read does the work."""
    buffer = an_intake(Clock())
    for tier in range(3):
        buffer.note_read(tier, more=False)
    assert buffer.plan_reads() == {}


def test_closed_starts_and_reads_nothing():
    """A worker that drains takes nothing more, and gives back what has not started."""
    buffer = an_intake(Clock())
    waiting = buffer.accept(1, some(4, 1))
    buffer.closed = True
    assert buffer.take() is None
    assert buffer.plan_reads() == {}
    assert buffer.take_unstarted() == waiting
    assert buffer.idle


def test_a_delivery_that_has_not_started_can_be_dropped():
    """One that waits is taken back; one that started is not."""
    buffer = an_intake(Clock())
    one, two = buffer.accept(0, some(2))
    assert buffer.take() is one
    assert not buffer.remove_unstarted(one)
    assert buffer.remove_unstarted(two)
    assert not buffer.remove_unstarted(two)
    (suspect,) = buffer.accept(0, some(1, crashes=("a", "b")))
    assert buffer.remove_unstarted(suspect)
    assert buffer.take() is None


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
    buffer = an_intake(Clock(), weights=weights, slots=slots)
    for tier, number in taken_in:
        if tier < len(weights):
            buffer.accept(tier, some(number, tier))
    for _ in range(min(starts, slots)):
        buffer.take()
    for tier in range(len(weights)):
        buffer.note_read(tier, more=backlog[tier])
    room = max(0, buffer.room())
    reads = {tier: number for number, tiers in buffer.plan_reads().items() for tier in tiers}
    assert all(number > 0 for number in reads.values())
    # What one tier has too much of is not asked of the others: each asks for its share of the whole.
    wanted = room + buffer._buffered
    known = [tier for tier in reads if backlog[tier]]
    assert sum(reads[tier] + len(buffer._buffers[tier]) for tier in known) <= wanted
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
    buffer = an_intake(clock, slots=3)
    waiting, running, started = set(), [], set()
    for what, tier in history:
        clock.move(0.1)
        if what == "in":
            waiting |= set(buffer.accept(tier, some(2, tier)))
        elif what == "suspect":
            waiting |= set(buffer.accept(tier, some(1, tier, ("a", "b"))))
        elif what == "take":
            delivery = buffer.take()
            if delivery is not None:
                assert delivery in waiting
                assert delivery not in started
                waiting.remove(delivery)
                started.add(delivery)
                running.append(delivery)
        elif what == "done" and running:
            buffer.run_ended(running.pop(0))
        elif what == "drop" and waiting:
            delivery = waiting.pop()
            assert buffer.remove_unstarted(delivery)
            assert not buffer.remove_unstarted(delivery)
        elif what == "back":
            assert set(buffer.take_unstarted()) == waiting
            waiting.clear()
        assert buffer.waiting == len(waiting)
        assert buffer.running == len(running)
    assert set(buffer.take_unstarted()) == waiting


def big(n, size, tier=1):
    return Delivery(tier, "standard", b"%d-0" % n, [b"task", b"t", b"args", b"x" * size])


def test_bytes_of_large_deliveries_are_bounded_running_ones_included():
    """Nothing more is read while they take as much as they may; one is always read."""
    buffer = an_intake(Clock(), slots=100, prefetch_bytes=1 << 20)
    assert 1 <= buffer.room() <= 16
    buffer.accept(1, [big(1, 400_000), big(2, 400_000)])
    assert buffer.room() == 0
    running = buffer.take()
    assert buffer.room() == 0
    buffer.run_ended(running)
    buffer.settled(1, [running])
    assert buffer.room() == 1
    buffer.forget(1, b"2-0")
    assert buffer.held_bytes == 0
    huge = an_intake(Clock(), slots=100, prefetch_bytes=1 << 20)
    huge.accept(1, [big(1, 5 << 20)])
    assert huge.room() == 0
    huge.forget(1, b"1-0")
    assert huge.room() == 1


def test_reads_grow_with_small_messages():
    """Few at first, for the length of an entry is not known before it is read; after two reads there is no limit."""
    buffer = an_intake(Clock(), slots=1000, prefetch_bytes=64 << 20)
    assert buffer.room() == 16
    buffer.accept(1, [big(1, 10)])
    assert buffer.room() > 100
    buffer.accept(1, [big(2, 10)])
    assert buffer.room() == 998
    assert buffer.held_bytes == 0
