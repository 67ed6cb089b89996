"""Excuses: late settlements and late records."""

from __future__ import annotations

from tests.testing.builder import WINDOW
from tests.testing.planting import excused


@excused
def a_stale_success_that_counts_once(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("frozen", "w1")
    log.wait(4)
    log.reclaimed("w2", "x")
    log.start("w2", "x", starts=2)
    log.world("thawed", "w1")
    log.effect("w1", "x")
    log.settled("w1", "x")
    log.effect("w2", "x")
    log.superseded("w2", "x")


@excused
def a_stale_success_before_the_other_starts(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("frozen", "w1")
    log.wait(4)
    log.world("thawed", "w1")
    log.reclaimed("w2", "x")
    log.effect("w1", "x")
    log.settled("w1", "x")
    log.start("w2", "x", starts=2)
    log.effect("w2", "x")
    log.superseded("w2", "x")


@excused
def a_stale_success_before_the_other_says_that_it_took_over(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("frozen", "w1")
    log.wait(4)
    log.world("thawed", "w1")
    log.effect("w1", "x")
    log.settled("w1", "x")
    lost_to_w2_late(log)


def lost_to_w2_late(log):
    log.reclaimed("w2", "x")
    log.start("w2", "x", starts=2)
    log.effect("w2", "x")
    log.superseded("w2", "x")


@excused
def a_stale_success_of_one_that_died_right_after(log):
    log.accepted("x")
    log.up("w9")
    log.start("w9", "x")
    log.effect("w9", "x")
    log.world("cut", "w9")
    log.wait(4)
    log.settled("w9", "x")
    log.world("died", "w9")
    log.reclaimed("w2", "x")
    log.start("w2", "x", starts=2)
    log.superseded("w2", "x")


@excused
def late_superseded_acks(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("cut", "w1")
    log.effect("w1", "x")
    log.wait(4)
    log.reclaimed("w2", "x")
    log.run("w2", "x", starts=2)
    log.world("healed", "w1")
    log.superseded("w1", "x")


@excused
def it_got_it_back_and_had_it_retried(log):
    log.accepted("x", retries=2)
    log.start("w1", "x")
    log.world("frozen", "w1")
    log.wait(4)
    log.reclaimed("w2", "x")
    log.start("w2", "x", starts=2)
    log.world("thawed", "w1")
    log.wait(WINDOW)
    log.world("frozen", "w2")
    log.wait(4)
    log.reclaimed("w1", "x")
    log.start("w1", "x", starts=3)
    log.settled("w1", "x", "retry", attempt=1)
    log.world("thawed", "w2")
    log.superseded("w2", "x", entry="0-0")
    log.run("w3", "x", attempt=2)


@excused
def a_retry_that_starts_before_its_line_is_written(log):
    log.accepted("x", retries=2)
    log.start("w1", "x")
    first = log.entry("x")
    log.start("w2", "x", entry=log.entry("x", new=True), attempt=2)
    log.settled("w1", "x", "retry", entry=first, attempt=1)
    log.entry("x", new=True)
    log.settled("w2", "x", "retry", entry="13-0", attempt=2)
    log.run("w1", "x", attempt=3)


@excused
def a_retry_that_has_ended_before_its_line_is_written(log):
    log.accepted("x", retries=2)
    log.start("w1", "x")
    first = log.entry("x")
    log.run("w2", "x", entry=log.entry("x", new=True), attempt=2)
    log.settled("w1", "x", "retry", entry=first, attempt=1)


@excused
def a_task_that_has_ended_before_its_sender_says_so(log):
    log.run("w1", "x")
    log.accepted("x", retries=2)


@excused
def a_task_that_has_started_before_its_sender_says_so(log):
    log.start("w1", "x")
    log.accepted("x", retries=2)
    log.effect("w1", "x")
    log.settled("w1", "x")


@excused
def what_a_thawed_process_still_had_to_say(log):
    """w2 took over, was frozen before it could say so, and meanwhile w3 took over from it."""
    log.accepted("x", retries=3)
    log.up("w9")
    log.start("w9", "x")
    log.world("died", "w9")
    log.world("frozen", "w2")
    log.wait(5)
    log.reclaimed("w3", "x")
    log.start("w3", "x", starts=3)
    log.world("thawed", "w2")
    log.reclaimed("w2", "x")
    log.start("w2", "x", starts=2)
    log.settled("w3", "x", "retry", attempt=1)
    log.superseded("w2", "x", entry="13-0")
    log.run("w1", "x", attempt=2)


@excused
def a_death_whose_confirmation_was_lost(log):
    log.accepted("x")
    log.start("w1", "x")
    log.letter("x", "rejected")


@excused
def an_ack_whose_confirmation_was_lost(log):
    log.accepted("x")
    log.start("w1", "x")
    log.effect("w1", "x")
