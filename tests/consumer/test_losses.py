"""The lines about streams and groups that were gone: each loss has one, and a flood of them has a bound."""

from __future__ import annotations

import pytest

from streamq.consumer.losses import MOST_SAID, WITHIN, Losses


class At:
    """A clock that stands at `now` seconds."""

    now = 0.0

    def elapsed(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return At()


@pytest.fixture
def losses(clock):
    return Losses("w1", clock)


def events(caplog):
    return [record.event for record in caplog.records]


def test_each_loss_has_its_line_whatever_was_lost_before(losses, clock, caplog):
    """Three within 15 seconds are three lines, of both kinds."""
    for at, (streams, groups) in enumerate([(["a"], []), ([], ["a"]), (["a"], [])]):
        clock.now = at * 7.0
        losses.note(streams, groups)
    assert events(caplog) == ["server_emptied", "group_restored", "server_emptied"]


def test_nothing_lost_is_no_line(losses, caplog):
    losses.note([], [])
    assert not caplog.records


def test_a_flood_is_counted_and_the_next_line_has_the_count(losses, clock, caplog):
    for _ in range(MOST_SAID + 3):
        losses.note([], ["a"])
    assert len(caplog.records) == MOST_SAID
    clock.now += WITHIN
    losses.note(["a"], [])
    losses.note(["a"], [])
    (more,) = [text for text in caplog.messages if "more such losses" in text]
    assert len(caplog.records) == MOST_SAID + 2
    assert "(3 more such losses since the last line)" in more


def test_a_stream_that_was_filled_again_is_named_beside_those_that_were_gone(losses, caplog):
    """FLUSHALL, and a producer sends at once: what was lost is that of the stream which is there again."""
    losses.note(["queue:critical", "queue:bulk"], ["queue:standard"])
    (text,) = caplog.messages
    assert "streams were gone (queue:critical, queue:bulk), and so was the consumer group of queue:standard" in text
    assert "queue:standard was either gone too, and filled again since (then what waited there before is lost)" in text
