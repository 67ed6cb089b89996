"""The log about refused settlements: each kind by what is refused and by key, with a bounded number of lines."""

from __future__ import annotations

import logging

import pytest

from streamq.consumer.refusal_lines import AS_DEAD_LETTER, AS_DECIDED, RefusalLines
from streamq.consumer.refused_settlement import ACK, RefusedSettlement
from streamq.wire.delivery import Delivery


class At:
    """A clock that stands at `now` seconds."""

    now = 0.0

    def elapsed(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return At()


@pytest.fixture
def lines(clock):
    return RefusalLines("queue", clock)


@pytest.fixture
def said(caplog):
    """Return the lines above level debug since the last call."""
    caplog.set_level(logging.DEBUG, logger="streamq")

    def since() -> list[str]:
        texts = [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG]
        caplog.clear()
        return texts

    return since


def one_refused(number: int, where: str = "in a script on queue:standard", what: str = ACK, **options):
    delivery = Delivery(0, "standard", b"%d-0" % number, [b"task", b"pay", b"id", b"p%d" % number])
    return RefusedSettlement(
        delivery, what, [], refusals=1, why="NOPERM may not", code="NOPERM", where=where, **options
    )


def test_each_key_is_a_kind_and_has_its_end(lines, said):
    """A right that goes twice is named twice, and so is another key in between; keys of tasks are one family."""
    for key in ("queue:result:p1", "queue:dedup:k1", "queue:dedup:k2", "queue:standard:messages"):
        one = one_refused(1, f"in a script (EVALSHA) on {key}")
        lines.refused(one)
        lines.ended(one, AS_DECIDED)
        first, last = said()
        assert first.endswith("it is tried apart, everything else goes on")
        assert key in first
        assert last == (
            "the acknowledgement of pay p1 (standard, entry 1-0) is settled as it was decided, after 1 refusal; "
            f"no longer refused: NOPERM may not, in a script (EVALSHA) on {key}"
        )
    some = [one_refused(number, f"in a script (EVALSHA) on queue:result:p{number}") for number in range(50)]
    for one in some:
        lines.refused(one)
    assert len(said()) == 1
    assert len(lines._kinds) == 1


def test_a_thousand_are_a_line_each_for_refused_dead_left_and_over(lines, said):
    some = [one_refused(number, becomes="refused") for number in range(1000)]
    for one in some:
        lines.refused(one)
        lines.may_become_dead(one)
        lines.left(one)
    assert len(said()) == 3
    for number, one in enumerate(some):
        lines.ended(one, AS_DEAD_LETTER if number % 4 == 0 else AS_DECIDED)
    (last,) = said()
    assert "pay p0 (standard, entry 0-0) and 999 more like it have ended (as a dead letter: 250, as it was" in last
    assert repr(lines) == "<RefusalLines of 0 kinds>"
    assert not lines._kinds_of


def test_what_has_ended_as_a_dead_letter_may_be_refused_still(lines, said):
    one = one_refused(1)
    lines.refused(one)
    lines.ended(one, AS_DEAD_LETTER)
    last = said()[-1]
    assert "is settled as a dead letter, after 1 refusal; what was refused: NOPERM may not" in last


def test_what_goes_on_is_said_every_ten_minutes_with_a_count(lines, said, clock):
    for number in range(10):
        lines.refused(one_refused(number))
    lines.remind()
    assert len(said()) == 1
    clock.now = 601.0
    lines.remind()
    lines.remind()
    (again,) = said()
    assert "10 such settlements are refused still; 9 more such lines since the last one" in again


def test_what_comes_and_goes_does_not_fill_the_log(lines, said, clock):
    for number in range(1000):
        one = one_refused(number)
        lines.refused(one)
        lines.ended(one, AS_DECIDED)
    assert len(said()) == 2 * 5
    clock.now = 700.0
    lines.refused(one_refused(1))
    assert len(said()) == 1


def test_kinds_are_bounded(lines, said):
    """Beyond a hundred, what is refused counts as one kind: it still has a line."""
    for number in range(1000):
        lines.refused(one_refused(number, f"in a script on tier{number}"))
    assert len(said()) == len(lines._kinds) == 101
    assert len(lines._opened) <= 100


def test_an_end_without_a_settlement_claims_none(lines, said):
    one = one_refused(1, held=False, what="the release")
    lines.given_up(one, "its lease ends by itself")
    (line,) = said()
    assert line.endswith("its lease ends by itself")
    assert repr(lines) == "<RefusalLines of 0 kinds>"
