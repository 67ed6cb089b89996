"""What the server refuses is named once in the log, and in the health until it is carried out."""

from __future__ import annotations

import pytest

from streamq.errors import BrokerError
from streamq.queue.refusals import REMIND_EVERY, Refusals

LIMIT = "the rate limit of 5/s"


class Time:
    """A clock that is set by hand."""

    def __init__(self):
        self.at = 0.0

    def now(self):
        return self.at

    def elapsed(self):
        return self.at


@pytest.fixture
def time():
    return Time()


def noperm(key="k"):
    """Return the error of a missing right to this key."""
    return BrokerError(f"NOPERM no permissions, in EVALSHA on {key}", code="NOPERM")


def lines(caplog):
    """Return the lines of the log without the remedy, and forget them."""
    found = [message.replace(message[at:message.rfind(";")], "") if (at := message.find("; run ")) > 0 else message
             for message in caplog.messages]  # fmt: skip
    caplog.clear()
    return found


def test_a_refused_step_is_named_once(time, caplog):
    """A line when it begins, a reminder every ten minutes, a line when it ends."""
    refusals = Refusals("w", clock=time)
    for _ in range(700):
        refusals.note_refused(LIMIT, noperm(), part="send")
        time.at += 1
    line = f"w: {LIMIT} for send is refused: NOPERM no permissions, in EVALSHA on k; everything else goes on"
    assert lines(caplog) == [line, line]
    assert refusals.named()[0].startswith(f"{LIMIT} for send: NOPERM")
    refusals.note_accepted(LIMIT, "other")
    refusals.note_accepted("another step", "send")
    assert refusals
    refusals.note_accepted(LIMIT, "send")
    assert not refusals
    assert lines(caplog) == [f"w: {LIMIT} for send is refused no longer"]


def test_many_parts_are_one_line(time, caplog):
    """A limit by customer does not fill the log, and is refused until the last part is accepted."""
    refusals = Refusals(clock=time)
    for number in range(2000):
        refusals.note_refused(LIMIT, noperm(f"k{number}"), part=f"c{number}")
    assert len(lines(caplog)) == 1
    (named,) = refusals.named()
    assert named.startswith(f"{LIMIT} for c0 and 999 more: NOPERM")
    for number in range(999):
        refusals.note_accepted(LIMIT, f"c{number}")
    assert refusals
    refusals.note_accepted(LIMIT, "c999")
    assert lines(caplog) == [f"{LIMIT} for c999 is refused no longer"]


def test_what_is_not_asked_any_more_is_forgotten(time):
    """The last task of a customer is gone: nothing will ever accept it."""
    refusals = Refusals(clock=time, forget_after=600)
    refusals.note_refused(LIMIT, noperm(), part="a")
    time.at = 599.0
    refusals.note_refused(LIMIT, noperm(), part="b")
    assert "a and 1 more" in refusals.named()[0]
    time.at = 601.0
    assert "for b" in refusals.named()[0]
    time.at = 1200.0
    assert refusals.named() == []


def test_another_reason_is_logged(time, caplog):
    """A key of another type after a missing right: both are said, and neither twice in ten minutes."""
    refusals = Refusals(clock=time)
    for _ in range(20):
        refusals.note_refused("sweeping", noperm())
        refusals.note_refused("sweeping", BrokerError("a key of another type", code="WRONGTYPE"))
    assert [line.split(";")[0] for line in lines(caplog)] == [
        "sweeping is refused: NOPERM no permissions, in EVALSHA on k",
        "sweeping is refused: WRONGTYPE a key of another type",
    ]
    time.at = REMIND_EVERY
    refusals.note_refused("sweeping", noperm())
    assert len(lines(caplog)) == 1


def test_a_server_that_cannot_be_used_refuses_no_step(time, caplog):
    """That is said by who waits for it."""
    refusals = Refusals(clock=time)
    assert not refusals.note_failed(LIMIT, BrokerError("is loading", code="LOADING"))
    assert refusals.note_failed(LIMIT, BrokerError("out of memory", code="OOM"))
    assert (len(refusals.named()), len(caplog.records)) == (1, 1)
