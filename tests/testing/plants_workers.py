"""Planted violations of P3 to P7: leases, stale settles, crash loops, time."""

from __future__ import annotations

from streamq.testing import Question
from tests.testing.builder import WINDOW
from tests.testing.planting import lost_to_w2, plant, set_limits, taken_over

# --- P3 --------------------------------------------------------------------------------------------


@plant(Question.LIVE)
def reclaimed_from_the_living(log):
    log.accepted("x")
    log.start("w1", "x")
    lost_to_w2(log)


@plant(Question.LIVE)
def reclaimed_as_stale_from_the_living(log):
    log.accepted("x")
    log.start("w1", "x")
    lost_to_w2(log, died=False)


@plant(Question.LIVE)
def reclaimed_and_not_even_started(log):
    log.accepted("x")
    log.start("w1", "x")
    log.reclaimed("w2", "x")
    log.effect("w1", "x")
    log.settled("w1", "x")


@plant(Question.LIVE)
def started_by_another(log):
    log.accepted("x")
    log.start("w1", "x")
    log.start("w2", "x")
    log.effect("w1", "x")
    log.settled("w1", "x")
    log.superseded("w2", "x")


@plant(Question.LIVE)
def started_again_by_itself(log):
    log.accepted("x")
    log.start("w1", "x")
    log.start("w1", "x")
    log.effect("w1", "x")
    log.settled("w1", "x")


