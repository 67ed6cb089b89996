"""Excuses: redeliveries with a reason, time that does not count."""

from __future__ import annotations

from tests.testing.builder import WINDOW
from tests.testing.planting import excused, lost_to_w2

# --- redelivered with a reason ---------------------------------------------------------------------


@excused
def the_worker_died(log):
    log.accepted("x")
    log.up("w9")
    log.start("w9", "x")
    log.world("died", "w9")
    log.wait(4)
    log.reclaimed("w2", "x")
    log.run("w2", "x", starts=2, crashes=1)


@excused
def the_worker_died_after_the_effect(log):
    log.accepted("x")
    log.up("w9")
    log.start("w9", "x")
    log.effect("w9", "x")
    log.world("died", "w9")
    log.wait(4)
    log.reclaimed("w2", "x")
    log.run("w2", "x", starts=2, crashes=1)


@excused
def the_worker_died_by_a_signal_and_came_back_under_its_name(log):
    log.accepted("x")
    log.up("w9")
    log.start("w9", "x")
    log.world("exit", "w9", code=-9)
    log.wait(1)
    log.up("w9")
    log.wait(WINDOW)
    log.reclaimed("w9", "x")
    log.run("w9", "x", starts=2, crashes=1)
    log.leave("w9")


@excused
def the_worker_was_replaced_and_nobody_said_that_it_died(log):
    log.accepted("x")
    log.up("w9")
    log.start("w9", "x")
    log.wait(4)
    log.up("w9")
    log.reclaimed("w2", "x")
    log.run("w2", "x", starts=2)
    log.leave("w9")


@excused
def it_died_with_a_retry_that_nobody_confirmed(log):
    log.accepted("x", retries=1)
    log.up("w9")
    log.start("w9", "x")
    log.world("died", "w9")
    log.run("w2", "x", entry=log.entry("x", new=True), attempt=2)


@excused
def one_of_two_disturbances_still_lasts(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("frozen", "w1")
    log.world("cut", "w1")
    log.world("thawed", "w1")
    log.wait(5)
    lost_to_w2(log)
    log.world("healed", "w1")


@excused
def it_was_released_when_its_time_was_over(log):
    log.accepted("x")
    log.up("w9")
    log.start("w9", "x")
    log.world("stop", "w9")
    log.wait(5)
    log.reclaimed("w2", "x", died=False)
    log.run("w2", "x", starts=2)
    log.world("exit", "w9", code=0)


@excused
def it_was_released_by_the_second_stop(log):
    log.accepted("x")
    log.up("w9")
    log.start("w9", "x")
    log.world("stop", "w9")
    log.world("stop", "w9")
    log.reclaimed("w2", "x", died=False)
    log.run("w2", "x", starts=2)
    log.world("exit", "w9", code=0)


@excused
def it_was_released_and_said_so(log):
    log.accepted("x")
    log.start("w1", "x")
    log.settled("w1", "x", "release")
    log.reclaimed("w2", "x", died=False)
    log.run("w2", "x", starts=2)


@excused
def its_worker_has_stopped(log):
    log.accepted("x")
    log.up("w9")
    log.start("w9", "x")
    log.leave("w9")
    log.reclaimed("w2", "x", died=False)
    log.run("w2", "x", starts=2)


@excused
def prefetched_only_and_handed_back(log):
    log.accepted("x")
    log.reclaimed("w1", "x")
    log.wait(1)
    log.reclaimed("w2", "x", died=False)
    log.run("w2", "x")


@excused
def taken_over_before_it_started_and_started_all_the_same(log):
    """What w1 has in its buffer it may start until it notices; w3 has it, and may take its time."""
    log.accepted("x")
    log.reclaimed("w1", "x")
    log.world("frozen", "w1")
    log.wait(4)
    log.reclaimed("w3", "x")
    log.world("thawed", "w1")
    log.wait(WINDOW - 0.1)
    log.start("w1", "x", starts=2)
    log.wait(0.5)
    log.start("w3", "x", starts=3)
    log.effect("w3", "x")
    log.settled("w3", "x")
    log.superseded("w1", "x")


@excused
def another_group_settled_its_own(log):
    log.accepted("x")
    log.settled("w1", "x", "skip")
    log.run("w1", "x")


# --- time ------------------------------------------------------------------------------------------


@excused
def recovery_does_not_count_while_the_server_is_down(log):
    log.accepted("x")
    log.up("w9")
    log.start("w9", "x")
    log.world("died", "w9")
    log.wait(3)
    log.world("down", "server")
    log.wait(60)
    log.world("back", "server")
    log.wait(2.9)
    log.reclaimed("w2", "x")
    log.run("w2", "x", starts=2)


@excused
def recovery_does_not_count_while_no_worker_is_well(log):
    log.accepted("x")
    log.up("w9")
    log.start("w9", "x")
    log.world("died", "w9")
    log.world("frozen", "w1", "w2", "w3")
    log.wait(60)
    log.world("thawed", "w1", "w2", "w3")
    log.wait(5)
    log.reclaimed("w2", "x")
    log.run("w2", "x", starts=2)


@excused
def a_long_task_that_was_frozen_for_a_moment(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("frozen", "w1")
    log.wait(1)
    log.world("thawed", "w1")
    log.wait(3600)
    log.effect("w1", "x")
    log.settled("w1", "x")


@excused
def a_delayed_task_waits_from_when_it_is_due(log):
    log.accepted("x", "bulk", due=log.now + 30)
    log.wait(31)
    log.run("w1", "x")


@excused
def who_has_lost_it_may_be_frozen_for_as_long_as_it_likes(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("frozen", "w1")
    log.wait(4)
    log.reclaimed("w2", "x")
    log.start("w2", "x", starts=2)
    log.world("thawed", "w1")
    log.world("frozen", "w1")
    log.wait(60)
    log.world("thawed", "w1")
    log.superseded("w1", "x")
    log.effect("w2", "x")
    log.settled("w2", "x")


@excused
def recovered_in_two_hands(log):
    """Each that dies has its own time."""
    log.accepted("x")
    for _ in range(3):
        log.up("w9")
        log.reclaimed("w9", "x")
        log.start("w9", "x")
        log.world("died", "w9")
        log.wait(5)
    log.reclaimed("w2", "x")
    log.run("w2", "x", starts=4)


@excused
def a_stop_that_waits_for_the_server(log):
    log.up("w9")
    log.world("down", "server")
    log.world("stop", "w9")
    log.wait(20)
    log.world("back", "server")
    log.wait(5)
    log.world("exit", "w9", code=0)


@excused
def killed_while_it_stopped(log):
    log.up("w9")
    log.world("stop", "w9")
    log.world("died", "w9")
    log.world("exit", "w9", code=-9)


@excused
def a_burst_that_is_over(log):
    log.up("w9")
    log.add("stopping", who="w9")
    log.add("stopped", who="w9")
    log.world("exit", "w9", code=0)
