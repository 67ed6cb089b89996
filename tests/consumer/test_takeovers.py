"""What is said of the deliveries of dead workers."""

from __future__ import annotations

import pytest

from streamq.consumer.takeovers import TakeOvers
from streamq.wire.delivery import Delivery


@pytest.fixture
def takeovers(caplog):
    caplog.set_level("INFO", "streamq")
    return TakeOvers("me", suspect_after=2, max_crashes=3, interval=10.0)


def reclaimed(*workers, died=True, flat=(b"task", b"send", b"id", b"abc")):
    """Return a delivery that a sweep reclaimed."""
    delivery = Delivery(1, "standard", b"1-0", list(flat), redelivered=True, crashed_workers=workers)
    delivery.owner_died = died
    return delivery


def test_nothing_to_say(takeovers, caplog):
    """Released deliveries, and none, leave no line."""
    assert not takeovers.note([])
    assert not takeovers.note([reclaimed(died=False)])
    takeovers.say(0.0, complete=True)
    assert caplog.messages == []


def test_workers_are_counted_and_bounded(takeovers, caplog):
    """Five are named, the largest first."""
    for number in range(8):
        assert takeovers.note([reclaimed(f"w{number}")] * (number + 1))
    takeovers.say(0.0, complete=True)
    (line,) = caplog.messages
    assert line.startswith("me: took over 36 tasks of 8 workers that did not renew their leases in time: 8 of w7, 7 of")
    assert line.endswith(" 5 of w4, 4 of w3 and of 3 more")


def test_a_sweep_in_pieces_is_one_line_in_each_interval(takeovers, caplog):
    """Small rooms and suspects make many sweeps of one backlog."""
    for number in range(25):
        takeovers.note([reclaimed("w")])
        takeovers.say(float(number), complete=False)
    takeovers.say(25.0, complete=True)
    assert [message.partition(" of ")[0] for message in caplog.messages] == [
        "me: took over 1 task", "me: took over 10 tasks", "me: took over 10 tasks", "me: took over 4 tasks",
    ]  # fmt: skip


def test_a_suspect_that_cannot_be_read(takeovers, caplog):
    """Its entry is named instead."""
    takeovers.note([reclaimed("a", "b", flat=(b"x", b"y"))])
    assert caplog.messages[0].startswith("task ? 1-0 was in the hands of 2 workers that died (a, b): it is to run")


@pytest.mark.parametrize(
    ("workers", "end"),
    [
        (("a", "b"), "crash_loop, if the next one dies of it"),
        (("a", "b", "c", "d"), "crash_loop, if the next one dies of it"),
    ],
)
def test_a_suspect_is_told_when_it_ends(takeovers, caplog, workers, end):
    """Also where more have died than `max_crashes`, of something else."""
    takeovers.note([reclaimed(*workers)])
    assert caplog.messages[0].startswith(f"task send abc was in the hands of {len(workers)} workers that died (")
    assert caplog.messages[0].endswith(end)


def test_a_suspect_that_may_crash_more(caplog):
    """It is a dead letter once so many have died."""
    TakeOvers("me", suspect_after=2, max_crashes=6, interval=10.0).note([reclaimed("a", "b")])
    assert caplog.messages[0].endswith("crash_loop, once 6 have died, and one of them of it")