@plant(Question.LIVE)
def reclaimed_long_after_it_thawed(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("frozen", "w1")
    log.wait(1)
    log.world("thawed", "w1")
    log.wait(WINDOW + 0.1)
    lost_to_w2(log)


@plant(Question.LIVE)
def reclaimed_long_after_the_server_was_back(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("down", "server")
    log.wait(1)
    log.world("back", "server")
    log.wait(WINDOW + 0.1)
    lost_to_w2(log)


@plant(Question.LIVE)
def reclaimed_while_a_third_is_frozen(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("frozen", "w3")
    lost_to_w2(log)
    log.world("thawed", "w3")


@plant(Question.LIVE)
def taken_within_the_grace_period(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("stop", "w1")
    log.wait(1)
    lost_to_w2(log)


@plant(Question.LIVE)
def reclaimed_after_it_was_settled(log):
    log.accepted("x")
    log.run("w1", "x")
    log.wait(1)
    log.reclaimed("w2", "x")
    log.start("w2", "x", starts=2)
    log.superseded("w2", "x")


@plant(Question.LIVE)
def started_after_it_was_dead(log):
    log.accepted("x")
    log.start("w1", "x")
    log.settled("w1", "x", "dead", reason="rejected")
    log.letter("x", "rejected")
    log.start("w2", "x", entry="999-0")


@plant(Question.LIVE)
def taken_from_who_took_over(log):
    taken_over(log)
    log.wait(WINDOW + 0.1)
    log.reclaimed("w3", "x")
    log.start("w3", "x")
    log.effect("w3", "x")
    log.settled("w3", "x")


@plant(Question.RECOVERY)
def recovered_too_late_from_the_dead(log):
    log.accepted("x")
    log.up("w9")
    log.start("w9", "x")
    log.world("died", "w9")
    log.wait(6.5)
    log.reclaimed("w1", "x")
    log.run("w1", "x", starts=2)


@plant(Question.LIVE)
def delivered_long_after_its_last_owner_settled_it_and_died(log):
    log.accepted("x")
    log.up("w9")
    log.run("w9", "x")
    log.world("frozen", "w9")
    log.world("died", "w9")
    log.wait(WINDOW + 0.1)
    log.start("w2", "x")
    log.superseded("w2", "x")


@plant(Question.LIVE)
def two_copies_run_by_one_worker(log):
    log.accepted("x")
    log.reclaimed("w1", "x")
    log.world("frozen", "w1")
    log.wait(4)
    log.reclaimed("w2", "x")
    log.world("thawed", "w1")
    log.wait(WINDOW + 0.1)
    log.reclaimed("w1", "x", died=False)
    log.start("w1", "x", starts=3)
    log.start("w1", "x", starts=3)
    log.effect("w1", "x")
    log.settled("w1", "x")


@plant(Question.RECOVERY)
def healed_after_its_death(log):
    log.accepted("x")
    log.up("w9")
    log.start("w9", "x")
    log.world("cut", "w9")
    log.world("died", "w9")
    log.world("healed", "w9")
    log.wait(6.5)
    log.reclaimed("w1", "x")
    log.run("w1", "x", starts=2)


@plant(Question.RECOVERY)
def thawed_but_still_cut_off(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("frozen", "w1")
    log.world("cut", "w1")
    log.world("thawed", "w1")
    log.wait(6.5)
    lost_to_w2(log)
    log.world("healed", "w1")


@plant(Question.RECOVERY)
def recovered_too_late_from_the_frozen(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("frozen", "w1")
    log.wait(6.5)
    lost_to_w2(log)
    log.world("thawed", "w1")


@plant(Question.RECOVERY)
def cut_off_and_taken_over_by_nobody(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("cut", "w1")
    log.wait(20)
    log.world("healed", "w1")
    log.effect("w1", "x")
    log.settled("w1", "x")


@plant(Question.RECOVERY)
def blocked_and_taken_over_by_nobody(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("blocked", "w1")
    log.wait(20)
    log.world("unblocked", "w1")
    log.effect("w1", "x")
    log.settled("w1", "x")


# --- P4 to P7 --------------------------------------------------------------------------------------


@plant(Question.STALE)
def a_stale_retry_that_counted(log):
    taken_over(log)
    log.wait(WINDOW)
    entry = log.entry("x")
    log.settled("w1", "x", "retry", attempt=1)
    log.superseded("w2", "x", entry=entry)
    log.run("w3", "x", attempt=2)


@plant(Question.STALE)
def a_stale_death_that_counted(log):
    taken_over(log)
    log.settled("w1", "x", "dead", reason="rejected")
    log.letter("x", "rejected")
    log.superseded("w2", "x")


@plant(Question.STALE)
def a_stale_postponement_that_counted(log):
    taken_over(log)
    log.settled("w1", "x", "postpone")
    log.run("w3", "x")


@plant(Question.STALE)
def a_death_by_who_never_had_it(log):
    log.accepted("x")
    log.start("w1", "x")
    log.settled("w2", "x", "dead", reason="rejected")
    log.letter("x", "rejected")
    log.superseded("w1", "x")


@plant(Question.INNOCENT)
def an_innocent_dead_of_a_crash_loop(log):
    log.accepted("x")
    log.settled("w1", "x", "dead", reason="crash_loop")
    log.letter("x", "crash_loop")


@plant(Question.INNOCENT)
def an_innocent_with_a_letter_nobody_confirmed(log):
    log.accepted("x")
    log.letter("x", "crash_loop")


@plant(Question.CRASHES)
def a_culprit_started_too_often(log):
    log.accepted("x", name="killer")
    for _ in range(4):
        log.up("w9")
        log.reclaimed("w9", "x")
        log.start("w9", "x")
        log.world("died", "w9")
    log.wait(5)
    log.reclaimed("w2", "x")
    log.settled("w2", "x", "dead", reason="crash_loop")
    log.letter("x", "crash_loop")


@plant(Question.RETRIES)
def one_retry_too_many(log):
    log.accepted("x", retries=1)
    for attempt in (1, 2):
        log.start("w1", "x", attempt=attempt)
        log.settled("w1", "x", "retry", attempt=attempt)
    log.settled("w1", "x", "dead", reason="rejected")
    log.letter("x", "rejected")


@plant(Question.RETRIES)
def one_attempt_too_many(log):
    log.accepted("x", retries=1)
    log.run("w1", "x", attempt=3)


@plant(Question.EARLY_DEATH)
def given_up_too_early(log):
    set_limits(log, dead_reasons=frozenset({"rejected", "retries_exhausted"}))
    log.accepted("x", retries=3)
    log.start("w1", "x")
    log.settled("w1", "x", "retry", attempt=1)
    log.start("w1", "x", attempt=2)
    log.settled("w1", "x", "dead", reason="retries_exhausted")
    log.letter("x", "retries_exhausted")


@plant(Question.EARLY)
def started_before_it_was_due(log):
    log.accepted("x", due=log.now + 2)
    log.wait(1.9)
    log.run("w1", "x")


@plant("worst wait, bulk")
def a_wait_that_was_too_long(log):
    log.accepted("x", "bulk")
    log.wait(10.1)
    log.run("w1", "x")


@plant("worst wait, bulk")
def a_delayed_task_that_was_too_late(log):
    log.accepted("x", "bulk", due=log.now + 30)
    log.wait(40.1)
    log.run("w1", "x")
